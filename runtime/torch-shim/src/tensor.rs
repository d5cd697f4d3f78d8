//! Tensors over memory that Rust owns, and host memory that tensors own.
//!
//! The way in without a copy is [`tensor_from_bytes`], the way out [`HostTensor`], which is a byte slice that keeps its tensor
//! alive. Invariant: memory handed to libtorch is released exactly once, after the last alias is gone.

use std::{ffi::c_void, ptr};

use bytes::Bytes;
use tch::{Device, Tensor};

use crate::{TorchError, check, device_index, ffi};

/// Element type by libtorch's number (`c10::ScalarType`). tch's `Kind` lacks the wider unsigned ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalarType(pub i32);

/// The number of bytes of `shape` elements of `size` bytes, if that can be counted.
fn size_of(shape: &[i64], size: usize) -> Option<usize> {
    shape.iter().try_fold(size, |product, dim| product.checked_mul(usize::try_from(*dim).ok()?))
}

extern "C" fn release_bytes(context: *mut c_void) {
    // SAFETY: `context` is the box that `tensor_from_bytes` leaked, and libtorch calls this once.
    drop(unsafe { Box::from_raw(context.cast::<Bytes>()) });
}

/// A CPU tensor over `data` without a copy; `element_size` is the bytes of one element of `scalar_type`.
///
/// The tensor must not be written to (see `Method::mutates_inputs`): other holders of the same `Bytes` would see it.
/// Errors: `Argument` when `data` is not as long as `shape` says or not aligned to `element_size`.
pub fn tensor_from_bytes(
    data: Bytes,
    shape: &[i64],
    scalar_type: ScalarType,
    element_size: usize,
) -> Result<Tensor, TorchError> {
    if size_of(shape, element_size) != Some(data.len()) {
        return Err(TorchError::argument(format!("{} bytes do not make a tensor of shape {shape:?}", data.len())));
    }
    if data.as_ptr().align_offset(element_size.max(1)) != 0 {
        return Err(TorchError::argument("the data is not aligned to its element size"));
    }
    let context = Box::new(data);
    let memory: *mut c_void = context.as_ptr().cast_mut().cast();
    let context: *mut c_void = Box::into_raw(context).cast();
    let mut out = ptr::null_mut();
    // SAFETY: the memory is as long as shape and element size say and lives in the box, which the shim gives back to
    // `release_bytes` once, whether or not the call succeeds. On success `out` is an at::Tensor that tch then owns.
    unsafe {
        check(|error| {
            let (shape, rank) = (shape.as_ptr(), shape.len());
            ffi::shim_tensor_from_blob(memory, shape, rank, scalar_type.0, release_bytes, context, &raw mut out, error)
        })?;
        Ok(Tensor::from_ptr(out.cast()))
    }
}

/// A new contiguous CPU tensor whose memory is filled part by part before it becomes a [`Tensor`].
#[derive(Debug)]
pub struct TensorBuffer {
    tensor: Tensor,
    filled: usize,
    size: usize,
}

impl TensorBuffer {
    /// Memory for `shape` elements of `scalar_type`. Errors: `OutOfMemory`, `Argument`.
    pub fn new(shape: &[i64], scalar_type: ScalarType) -> Result<Self, TorchError> {
        let mut out = ptr::null_mut();
        // SAFETY: shape is valid for the call; on success `out` is an at::Tensor that tch then owns.
        let tensor = unsafe {
            check(|error| ffi::shim_tensor_empty(shape.as_ptr(), shape.len(), scalar_type.0, &raw mut out, error))?;
            Tensor::from_ptr(out.cast())
        };
        let size = view(&tensor)?.size_bytes;
        Ok(Self { tensor, filled: 0, size })
    }

    /// Copies `part` behind what is there. Errors: `Argument` when it does not fit.
    pub fn push(&mut self, part: &[u8]) -> Result<(), TorchError> {
        if self.size - self.filled < part.len() {
            return Err(TorchError::argument("more bytes than the tensor has room for"));
        }
        if !part.is_empty() {
            let memory: *mut u8 = view(&self.tensor)?.data.cast();
            // SAFETY: the tensor is contiguous CPU memory of `size` bytes that nobody else holds, and `filled + part.len()` is
            // within it, as just checked.
            unsafe { ptr::copy_nonoverlapping(part.as_ptr(), memory.add(self.filled), part.len()) };
        }
        self.filled += part.len();
        Ok(())
    }

