//! The decoder and the encoder without a connection.
//!
//! For fuzz targets, benchmarks and tests, which give a body in pieces as a connection would. Invariant: it is the server's own code
//! that is driven, in the server's own order.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use torchmodel_core::{
    inference::{InferError, InferRequest, InferResponse},
    metadata::ModelMetadata,
    model_key::{ModelName, ModelVersion},
};

use super::{
    Routes,
    answer::Answer,
    assembly::Assembly,
    decode::{Decoded, Head, OutputForm},
    encode,
    error::RestError,
    inflate::{Inflation, encoding_of},
    path::{Route, Target},
};
use crate::{admission::Admission, compression::Encoding, protocol::Limits};

/// A request's body and what its head says of it.
#[derive(Clone, Debug)]
pub struct RequestBody<'a> {
    /// The model that the path names.
    pub model: ModelName,
    /// `Inference-Header-Content-Length`.
    pub header_length: Option<usize>,
    /// `Content-Encoding`.
    pub content_encoding: Option<&'a str>,
    /// The body, as it comes.
    pub pieces: &'a [Bytes],
    /// Whether its length was announced.
    pub is_announced: bool,
    /// Facts about the model, for a body that is nothing but its one input (`header_length` is 0).
    pub metadata: Option<ModelMetadata>,
}

/// What stands before the body of an inference request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The model that the path names.
    pub model: ModelName,
    /// The version that the path names.
    pub version: Option<ModelVersion>,
    /// `Inference-Header-Content-Length`.
    pub header_length: Option<usize>,
    /// How long the client waits, `X-Request-Timeout`, from now.
    pub timeout: Option<Duration>,
}

/// Reads the path and the headers of an inference request; `None` where the path is no such request's. The error has the status and
/// the words that a client gets.
#[must_use]
pub fn read_head(path: &str, headers: &HeaderMap) -> Option<Result<RequestHead, (u16, String)>> {
    let Some(Route::Infer(path)) = Route::of(path, Routes::Inference) else { return None };
    let head = Target::of(path).and_then(|target| Ok(Head::new(target.model, target.version, headers)?));
    let head = head.map(|head| RequestHead {
        model: head.model,
        version: head.version,
        header_length: head.header_length,
        timeout: head.deadline.map(|deadline| deadline.saturating_duration_since(head.arrival)),
    });
    Some(head.map_err(told))
}

/// Decodes a request as the server does. The error has the status and the words that a client gets.
pub fn decode(body: &RequestBody<'_>, limits: Limits, admission: &Admission) -> Result<InferRequest, (u16, String)> {
    assemble(body, limits, admission).map(|decoded| decoded.request).map_err(told)
}

/// What a client gets for an error.
fn told(error: RestError) -> (u16, String) {
    let mut response = Answer::from(error).response;
    let text = response.body_mut().next().unwrap_or_default();
    (response.status().as_u16(), String::from_utf8_lossy(&text).into_owned())
}

/// Encodes a response as JSON, in the pieces in which it is sent.
pub fn encode(response: InferResponse, admission: &Admission) -> Result<Vec<Bytes>, InferError> {
    let encoded = encode::encode(response, &OutputForm::default(), &mut admission.reserve(0)?)?;
    Ok(encoded.pieces)
}

/// Puts a request together as `rest::body` does.
pub(super) fn assemble(body: &RequestBody<'_>, limits: Limits, admission: &Admission) -> Result<Decoded, RestError> {
    let encoding = content_encoding(body)?;
    let limit = limits.max_request_bytes;
    let announced = body.is_announced.then(|| body.pieces.iter().map(Bytes::len).sum());
    if announced.is_some_and(|length: usize| length > limit) {
        return Err(RestError::TooLarge(limit));
    }
    let length = announced.filter(|_| encoding.is_none());
    let reservation = admission.reserve(length.unwrap_or(0))?;
    let head = Head {
        model: body.model.clone(),
        version: None,
        arrival: Instant::now(),
        deadline: None,
        header_length: body.header_length,
    };
    let mut assembly = Assembly::new(head, limits, length, reservation)?;
    if let Some(metadata) = &body.metadata {
        assembly = assembly.raw(metadata.clone())?;
    }
    let mut left = limit;
    let pieces = body.pieces.iter().map(|piece| {
        left = left.checked_sub(piece.len()).ok_or(RestError::TooLarge(limit))?;
        Ok(piece.clone())
    });
    let mut assembly = match encoding {
        None => take(assembly, pieces)?,
        Some(encoding) => inflate(Inflation::new(encoding, assembly, admission, limit)?, pieces)?,
    };
    if assembly.is_all_json() {
        assembly.read_json()?;
    }
    assembly.finish()
}

fn content_encoding(body: &RequestBody<'_>) -> Result<Option<Encoding>, RestError> {
    let Some(text) = body.content_encoding else { return Ok(None) };
    let value = HeaderValue::from_str(text).map_err(|error| RestError::invalid(error.to_string()))?;
    encoding_of(&HeaderMap::from_iter([(header::CONTENT_ENCODING, value)]))
}

fn take(mut assembly: Assembly, pieces: impl Iterator<Item = Result<Bytes, RestError>>) -> Result<Assembly, RestError> {
    for piece in pieces {
        let mut piece = piece?;
        while !piece.is_empty() {
            assembly.take(&mut piece)?;
            if assembly.is_json_complete() {
                assembly.read_json()?;
            }
        }
    }
    Ok(assembly)
}

fn inflate(
    mut inflation: Inflation,
    pieces: impl Iterator<Item = Result<Bytes, RestError>>,
) -> Result<Assembly, RestError> {
    for piece in pieces {
        inflation.take(&piece?)?;
    }
    inflation.finish()
}
