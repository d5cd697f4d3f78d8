//! One model that serves: its signature, its scheduler, its metadata.
//!
//! Made by [`Version::start`] from what an engine loaded; called by the service. Invariant: a `Version` exists only after every
//! instance passed its warm-up.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Instant,
};

use torchmodel_crds::Failure;

use crate::{
    config::ModelConfig,
    inference::{InferError, InferRequest, InferResponse, NamedTensor, Parameters},
    loader::LoadedModel,
    metadata::ModelMetadata,
    metrics::ModelMetrics,
    model_key::ModelVersion,
    scheduler::{Answer, Scheduler, SchedulerConfig},
    signature::OutputSignature,
};

/// A model that answers.
pub struct Version {
    config: ModelConfig,
    /// What the first answer taught about outputs that the schema does not tell.
    learned_outputs: OnceLock<Vec<OutputSignature>>,
    scheduler: Scheduler,
    metrics: ModelMetrics,
}

impl Version {
    /// Starts the instances of `loaded` and waits until they are warm. Blocks.
    pub fn start(
        loaded: LoadedModel,
        config: ModelConfig,
        metrics: ModelMetrics,
        on_fatal: Arc<dyn Fn(Failure) + Send + Sync>,
    ) -> Result<Self, Failure> {
        let scheduler_config = SchedulerConfig { model: config.name.clone(), metrics: metrics.clone(), on_fatal };
        let scheduler = Scheduler::start(loaded, scheduler_config)?;
        Ok(Self { config, learned_outputs: OnceLock::new(), scheduler, metrics })
    }

    /// Facts for the protocol.
    #[must_use]
    pub fn metadata(&self) -> ModelMetadata {
        let signature = self.scheduler.signature();
        let outputs = self.learned_outputs.get().cloned().unwrap_or_else(|| signature.outputs.clone());
        let mut properties = BTreeMap::from([
            ("method".to_owned(), self.config.method.clone()),
            ("stateful".to_owned(), self.scheduler.signature().is_stateful.to_string()),
        ]);
        if let Some(maximum) = self.scheduler.signature().max_batch_size {
            properties.insert("max_batch_size".into(), maximum.to_string());
        }
        ModelMetadata {
            name: self.config.name.clone(),
            versions: vec![ModelVersion::FIRST],
            platform: "pytorch_torchscript".into(),
            inputs: signature.inputs.clone(),
            outputs,
            properties,
        }
    }

    /// Checks the request, queues it and waits for the answer or the deadline, whichever comes first.
    pub async fn infer(&self, mut request: InferRequest) -> Result<InferResponse, InferError> {
        let _inflight = self.metrics.inflight_guard();
        let result = self.run(&mut request).await;
        match &result {
            Ok(answer) => self.metrics.record_request(Ok(&answer.timings)),
            Err(error) => self.metrics.record_request(Err(error.outcome())),
        }
        let outputs = self.select(result?.outputs, &request)?;
        Ok(InferResponse {
            model: self.config.name.clone(),
            version: ModelVersion::FIRST,
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