    /// The tensor, once all of it is filled. Errors: `Argument` when it is not.
    pub fn finish(self) -> Result<Tensor, TorchError> {
        if self.filled == self.size {
            Ok(self.tensor)
        } else {
            Err(TorchError::argument(format!("the tensor takes {} bytes, got {}", self.size, self.filled)))
        }
    }
}

/// Contiguous host memory of a tensor, as bytes. Becomes [`Bytes`] through `Bytes::from_owner` without a copy.
#[derive(Debug)]
pub struct HostTensor {
    tensor: Tensor,
    shape: Vec<i64>,
    scalar_type: ScalarType,
    data: *const u8,
    size: usize,
}

// SAFETY: the tensor is `Send`, and the pointer points into memory that it owns.
unsafe impl Send for HostTensor {}
// SAFETY: a shared `HostTensor` gives out `&[u8]` and plain values alone; nothing reaches the tensor itself.
unsafe impl Sync for HostTensor {}

impl HostTensor {
    /// Its dimensions.
    #[must_use]
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Its element type.
    #[must_use]
    pub fn scalar_type(&self) -> ScalarType {
        self.scalar_type
    }
}

impl AsRef<[u8]> for HostTensor {
    fn as_ref(&self) -> &[u8] {
        debug_assert!(self.tensor.defined());
        if self.size == 0 {
            return &[];
        }
        // SAFETY: `data` is contiguous CPU memory of `size` bytes that lives as long as the tensor, and nothing writes to it:
        // the caller of `tensor_to_host` asked for a copy where the model could.
        unsafe { std::slice::from_raw_parts(self.data, self.size) }
    }
}

/// The tensor's values in contiguous host memory. With `copy` the memory is its own even where the tensor already was
/// contiguous on the host: needed for a model that may write to what it returned.
pub fn tensor_to_host(tensor: &Tensor, copy: bool) -> Result<HostTensor, TorchError> {
    let mut out = ptr::null_mut();
    // SAFETY: the tensor is alive for the call; on success `out` is an at::Tensor that tch then owns.
    let tensor = unsafe {
        check(|error| ffi::shim_tensor_to_host(tensor.as_ptr().cast(), i32::from(copy), &raw mut out, error))?;
        Tensor::from_ptr(out.cast())
    };
    let view = view(&tensor)?;
    let shape = if view.rank == 0 {
        Vec::new()
    } else {
        // SAFETY: the shape is `rank` numbers that live as long as the tensor and are copied at once.
        unsafe { std::slice::from_raw_parts(view.shape, view.rank) }.to_vec()
    };
    let scalar_type = ScalarType(view.scalar_type);
    Ok(HostTensor { shape, scalar_type, data: view.data.cast_const().cast(), size: view.size_bytes, tensor })
}

/// The tensor's values on `device`.
pub fn tensor_to_device(tensor: &Tensor, device: Device) -> Result<Tensor, TorchError> {
    let mut out = ptr::null_mut();
    // SAFETY: the tensor is alive for the call; on success `out` is an at::Tensor that tch then owns.
    unsafe {
        check(|error| ffi::shim_tensor_to_device(tensor.as_ptr().cast(), device_index(device), &raw mut out, error))?;
        Ok(Tensor::from_ptr(out.cast()))
    }
}

/// Its element type, memory and size; for strided tensors.
fn view(tensor: &Tensor) -> Result<ffi::ShimTensorView, TorchError> {
    let mut view =
        ffi::ShimTensorView { scalar_type: 0, shape: ptr::null(), rank: 0, size_bytes: 0, data: ptr::null_mut() };
    // SAFETY: the tensor is alive for the call, and the view is ours to fill.
    unsafe { check(|error| ffi::shim_tensor_view(tensor.as_ptr().cast(), &raw mut view, error))? };
    Ok(view)
}
