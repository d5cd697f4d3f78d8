//! What REST and gRPC have in common: limits, and the rules for versions, names, parameters, deadlines and tensors.
//!
//! Both decoders call it, so that a request means the same by either way and gets the same words when it is wrong. Invariant:
//! nothing here allocates by a size that a client only claims.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bytes::Bytes;
use torchmodel_core::{
    inference::{InferError, InferRequest, NamedTensor, Parameter, Parameters},
    tensor::{DataType, DataTypeExt, Tensor, TensorError, element_count},
};

/// The most that one request may ask of the protocol layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request body or message, also after decompression, and of each tensor made from it. Default: 256 MiB.
    pub max_request_bytes: usize,
    /// Whether REST answers that carry tensors are compressed for every client that can read that, and not only for those that
    /// compressed their request. Default: no.
    pub are_tensors_compressed: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_request_bytes: 256 << 20, are_tensors_compressed: false }
    }
}

/// The most dimensions of a tensor: what libtorch's iterators take.
pub const MAX_DIMENSIONS: usize = 64;

/// The most inputs of a request; also the most outputs that it asks for, and the most entries of `raw_input_contents`.
pub const MAX_TENSORS: usize = 1024;

/// The most parameters of a request itself, of its inputs all together, and of its outputs all together.
pub const MAX_PARAMETERS: usize = 1024;

/// The most entries of `bytes_contents` in a gRPC request: each takes 32 bytes of memory beside its own, so 128 MiB at most. More
/// elements pass through `raw_input_contents`.
pub const MAX_BYTES_CONTENTS: usize = 4 << 20;

/// The most bytes that the numbers in a gRPC request's typed contents may take when decoded (256 MiB), or the message's own size
/// where that is more: a number of one byte on the wire takes up to eight in memory.
pub const MAX_CONTENTS_BYTES: usize = 256 << 20;

/// The words for more than `most` of something.
#[must_use]
pub fn too_many(what: &str, most: usize) -> String {
    format!("too many {what}: at most {most} are possible")
}

/// Longest deadline that is kept; a longer one means to wait for ever, which is this, too.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The instant `timeout` after `start`, for a timeout of any length.
#[must_use]
pub fn deadline_after(start: Instant, timeout: Duration) -> Option<Instant> {
    start.checked_add(timeout.min(MAX_TIMEOUT))
}

/// The earlier of two deadlines that may not be there.
#[must_use]
pub fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// The most of an error's text: it may name what a client sent, in gRPC it travels in a head, which clients bound, and nothing is
/// reserved for it.
const MAX_MESSAGE_BYTES: usize = 1 << 10;

/// A text for a client, cut where it is longer than anybody reads.
pub(crate) fn shortened(mut text: String) -> String {
    if text.len() > MAX_MESSAGE_BYTES {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES));
        text.push('…');
    }
    text
}

/// The most bytes of a request's id, and of its parameters with their names: they wait with the request, and nothing is reserved for
/// them.
const MAX_ID_BYTES: usize = 4 << 10;
const MAX_PARAMETER_BYTES: usize = 16 << 10;

fn check_sizes(request: &InferRequest) -> Result<(), InferError> {
    let refuse = |what: &str, bytes: usize, maximum: usize| {
        let text = format!("{what} {bytes} bytes; the maximum is {maximum}");
        Err(InferError::InvalidRequest(text))
    };
    if request.id.len() > MAX_ID_BYTES {
        return refuse("the request's id has", request.id.len(), MAX_ID_BYTES);
    }
    let bytes_of = |(name, value): (&String, &Parameter)| match value {
        Parameter::String(text) => name.len().saturating_add(text.len()),
        _ => name.len(),
    };
    let bytes = request.parameters.iter().map(bytes_of).fold(0, usize::saturating_add);
    if bytes > MAX_PARAMETER_BYTES {
        return refuse("the request's parameters have", bytes, MAX_PARAMETER_BYTES);
    }
    Ok(())
}

/// Checks what both protocols ask of a decoded request, and takes out the parameters that the protocol itself defines: `timeout`
/// (microseconds; 0 for none) becomes a part of the deadline, counted from `arrival`.
pub fn finish_request(mut request: InferRequest, arrival: Instant) -> Result<InferRequest, InferError> {
    check_sizes(&request)?;
    check_text("the request's id", &request.id)?;
    check_names(request.inputs.iter().map(|input| input.name.as_str()), "input")?;
    check_names(request.outputs.iter().map(String::as_str), "requested output")?;
    if let Some(timeout) = take_timeout(&mut request.parameters)? {
        request.deadline = earlier(request.deadline, deadline_after(arrival, timeout));
    }
    refuse_reserved(&mut request.parameters)?;
    Ok(request)
}

