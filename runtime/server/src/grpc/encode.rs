//! From the neutral words to gRPC messages: inference responses and metadata.
//!
//! Called by `grpc`'s service. Invariant: outputs are always in `raw_output_contents`, one entry for each, whatever form the
//! request had (Triton's rule).

use std::collections::HashMap;

use torchmodel_core::{
    inference::{InferResponse, Parameter, Parameters},
    metadata::{ModelMetadata, ServerMetadata},
    model_key::ModelVersion,
    tensor::{DataType, DataTypeExt},
};

use super::proto::{
    InferParameter, ModelInferResponse, ModelMetadataResponse, ServerMetadataResponse,
    infer_parameter::ParameterChoice, model_infer_response::InferOutputTensor, model_metadata_response::TensorMetadata,
};

/// The message of an answered inference.
pub(super) fn encode(response: InferResponse) -> ModelInferResponse {
    let mut outputs = Vec::with_capacity(response.outputs.len());
    let mut raw_output_contents = Vec::with_capacity(response.outputs.len());
    for output in response.outputs {
        let (datatype, shape, data) = output.tensor.into_parts();
        outputs.push(InferOutputTensor {
            name: output.name,
            datatype: datatype.as_str().to_owned(),
            shape,
            parameters: HashMap::new(),
            contents: None,
        });
        raw_output_contents.push(data);
    }
    ModelInferResponse {
        model_name: response.model.to_string(),
        model_version: response.version.to_string(),
        id: response.id,
        parameters: encode_parameters(response.parameters),
        outputs,
        raw_output_contents,
    }
}

fn encode_parameters(parameters: Parameters) -> HashMap<String, InferParameter> {
    let parameters = parameters.into_iter().map(|(name, value)| {
        let choice = match value {
            Parameter::Bool(value) => ParameterChoice::BoolParam(value),
            Parameter::Int64(value) => ParameterChoice::Int64Param(value),
            Parameter::Uint64(value) => ParameterChoice::Uint64Param(value),
            Parameter::Double(value) => ParameterChoice::DoubleParam(value),
            Parameter::String(value) => ParameterChoice::StringParam(value),
        };
        (name, InferParameter { parameter_choice: Some(choice) })
    });
    parameters.collect()
}

/// The message of a server's metadata.
pub(super) fn encode_server(metadata: ServerMetadata) -> ServerMetadataResponse {
    ServerMetadataResponse { name: metadata.name, version: metadata.version, extensions: metadata.extensions }
}

/// The message of a model's metadata.
pub(super) fn encode_model(metadata: ModelMetadata) -> ModelMetadataResponse {
    ModelMetadataResponse {
        name: metadata.name.to_string(),
        versions: metadata.versions.iter().map(ModelVersion::to_string).collect(),
        platform: metadata.platform,
        inputs: metadata
            .inputs
            .into_iter()
            .map(|input| encode_tensor(input.name, input.datatype, input.shape))
            .collect(),
        outputs: metadata
            .outputs
            .into_iter()
            .map(|output| encode_tensor(output.name, output.datatype, output.shape))
            .collect(),
        properties: metadata.properties.into_iter().collect(),
    }
}

/// As in REST: an unknown datatype is empty, an unknown shape is one dimension of any size.
fn encode_tensor(name: String, datatype: Option<DataType>, shape: Option<Vec<i64>>) -> TensorMetadata {
    TensorMetadata {
        name,
        datatype: datatype.map_or("", DataTypeExt::as_str).to_owned(),
        shape: shape.unwrap_or_else(|| vec![-1]),
    }
}
