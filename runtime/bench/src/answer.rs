//! Whether an answer is right: its length always, its tensors on those that were kept.
//!
//! `generator` asks after each exchange. The first answer to a variant is taken apart and compared with what the model must say;
//! its bytes then stand for the variant, so that later answers cost one comparison of memory. Invariant: an answer passes only if
//! its tensors, or at least its length, are those of an answer whose tensors were compared.

use std::{borrow::Cow, io::Read as _, sync::OnceLock};

use bytes::{Buf as _, Bytes};
use flate2::read::{GzDecoder, ZlibDecoder};
use prost::Message;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    exchange::{AnswerHead, Body, Compression},
    request::{InferTensor, Wire},
    tensor::{DataType, Tensor},
};

/// Bytes of a gRPC message's prefix.
const PREFIX_BYTES: usize = 5;

/// Why an answer is wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It cannot be read.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
    /// It has another length than the answer that was checked.
    #[error("the answer has {actual} bytes where the one that was checked has {expected}")]
    Length {
        /// Of the answer that was checked.
        expected: usize,
        /// Of this one.
        actual: usize,
    },
    /// It was counted before any was checked.
    #[error("no answer was checked before this one")]
    Unchecked,
    /// It has other outputs.
    #[error("the answer has the outputs {actual:?} in place of {expected:?}")]
    Outputs {
        /// What the model must answer.
        expected: Vec<String>,
        /// What came.
        actual: Vec<String>,
    },
    /// An output's elements are wrong.
    #[error("output {name} differs from what the model must answer at byte {position} of {bytes}")]
    Data {
        /// The output.
        name: String,
        /// The first byte that differs.
        position: usize,
        /// Size of the output.
        bytes: usize,
    },
}

/// What the answers to one load must be.
#[derive(Debug)]
pub struct Checker {
    wire: Wire,
    variants: Vec<Variant>,
}

#[derive(Debug)]
struct Variant {
    outputs: Vec<Tensor>,
    reference: OnceLock<(AnswerHead, Vec<u8>)>,
}

/// An output as it came.
struct Output<'a> {
    name: Cow<'a, str>,
    datatype: Cow<'a, str>,
    shape: Vec<i64>,
    data: Cow<'a, [u8]>,
}

impl Checker {
    /// A checker of answers over `wire`; each member of `variants` is what the model must answer to one request.
    #[must_use]
    pub fn new(wire: Wire, variants: impl IntoIterator<Item = Vec<Tensor>>) -> Self {
        let variant = |outputs| Variant { outputs, reference: OnceLock::new() };
        Self { wire, variants: variants.into_iter().map(variant).collect() }
    }

    /// Checks an answer to the request `variant`: its bytes if they were kept, else its length.
    pub fn check(&self, variant: usize, head: AnswerHead, body: &Body) -> Result<(), AnswerError> {
        let variant = self.variants.get(variant).ok_or(AnswerError::Unchecked)?;
        let reference = variant.reference.get();
        let Some(bytes) = body.bytes() else {
            let (_, bytes) = reference.ok_or(AnswerError::Unchecked)?;
            let (expected, actual) = (bytes.len(), body.length());
            return if expected == actual { Ok(()) } else { Err(AnswerError::Length { expected, actual }) };
        };
        if reference.is_some_and(|(known, reference)| *known == head && reference == bytes) {
            return Ok(());
        }
        self.compare(&variant.outputs, head, bytes)?;
        // Whichever connection comes first gives the reference; they are all right.
        variant.reference.get_or_init(|| (head, bytes.to_vec()));
        Ok(())
    }

    /// Length of the answer that stands for a variant; `None` before one was compared.
    #[must_use]
    pub fn reference_length(&self, variant: usize) -> Option<usize> {
        self.variants.get(variant)?.reference.get().map(|(_, bytes)| bytes.len())
    }