fn take_timeout(parameters: &mut Parameters) -> Result<Option<Duration>, InferError> {
    let micros = match parameters.remove("timeout") {
        None => return Ok(None),
        Some(Parameter::Int64(micros)) => u64::try_from(micros).ok(),
        Some(Parameter::Uint64(micros)) => Some(micros),
        Some(_) => None,
    };
    let micros = micros.ok_or_else(|| {
        InferError::InvalidRequest("parameter 'timeout' must be a whole number of microseconds, 0 or more".into())
    })?;
    Ok((micros > 0).then(|| Duration::from_micros(micros)))
}

/// Whether the end of a stream of responses is told by an empty one. A model that answers once has its end with its answer, so clients
/// that always send it (`perf_analyzer`) change nothing with it.
const EMPTY_FINAL_RESPONSE: &str = "triton_enable_empty_final_response";

/// Parameters of extensions that are not served are refused rather than ignored, unless they have their neutral value.
fn refuse_reserved(parameters: &mut Parameters) -> Result<(), InferError> {
    parameters.remove(EMPTY_FINAL_RESPONSE);
    if let Some(name) = parameters.keys().find(|name| name.starts_with("triton_") || *name == "headers") {
        return Err(InferError::InvalidRequest(format!(
            "parameter keys starting with 'triton_' and the key 'headers' are reserved; got '{name}'"
        )));
    }
    for name in ["sequence_id", "sequence_start", "sequence_end", "priority"] {
        let Some(value) = parameters.remove(name) else { continue };
        let is_neutral = match &value {
            Parameter::Bool(value) => !value,
            Parameter::Int64(value) => *value == 0,
            Parameter::Uint64(value) => *value == 0,
            Parameter::String(value) => value.is_empty(),
            Parameter::Double(_) => false,
        };
        if is_neutral {
            continue;
        }
        return Err(if name == "priority" {
            InferError::InvalidRequest("parameter 'priority' must be 0: this server has one priority level".into())
        } else {
            InferError::Unsupported(format!("parameter '{name}' is not supported: this server keeps no sequences"))
        });
    }
    Ok(())
}

fn check_names<'a>(names: impl Iterator<Item = &'a str>, what: &str) -> Result<(), InferError> {
    let mut seen = BTreeSet::new();
    for name in names {
        check_text(&format!("the name of an {what}"), name)?;
        if !seen.insert(name) {
            return Err(InferError::InvalidRequest(format!("{what} '{name}' is given more than once")));
        }
    }
    Ok(())
}

/// A NUL ends names early in many programs that the text may reach.
fn check_text(what: &str, text: &str) -> Result<(), InferError> {
    if text.contains('\0') {
        return Err(InferError::InvalidRequest(format!("{what} has a NUL character")));
    }
    Ok(())
}

/// What a client says about an input, before its data is looked at.
#[derive(Clone, Copy, Debug)]
pub struct InputHead<'a> {
    /// Name of the model, for messages.
    pub model: &'a str,
    /// Name of the input.
    pub name: &'a str,
    /// Its datatype.
    pub datatype: DataType,
    /// Its shape.
    pub shape: &'a [i64],
}

impl<'a> InputHead<'a> {
    /// Reads the datatype and checks the shape against `limits`: dimensions of 0 or more, their product checked, zero dimensions
    /// counted as one so that a great many empty rows are refused, too.
    pub fn new(model: &'a str, name: &'a str, datatype: &str, shape: &'a [i64]) -> Result<Self, InferError> {
        let Some(datatype) = DataType::parse(datatype) else {
            return Err(InferError::InvalidRequest(format!(
                "input '{name}' for model '{model}' has unknown datatype '{datatype}'"
            )));
        };
        Ok(Self { model, name, datatype, shape })
    }

    /// Number of elements that the shape asks for, when that many fit `limits`.
    pub fn element_count(&self, limits: Limits) -> Result<usize, InferError> {
        let Self { name, model, shape, .. } = self;
        if shape.len() > MAX_DIMENSIONS {
            return Err(InferError::InvalidRequest(format!(
                "input '{name}' for model '{model}' has {} dimensions, at most {MAX_DIMENSIONS} are possible",
                shape.len()
            )));
        }
        let count = element_count(shape).map_err(|error| self.refuse(&error))?;
        let rows = shape
            .iter()
            .filter(|dim| **dim > 0)
            .try_fold(1usize, |product, dim| usize::try_from(*dim).ok().and_then(|dim| product.checked_mul(dim)));
        // An element of BYTES has at least its length.
        let size = self.datatype.size_bytes().unwrap_or(4);
        match rows.and_then(|rows| rows.checked_mul(size)) {
            Some(bytes) if bytes <= limits.max_request_bytes => Ok(count),
            _ => Err(InferError::InvalidRequest(format!(
                "input '{name}' for model '{model}' has shape {shape:?}, which is more than the limit of {} bytes",
                limits.max_request_bytes
            ))),
        }
    }

