//! A model behind real sockets, and the smallest clients that can ask it.

use std::{fs::File, ops::Deref, path::Path, sync::Arc};

use bytes::Bytes;
use tempfile::TempDir;
use torchmodel_core::{
    config::ModelConfig,
    inference::{InferError, InferRequest, InferResponse, NamedTensor, Parameters},
    loader::{Loader as _, ModelFiles},
    metrics::Metrics,
    model_key::ModelVersion,
    repository::{LoadContext, LoadError, LoadRequest, LoadedVersion, ModelRepository, RepositoryOptions},
    service::InferenceService,
    tensor::{DataType, Tensor},
    version::Version,
};
use torchmodel_crds::{Failure, ModelSpec};
use torchmodel_testing::{Bounds, TestTensor, grpc, grpc_request, http};
use torchmodel_torch::TorchLoader;

/// A served model and where it is.
pub struct Served {
    pub service: InferenceService,
    pub metrics: Metrics,
    server: torchmodel_testing::Served,
}

/// A model in a repository of its own.
pub struct Model {
    repository: Arc<ModelRepository>,
    version: Arc<Version>,
}

impl Deref for Model {
    type Target = Version;

    fn deref(&self) -> &Version {
        &self.version
    }
}

/// Loads the archive at `path` as `spec` (YAML) says; the model is called `m`.
pub fn load(path: &Path, spec: &str) -> Result<(Model, Metrics), Failure> {
    let spec: ModelSpec = serde_yaml::from_str(spec).unwrap();
    let config = ModelConfig::check(&spec, Some("m".into())).unwrap();
    let metrics = Metrics::new();
    let repository = Arc::new(ModelRepository::new(RepositoryOptions {
        on_fatal: Arc::new(|failure| panic!("{failure:?}")),
        ..RepositoryOptions::new(metrics.clone())
    }));
    let files = ModelFiles { archive: Arc::new(File::open(path).unwrap()), path: path.to_owned() };
    let loaded_as = config.clone();
    let load = Box::new(move |_: &LoadContext| {
        let model = TorchLoader::new(vec![tch::Device::Cpu]).load(&files, &loaded_as)?;
        Ok(LoadedVersion { model, artifact_size_bytes: 0, lease: Box::new(()) })
    });
    let pending = repository.load(LoadRequest { version: ModelVersion::FIRST, config, load }).unwrap();
    match pending.wait_blocking() {
        Ok(()) => {}
        Err(LoadError::Failed(failure)) => return Err(failure),
        Err(LoadError::Unloaded) => panic!("nobody unloaded it"),
    }
    let version = repository.get(&"m".parse().unwrap(), None).unwrap();
    Ok((Model { repository, version }, metrics))
}

/// The same for TorchScript source with FP32 buffers.
pub fn load_source(source: &str, buffers: &[(&str, f32)], spec: &str) -> Result<(Model, Metrics), Failure> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.pt");
    torch_shim::define_module(source, buffers, &path).unwrap();
    load(&path, spec)
}

/// Serves a loaded model on free ports.
pub async fn serve((model, metrics): (Model, Metrics)) -> Served {
    let server = torchmodel_testing::Served::start(model.repository, metrics.clone(), Bounds::default()).await;
    Served { service: server.service.clone(), metrics, server }
}

impl Served {
    /// POSTs JSON to the model's infer path; status and body.
    pub async fn post(&self, body: String) -> (u16, serde_json::Value) {
        let answer = http(self.server.rest, "POST /v2/models/m/infer", &[], body.as_bytes()).await;
        (answer.status, answer.json())
    }

    /// Asks over gRPC with raw contents.
    pub async fn ask_grpc(&self, inputs: &[NamedTensor]) -> Result<Vec<Bytes>, tonic::Status> {
        let inputs: Vec<TestTensor> = inputs.iter().map(Into::into).collect();
        let answer = grpc(self.server.grpc).await.model_infer(grpc_request("m", &inputs)).await?;
        Ok(answer.into_inner().raw_output_contents)
    }

    /// Stops the server and waits for it.
    pub async fn stop(mut self) {
        assert!(self.server.stop().await.unwrap(), "the server drained");
    }
}

/// A request for the model `m`.
pub fn request(inputs: Vec<NamedTensor>) -> InferRequest {
    InferRequest {
        model: "m".parse().unwrap(),
        version: None,
        id: String::new(),
        inputs,
        outputs: Vec::new(),
        parameters: Parameters::new(),
        deadline: None,
    }
}

/// Asks a model without any protocol.
pub async fn ask(model: &Version, inputs: Vec<NamedTensor>) -> Result<InferResponse, InferError> {
    model.infer(request(inputs)).await
}

/// An FP32 input.
pub fn floats(name: &str, shape: &[i64], values: &[f32]) -> NamedTensor {
    named(name, DataType::Fp32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// An INT64 input of one element.
pub fn integer(name: &str, value: i64) -> NamedTensor {
    named(name, DataType::Int64, &[1], value.to_le_bytes().to_vec())
}

/// An input of any datatype.
pub fn named(name: &str, datatype: DataType, shape: &[i64], data: Vec<u8>) -> NamedTensor {
    NamedTensor { name: name.into(), tensor: Tensor::new(datatype, shape.to_vec(), data.into()).unwrap() }
}
