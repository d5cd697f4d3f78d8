//! From an [`InferResponse`] to the JSON and the binary tensors of a REST answer.
//!
//! Called by `rest::infer`. Elements are formatted straight into the JSON text; binary tensors are handed on as they are,
//! without a copy. Invariant: the text is what Triton's clients read, key order included.

use std::io::Write;

use bytes::Bytes;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};
use torchmodel_core::{
    inference::{InferError, InferResponse, NamedTensor, Parameter, Parameters},
    tensor::{DataType, DataTypeExt, Tensor},
};

use super::decode::OutputForm;

/// An answer's body in pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    /// The JSON part.
    pub(super) json: Bytes,
    /// The binary tensors, in the order of the outputs; none are empty.
    pub(super) blobs: Vec<Bytes>,
}

/// Encodes `response` in the form that the request asked for.
///
/// An FP16 or BF16 output, or a BYTES output with an element that is not UTF-8, has no JSON form; the request is refused with the
/// advice to ask for binary data.
pub(super) fn encode(response: InferResponse, form: &OutputForm) -> Result<Encoded, InferError> {
    let mut json = Vec::with_capacity(256);
    let mut blobs = Vec::new();
    json.push(b'{');
    if !response.id.is_empty() {
        write_key(&mut json, "id");
        write_json(&mut json, &response.id);
        json.push(b',');
    }
    write_key(&mut json, "model_name");
    write_json(&mut json, response.model.as_str());
    json.push(b',');
    write_key(&mut json, "model_version");
    write_json(&mut json, &response.version.to_string());
    if !response.parameters.is_empty() {
        json.push(b',');
        write_key(&mut json, "parameters");
        write_parameters(&mut json, &response.parameters);
    }
    json.push(b',');
    write_key(&mut json, "outputs");
    json.push(b'[');
    for (position, output) in response.outputs.into_iter().enumerate() {
        if position > 0 {
            json.push(b',');
        }
        write_output(&mut json, &output, form)?;
        if is_binary(&output.name, form) {
            let (_, _, data) = output.tensor.into_parts();
            blobs.extend((!data.is_empty()).then_some(data));
        }
    }
    json.extend_from_slice(b"]}");
    Ok(Encoded { json: json.into(), blobs })
}

fn is_binary(name: &str, form: &OutputForm) -> bool {
    form.binary_by_name.get(name).copied().unwrap_or(form.binary_by_default)
}

fn write_output(out: &mut Vec<u8>, output: &NamedTensor, form: &OutputForm) -> Result<(), InferError> {
    let tensor = &output.tensor;
    out.push(b'{');
    write_key(out, "name");
    write_json(out, &output.name);
    out.push(b',');
    write_key(out, "datatype");
    write_json(out, tensor.datatype().as_str());
    out.push(b',');
    write_key(out, "shape");
    write_json(out, tensor.shape());
    out.push(b',');
    if is_binary(&output.name, form) {
        out.extend_from_slice(br#""parameters":{"binary_data_size":"#);
        write_json(out, &tensor.data().len());
        out.push(b'}');
    } else {
        write_key(out, "data");
        out.push(b'[');
        write_data(out, &output.name, tensor, form.is_strict_json)?;
        out.push(b']');
    }
    out.push(b'}');
    Ok(())
}

fn write_key(out: &mut Vec<u8>, key: &str) {
    out.push(b'"');
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn write_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("a Vec takes every text");
}

fn write_parameters(out: &mut Vec<u8>, parameters: &Parameters) {
    let mut separator = b'{';
    for (name, value) in parameters {
        out.push(separator);
        separator = b',';
        write_json(out, name);
        out.push(b':');
        match value {
            Parameter::Bool(value) => write_json(out, value),
            Parameter::Int64(value) => write_json(out, value),
            Parameter::Uint64(value) => write_json(out, value),
            Parameter::Double(value) => write_json(out, value),
            Parameter::String(value) => write_json(out, value),
        }
    }
    out.push(b'}');
}

fn write_data(out: &mut Vec<u8>, name: &str, tensor: &Tensor, is_strict: bool) -> Result<(), InferError> {
    let data = tensor.data();
    let mut json = CompactFormatter;
    match tensor.datatype() {
        DataType::Bool => write_each(out, data, |out, [byte]| json.write_bool(out, byte != 0)),
        DataType::Uint8 => write_each(out, data, |out, bytes| json.write_u8(out, u8::from_le_bytes(bytes))),
        DataType::Uint16 => write_each(out, data, |out, bytes| json.write_u16(out, u16::from_le_bytes(bytes))),
        DataType::Uint32 => write_each(out, data, |out, bytes| json.write_u32(out, u32::from_le_bytes(bytes))),
        DataType::Uint64 => write_each(out, data, |out, bytes| json.write_u64(out, u64::from_le_bytes(bytes))),
        DataType::Int8 => write_each(out, data, |out, bytes| json.write_i8(out, i8::from_le_bytes(bytes))),
        DataType::Int16 => write_each(out, data, |out, bytes| json.write_i16(out, i16::from_le_bytes(bytes))),
        DataType::Int32 => write_each(out, data, |out, bytes| json.write_i32(out, i32::from_le_bytes(bytes))),
        DataType::Int64 => write_each(out, data, |out, bytes| json.write_i64(out, i64::from_le_bytes(bytes))),
        DataType::Fp32 => write_each(out, data, |out, bytes| {
            let value = f32::from_le_bytes(bytes);
            if value.is_finite() {
                json.write_f32(out, value)
            } else {
                out.write_all(non_finite_token(value.into(), is_strict))
            }
        }),
        DataType::Fp64 => write_each(out, data, |out, bytes| {
            let value = f64::from_le_bytes(bytes);
            if value.is_finite() {
                json.write_f64(out, value)
            } else {
                out.write_all(non_finite_token(value, is_strict))
            }
        }),
        DataType::Bytes => return write_strings(out, name, tensor),
        datatype @ (DataType::Fp16 | DataType::Bf16) => {
            return Err(InferError::InvalidRequest(format!(
                "sending {} data via JSON is not supported. Please use the binary data format for output {name}",
                datatype.as_str()
            )));
        }
    }
    .expect("a Vec takes every text");
    Ok(())
}

/// Writes each element of `N` bytes, with commas between.
fn write_each<const N: usize>(
    out: &mut Vec<u8>,
    data: &[u8],
    mut write: impl FnMut(&mut Vec<u8>, [u8; N]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let (elements, _) = data.as_chunks::<N>();
    // Digits, sign and comma of a typical element.
    out.reserve(elements.len().saturating_mul(if N == 1 { 4 } else { 2 + 2 * N }));
    for (position, element) in elements.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        write(out, *element)?;
    }
    Ok(())
}

/// The tokens that Python's and Triton's readers take, or `null` for readers that know JSON only.
fn non_finite_token(value: f64, is_strict: bool) -> &'static [u8] {
    match value {
        _ if is_strict => b"null",
        _ if value.is_nan() => b"NaN",
        _ if value > 0.0 => b"Infinity",
        _ => b"-Infinity",
    }
}

fn write_strings(out: &mut Vec<u8>, name: &str, tensor: &Tensor) -> Result<(), InferError> {
    for (position, element) in tensor.bytes_elements().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        let text = element.ok().and_then(|element| std::str::from_utf8(element).ok()).ok_or_else(|| {
            InferError::InvalidRequest(format!(
                "element {position} of output '{name}' is not UTF-8 text, which JSON cannot say. Please use the binary data \
                 format for output {name}"
            ))
        })?;
        write_json(out, text);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
