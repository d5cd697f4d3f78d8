//! From a REST inference request to an [`InferRequest`]: JSON, the binary tensor extension, and both mixed.
//!
//! Called by `rest::infer` with the whole body. Binary tensors are slices of that body, not copies. Invariant: every byte of the
//! body belongs to something, and every error names the input.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderMap;
use torchmodel_core::{
    inference::{InferError, InferRequest, NamedTensor, Parameter, Parameters},
    metadata::ModelMetadata,
    model_key::{ModelName, ModelVersion},
    tensor::{DataType, push_bytes_element},
};

use super::{
    data::{self, DataError},
    json::{self, InputBody, OutputBody, RequestBody},
};
use crate::protocol::{InputHead, Limits, deadline_after, finish_request, refuse_tensor_parameter};

/// Length of the JSON that stands before the binary tensors, on requests and answers.
pub(super) const HEADER_LENGTH: &str = "inference-header-content-length";

/// How long the client waits: seconds (`1.5`), or a number with `ms`, `us` or `s` (`250ms`).
const REQUEST_TIMEOUT: &str = "x-request-timeout";

/// What is known about a request before its body is read.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) model: ModelName,
    pub(super) version: Option<ModelVersion>,
    pub(super) arrival: Instant,
    pub(super) deadline: Option<Instant>,
    /// `None` when the whole body is JSON, `Some(0)` when the whole body is the model's one input.
    pub(super) header_length: Option<usize>,
}

impl Head {
    /// Reads the headers that the protocol defines.
    pub(super) fn new(
        model: ModelName,
        version: Option<ModelVersion>,
        headers: &HeaderMap,
    ) -> Result<Self, InferError> {
        let arrival = Instant::now();
        let deadline = match text_of(headers, REQUEST_TIMEOUT)? {
            None => None,
            Some(text) => deadline_after(
                arrival,
                parse_timeout(text).ok_or_else(|| {
                    invalid(format!(
                        "header {REQUEST_TIMEOUT} must be a time above zero such as 1.5 or 250ms, got '{text}'"
                    ))
                })?,
            ),
        };
        let header_length = match text_of(headers, HEADER_LENGTH)? {
            None => None,
            Some(text) => {
                let length = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
                Some(length.ok_or_else(|| {
                    invalid(format!("header Inference-Header-Content-Length must be a number of bytes, got '{text}'"))
                })?)
            }
        };
        Ok(Self { model, version, arrival, deadline, header_length })
    }
}

fn invalid(message: String) -> InferError {
    InferError::InvalidRequest(message)
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, InferError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match (value.to_str(), values.next()) {
        (Ok(text), None) => Ok(Some(text)),
        _ => Err(invalid(format!("header {name} must stand once, in ASCII"))),
    }
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let text = text.trim();
    let units = [("ms", 1e-3), ("us", 1e-6), ("s", 1.0)];
    let (number, unit) =
        units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds))).unwrap_or((text, 1.0));
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let seconds = number.parse::<f64>().ok()? * unit;
    // Longer than a duration can be is as long as one can be.
    let timeout = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    (!timeout.is_zero()).then_some(timeout)
}

/// In which form the client wants the outputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OutputForm {
    /// For outputs that say nothing themselves: `binary_data_output` of the request.
    pub(super) binary_by_default: bool,
    /// `binary_data` of single outputs.
    pub(super) binary_by_name: BTreeMap<String, bool>,
    /// `strict_json` of the request: numbers that JSON does not have become `null` rather than `NaN` or `Infinity`.
    pub(super) is_strict_json: bool,
}

/// A request and the form of its answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decoded {
    pub(super) request: InferRequest,
    pub(super) form: OutputForm,
}

/// Decodes a body with a JSON part.
pub(super) fn decode(head: &Head, mut body: Bytes, limits: Limits) -> Result<Decoded, InferError> {
    let json_length = match head.header_length {
        None => body.len(),
        Some(length) if (1..=body.len()).contains(&length) => length,
        Some(length) => {
            return Err(invalid(format!(
                "inference header size should be in range (0, {}), got: {length}",
                body.len()
            )));
        }
    };
    let json = body.split_to(json_length);
    json::parse(&json, |parts| assemble(head, parts, body, limits))
}

fn assemble(head: &Head, mut parts: RequestBody<'_>, mut blobs: Bytes, limits: Limits) -> Result<Decoded, InferError> {
    let mut form = OutputForm {
        binary_by_default: take_bool(&mut parts.parameters, "binary_data_output", "the request")?.unwrap_or(false),
        is_strict_json: take_bool(&mut parts.parameters, "strict_json", "the request")?.unwrap_or(false),
        ..OutputForm::default()
    };
    let model = head.model.as_str();
    let inputs = parts.inputs.into_iter().map(|input| decode_input(model, input, &mut blobs, limits));
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    if !blobs.is_empty() {
        return Err(invalid(format!("unexpected additional input data for model '{model}': {} bytes", blobs.len())));
    }
    let outputs = parts.outputs.into_iter().map(|output| decode_output(output, &mut form));
    let request = InferRequest {
        model: head.model.clone(),
        version: head.version,
        id: parts.id.unwrap_or_default(),
        inputs,
        outputs: outputs.collect::<Result<Vec<_>, _>>()?,
        parameters: parts.parameters,
        deadline: head.deadline,
    };
    Ok(Decoded { request: finish_request(request, head.arrival)?, form })
}

