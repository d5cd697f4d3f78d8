//! The decoder and the encoder without a connection.
//!
//! For fuzz targets, benchmarks and tests, which give a body in pieces as a connection would. Invariant: it is the server's own code
//! that is driven, in the server's own order.

use std::time::Instant;

use bytes::Bytes;
use torchmodel_core::{
    inference::{InferError, InferRequest, InferResponse},
    metadata::ModelMetadata,
    model_key::ModelName,
};

use super::{
    answer::Answer,
    assembly::Assembly,
    decode::{Decoded, Head, OutputForm},
    encode,
    error::RestError,
};
use crate::{admission::Admission, protocol::Limits};

/// A request's body and what its head says of it.
#[derive(Clone, Debug)]
pub struct RequestBody<'a> {
    /// The model that the path names.
    pub model: ModelName,
    /// `Inference-Header-Content-Length`.
    pub header_length: Option<usize>,
    /// The body, as it comes.
    pub pieces: &'a [Bytes],
    /// Whether its length was announced.
    pub is_announced: bool,
    /// Facts about the model, for a body that is nothing but its one input (`header_length` is 0).
    pub metadata: Option<ModelMetadata>,
}

/// Decodes a request as the server does. The error has the status and the words that a client gets.
pub fn decode(body: &RequestBody<'_>, limits: Limits, admission: &Admission) -> Result<InferRequest, (u16, String)> {
    match assemble(body, limits, admission) {
        Ok(decoded) => Ok(decoded.request),
        Err(error) => {
            let mut response = Answer::from(error).response;
            let text = response.body_mut().next().unwrap_or_default();
            Err((response.status().as_u16(), String::from_utf8_lossy(&text).into_owned()))
        }
    }
}

/// Encodes a response as JSON, in the pieces in which it is sent.
pub fn encode(response: InferResponse, admission: &Admission) -> Result<Vec<Bytes>, InferError> {
    let encoded = encode::encode(response, &OutputForm::default(), &mut admission.reserve(0)?)?;
    Ok(encoded.pieces)
}

/// Puts a request together as `rest::body` does.
pub(super) fn assemble(body: &RequestBody<'_>, limits: Limits, admission: &Admission) -> Result<Decoded, RestError> {
    let total = body.pieces.iter().map(Bytes::len).sum();
    let length = body.is_announced.then_some(total);
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
    for piece in body.pieces {
        let mut piece = piece.clone();
        while !piece.is_empty() {
            assembly.take(&mut piece)?;
            if assembly.is_json_complete() {
                assembly.read_json()?;
            }
        }
    }
    if assembly.is_all_json() {
        assembly.read_json()?;
    }
    assembly.finish()
}
