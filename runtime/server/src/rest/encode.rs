//! From an [`InferResponse`] to the JSON and the binary tensors of a REST answer.
//!
//! Called by `rest::infer`. Elements are formatted straight into the text, which is made in pieces of pooled memory; binary tensors
//! are handed on as they are, without a copy. Invariants: the text is what Triton's clients read, key order included; all of it is
//! reserved until it has been sent.

use std::io::{self, Write};

use bytes::Bytes;
use half::{bf16, f16};
use serde::Serialize;
use torchmodel_core::{
    inference::{InferError, InferResponse, NamedTensor, Parameter, Parameters},
    slab::SlabMut,
    tensor::{DataType, DataTypeExt, Tensor},
};

use super::decode::OutputForm;
use crate::{
    admission::{AdmissionError, Reservation},
    reserved::hold,
};

/// The largest piece of text.
const MAX_PIECE_BYTES: usize = 1 << 20;
/// What the text around the elements is taken for at first: names, keys, shapes.
const HEAD_BYTES: usize = 256;

/// An answer's body in pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    /// The JSON part, then the binary tensors in the order of the outputs; none are empty.
    pub(super) pieces: Vec<Bytes>,
    /// Length of the JSON part.
    pub(super) json_bytes: usize,
    /// Whether binary tensors follow it.
    pub(super) is_binary: bool,
}

/// Encodes `response` in the form that the request asked for. What text and tensors take is added to `reservation` and leaves
/// it with the pieces.
///
/// A BYTES output with an element that is not UTF-8 has no JSON form; the request is refused with the advice to ask for binary data.
pub(super) fn encode(
    response: InferResponse,
    form: &OutputForm,
    reservation: &mut Reservation,
) -> Result<Encoded, InferError> {
    let mut out = JsonText::new(text_bound(&response, form), reservation)?;
    out.put(b"{")?;
    if !response.id.is_empty() {
        out.member("id", &response.id)?;
        out.put(b",")?;
    }
    out.member("model_name", response.model.as_str())?;
    out.put(b",")?;
    out.member("model_version", &response.version.to_string())?;
    if !response.parameters.is_empty() {
        out.put(b",\"parameters\":")?;
        write_parameters(&mut out, &response.parameters)?;
    }
    out.put(b",\"outputs\":[")?;
    let mut tensors = Vec::new();
    for (position, output) in response.outputs.into_iter().enumerate() {
        if position > 0 {
            out.put(b",")?;
        }
        write_output(&mut out, &output, form)?;
        if is_binary(&output.name, form) {
            let (_, _, data) = output.tensor.into_parts();
            tensors.extend((!data.is_empty()).then_some(data));
        }
    }
    out.put(b"]}")?;
    let (mut pieces, json_bytes) = out.finish();
    let is_binary = !tensors.is_empty();
    if let Some(last) = tensors.pop() {
        let bytes = tensors.iter().map(Bytes::len).sum::<usize>().saturating_add(last.len());
        reservation.grow_within(bytes)?;
        // They are sent in their order, so that all is held until the last is gone.
        tensors.push(hold(last, reservation.split(bytes)));
    }
    pieces.append(&mut tensors);
    Ok(Encoded { pieces, json_bytes, is_binary })
}

/// Bytes that the elements take as JSON at most, and about what the rest takes: how long encoding will take, too.
pub(super) fn text_bound(response: &InferResponse, form: &OutputForm) -> usize {
    let outputs = response.outputs.iter().map(|output| {
        let bytes = output.tensor.data().len();
        match output.tensor.datatype() {
            _ if is_binary(&output.name, form) => 0,
            // Quotes and a comma for its length; escapes are rare.
            DataType::Bytes => bytes,
            datatype => {
                let elements = bytes / datatype.size_bytes().unwrap_or(1);
                elements.saturating_mul(element_bound(datatype))
            }
        }
    });
    outputs.fold(HEAD_BYTES, |sum, bytes| sum.saturating_add(HEAD_BYTES / 2).saturating_add(bytes))
}

/// The most characters of an element, its comma included.
const fn element_bound(datatype: DataType) -> usize {
    match datatype {
        DataType::Uint8 => 4,
        DataType::Int8 => 5,
        DataType::Bool | DataType::Uint16 => 6,
        DataType::Int16 => 7,
        DataType::Uint32 => 11,
        DataType::Int32 => 12,
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 => 16,
        DataType::Uint64 | DataType::Int64 => 21,
        DataType::Fp64 | DataType::Bytes => 25,
    }
}

