//! The decoder of `ModelInfer` without a connection.
//!
//! For fuzz targets and tests, which give a call's bytes in pieces as a connection would; the sibling of `rest::offline`. Invariant: it
//! is the server's own code that is driven, in the server's own order.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;
use tonic::Status;
use torchmodel_core::inference::{InferError, InferRequest};

use super::{
    decode::Decoding,
    encoding::{encoding_of, timeout_of},
    infer::{self, Refusal},
    message::{Message, MessageReader},
    proto::ModelInferRequest,
    walker::Walked,
};
use crate::{admission::Admission, protocol::Limits};

/// What a call sends.
#[derive(Clone, Copy, Debug)]
pub struct CallBody<'a> {
    /// `grpc-encoding`.
    pub encoding: Option<&'a str>,
    /// Its one message with the five bytes before it, as they come.
    pub pieces: &'a [Bytes],
}

/// Decodes a call's message as the server does. The error is the status that a client gets.
pub fn decode(call: &CallBody<'_>, limits: Limits, admission: &Admission) -> Result<InferRequest, Status> {
    let decode = || -> Result<InferRequest, Refusal> {
        let walked = walk(call, limits, admission)?;
        let (_, request) = infer::decode(walked, &Decoding { arrival: Instant::now(), deadline: None, limits });
        Ok(request?)
    };
    decode().map_err(|refusal| refusal.status)
}

/// A call's message as it was read, before anything of it is looked at.
pub fn read(call: &CallBody<'_>, limits: Limits, admission: &Admission) -> Result<ModelInferRequest, Status> {
    let walked = walk(call, limits, admission).map_err(|refusal| refusal.status)?;
    let message = ModelInferRequest::decode(walked.rest.as_slice());
    let message = message.map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(ModelInferRequest { raw_input_contents: walked.raw, ..message })
}

/// What a `grpc-timeout` says, if it says something.
#[must_use]
pub fn timeout(value: &[u8]) -> Option<Duration> {
    timeout_of(&header("grpc-timeout", value)?)
}

fn walk(call: &CallBody<'_>, limits: Limits, admission: &Admission) -> Result<Walked, Refusal> {
    let headers = call.encoding.and_then(|name| header("grpc-encoding", name.as_bytes())).unwrap_or_default();
    let encoding = encoding_of(&headers)
        .map_err(|name| InferError::Unsupported(format!("grpc-encoding '{name}' is not supported")))?;
    let mut reader = MessageReader::new(admission.clone(), limits.max_request_bytes, encoding);
    for piece in call.pieces {
        reader.push(piece)?;
    }
    match reader.finish()? {
        Message::Plain(walked) => Ok(walked),
        Message::Compressed(compressed) => Ok(compressed.inflate()?),
    }
}

fn header(name: &'static str, value: &[u8]) -> Option<HeaderMap> {
    let value = HeaderValue::from_bytes(value).ok()?;
    Some(HeaderMap::from_iter([(HeaderName::from_static(name), value)]))
}
