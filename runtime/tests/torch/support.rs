//! A model behind real sockets, and the smallest clients that can ask it.

use std::{fs::File, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tonic::transport::Channel;
use torchmodel_core::{
    config::ModelConfig,
    inference::{InferError, InferRequest, InferResponse, NamedTensor, Parameters},
    loader::{Loader as _, ModelFiles},
    metrics::Metrics,
    model_key::ModelVersion,
    repository::{ModelRepository, ModelState},
    service::InferenceService,
    tensor::{DataType, Tensor},
    version::Version,
};
use torchmodel_crds::{Failure, ModelSpec};
use torchmodel_server::{
    self as server, Listeners, Serving,
    admission::Admission,
    grpc::proto::{
        InferTensorContents, ModelInferRequest, grpc_inference_service_client::GrpcInferenceServiceClient,
        model_infer_request::InferInputTensor,
    },
    protocol::Limits,
};
use torchmodel_torch::TorchLoader;

/// A served model and where it is.
pub struct Served {
    pub service: InferenceService,
    pub metrics: Metrics,
    pub http: String,
    pub grpc: GrpcInferenceServiceClient<Channel>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<bool>,
}

/// Loads the archive at `path` as `spec` (YAML) says; the model is called `m`.
pub fn load(path: &Path, spec: &str) -> Result<(Version, Metrics), Failure> {
    let spec: ModelSpec = serde_yaml::from_str(spec).unwrap();
    let config = ModelConfig::check(&spec, Some("m".into())).unwrap();
    let files = ModelFiles { archive: Arc::new(File::open(path).unwrap()), path: path.to_owned() };
    let loaded = TorchLoader::new(vec![tch::Device::Cpu]).load(&files, &config)?;
    let metrics = Metrics::new();
    let recorded = metrics.model(&config.name, ModelVersion::FIRST);
    let model = Version::start(loaded, config, recorded, Arc::new(|failure| panic!("{failure:?}")))?;
    Ok((model, metrics))
}

/// The same for TorchScript source with FP32 buffers.
pub fn load_source(source: &str, buffers: &[(&str, f32)], spec: &str) -> Result<(Version, Metrics), Failure> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.pt");
    torch_shim::define_module(source, buffers, &path).unwrap();
    load(&path, spec)
}

/// Serves a loaded model on free ports.
pub async fn serve((model, metrics): (Version, Metrics)) -> Served {
    let repository = Arc::new(ModelRepository::default());
    repository.set(&"m".parse().unwrap(), ModelState::Ready(Arc::new(model)));
    let service = InferenceService::new(repository);
    let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listeners = Listeners { rest: bind().await, grpc: bind().await, admin: bind().await };
    let http = listeners.rest.local_addr().unwrap().to_string();
    let grpc = format!("http://{}", listeners.grpc.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel();
    let serving = Serving {
        service: service.clone(),
        metrics: metrics.clone(),
        limits: Limits::default(),
        admission: Admission::new(usize::MAX),
        max_connections: 1000,
        io_threads: 2,
        drain_timeout: Duration::from_secs(10),
    };
    let server = tokio::spawn(server::serve(listeners, serving, async { drop(stopped.await) }));
    let channel = Channel::from_shared(grpc).unwrap().connect().await.unwrap();
    let grpc = GrpcInferenceServiceClient::new(channel);
    Served { service, metrics, http, grpc, stop: Some(stop), server }
}

impl Served {
    /// POSTs JSON to the model's infer path; status and body.
    pub async fn post(&self, body: String) -> (u16, serde_json::Value) {
        let mut stream = TcpStream::connect(&self.http).await.unwrap();
        let head = format!(
            "POST /v2/models/m/infer HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap())
    }

    /// Asks over gRPC with raw contents.
    pub async fn ask_grpc(&mut self, inputs: &[NamedTensor]) -> Result<Vec<Bytes>, tonic::Status> {
        let described = inputs.iter().map(|input| InferInputTensor {
            name: input.name.clone(),
            datatype: serde_json::to_value(input.tensor.datatype()).unwrap().as_str().unwrap().to_owned(),
            shape: input.tensor.shape().to_vec(),
            contents: None::<InferTensorContents>,
            ..InferInputTensor::default()
        });
        let request = ModelInferRequest {
            model_name: "m".into(),
            inputs: described.collect(),
            raw_input_contents: inputs.iter().map(|input| input.tensor.data().clone()).collect(),
            ..ModelInferRequest::default()
        };
        Ok(self.grpc.model_infer(request).await?.into_inner().raw_output_contents)
    }

    /// Stops the server and waits for it.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        drop(self.grpc);
        assert!(self.server.await.unwrap(), "the server drained");
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

/// FP32 values of a tensor's bytes.
pub fn values(data: &[u8]) -> Vec<f32> {
    data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
