//! The Open Inference Protocol over HTTP: routes, health and metadata.
//!
//! `server` serves [`router`] on the inference port and [`admin_router`] on the port for metrics. Handlers decode, ask the
//! [`InferenceService`] and encode; they decide nothing about models. Invariant: every answer that is an error is
//! `{"error": "…"}`, and a client's fault is never a 5xx.

mod body;
mod compression;
mod data;
mod decode;
mod encode;
mod error;
mod infer;
mod json;

use axum::{
    Router,
    extract::{FromRequestParts, RawPathParams, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderValue, StatusCode, header, request::Parts};
use serde_json::{Value, json};
use torchmodel_core::{
    inference::InferError,
    metadata::ModelMetadata,
    metrics::Metrics,
    model_key::{ModelName, ModelVersion},
    service::InferenceService,
    signature::{InputSignature, OutputSignature},
    tensor::{DataType, DataTypeExt},
};

use self::error::{RestError, json as json_response};
use crate::protocol::Limits;

/// What the handlers share.
#[derive(Clone)]
struct App {
    service: InferenceService,
    metrics: Metrics,
    limits: Limits,
}

/// The routes of the inference port.
pub fn router(service: InferenceService, metrics: Metrics, limits: Limits) -> Router {
    let app = App { service, metrics, limits };
    let routes = Router::new()
        .route("/v2", get(server_metadata))
        .route("/v2/", get(server_metadata))
        .route("/v2/models", get(model_list))
        .route("/v2/models/{model}", get(model_metadata))
        .route("/v2/models/{model}/versions/{version}", get(model_metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer::infer))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer::infer));
    finish(routes.merge(health_routes()), app)
}

/// The routes of the port for metrics: `GET /metrics` and health.
pub fn admin_router(service: InferenceService, metrics: Metrics) -> Router {
    let app = App { service, metrics, limits: Limits::default() };
    finish(health_routes().route("/metrics", get(metrics_text)), app)
}

fn health_routes() -> Router<App> {
    Router::new().route("/v2/health/live", get(live)).route("/v2/health/ready", get(ready))
}

fn finish(routes: Router<App>, app: App) -> Router {
    routes
        .fallback(async || RestError::UnknownPath)
        .method_not_allowed_fallback(async || RestError::WrongMethod)
        .layer(axum::middleware::from_fn(compression::layer))
        .layer(axum::middleware::from_fn_with_state(app.clone(), close_when_draining))
        .with_state(app)
}

/// While the server drains, each HTTP/1.1 answer ends its connection: a client that would send its next request on a kept
/// connection just as the server closes it could not know whether it was heard. (HTTP/2 has GOAWAY for that.)
async fn close_when_draining(State(app): State<App>, request: Request, next: Next) -> Response {
    let keeps = request.version() <= http::Version::HTTP_11;
    let mut response = next.run(request).await;
    if keeps && app.service.is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The model that a path names.
struct Target {
    model: ModelName,
    version: Option<ModelVersion>,
}

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = RestError;

    /// Takes the percent-decoded names from the path.
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, RestError> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        let params = params.map_err(|error| RestError::invalid(format!("failed to read the path: {error}")))?;
        let named = |key| params.iter().find(|(name, _)| *name == key).map_or("", |(_, value)| value);
        let model = named("model").parse().map_err(InferError::from)?;
        let version = ModelVersion::parse_requested(named("version")).map_err(InferError::from)?;
        Ok(Self { model, version })
    }
}

async fn live(State(app): State<App>) -> Response {
    let is_live = app.service.is_live();
    let status = if is_live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, &json!({ "live": is_live }))
}

async fn ready(State(app): State<App>) -> Response {
    match app.service.readiness() {
        Ok(()) => json_response(StatusCode::OK, &json!({ "ready": true })),
        Err(reason) => json_response(
            StatusCode::SERVICE_UNAVAILABLE,
            &json!({ "ready": false, "reason": reason, "error": reason }),
        ),
    }
}

async fn server_metadata(State(app): State<App>) -> Response {
    let metadata = app.service.server_metadata();
    let body = json!({ "name": metadata.name, "version": metadata.version, "extensions": metadata.extensions });
    json_response(StatusCode::OK, &body)
}

async fn model_list(State(app): State<App>) -> Response {
    json_response(
        StatusCode::OK,
        &json!({ "models": app.service.model_names().iter().map(ModelName::as_str).collect::<Vec<_>>() }),
    )
}

async fn model_metadata(State(app): State<App>, target: Target) -> Result<Response, RestError> {
    let metadata = app.service.model_metadata(&target.model, target.version)?;
    Ok(json_response(StatusCode::OK, &metadata_json(&metadata)))
}

async fn model_ready(State(app): State<App>, target: Target) -> Result<Response, RestError> {
    match app.service.model_readiness(&target.model, target.version) {
        Ok(()) => Ok(json_response(StatusCode::OK, &json!({ "name": target.model.as_str(), "ready": true }))),
        Err(InferError::NotReady(reason)) => {
            let body = json!({ "name": target.model.as_str(), "ready": false, "reason": reason, "error": reason });
            Ok(json_response(StatusCode::SERVICE_UNAVAILABLE, &body))
        }
        Err(error) => Err(error.into()),
    }
}

async fn metrics_text(State(app): State<App>) -> Response {
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type)], app.metrics.encode()).into_response()
}

fn metadata_json(metadata: &ModelMetadata) -> Value {
    let input = |input: &InputSignature| {
        let mut json = tensor_json(&input.name, input.datatype, input.shape.as_deref());
        if input.is_optional
            && let Some(json) = json.as_object_mut()
        {
            json.insert("optional".into(), Value::Bool(true));
        }
        json
    };
    let output = |output: &OutputSignature| tensor_json(&output.name, output.datatype, output.shape.as_deref());
    let mut body = json!({
        "name": metadata.name.as_str(),
        "versions": metadata.versions.iter().map(ModelVersion::to_string).collect::<Vec<_>>(),
        "platform": metadata.platform,
        "inputs": metadata.inputs.iter().map(input).collect::<Vec<_>>(),
        "outputs": metadata.outputs.iter().map(output).collect::<Vec<_>>(),
    });
    if !metadata.properties.is_empty()
        && let Some(body) = body.as_object_mut()
    {
        body.insert("properties".into(), json!(metadata.properties));
    }
    body
}

/// One input or output. The protocol has no words for a datatype or a rank that is not known; both fields are always there,
/// because generated clients ask for them: an unknown datatype is empty, an unknown shape is one dimension of any size.
fn tensor_json(name: &str, datatype: Option<DataType>, shape: Option<&[i64]>) -> Value {
    json!({ "name": name, "datatype": datatype.map_or("", DataTypeExt::as_str), "shape": shape.unwrap_or(&[-1]) })
}
