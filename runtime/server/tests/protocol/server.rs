//! A server of fake models on free ports.

use std::{
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex},
};

use tokio::task::JoinHandle;
use torchmodel_core::{
    engine::EngineError,
    fake::{FakeModel, join},
    inference::NamedTensor,
    metrics::Metrics,
    model_key::{ModelName, ModelVersion},
    repository::{LoadContext, LoadRequest, ModelRepository, RepositoryOptions},
    service::InferenceService,
    tensor::{DataType, DataTypeExt, Tensor},
};
use torchmodel_server::{admission::Admission, protocol::Limits};
use torchmodel_testing::{Bounds, Served};

/// Every datatype of the protocol.
pub const DATATYPES: [DataType; 14] = [
    DataType::Bool,
    DataType::Uint8,
    DataType::Uint16,
    DataType::Uint32,
    DataType::Uint64,
    DataType::Int8,
    DataType::Int16,
    DataType::Int32,
    DataType::Int64,
    DataType::Fp16,
    DataType::Bf16,
    DataType::Fp32,
    DataType::Fp64,
    DataType::Bytes,
];

/// The most bytes of a request that the server of these tests takes.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Holds the computations of the model `slow` until it is opened.
#[derive(Default)]
pub struct Gate {
    is_open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        drop(self.changed.wait_while(self.is_open.lock().unwrap(), |is_open| !*is_open).unwrap());
    }
}

/// A running server; it stops when dropped.
pub struct Server {
    pub rest: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    pub repository: Arc<ModelRepository>,
    pub service: InferenceService,
    pub gate: Arc<Gate>,
    pub admission: Admission,
    served: Served,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_within(16 * MAX_REQUEST_BYTES).await
    }

    /// Starts a server that takes at most so many bytes of requests at a time.
    pub async fn start_within(max_inflight_bytes: usize) -> Self {
        let metrics = Metrics::new();
        let repository = Arc::new(ModelRepository::new(RepositoryOptions::new(metrics.clone())));
        let gate = Arc::new(Gate::default());
        for model in models(&gate) {
            model.serve(&repository).unwrap();
        }
        let admission = Admission::new(max_inflight_bytes);
        let limits = Limits { max_request_bytes: MAX_REQUEST_BYTES, ..Limits::default() };
        let bounds = Bounds { limits, admission: admission.clone(), ..Bounds::default() };
        let served = Served::start(Arc::clone(&repository), metrics, bounds).await;
        let (rest, grpc, admin, service) = (served.rest, served.grpc, served.admin, served.service.clone());
        Self { rest, grpc, admin, repository, service, gate, admission, served }
    }

    /// Asks the server to stop; the task gives whether everything in flight was answered.
    pub fn stop(&mut self) -> JoinHandle<bool> {
        self.served.stop()
    }

    /// A model that is not ready yet.
    pub fn add_loading(&self, name: &str) {
        let model: ModelName = name.parse().unwrap();
        self.repository.require(&model);
        let request = FakeModel::new(name).into_request(ModelVersion::FIRST).unwrap();
        let (gate, load) = (Arc::clone(&self.gate), request.load);
        let load = Box::new(move |context: &LoadContext| {
            gate.pass();
            load(context)
        });
        drop(self.repository.load(LoadRequest { load, ..request }).unwrap());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.gate.open();
    }
}

fn models(gate: &Arc<Gate>) -> Vec<FakeModel> {
    let identity = |datatype: DataType| {
        FakeModel::identity(&format!("identity_{}", datatype.as_str().to_lowercase()), datatype, &[-1, -1])
    };
    let mut models: Vec<_> = DATATYPES.into_iter().map(identity).collect();
    models.push(FakeModel::identity("a model: ü", DataType::Fp32, &[-1]));
    models.push(FakeModel::identity("vector", DataType::Fp32, &[-1]));
    models.push(FakeModel::identity("batched", DataType::Fp32, &[-1, 2]).batching(8));
    models.push(
        FakeModel::new("add_sub")
            .input("INPUT0", DataType::Int32, &[-1])
            .input("INPUT1", DataType::Int32, &[-1])
            .output("OUTPUT0", DataType::Int32, &[-1])
            .output("OUTPUT1", DataType::Int32, &[-1])
            .compute(|inputs| {
                let [a, b] = inputs else { return Err(EngineError::Failed("two inputs".into())) };
                let (a, b) = (join(a)?, join(b)?);
                let combine = |name: &str, f: fn(i32, i32) -> i32| {
                    let ints = |tensor: &Tensor| -> Vec<i32> {
                        tensor.data().as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
                    };
                    let values = ints(&a).into_iter().zip(ints(&b)).flat_map(|(a, b)| f(a, b).to_le_bytes());
                    let data = values.collect::<Vec<u8>>().into();
                    let tensor = Tensor::new(DataType::Int32, a.shape().to_vec(), data);
                    let tensor = tensor.map_err(|error| EngineError::Failed(error.to_string()))?;
                    Ok(NamedTensor { name: name.into(), tensor })
                };
                Ok(vec![combine("OUTPUT0", i32::wrapping_add)?, combine("OUTPUT1", i32::wrapping_sub)?])
            }),
    );
    models.push(
        FakeModel::new("sink").input("input", DataType::Fp32, &[-1]).output("output", DataType::Fp32, &[1]).compute(
            |_| {
                let tensor = Tensor::new(DataType::Fp32, vec![1], vec![0; 4].into());
                let tensor = tensor.map_err(|error| EngineError::Failed(error.to_string()))?;
                Ok(vec![NamedTensor { name: "output".into(), tensor }])
            },
        ),
    );
    models.push(FakeModel::new("broken").compute(|_| Err(EngineError::Failed("it broke".into()))));
    let gate = Arc::clone(gate);
    models.push(FakeModel::new("slow").compute(move |_| {
        gate.pass();
        Ok(Vec::new())
    }));
    models
}