fn is_binary(name: &str, form: &OutputForm) -> bool {
    form.binary_by_name.get(name).copied().unwrap_or(form.binary_by_default)
}

fn write_output(out: &mut JsonText<'_>, output: &NamedTensor, form: &OutputForm) -> Result<(), InferError> {
    let tensor = &output.tensor;
    out.put(b"{")?;
    out.member("name", &output.name)?;
    out.put(b",")?;
    out.member("datatype", tensor.datatype().as_str())?;
    out.put(b",")?;
    out.member("shape", tensor.shape())?;
    if is_binary(&output.name, form) {
        out.put(b",\"parameters\":{")?;
        out.member("binary_data_size", &tensor.data().len())?;
        out.put(b"}}")?;
    } else {
        out.put(b",\"data\":[")?;
        write_data(out, &output.name, tensor, form.is_strict_json)?;
        out.put(b"]}")?;
    }
    Ok(())
}

fn write_parameters(out: &mut JsonText<'_>, parameters: &Parameters) -> Result<(), InferError> {
    let mut separator: &[u8] = b"{";
    for (name, value) in parameters {
        out.put(separator)?;
        separator = b",";
        match value {
            Parameter::Bool(value) => out.member(name, value),
            Parameter::Int64(value) => out.member(name, value),
            Parameter::Uint64(value) => out.member(name, value),
            Parameter::Double(value) => out.member(name, value),
            Parameter::String(value) => out.member(name, value),
        }?;
    }
    Ok(out.put(b"}")?)
}

fn write_data(out: &mut JsonText<'_>, name: &str, tensor: &Tensor, is_strict: bool) -> Result<(), InferError> {
    let (data, datatype) = (tensor.data(), tensor.datatype());
    let bound = element_bound(datatype);
    let mut scratch = Scratch { int: itoa::Buffer::new(), float: zmij::Buffer::new(), is_strict };
    let text = &mut scratch;
    match datatype {
        DataType::Bool => out.elements(data, bound, text, |_, [byte]| if byte == 0 { "false" } else { "true" }),
        DataType::Uint8 => out.elements(data, bound, text, |text, [byte]| text.int.format(byte)),
        DataType::Uint16 => out.elements(data, bound, text, |text, bytes| text.int.format(u16::from_le_bytes(bytes))),
        DataType::Uint32 => out.elements(data, bound, text, |text, bytes| text.int.format(u32::from_le_bytes(bytes))),
        DataType::Uint64 => out.elements(data, bound, text, |text, bytes| text.int.format(u64::from_le_bytes(bytes))),
        DataType::Int8 => out.elements(data, bound, text, |text, bytes| text.int.format(i8::from_le_bytes(bytes))),
        DataType::Int16 => out.elements(data, bound, text, |text, bytes| text.int.format(i16::from_le_bytes(bytes))),
        DataType::Int32 => out.elements(data, bound, text, |text, bytes| text.int.format(i32::from_le_bytes(bytes))),
        DataType::Int64 => out.elements(data, bound, text, |text, bytes| text.int.format(i64::from_le_bytes(bytes))),
        DataType::Fp16 => out.elements(data, bound, text, |text, bytes| text.single(f16::from_le_bytes(bytes).into())),
        DataType::Bf16 => out.elements(data, bound, text, |text, bytes| text.single(bf16::from_le_bytes(bytes).into())),
        DataType::Fp32 => out.elements(data, bound, text, |text, bytes| text.single(f32::from_le_bytes(bytes))),
        DataType::Fp64 => out.elements(data, bound, text, |text, bytes| text.double(f64::from_le_bytes(bytes))),
        DataType::Bytes => return write_strings(out, name, tensor),
    }?;
    Ok(())
}

/// Where one element is formatted: numbers as the shortest text that reads back as the same.
struct Scratch {
    int: itoa::Buffer,
    float: zmij::Buffer,
    is_strict: bool,
}

impl Scratch {
    #[inline]
    fn single(&mut self, value: f32) -> &str {
        if value.is_finite() { self.float.format_finite(value) } else { self.not_finite(value.into()) }
    }

    #[inline]
    fn double(&mut self, value: f64) -> &str {
        if value.is_finite() { self.float.format_finite(value) } else { self.not_finite(value) }
    }

    /// The tokens that Python's and Triton's readers take, or `null` for readers that know JSON only.
    fn not_finite(&self, value: f64) -> &'static str {
        match value {
            _ if self.is_strict => "null",
            _ if value.is_nan() => "NaN",
            _ if value > 0.0 => "Infinity",
            _ => "-Infinity",
        }
    }
}