    /// The input with `data`, when that is what datatype and shape say.
    pub fn with_data(&self, data: Bytes) -> Result<NamedTensor, InferError> {
        let tensor = Tensor::new(self.datatype, self.shape.to_vec(), data).map_err(|error| self.refuse(&error))?;
        Ok(NamedTensor { name: self.name.to_owned(), tensor })
    }

    /// Refuses a number of bytes that `count` elements of a datatype of fixed size do not have.
    pub fn check_size(&self, count: usize, size_bytes: usize) -> Result<(), InferError> {
        match self.datatype.size_bytes().and_then(|size| count.checked_mul(size)) {
            Some(expected) if expected != size_bytes => {
                Err(self.refuse(&TensorError::SizeMismatch { expected, actual: size_bytes }))
            }
            _ => Ok(()),
        }
    }

    /// The words for data that does not fit (Triton's, where its clients and tests look for them).
    fn refuse(&self, error: &TensorError) -> InferError {
        let Self { name, model, .. } = self;
        InferError::InvalidRequest(match error {
            TensorError::SizeMismatch { expected, actual } => {
                format!(
                    "input byte size mismatch for input '{name}' for model '{model}'. Expected {expected}, got {actual}"
                )
            }
            TensorError::CountMismatch { expected, actual } => {
                format!(
                    "expected {expected} string elements for inference input '{name}' for model '{model}', got {actual}"
                )
            }
            TensorError::NegativeDimension(_)
            | TensorError::TooLarge(_)
            | TensorError::TruncatedElement(_)
            | TensorError::NotBool(_) => format!("input '{name}' for model '{model}': {error}"),
        })
    }

    /// The words for a count of elements that the shape does not ask for.
    #[must_use]
    pub fn wrong_count(&self, expected: usize, actual: usize) -> InferError {
        let Self { name, model, datatype, shape } = self;
        if *datatype == DataType::Bytes {
            return self.refuse(&TensorError::CountMismatch { expected, actual });
        }
        InferError::InvalidRequest(format!(
            "input '{name}' for model '{model}' has shape {shape:?}, which asks for {expected} elements, but {actual} are given"
        ))
    }
}

/// An input whose datatype and shape were found right, kept until its data has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredInput {
    /// Its name.
    pub name: String,
    /// Its datatype.
    pub datatype: DataType,
    /// Its shape.
    pub shape: Vec<i64>,
}

impl DeclaredInput {
    /// The input with `data`, when that is what datatype and shape say.
    pub fn with_data(self, model: &str, data: Bytes) -> Result<NamedTensor, InferError> {
        let Self { name, datatype, shape } = self;
        match Tensor::new(datatype, shape, data) {
            Ok(tensor) => Ok(NamedTensor { name, tensor }),
            Err(error) => Err(InputHead { model, name: &name, datatype, shape: &[] }.refuse(&error)),
        }
    }
}

