//! One version of a model that serves: its signature, its scheduler, its metadata, configuration and statistics.
//!
//! Made by [`Version::start`] from what an engine loaded; handed out by the repository and called by the service. Its life: the repository
//! holds it while it is ready, a request while it is answered. Once both have let go, [`Retirement::wait`] comes back on the thread that
//! owns the version, with its instances joined. Invariants: a `Version` exists only after every instance passed its warm-up; dropping
//! one joins nothing.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, OnceLock, mpsc},
    time::Instant,
};

use torchmodel_crds::Failure;

use crate::{
    config::ModelConfig,
    configuration::ModelConfiguration,
    inference::{InferError, InferRequest, InferResponse, NamedTensor, Parameters},
    loader::LoadedModel,
    metadata::ModelMetadata,
    metrics::{InflightGuard, ModelMetrics, RequestTimings},
    model_key::ModelKey,
    outcome::Outcome,
    plan::ExecutionPlan,
    scheduler::{Answer, Scheduler, SchedulerConfig},
    signature::{OutputSignature, Signature},
    statistics::ModelStatistics,
};

/// What a version needs besides the loaded model.
pub struct VersionOptions {
    /// Its model and number.
    pub key: ModelKey,
    /// How it is served.
    pub config: ModelConfig,
    /// Where it is recorded.
    pub metrics: ModelMetrics,
    /// Called when it can never answer again.
    pub on_fatal: Arc<dyn Fn(Failure) + Send + Sync>,
}

/// A version that answers.
pub struct Version {
    key: ModelKey,
    config: ModelConfig,
    plan: ExecutionPlan,
    /// What the first answer taught about outputs that the schema does not tell.
    learned_outputs: OnceLock<Vec<OutputSignature>>,
    scheduler: Arc<Scheduler>,
    metrics: ModelMetrics,
    /// Dropped with the version, which is what [`Retirement::wait`] waits for.
    _held: mpsc::Sender<Infallible>,
}

/// The end of a [`Version`], in the hands of the thread that owns it.
#[must_use = "the instances of a version run until its retirement was waited for"]
pub struct Retirement {
    scheduler: Arc<Scheduler>,
    released: mpsc::Receiver<Infallible>,
}

impl Retirement {
    /// Waits until nobody holds the version any more, then ends its instances and waits for them, too. Blocks for as long as the version
    /// serves, and for ever if an instance never comes back.
    pub fn wait(self) {
        // Nothing is ever sent: the error is that the sender is gone.
        self.released.recv().ok();
        self.scheduler.close();
        self.scheduler.join();
    }
}

impl Version {
    /// Starts the instances of `loaded` and waits until they are warm. Blocks.
    pub fn start(loaded: LoadedModel, options: VersionOptions) -> Result<(Self, Retirement), Failure> {
        let VersionOptions { key, config, metrics, on_fatal } = options;
        let scheduler_config = SchedulerConfig { model: key.name.clone(), metrics: metrics.clone(), on_fatal };
        let plan = loaded.plan.clone();
        let scheduler = Scheduler::start(loaded, scheduler_config)?;
        let scheduler = Arc::new(scheduler);
        let (held, released) = mpsc::channel();
        let retirement = Retirement { scheduler: Arc::clone(&scheduler), released };
        let learned_outputs = OnceLock::new();
        Ok((Self { key, config, plan, learned_outputs, scheduler, metrics, _held: held }, retirement))
    }

    /// Its model and number.
    #[must_use]
    pub fn key(&self) -> &ModelKey {
        &self.key
    }

    /// How it is served.
    #[must_use]
    pub fn configuration(&self) -> ModelConfiguration {
        let outputs = self.known_outputs().to_vec();
        let signature = Signature { outputs, ..self.scheduler.signature().clone() };
        ModelConfiguration::of(&self.config, &self.plan, &signature)
    }

    /// The outputs as far as the schema or an answer told them.
    fn known_outputs(&self) -> &[OutputSignature] {
        self.learned_outputs.get().unwrap_or(&self.scheduler.signature().outputs)
    }

    /// What it has done.
    #[must_use]
    pub fn statistics(&self) -> ModelStatistics {
        self.metrics.statistics(self.key.clone())
    }

