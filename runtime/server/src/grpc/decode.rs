//! From a `ModelInferRequest` to an [`InferRequest`].
//!
//! Called by `infer`. Raw tensors are where they were received, not copies. Invariant: each input's data comes from exactly one
//! place, its own `contents` or the request's `raw_input_contents`, and every error names the input.

use std::{collections::HashMap, time::Instant};

use bytes::Bytes;
use torchmodel_core::{
    inference::{InferError, InferRequest, NamedTensor, Parameter, Parameters},
    model_key::{ModelName, ModelVersion},
    slab::SlabMut,
    tensor::{DataType, DataTypeExt},
};

use super::proto::{
    InferParameter, InferTensorContents, ModelInferRequest, infer_parameter::ParameterChoice,
    model_infer_request::InferInputTensor,
};
use crate::{
    admission::Reservation,
    protocol::{InputHead, Limits, finish_request, refuse_tensor_parameter},
};

/// When a message arrived, until when it is to be answered, and what it may ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoding {
    /// When the call arrived.
    pub(super) arrival: Instant,
    /// What the call's own timeout gives.
    pub(super) deadline: Option<Instant>,
    /// What it may ask.
    pub(super) limits: Limits,
}

/// Decodes `message`. Tensors made of typed contents take their part of `reservation`.
pub(super) fn decode(
    message: ModelInferRequest,
    decoding: &Decoding,
    reservation: &mut Reservation,
) -> Result<InferRequest, InferError> {
    let Decoding { arrival, deadline, limits } = *decoding;
    let name: ModelName = message.model_name.parse()?;
    let version = ModelVersion::parse_requested(&message.model_version)?;
    let model = name.as_str();
    let is_raw = !message.raw_input_contents.is_empty();
    if message.raw_input_contents.len() > message.inputs.len() {
        return Err(InferError::InvalidRequest(format!(
            "unexpected raw_input_contents: {} entries for {} inputs for model '{model}'",
            message.raw_input_contents.len(),
            message.inputs.len()
        )));
    }
    let mut raw = message.raw_input_contents.into_iter();
    let inputs = message.inputs.into_iter().map(|input| {
        for parameter in input.parameters.keys() {
            refuse_tensor_parameter("input", &input.name, parameter)?;
        }
        let head = InputHead::new(model, &input.name, &input.datatype, &input.shape)?;
        let expected = head.element_count(limits)?;
        let data = if is_raw {
            raw_data(&head, &input, raw.next())?
        } else {
            contents_data(&head, &input, expected, reservation)?
        };
        head.with_data(data)
    });
    let inputs = inputs.collect::<Result<Vec<NamedTensor>, _>>()?;
    let outputs = message.outputs.into_iter().map(|output| {
        for parameter in output.parameters.keys() {
            refuse_tensor_parameter("output", &output.name, parameter)?;
        }
        Ok(output.name)
    });
    let outputs = outputs.collect::<Result<Vec<String>, InferError>>()?;
    let request = InferRequest {
        version,
        id: message.id,
        inputs,
        outputs,
        parameters: decode_parameters(message.parameters)?,
        deadline,
        model: name,
    };
    finish_request(request, arrival)
}

fn decode_parameters(parameters: HashMap<String, InferParameter>) -> Result<Parameters, InferError> {
    let parameters = parameters.into_iter().map(|(name, parameter)| {
        let value = match parameter.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => Parameter::Bool(value),
            Some(ParameterChoice::Int64Param(value)) => Parameter::Int64(value),
            Some(ParameterChoice::StringParam(value)) => Parameter::String(value),
            Some(ParameterChoice::DoubleParam(value)) => Parameter::Double(value),
            Some(ParameterChoice::Uint64Param(value)) => Parameter::Uint64(value),
            None => return Err(InferError::InvalidRequest(format!("parameter '{name}' has no value"))),
        };
        Ok((name, value))
    });
    parameters.collect()
}

fn raw_data(head: &InputHead<'_>, input: &InferInputTensor, raw: Option<Bytes>) -> Result<Bytes, InferError> {
    let InputHead { name, model, .. } = head;
    if input.contents.is_some() {
        return Err(InferError::InvalidRequest(format!(
            "contents field must not be specified when using raw_input_contents for '{name}' for model '{model}'"
        )));
    }
    raw.ok_or_else(|| no_data(head))
}

fn no_data(head: &InputHead<'_>) -> InferError {
    InferError::InvalidRequest(format!(
        "unable to find data for input tensor '{}' for model '{}' in request.",
        head.name, head.model
    ))
}