/// Why tensors in shared memory and classification are refused, in the words of both protocols.
pub fn refuse_tensor_parameter(what: &str, name: &str, parameter: &str) -> Result<(), InferError> {
    match parameter {
        "shared_memory_region" | "shared_memory_offset" | "shared_memory_byte_size" => Err(InferError::Unsupported(
            format!("{what} '{name}' asks for shared memory ('{parameter}'), which this server does not offer"),
        )),
        "classification" => Err(InferError::Unsupported(format!(
            "{what} '{name}' asks for '{parameter}', which this server does not offer"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> InferRequest {
        InferRequest {
            model: "m".parse().unwrap(),
            version: None,
            id: String::new(),
            inputs: vec![],
            outputs: vec![],
            parameters: Parameters::new(),
            deadline: None,
        }
    }

    fn with_parameter(name: &str, value: Parameter) -> Result<InferRequest, InferError> {
        let parameters = Parameters::from([(name.to_owned(), value)]);
        finish_request(InferRequest { parameters, ..request() }, Instant::now())
    }

    #[test]
    fn the_timeout_parameter_is_counted_from_the_arrival_and_the_earlier_deadline_wins() {
        let arrival = Instant::now();
        let parameters = Parameters::from([("timeout".to_owned(), Parameter::Int64(2_000_000))]);
        let late = Some(arrival + Duration::from_secs(9));
        let soon = Some(arrival + Duration::from_secs(1));
        let with = |deadline| InferRequest { parameters: parameters.clone(), deadline, ..request() };
        let two_seconds = Some(arrival + Duration::from_secs(2));
        assert_eq!(finish_request(with(None), arrival).unwrap().deadline, two_seconds);
        assert_eq!(finish_request(with(late), arrival).unwrap().deadline, two_seconds);
        assert_eq!(finish_request(with(soon), arrival).unwrap().deadline, soon);
        assert!(finish_request(with(None), arrival).unwrap().parameters.is_empty(), "it is used up");
    }

    #[test]
    fn a_timeout_of_zero_is_none_and_a_negative_one_is_refused() {
        assert_eq!(with_parameter("timeout", Parameter::Int64(0)).unwrap().deadline, None);
        assert!(with_parameter("timeout", Parameter::Uint64(u64::MAX)).unwrap().deadline.is_some());
        assert!(matches!(with_parameter("timeout", Parameter::Int64(-1)), Err(InferError::InvalidRequest(_))));
        assert!(matches!(with_parameter("timeout", Parameter::Double(1.5)), Err(InferError::InvalidRequest(_))));
    }

    #[test]
    fn a_long_text_is_shortened_between_characters() {
        assert_eq!(shortened("short".into()), "short");
        let long = shortened("ü".repeat(2000));
        assert!(long.len() <= MAX_MESSAGE_BYTES + 3 && long.ends_with("ü…"));
        let odd = shortened(format!("x{}", "ü".repeat(2000)));
        assert!(odd.ends_with("ü…"));
    }

    #[test]
    fn what_waits_with_a_request_and_is_not_reserved_is_bounded() {
        let of = |id: String, parameters| finish_request(InferRequest { id, parameters, ..request() }, Instant::now());
        assert!(of("x".repeat(MAX_ID_BYTES), Parameters::new()).is_ok());
        let error = of("x".repeat(MAX_ID_BYTES + 1), Parameters::new()).unwrap_err();
        assert_eq!(error.to_string(), "the request's id has 4097 bytes; the maximum is 4096");
        let text = |bytes: usize| Parameters::from([("name".to_owned(), Parameter::String("x".repeat(bytes)))]);
        assert!(of(String::new(), text(MAX_PARAMETER_BYTES - 4)).is_ok());
        assert!(matches!(of(String::new(), text(MAX_PARAMETER_BYTES)), Err(InferError::InvalidRequest(_))));
    }

    #[test]
    fn parameters_of_extensions_that_are_not_served_are_refused_unless_neutral() {
        assert!(with_parameter("sequence_id", Parameter::Int64(0)).is_ok());
        assert!(with_parameter("sequence_end", Parameter::Bool(false)).is_ok());
        assert!(with_parameter("priority", Parameter::Uint64(0)).is_ok());
        assert!(matches!(with_parameter("sequence_id", Parameter::Int64(3)), Err(InferError::Unsupported(_))));
        assert!(matches!(with_parameter("priority", Parameter::Int64(1)), Err(InferError::InvalidRequest(_))));
        assert!(matches!(with_parameter("triton_x", Parameter::Bool(true)), Err(InferError::InvalidRequest(_))));
        assert!(with_parameter(EMPTY_FINAL_RESPONSE, Parameter::Bool(true)).unwrap().parameters.is_empty());
        assert_eq!(with_parameter("mine", Parameter::Bool(true)).unwrap().parameters.len(), 1);
    }

    #[test]
    fn names_stand_once_and_hold_no_nul() {
        let twice = InferRequest { outputs: vec!["y".into(), "y".into()], ..request() };
        let error = finish_request(twice, Instant::now()).unwrap_err().to_string();
        assert_eq!(error, "requested output 'y' is given more than once");
        let nul = InferRequest { id: "a\0b".into(), ..request() };
        assert!(finish_request(nul, Instant::now()).is_err());
    }

    #[test]
    fn a_shape_is_refused_before_anything_is_allocated() {
        let limits = Limits { max_request_bytes: 1000, ..Limits::default() };
        let count = |shape: &[i64]| InputHead::new("m", "x", "FP32", shape).unwrap().element_count(limits);
        assert_eq!(count(&[]), Ok(1));
        assert_eq!(count(&[250]), Ok(250));
        assert_eq!(count(&[3, 0]), Ok(0));
        assert!(count(&[251]).is_err());
        assert!(count(&[1_000_000, 0]).is_err(), "a great many rows of nothing");
        assert!(count(&[-1]).is_err());
        assert!(count(&[i64::MAX, i64::MAX]).is_err());
        assert!(count(&[1; 65]).is_err());
    }
}
