//! What models there are and how they do: `…/stats`, `…/config` and `POST /v2/repository/index`, in Triton's shapes.
//!
//! Handlers of `rest`'s routes. Invariant: numbers are JSON numbers and every field is there, since generated clients ask for them.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use torchmodel_core::{
    configuration::{BACKEND, ModelConfiguration, PLATFORM, TensorConfiguration},
    repository::{IndexEntry, VersionState},
    statistics::{BatchStatistics, ModelStatistics, StatisticDuration},
};

use super::{App, Target, answer::Answer, body::RequestBody, error::RestError};

/// The longest body of a request for the index.
const MAX_INDEX_REQUEST_BYTES: usize = 64 << 10;
/// How long such a body may take.
const INDEX_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// `GET /v2/models[/{model}[/versions/{version}]]/stats`
pub(super) fn statistics(app: &App, target: Option<&Target>) -> Result<Answer, RestError> {
    let version = target.and_then(|target| target.version);
    let statistics = app.service.statistics(target.map(|target| &target.model), version)?;
    let model_stats: Vec<_> = statistics.iter().map(statistics_json).collect();
    Ok(Answer::json(StatusCode::OK, &json!({ "model_stats": model_stats })))
}

/// `GET /v2/models/{model}[/versions/{version}]/config`
pub(super) fn configuration(app: &App, target: &Target) -> Result<Answer, RestError> {
    let configuration = app.service.model_configuration(&target.model, target.version)?;
    Ok(Answer::json(StatusCode::OK, &configuration_json(&configuration)))
}

/// What a client may ask of the index.
#[derive(Debug, Default, Deserialize)]
struct IndexRequest {
    /// Whether only ready versions are wanted.
    #[serde(default)]
    ready: bool,
}

/// `POST /v2/repository/index`
pub(super) async fn index(app: &App, body: impl RequestBody) -> Result<Answer, RestError> {
    let body = read_small(body).await?;
    let request = if body.is_empty() { Ok(IndexRequest::default()) } else { serde_json::from_slice(&body) };
    let request = request.map_err(|error| {
        RestError::invalid(format!("the body must be empty or such as {{\"ready\": true}}: {error}"))
    })?;
    let entries = app.service.repository_index();
    let wanted = entries.iter().filter(|entry| !request.ready || entry.state == VersionState::Ready);
    Ok(Answer::json(StatusCode::OK, &wanted.map(index_json).collect()))
}

async fn read_small(body: impl RequestBody) -> Result<Bytes, RestError> {
    let body = timeout(INDEX_REQUEST_TIMEOUT, Limited::new(body, MAX_INDEX_REQUEST_BYTES).collect()).await;
    match body.map_err(|_| RestError::BodyTimeout)? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(RestError::TooLarge(MAX_INDEX_REQUEST_BYTES)),
        Err(error) => Err(RestError::invalid(format!("reading the request body: {error}"))),
    }
}

fn index_json(entry: &IndexEntry) -> Value {
    let mut json = json!({
        "name": entry.key.name.as_str(),
        "version": entry.key.version.to_string(),
        "state": entry.state.as_str(),
    });
    let reason = entry.state.reason();
    if !reason.is_empty()
        && let Some(json) = json.as_object_mut()
    {
        json.insert("reason".into(), reason.into());
    }
    json
}

fn statistics_json(statistics: &ModelStatistics) -> Value {
    let stages = &statistics.inference_stats;
    json!({
        "name": statistics.key.name.as_str(),
        "version": statistics.key.version.to_string(),
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": {
            "success": duration_json(stages.success),
            "fail": duration_json(stages.fail),
            "queue": duration_json(stages.queue),
            "compute_input": duration_json(stages.compute_input),
            "compute_infer": duration_json(stages.compute_infer),
            "compute_output": duration_json(stages.compute_output),
            // There is no response cache.
            "cache_hit": duration_json(StatisticDuration::default()),
            "cache_miss": duration_json(StatisticDuration::default()),
        },
        // Only models that answer a request more than once have some.
        "response_stats": {},
        "batch_stats": statistics.batch_stats.iter().map(batch_json).collect::<Vec<_>>(),
        "memory_usage": [],
    })
}

fn duration_json(duration: StatisticDuration) -> Value {
    json!({ "count": duration.count, "ns": duration.ns() })
}

fn batch_json(batch: &BatchStatistics) -> Value {
    json!({
        "batch_size": batch.batch_size,
        "compute_input": duration_json(batch.compute_input),
        "compute_infer": duration_json(batch.compute_infer),
        "compute_output": duration_json(batch.compute_output),
    })
}

fn configuration_json(configuration: &ModelConfiguration) -> Value {
    let name = configuration.name.as_str();
    let input = |input: &TensorConfiguration| {
        json!({
            "name": input.name, "data_type": input.type_name(), "format": "FORMAT_NONE", "dims": input.dims,
            "is_shape_tensor": false, "allow_ragged_batch": false, "optional": input.is_optional,
        })
    };
    let output = |output: &TensorConfiguration| {
        json!({
            "name": output.name, "data_type": output.type_name(), "dims": output.dims, "label_filename": "",
            "is_shape_tensor": false,
        })
    };
    let parameters = configuration.parameters.iter();
    let parameters: Map<_, _> =
        parameters.map(|(key, value)| (key.clone(), json!({ "string_value": value }))).collect();
    let mut json = json!({
        "name": name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "version_policy": { "all": {} },
        "max_batch_size": configuration.max_batch_size,
        "input": configuration.inputs.iter().map(input).collect::<Vec<_>>(),
        "output": configuration.outputs.iter().map(output).collect::<Vec<_>>(),
        "batch_input": [],
        "batch_output": [],
        "instance_group": [{
            "name": format!("{name}_0"), "kind": "KIND_AUTO", "count": configuration.instances, "gpus": [],
            "secondary_devices": [], "profile": [], "passive": false, "host_policy": "",
        }],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": parameters,
        "model_warmup": [],
        "model_transaction_policy": { "decoupled": false },
    });
    if let Some(batching) = configuration.dynamic_batching
        && let Some(json) = json.as_object_mut()
    {
        let max_queue_delay_us = u64::try_from(batching.max_queue_delay.as_micros()).unwrap_or(u64::MAX);
        json.insert(
            "dynamic_batching".into(),
            json!({
                "preferred_batch_size": [configuration.max_batch_size],
                "max_queue_delay_microseconds": max_queue_delay_us,
                "preserve_ordering": false,
                "priority_levels": 0,
                "default_priority_level": 0,
                "priority_queue_policy": {},
            }),
        );
    }
    json
}
