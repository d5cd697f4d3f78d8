//! From a `ModelInferRequest` to an [`InferRequest`].
//!
//! Called by `grpc`'s service. Raw tensors are slices of the received frame, not copies. Invariant: each input's data comes from
//! exactly one place, its own `contents` or the request's `raw_input_contents`, and every error names the input.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tonic::metadata::MetadataMap;
use torchmodel_core::{
    inference::{InferError, InferRequest, NamedTensor, Parameter, Parameters},
    model_key::{ModelName, ModelVersion},
    tensor::{DataType, DataTypeExt, push_bytes_element},
};

use super::proto::{
    InferParameter, InferTensorContents, ModelInferRequest, infer_parameter::ParameterChoice,
    model_infer_request::InferInputTensor,
};
use crate::protocol::{InputHead, Limits, deadline_after, finish_request, refuse_tensor_parameter};

/// Decodes `message`, which arrived at `arrival` with `metadata`.
pub(super) fn decode(
    message: ModelInferRequest,
    metadata: &MetadataMap,
    arrival: Instant,
    limits: Limits,
) -> Result<InferRequest, InferError> {
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
        let data = if is_raw { raw_data(&head, &input, raw.next())? } else { contents_data(&head, &input, expected)? };
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
    let timeout = metadata.get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    let request = InferRequest {
        version,
        id: message.id,
        inputs,
        outputs,
        parameters: decode_parameters(message.parameters)?,
        deadline: timeout.and_then(|timeout| deadline_after(arrival, timeout)),
        model: name,
    };
    finish_request(request, arrival)
}

/// Reads a `grpc-timeout`: at most eight digits and a unit. A malformed one is ignored, as gRPC servers do.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
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
fn contents_data(head: &InputHead<'_>, input: &InferInputTensor, expected: usize) -> Result<Bytes, InferError> {
    let none = InferTensorContents::default();
    let contents = match &input.contents {
        Some(contents) => contents,
        None if expected == 0 => &none,
        None => return Err(no_data(head)),
    };
    check_fields(head, contents)?;
    let count = |actual| if actual == expected { Ok(()) } else { Err(head.wrong_count(expected, actual)) };
    count(filled_fields(contents).iter().map(|(_, length)| length).sum())?;
    let data = match head.datatype {
        DataType::Bool => contents.bool_contents.iter().map(|value| u8::from(*value)).collect(),
        DataType::Int8 => narrow(head, &contents.int_contents, |value| i8::try_from(value).map(i8::to_le_bytes))?,
        DataType::Int16 => narrow(head, &contents.int_contents, |value| i16::try_from(value).map(i16::to_le_bytes))?,
        DataType::Int32 => bytes_of(&contents.int_contents, i32::to_le_bytes),
        DataType::Int64 => bytes_of(&contents.int64_contents, i64::to_le_bytes),
        DataType::Uint8 => narrow(head, &contents.uint_contents, |value| u8::try_from(value).map(u8::to_le_bytes))?,
        DataType::Uint16 => narrow(head, &contents.uint_contents, |value| u16::try_from(value).map(u16::to_le_bytes))?,
        DataType::Uint32 => bytes_of(&contents.uint_contents, u32::to_le_bytes),
        DataType::Uint64 => bytes_of(&contents.uint64_contents, u64::to_le_bytes),
        DataType::Fp32 => bytes_of(&contents.fp32_contents, f32::to_le_bytes),
        DataType::Fp64 => bytes_of(&contents.fp64_contents, f64::to_le_bytes),
        DataType::Bytes => strings(head, &contents.bytes_contents)?,
        DataType::Fp16 | DataType::Bf16 if expected == 0 => Vec::new(),
        DataType::Fp16 | DataType::Bf16 => {
            return Err(InferError::InvalidRequest(format!(
                "{} data is possible in raw_input_contents only, for input tensor '{}' for model '{}'",
                head.datatype.as_str(),
                head.name,
                head.model
            )));
        }
    };
    Ok(data.into())
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

fn bytes_of<T: Copy, const N: usize>(values: &[T], convert: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| convert(*value)).collect()
}

fn narrow<T: Copy + std::fmt::Display, const N: usize, E>(
    head: &InputHead<'_>,
    values: &[T],
    convert: impl Fn(T) -> Result<[u8; N], E>,
) -> Result<Vec<u8>, InferError> {
    let mut bytes = Vec::with_capacity(values.len() * N);
    for (position, value) in values.iter().enumerate() {
        let converted = convert(*value).map_err(|_| {
            InferError::InvalidRequest(format!(
                "input '{}' for model '{}': element {position} is {value}, which is not a value of {}",
                head.name,
                head.model,
                head.datatype.as_str()
            ))
        })?;
        bytes.extend_from_slice(&converted);
    }
    Ok(bytes)
}

fn strings(head: &InputHead<'_>, elements: &[Bytes]) -> Result<Vec<u8>, InferError> {
    let mut bytes = Vec::with_capacity(elements.iter().map(|element| element.len() + 4).sum());
    for element in elements {
        if !push_bytes_element(&mut bytes, element) {
            return Err(InferError::InvalidRequest(format!("an element of input '{}' is too long", head.name)));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
