//! What the protocol tells about a model and about the server, in neutral words.
//!
//! Made by the service and by [`crate::version::Version`]; both protocols encode it. Inputs and outputs are the signature's own, so that what is
//! told is what is checked.

use std::collections::BTreeMap;

use crate::{
    model_key::{ModelName, ModelVersion},
    signature::{InputSignature, OutputSignature},
};

/// What the protocol tells about a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelMetadata {
    /// Name of the model.
    pub name: ModelName,
    /// Versions that are ready, the oldest first.
    pub versions: Vec<ModelVersion>,
    /// `pytorch_torchscript`, by the Open Inference Protocol's list.
    pub platform: String,
    /// Inputs, in the method's order.
    pub inputs: Vec<InputSignature>,
    /// Outputs, in the method's order.
    pub outputs: Vec<OutputSignature>,
    /// More facts, such as `stateful: true`; gRPC's `properties`, REST's `properties`.
    pub properties: BTreeMap<String, String>,
}

/// What the protocol tells about the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerMetadata {
    /// Name of the server.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Protocol extensions that it serves.
    pub extensions: Vec<String>,
}