    /// Facts for the protocol.
    #[must_use]
    pub fn metadata(&self) -> ModelMetadata {
        let outputs = self.known_outputs().to_vec();
        let mut properties = BTreeMap::from([
            ("method".to_owned(), self.config.method.clone()),
            ("stateful".to_owned(), self.scheduler.signature().is_stateful.to_string()),
        ]);
        if let Some(maximum) = self.scheduler.signature().max_batch_size {
            properties.insert("max_batch_size".into(), maximum.to_string());
        }
        ModelMetadata {
            name: self.config.name.clone(),
            versions: vec![self.key.version],
            platform: "pytorch_torchscript".into(),
            inputs: self.scheduler.signature().inputs.clone(),
            outputs,
            properties,
        }
    }

    /// Checks the request, queues it and waits for the answer or the deadline, whichever comes first.
    pub async fn infer(&self, mut request: InferRequest) -> Result<InferResponse, InferError> {
        let mut recording = Recording::begin(&self.metrics);
        let result = self.run(&mut request).await.and_then(|answer| {
            let Answer { outputs, timings } = answer;
            Ok((self.select(outputs, &request)?, timings))
        });
        match &result {
            Ok((_, timings)) => recording.succeed(timings),
            Err(error) => recording.outcome = error.outcome(),
        }
        let (outputs, _) = result?;
        Ok(InferResponse {
            model: self.key.name.clone(),
            version: self.key.version,
            id: request.id,
            outputs,
            parameters: Parameters::new(),
        })
    }

    async fn run(&self, request: &mut InferRequest) -> Result<Answer, InferError> {
        let now = Instant::now();
        let expired = || {
            let text = format!("the request for model '{}' did not finish within its timeout", self.config.name);
            InferError::DeadlineExceeded(text)
        };
        // A timeout too long to be an instant is none.
        let limit = now.checked_add(self.config.request_timeout);
        let deadline = request.deadline.into_iter().chain(limit).min();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(expired());
        }
        let inputs = self.scheduler.signature().check(request)?;
        let reply = self.scheduler.submit(inputs, deadline)?;
        match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), reply).await.map_err(|_| expired())?,
            None => reply.await,
        }
    }

    /// The outputs that were asked for, in that order.
    fn select(&self, outputs: Vec<NamedTensor>, request: &InferRequest) -> Result<Vec<NamedTensor>, InferError> {
        if !self.scheduler.signature().are_outputs_known {
            self.learned_outputs.get_or_init(|| outputs.iter().map(learned).collect());
        }
        if request.outputs.is_empty() {
            return Ok(outputs);
        }
        let mut outputs: Vec<Option<NamedTensor>> = outputs.into_iter().map(Some).collect();
        request
            .outputs
            .iter()
            .map(|name| {
                let has_name =
                    |slot: &&mut Option<NamedTensor>| slot.as_ref().is_some_and(|output| output.name == *name);
                outputs.iter_mut().find(has_name).and_then(Option::take).ok_or_else(|| {
                    InferError::InvalidRequest(format!(
                        "unexpected inference output '{name}' for model '{}'",
                        self.config.name
                    ))
                })
            })
            .collect()
    }
}

/// Only datatype and number of dimensions are certain from one answer.
fn learned(output: &NamedTensor) -> OutputSignature {
    OutputSignature {
        name: output.name.clone(),
        datatype: Some(output.tensor.datatype()),
        shape: Some(vec![-1; output.tensor.shape().len()]),
    }
}

/// Records one request when it is dropped, which is also what happens when the client leaves.
struct Recording<'a> {
    metrics: &'a ModelMetrics,
    _inflight: InflightGuard,
    started: Instant,
    outcome: Outcome,
}

impl<'a> Recording<'a> {
    fn begin(metrics: &'a ModelMetrics) -> Self {
        let inflight = metrics.inflight_guard();
        Self { metrics, _inflight: inflight, started: Instant::now(), outcome: Outcome::Canceled }
    }

    fn succeed(&mut self, timings: &RequestTimings) {
        self.outcome = Outcome::Ok;
        self.metrics.record_success(timings);
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        self.metrics.record_failure(self.outcome, self.started.elapsed());
    }
}