fn decode_input(
    model: &str,
    mut input: InputBody<'_>,
    blobs: &mut Bytes,
    limits: Limits,
) -> Result<NamedTensor, InferError> {
    let name = input.name.as_str();
    for parameter in input.parameters.keys() {
        refuse_tensor_parameter("input", name, parameter)?;
    }
    let head = InputHead::new(model, name, &input.datatype, &input.shape)?;
    let expected = head.element_count(limits)?;
    let binary_size = match input.parameters.remove("binary_data_size") {
        None => None,
        Some(Parameter::Int64(size)) if size >= 0 => Some(usize::try_from(size).unwrap_or(usize::MAX)),
        Some(_) => {
            return Err(invalid(format!("parameter 'binary_data_size' of input '{name}' must be a number of bytes")));
        }
    };
    match (input.data, binary_size) {
        (Some(data), None) => {
            let bytes = data::parse(data.get(), head.datatype, expected).map_err(|error| match error {
                DataError::WrongCount { actual } => head.wrong_count(expected, actual),
                DataError::NoJsonForm => invalid(format!(
                    "receiving {} data via JSON is not supported. Please use the binary data format for input {name}",
                    input.datatype
                )),
                other => invalid(format!("input '{name}' for model '{model}': {other}")),
            })?;
            head.with_data(bytes.into())
        }
        (None, Some(size)) => {
            if size > blobs.len() {
                let missing = size - blobs.len();
                return Err(invalid(format!(
                    "unexpected size for input '{name}', expecting {missing} additional bytes for model '{model}'"
                )));
            }
            head.with_data(blobs.split_to(size))
        }
        (data, _) => Err(invalid(format!(
            "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', \
             'shared_memory_region' in 'parameters'. Input '{name}' sets {}",
            if data.is_some() { "more than one" } else { "none" }
        ))),
    }
}

fn decode_output(mut output: OutputBody, form: &mut OutputForm) -> Result<String, InferError> {
    for parameter in output.parameters.keys() {
        refuse_tensor_parameter("output", &output.name, parameter)?;
    }
    let what = format!("output '{}'", output.name);
    if let Some(is_binary) = take_bool(&mut output.parameters, "binary_data", &what)? {
        form.binary_by_name.insert(output.name.clone(), is_binary);
    }
    Ok(output.name)
}

fn take_bool(parameters: &mut Parameters, name: &str, what: &str) -> Result<Option<bool>, InferError> {
    match parameters.remove(name) {
        None => Ok(None),
        Some(Parameter::Bool(value)) => Ok(Some(value)),
        Some(_) => Err(invalid(format!("parameter '{name}' of {what} must be true or false"))),
    }
}

/// Decodes a body that is nothing but the data of the model's one input (`Inference-Header-Content-Length: 0`): name, datatype
/// and shape come from the model, all outputs are binary. A `BYTES` input takes the body as its one element.
pub(super) fn decode_raw(
    head: &Head,
    body: Bytes,
    metadata: &ModelMetadata,
    limits: Limits,
) -> Result<Decoded, InferError> {
    let model = head.model.as_str();
    let [input] = metadata.inputs.as_slice() else {
        return Err(invalid(format!(
            "Raw request must only have 1 input (found {}) to be deduced for model '{model}'",
            metadata.inputs.len()
        )));
    };
    let (Some(datatype), Some(dims)) = (input.datatype, &input.shape) else {
        return Err(invalid(format!(
            "Raw request is not possible for model '{model}': it does not say datatype and shape of input '{}'",
            input.name
        )));
    };
    let (shape, body) = if datatype == DataType::Bytes {
        let mut element = Vec::with_capacity(body.len() + 4);
        if !push_bytes_element(&mut element, &body) {
            return Err(invalid(format!("the body is too long for an element of input '{}'", input.name)));
        }
        (dims.iter().map(|dim| if *dim < 0 { 1 } else { *dim }).collect(), element.into())
    } else {
        (infer_shape(dims, datatype, body.len()), body)
    };
    let input = InputHead { model, name: &input.name, datatype, shape: &shape };
    input.element_count(limits)?;
    let request = InferRequest {
        model: head.model.clone(),
        version: head.version,
        id: String::new(),
        inputs: vec![input.with_data(body)?],
        outputs: vec![],
        parameters: Parameters::new(),
        deadline: head.deadline,
    };
    let form = OutputForm { binary_by_default: true, ..OutputForm::default() };
    Ok(Decoded { request: finish_request(request, head.arrival)?, form })
}

/// `dims` with the last dimension of any size chosen so that `size_bytes` fit, and 1 for others; where nothing fits, the sizes
/// are refused later, with both numbers.
fn infer_shape(dims: &[i64], datatype: DataType, size_bytes: usize) -> Vec<i64> {
    use torchmodel_core::tensor::DataTypeExt;

    let mut shape: Vec<i64> = dims.iter().map(|dim| if *dim < 0 { 1 } else { *dim }).collect();
    let size = datatype.size_bytes().and_then(|size| i64::try_from(size).ok()).unwrap_or(1);
    let fixed = shape.iter().try_fold(size, |product, dim| product.checked_mul(*dim)).filter(|product| *product > 0);
    let wanted = i64::try_from(size_bytes).ok().zip(fixed).and_then(|(bytes, fixed)| bytes.checked_div(fixed));
    let last_free = dims.iter().rposition(|dim| *dim < 0).and_then(|position| shape.get_mut(position));
    if let (Some(dim), Some(wanted)) = (last_free, wanted) {
        *dim = wanted;
    }
    shape
}

#[cfg(test)]
mod tests;