fn write_strings(out: &mut JsonText<'_>, name: &str, tensor: &Tensor) -> Result<(), InferError> {
    for (position, element) in tensor.bytes_elements().enumerate() {
        if position > 0 {
            out.put(b",")?;
        }
        let text = element.ok().and_then(|element| std::str::from_utf8(element).ok()).ok_or_else(|| {
            InferError::InvalidRequest(format!(
                "element {position} of output '{name}' is not UTF-8 text, which JSON cannot say. Please use the binary data \
                 format for output {name}"
            ))
        })?;
        out.json(text)?;
    }
    Ok(())
}

/// JSON text that is being written, in pieces of pooled memory, each reserved when it is taken.
struct JsonText<'r> {
    reservation: &'r mut Reservation,
    pieces: Vec<Bytes>,
    slab: SlabMut,
    /// Bytes reserved for the slab.
    capacity: usize,
    /// Bytes of the finished pieces.
    length: usize,
}

impl<'r> JsonText<'r> {
    fn new(bound: usize, reservation: &'r mut Reservation) -> Result<Self, AdmissionError> {
        let capacity = bound.clamp(HEAD_BYTES, MAX_PIECE_BYTES);
        reservation.grow_within(capacity)?;
        let slab = reservation.admission().pool().take(capacity);
        Ok(Self { reservation, pieces: Vec::new(), slab, capacity, length: 0 })
    }

    fn next_piece(&mut self) -> Result<(), AdmissionError> {
        self.reservation.grow_within(MAX_PIECE_BYTES)?;
        let next = self.reservation.admission().pool().take(MAX_PIECE_BYTES);
        self.end_piece(next, MAX_PIECE_BYTES);
        Ok(())
    }

    fn end_piece(&mut self, next: SlabMut, capacity: usize) {
        let slab = std::mem::replace(&mut self.slab, next);
        let held = self.reservation.split(std::mem::replace(&mut self.capacity, capacity));
        self.length += slab.len();
        if !slab.is_empty() {
            self.pieces.push(slab.freeze(held));
        }
    }

    fn finish(mut self) -> (Vec<Bytes>, usize) {
        let nothing = self.reservation.admission().pool().take(0);
        self.end_piece(nothing, 0);
        (self.pieces, self.length)
    }

    fn put(&mut self, mut text: &[u8]) -> Result<(), AdmissionError> {
        loop {
            let count = self.slab.append(text);
            text = text.get(count..).unwrap_or_default();
            if text.is_empty() {
                return Ok(());
            }
            self.next_piece()?;
        }
    }

    fn json(&mut self, value: &(impl Serialize + ?Sized)) -> Result<(), InferError> {
        let mut writer = Writer { out: self, error: None };
        let result = serde_json::to_writer(&mut writer, value);
        match (result, writer.error) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(error)) => Err(error.into()),
            (Err(error), None) => Err(InferError::Internal(format!("the answer could not be written: {error}"))),
        }
    }

    fn member(&mut self, key: &str, value: &(impl Serialize + ?Sized)) -> Result<(), InferError> {
        self.json(key)?;
        self.put(b":")?;
        self.json(value)
    }

    /// Writes each element of `N` bytes as what `format` gives, of at most `bound` bytes with its comma, with commas between.
    fn elements<const N: usize>(
        &mut self,
        data: &[u8],
        bound: usize,
        scratch: &mut Scratch,
        format: impl Fn(&mut Scratch, [u8; N]) -> &str,
    ) -> Result<(), AdmissionError> {
        let (mut elements, _) = data.as_chunks::<N>();
        while !elements.is_empty() {
            if self.slab.remaining() < bound {
                self.next_piece()?;
            }
            let spare = self.slab.spare_mut();
            let (now, later) = elements.split_at(elements.len().min(spare.len() / bound));
            let mut length = 0;
            for element in now {
                let text = format(scratch, *element).as_bytes();
                let end = length + text.len();
                if let Some([place @ .., comma]) = spare.get_mut(length..=end) {
                    place.copy_from_slice(text);
                    *comma = b',';
                }
                length = end + 1;
            }
            elements = later;
            self.slab.advance(length - usize::from(elements.is_empty()));
        }
        Ok(())
    }
}

/// Writes what serde makes of a value.
struct Writer<'w, 'r> {
    out: &'w mut JsonText<'r>,
    error: Option<AdmissionError>,
}

impl Write for Writer<'_, '_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.error = self.out.put(text).err();
        if self.error.is_none() { Ok(text.len()) } else { Err(io::Error::other("refused")) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