    /// Whether the server compressed the answers.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        let mut references = self.variants.iter().filter_map(|variant| variant.reference.get());
        self.wire.is_grpc() && references.any(|(_, bytes)| bytes.first() == Some(&1))
    }

    fn compare(&self, expected: &[Tensor], head: AnswerHead, bytes: &[u8]) -> Result<(), AnswerError> {
        if self.wire.is_grpc() {
            let message = grpc_message(head, bytes)?;
            return compare(expected, &grpc_outputs(&message)?);
        }
        compare(expected, &rest_outputs(self.wire, head, bytes)?)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn unreadable(error: impl ToString) -> AnswerError {
    AnswerError::Unreadable(error.to_string())
}

fn compare(expected: &[Tensor], outputs: &[Output<'_>]) -> Result<(), AnswerError> {
    let shown: Vec<String> =
        outputs.iter().map(|output| format!("{} {} {:?}", output.name, output.datatype, output.shape)).collect();
    let wanted: Vec<String> = expected
        .iter()
        .map(|output| format!("{} {} {:?}", output.name, output.datatype.as_str(), [output.elements()]))
        .collect();
    if shown != wanted {
        return Err(AnswerError::Outputs { expected: wanted, actual: shown });
    }
    for (expected, output) in expected.iter().zip(outputs) {
        if expected.data != *output.data {
            let common = expected.data.iter().zip(output.data.iter()).take_while(|(one, other)| one == other).count();
            return Err(AnswerError::Data {
                name: expected.name.to_owned(),
                position: common,
                bytes: expected.data.len(),
            });
        }
    }
    Ok(())
}

/// `inference.ModelInferResponse`, as far as it is checked.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ModelInferResponse {
    #[prost(message, repeated, tag = "5")]
    pub(crate) outputs: Vec<InferTensor>,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub(crate) raw_output_contents: Vec<Bytes>,
}

fn grpc_message(head: AnswerHead, mut bytes: &[u8]) -> Result<Bytes, AnswerError> {
    if bytes.len() < PREFIX_BYTES {
        return Err(unreadable(format!("a gRPC message of {} bytes has no prefix", bytes.len())));
    }
    let (flag, length) = (bytes.get_u8(), bytes.get_u32());
    if usize::try_from(length).ok() != Some(bytes.len()) {
        return Err(unreadable(format!("a message of {length} bytes was announced and {} came", bytes.len())));
    }
    let mut message = Vec::new();
    let read = match (flag, head.compression) {
        (0, _) => return Ok(Bytes::copy_from_slice(bytes)),
        (1, Some(Compression::Gzip)) => GzDecoder::new(bytes).read_to_end(&mut message),
        (1, Some(Compression::Deflate)) => ZlibDecoder::new(bytes).read_to_end(&mut message),
        _ => return Err(unreadable(format!("its flag is {flag} and grpc-encoding says nothing that is known"))),
    };
    read.map_err(unreadable)?;
    Ok(message.into())
}

fn grpc_outputs(message: &Bytes) -> Result<Vec<Output<'static>>, AnswerError> {
    let response = ModelInferResponse::decode(message.clone()).map_err(unreadable)?;
    let (heads, raw) = (response.outputs, response.raw_output_contents);
    if heads.len() != raw.len() {
        return Err(unreadable(format!("{} outputs have {} raw contents", heads.len(), raw.len())));
    }
    let output = |(head, data): (InferTensor, Bytes)| Output {
        name: head.name.into(),
        datatype: head.datatype.into(),
        shape: head.shape,
        data: Cow::Owned(data.into()),
    };
    Ok(heads.into_iter().zip(raw).map(output).collect())
}

#[derive(Deserialize)]
struct RestAnswer<'a> {
    #[serde(borrow)]
    outputs: Vec<RestOutput<'a>>,
}

#[derive(Deserialize)]
struct RestOutput<'a> {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: RestParameters,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct RestParameters {
    binary_data_size: Option<usize>,
}

fn rest_outputs(wire: Wire, head: AnswerHead, bytes: &[u8]) -> Result<Vec<Output<'_>>, AnswerError> {
    let json_length = head.json_length.unwrap_or(bytes.len());
    let (json, mut blobs) = bytes.split_at_checked(json_length).ok_or_else(|| unreadable("its JSON is cut"))?;
    let answer: RestAnswer<'_> = serde_json::from_slice(json).map_err(unreadable)?;
    let mut outputs = Vec::new();
    for output in answer.outputs {
        let data = match (output.data, output.parameters.binary_data_size, wire) {
            (None, Some(size), Wire::RestBinary) => {
                let (data, rest) = blobs.split_at_checked(size).ok_or_else(|| unreadable("its tensors are cut"))?;
                blobs = rest;
                Cow::Borrowed(data)
            }
            (Some(data), None, Wire::RestJson | Wire::RestBinaryToJson) => {
                elements(&output.datatype, data.get())?.into()
            }
            _ => return Err(unreadable(format!("output {} is not in the form that was asked for", output.name))),
        };
        outputs.push(Output { name: output.name.into(), datatype: output.datatype.into(), shape: output.shape, data });
    }
    if blobs.is_empty() { Ok(outputs) } else { Err(unreadable("bytes follow its tensors")) }
}

/// The little-endian bytes of a JSON array's numbers.
fn elements(datatype: &str, json: &str) -> Result<Vec<u8>, AnswerError> {
    if datatype == DataType::Fp32.as_str() {
        let numbers: Vec<f32> = serde_json::from_str(json).map_err(unreadable)?;
        return Ok(numbers.into_iter().flat_map(f32::to_le_bytes).collect());
    }
    let numbers: Vec<i32> = serde_json::from_str(json).map_err(unreadable)?;
    Ok(numbers.into_iter().flat_map(i32::to_le_bytes).collect())
}

#[cfg(test)]
mod tests;