/// The bytes of typed contents, of which only the field of the input's datatype may be filled.
fn contents_data(
    head: &InputHead<'_>,
    input: &InferInputTensor,
    expected: usize,
    reservation: &mut Reservation,
) -> Result<Bytes, InferError> {
    let none = InferTensorContents::default();
    let contents = match &input.contents {
        Some(contents) => contents,
        None if expected == 0 => &none,
        None => return Err(no_data(head)),
    };
    check_fields(head, contents)?;
    let actual = filled_fields(contents).iter().map(|(_, length)| length).sum();
    if actual != expected {
        return Err(head.wrong_count(expected, actual));
    }
    let size = match head.datatype.size_bytes() {
        Some(size) => expected.saturating_mul(size),
        None => contents.bytes_contents.iter().map(|element| element.len().saturating_add(4)).sum(),
    };
    let mut slab = reservation.admission().pool().take(size);
    match head.datatype {
        DataType::Bool => write(&mut slab, &contents.bool_contents, |value| [u8::from(value)]),
        DataType::Int8 => narrow(head, &mut slab, &contents.int_contents, |v| i8::try_from(v).map(i8::to_le_bytes))?,
        DataType::Int16 => narrow(head, &mut slab, &contents.int_contents, |v| i16::try_from(v).map(i16::to_le_bytes))?,
        DataType::Int32 => write(&mut slab, &contents.int_contents, i32::to_le_bytes),
        DataType::Int64 => write(&mut slab, &contents.int64_contents, i64::to_le_bytes),
        DataType::Uint8 => narrow(head, &mut slab, &contents.uint_contents, |v| u8::try_from(v).map(u8::to_le_bytes))?,
        DataType::Uint16 => {
            narrow(head, &mut slab, &contents.uint_contents, |v| u16::try_from(v).map(u16::to_le_bytes))?;
        }
        DataType::Uint32 => write(&mut slab, &contents.uint_contents, u32::to_le_bytes),
        DataType::Uint64 => write(&mut slab, &contents.uint64_contents, u64::to_le_bytes),
        DataType::Fp32 => write(&mut slab, &contents.fp32_contents, f32::to_le_bytes),
        DataType::Fp64 => write(&mut slab, &contents.fp64_contents, f64::to_le_bytes),
        DataType::Bytes => strings(head, &mut slab, &contents.bytes_contents)?,
        DataType::Fp16 | DataType::Bf16 if expected == 0 => {}
        DataType::Fp16 | DataType::Bf16 => {
            return Err(InferError::InvalidRequest(format!(
                "{} data is possible in raw_input_contents only, for input tensor '{}' for model '{}'",
                head.datatype.as_str(),
                head.name,
                head.model
            )));
        }
    }
    Ok(slab.freeze(reservation.split(size)))
}

/// Each field with the datatypes that it serves, as text, and its length.
fn filled_fields(contents: &InferTensorContents) -> [(&'static str, usize); 8] {
    [
        ("BOOL", contents.bool_contents.len()),
        ("INT32", contents.int_contents.len()),
        ("INT64", contents.int64_contents.len()),
        ("UINT32", contents.uint_contents.len()),
        ("UINT64", contents.uint64_contents.len()),
        ("FP32", contents.fp32_contents.len()),
        ("FP64", contents.fp64_contents.len()),
        ("BYTES", contents.bytes_contents.len()),
    ]
}

fn check_fields(head: &InputHead<'_>, contents: &InferTensorContents) -> Result<(), InferError> {
    let own = match head.datatype {
        DataType::Int8 | DataType::Int16 => "INT32",
        DataType::Uint8 | DataType::Uint16 => "UINT32",
        other => other.as_str(),
    };
    match filled_fields(contents).iter().find(|(field, length)| *length > 0 && *field != own) {
        None => Ok(()),
        Some((field, _)) => Err(InferError::InvalidRequest(format!(
            "unexpected explicit tensor data for input tensor '{}' for model '{}' of type '{field}', expected datatype '{}'",
            head.name,
            head.model,
            head.datatype.as_str()
        ))),
    }
}

/// Writes each value once, to its own place.
fn write<T: Copy, const N: usize>(slab: &mut SlabMut, values: &[T], convert: impl Fn(T) -> [u8; N]) {
    let places = slab.spare_mut().as_chunks_mut::<N>().0;
    let count = places.iter_mut().zip(values).map(|(place, value)| *place = convert(*value)).count();
    slab.advance(count.saturating_mul(N));
}

fn narrow<T: Copy + std::fmt::Display, const N: usize, E>(
    head: &InputHead<'_>,
    slab: &mut SlabMut,
    values: &[T],
    convert: impl Fn(T) -> Result<[u8; N], E>,
) -> Result<(), InferError> {
    let places = slab.spare_mut().as_chunks_mut::<N>().0;
    for (position, (place, value)) in places.iter_mut().zip(values).enumerate() {
        *place = convert(*value).map_err(|_| {
            InferError::InvalidRequest(format!(
                "input '{}' for model '{}': element {position} is {value}, which is not a value of {}",
                head.name,
                head.model,
                head.datatype.as_str()
            ))
        })?;
    }
    slab.advance(values.len().saturating_mul(N));
    Ok(())
}

fn strings(head: &InputHead<'_>, slab: &mut SlabMut, elements: &[Bytes]) -> Result<(), InferError> {
    for element in elements {
        let length = u32::try_from(element.len())
            .map_err(|_| InferError::InvalidRequest(format!("an element of input '{}' is too long", head.name)))?;
        slab.append(&length.to_le_bytes());
        slab.append(element);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
