//! From a REST inference request to an [`InferRequest`]: JSON, the binary tensor extension, and both mixed.
//!
//! Called by `rest::assembly`, which knows how far the body has come. Invariant: every byte of the body belongs to something, what is
//! wrong is refused before memory is taken for it, and every error names the input.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderMap;
use torchmodel_core::{
    inference::{InferError, InferRequest, Parameter, Parameters},
    metadata::ModelMetadata,
    model_key::{ModelName, ModelVersion},
    tensor::DataType,
};

use super::{
    json::{InputBody, InputData, OutputBody, Reader},
    text::Text,
};
use crate::protocol::{DeclaredInput, InputHead, Limits, deadline_after, finish_request, refuse_tensor_parameter};

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

/// A request whose JSON has been read: what is in it, and which bytes must follow it.
///
/// `rest::assembly` makes one at the end of the JSON, takes the places of the binary tensors from it, and finishes it when they have
/// come.
#[derive(Debug)]
pub(super) struct Plan {
    request: InferRequest,
    inputs: Vec<PlannedInput>,
    form: OutputForm,
    arrival: Instant,
}

/// An input and where its data is.
#[derive(Debug)]
struct PlannedInput {
    input: DeclaredInput,
    data: Source,
}

#[derive(Debug)]
enum Source {
    Json(Bytes),
    Binary(BinaryPart),
}

/// Bytes of one input that follow the JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BinaryPart {
    /// Whether they are one `BYTES` element and want their length before them.
    pub(super) is_element: bool,
    /// Bytes that come.
    pub(super) size_bytes: usize,
}

impl Plan {
    /// Reads the JSON. What its tensors take is added to `reservation`; `available` is how many bytes follow, where that is known.
    pub(super) fn read(
        head: &Head,
        text: &Text,
        reader: Reader<'_>,
        available: Option<usize>,
    ) -> Result<Self, InferError> {
        let mut reader = reader;
        let mut body = reader.read(text)?;
        let mut form = OutputForm {
            binary_by_default: take_bool(&mut body.parameters, "binary_data_output", "the request")?.unwrap_or(false),
            is_strict_json: take_bool(&mut body.parameters, "strict_json", "the request")?.unwrap_or(false),
            ..OutputForm::default()
        };
        let mut inputs = Vec::with_capacity(body.inputs.len());
        let mut left = available;
        for input in body.inputs {
            inputs.push(plan_input(input, text, &mut reader, &mut left)?);
        }
        if let Some(additional) = left.filter(|left| *left > 0) {
            return Err(unexpected_data(head.model.as_str(), additional));
        }
        let outputs = body.outputs.into_iter().map(|output| decode_output(output, &mut form));
        let request = InferRequest {
            model: head.model.clone(),
            version: head.version,
            id: body.id.unwrap_or_default(),
            inputs: vec![],
            outputs: outputs.collect::<Result<Vec<_>, _>>()?,
            parameters: body.parameters,
            deadline: head.deadline,
        };
        Ok(Self { request, inputs, form, arrival: head.arrival })
    }

    /// A body of `length` bytes that is nothing but the data of the model's one input (`Inference-Header-Content-Length: 0`): name,
    /// datatype and shape come from the model, all outputs are binary. A `BYTES` input takes the body as its one element.
    pub(super) fn raw(
        head: &Head,
        metadata: &ModelMetadata,
        limits: Limits,
        length: usize,
    ) -> Result<Self, InferError> {
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
        let is_element = datatype == DataType::Bytes;
        if is_element && u32::try_from(length).is_err() {
            return Err(invalid(format!("the body is too long for an element of input '{}'", input.name)));
        }
        let shape = if is_element {
            dims.iter().map(|dim| if *dim < 0 { 1 } else { *dim }).collect()
        } else {
            infer_shape(dims, datatype, length)
        };
        let planned = InputHead { model, name: &input.name, datatype, shape: &shape };
        let expected = planned.element_count(limits)?;
        planned.check_size(expected, length)?;
        let request = InferRequest {
            model: head.model.clone(),
            version: head.version,
            id: String::new(),
            inputs: vec![],
            outputs: vec![],
            parameters: Parameters::new(),
            deadline: head.deadline,
        };
        let data = Source::Binary(BinaryPart { is_element, size_bytes: length });
        let inputs = vec![PlannedInput { input: DeclaredInput { name: input.name.clone(), datatype, shape }, data }];
        let form = OutputForm { binary_by_default: true, ..OutputForm::default() };
        Ok(Self { request, inputs, form, arrival: head.arrival })
    }

