//! Arguments and results of a method call.

use std::{
    ffi::{CStr, c_void},
    ptr,
};

use tch::Tensor;

use crate::ffi::{self, ShimArgument, ShimBytes, ShimOutputs};

/// One argument of a call.
#[derive(Debug)]
pub enum Argument {
    /// Left out: the schema's default, or `None` for an optional one.
    Default,
    /// `None`.
    None,
    /// `Tensor`.
    Tensor(Tensor),
    /// `int`.
    Int(i64),
    /// `float`.
    Double(f64),
    /// `bool`.
    Bool(bool),
    /// `str`; any bytes, NUL included.
    Str(Vec<u8>),
    /// `List[str]`.
    StrList(Vec<Vec<u8>>),
    /// `List[int]`.
    IntList(Vec<i64>),
    /// `List[float]`.
    DoubleList(Vec<f64>),
}

/// One leaf of what a method returned.
#[derive(Debug)]
pub struct Output {
    /// Where it stood: empty for the value itself, `1.key` inside a tuple of dicts.
    pub path: String,
    /// The leaf.
    pub value: OutputValue,
}

/// The kinds of leaves; numbers come as tensors of one element.
#[derive(Debug)]
pub enum OutputValue {
    /// A tensor on whatever device the method left it.
    Tensor(Tensor),
    /// A `str` or `List[str]`.
    Strings(Vec<Vec<u8>>),
}

/// Arguments in the form of the C interface. Borrows from them: the views must not outlive the slice they were made of.
pub(crate) struct ArgumentViews<'a> {
    pub arguments: Vec<ShimArgument>,
    _strings: Vec<Box<[ShimBytes]>>,
    _borrowed: &'a [Argument],
}

impl<'a> ArgumentViews<'a> {
    pub fn new(arguments: &'a [Argument]) -> Self {
        let mut strings: Vec<Box<[ShimBytes]>> = Vec::new();
        let views = arguments
            .iter()
            .map(|argument| {
                let mut view = ShimArgument {
                    tag: ffi::DEFAULT,
                    integer: 0,
                    number: 0.0,
                    tensor: ptr::null_mut(),
                    items: ptr::null(),
                    count: 0,
                };
                let mut point_at = |bytes: Vec<ShimBytes>| {
                    let bytes = bytes.into_boxed_slice();
                    let at: *const c_void = bytes.as_ptr().cast();
                    // The box's heap memory stays where it is when the box moves into the vector.
                    strings.push(bytes);
                    at
                };
                match argument {
                    Argument::Default => {}
                    Argument::None => view.tag = ffi::NONE,
                    Argument::Tensor(tensor) => {
                        view.tag = ffi::TENSOR;
                        view.tensor = tensor.as_ptr().cast_mut().cast();
                    }
                    Argument::Int(value) => (view.tag, view.integer) = (ffi::INT, *value),
                    Argument::Double(value) => (view.tag, view.number) = (ffi::DOUBLE, *value),
                    Argument::Bool(value) => (view.tag, view.integer) = (ffi::BOOL, i64::from(*value)),
                    Argument::Str(text) => {
                        view.tag = ffi::STRING;
                        view.items = point_at(vec![bytes_of(text)]);
                    }
                    Argument::StrList(texts) => {
                        (view.tag, view.count) = (ffi::STRING_LIST, texts.len());
                        view.items = point_at(texts.iter().map(|text| bytes_of(text)).collect());
                    }
                    Argument::IntList(values) => {
                        (view.tag, view.count) = (ffi::INT_LIST, values.len());
                        view.items = values.as_ptr().cast();
                    }
                    Argument::DoubleList(values) => {
                        (view.tag, view.count) = (ffi::DOUBLE_LIST, values.len());
                        view.items = values.as_ptr().cast();
                    }
                }
                view
            })
            .collect();
        Self { arguments: views, _strings: strings, _borrowed: arguments }
    }
}

fn bytes_of(text: &[u8]) -> ShimBytes {
    ShimBytes { data: text.as_ptr(), size: text.len() }
}

/// Takes everything out of `outputs` and frees it.
///
/// # Safety
/// `outputs` must be a handle that `shim_module_run` gave, used nowhere else.
pub(crate) unsafe fn take_outputs(outputs: *mut ShimOutputs) -> Vec<Output> {
    // SAFETY: every index is below the count that the shim itself reports; a taken tensor is an at::Tensor on the heap that
    // tch frees as it frees its own; strings are copied before the handle goes.
    unsafe {
        let items = (0..ffi::shim_outputs_count(outputs))
            .map(|index| {
                let path = CStr::from_ptr(ffi::shim_outputs_path(outputs, index)).to_string_lossy().into_owned();
                let value = if ffi::shim_outputs_tag(outputs, index) == ffi::TENSOR {
                    OutputValue::Tensor(Tensor::from_ptr(ffi::shim_outputs_take_tensor(outputs, index).cast()))
                } else {
                    let count = ffi::shim_outputs_string_count(outputs, index);
                    let strings = (0..count).map(|item| {
                        let bytes = ffi::shim_outputs_string(outputs, index, item);
                        if bytes.size == 0 {
                            Vec::new()
                        } else {
                            std::slice::from_raw_parts(bytes.data, bytes.size).to_vec()
                        }
                    });
                    OutputValue::Strings(strings.collect())
                };
                Output { path, value }
            })
            .collect();
        ffi::shim_outputs_free(outputs);
        items
    }
}