    /// The parts that follow the JSON, in the order in which they come.
    pub(super) fn binary_parts(&self) -> impl Iterator<Item = BinaryPart> {
        self.inputs.iter().filter_map(|input| match input.data {
            Source::Json(_) => None,
            Source::Binary(part) => Some(part),
        })
    }

    /// The words for a body of which only `received` bytes follow the JSON.
    pub(super) fn is_short(&self, received: usize) -> InferError {
        let mut end = 0usize;
        for PlannedInput { input, data } in &self.inputs {
            if let Source::Binary(part) = data {
                end = end.saturating_add(part.size_bytes);
                if end > received {
                    return missing_data(self.request.model.as_str(), &input.name, end - received);
                }
            }
        }
        invalid(format!("the body for model '{}' is too short", self.request.model))
    }

    /// The words for a body of which `additional` bytes belong to nothing.
    pub(super) fn is_long(&self, additional: usize) -> InferError {
        unexpected_data(self.request.model.as_str(), additional)
    }

    /// The request, with the data of its binary parts in their order.
    pub(super) fn finish(self, parts: impl IntoIterator<Item = Bytes>) -> Result<Decoded, InferError> {
        let Self { mut request, inputs, form, arrival } = self;
        let mut parts = parts.into_iter();
        request.inputs.reserve_exact(inputs.len());
        for PlannedInput { input, data } in inputs {
            let data = match data {
                Source::Json(data) => data,
                Source::Binary(_) => parts.next().unwrap_or_default(),
            };
            request.inputs.push(input.with_data(request.model.as_str(), data)?);
        }
        Ok(Decoded { request: finish_request(request, arrival)?, form })
    }
}

fn missing_data(model: &str, input: &str, missing: usize) -> InferError {
    invalid(format!("unexpected size for input '{input}', expecting {missing} additional bytes for model '{model}'"))
}

fn unexpected_data(model: &str, additional: usize) -> InferError {
    invalid(format!("unexpected additional input data for model '{model}': {additional} bytes"))
}

fn plan_input(
    mut input: InputBody<'_>,
    text: &Text,
    reader: &mut Reader<'_>,
    left: &mut Option<usize>,
) -> Result<PlannedInput, InferError> {
    let name = input.name.as_str();
    for parameter in input.parameters.keys() {
        refuse_tensor_parameter("input", name, parameter)?;
    }
    let head = InputHead::new(reader.model, name, &input.datatype, &input.shape)?;
    let expected = head.element_count(reader.limits)?;
    let binary_size = match input.parameters.remove("binary_data_size") {
        None => None,
        Some(Parameter::Int64(size)) if size >= 0 => Some(usize::try_from(size).unwrap_or(usize::MAX)),
        Some(_) => {
            return Err(invalid(format!("parameter 'binary_data_size' of input '{name}' must be a number of bytes")));
        }
    };
    let datatype = head.datatype;
    let data = match (input.data, binary_size) {
        (Some(InputData::Read(data)), None) => Source::Json(data),
        (Some(InputData::Unread(mut cursor)), None) => {
            Source::Json(reader.tensor(&mut cursor, head, expected).map_err(|error| error.describe(text))?)
        }
        (None, Some(size)) => {
            if let Some(left) = left {
                let rest = left.checked_sub(size).ok_or_else(|| missing_data(reader.model, name, size - *left))?;
                *left = rest;
            }
            head.check_size(expected, size)?;
            Source::Binary(BinaryPart { is_element: false, size_bytes: size })
        }
        (data, _) => {
            return Err(invalid(format!(
                "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', \
                 'shared_memory_region' in 'parameters'. Input '{name}' sets {}",
                if data.is_some() { "more than one" } else { "none" }
            )));
        }
    };
    Ok(PlannedInput { input: DeclaredInput { name: input.name, datatype, shape: input.shape }, data })
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
