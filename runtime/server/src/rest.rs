//! The Open Inference Protocol over HTTP: routes, health and metadata.
//!
//! `server` serves a `RestService` on the inference port and on the port for metrics. Handlers decode, ask the
//! [`InferenceService`] and encode; they decide nothing about models. Invariant: every answer that is an error is
//! `{"error": "…"}`, and a client's fault is never a 5xx.

mod answer;
mod assembly;
mod body;
mod compression;
mod data;
mod decode;
mod encode;
mod error;
mod http2;
mod infer;
mod inflate;
mod json;
mod number;
pub mod offline;
mod path;
mod repository;
mod text;

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use torchmodel_core::{
    inference::InferError,
    metadata::ModelMetadata,
    metrics::{CONTENT_TYPE, Metrics, Protocol},
    model_key::{ModelName, ModelVersion},
    service::InferenceService,
    signature::{InputSignature, OutputSignature},
    tensor::{DataType, DataTypeExt},
};

pub(crate) use self::answer::AnswerBody;
use self::{
    answer::Answer,
    body::RequestBody,
    compression::{AnswerCompressor, Wish},
    error::RestError,
    path::{Route, Target},
};
use crate::{Serving, admission::Admission, compression::Compressor, protocol::Limits};

/// What the handlers share.
struct App {
    service: InferenceService,
    metrics: Metrics,
    admission: Admission,
    limits: Limits,
    answers: AnswerCompressor,
}

/// What answers the requests of one port; cheap to clone.
#[derive(Clone)]
pub(crate) struct RestService {
    app: Arc<App>,
    routes: Routes,
}

/// What a port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routes {
    /// Inference, metadata and health.
    Inference,
    /// Metrics and health.
    Admin,
}

impl RestService {
    /// Serves `routes`.
    pub(crate) fn new(routes: Routes, serving: &Serving, compressor: Compressor) -> Self {
        let Serving { service, metrics, limits, admission, .. } = serving.clone();
        let are_tensors_compressed = limits.are_tensors_compressed;
        let answers = AnswerCompressor { admission: admission.clone(), compressor, are_tensors_compressed };
        Self { app: Arc::new(App { service, metrics, admission, limits, answers }), routes }
    }

    /// Answers one request.
    pub(crate) async fn answer<B: RequestBody>(&self, request: Request<B>) -> Response<AnswerBody> {
        let app = &*self.app;
        let wish = Wish::of(request.headers());
        let is_head = request.method() == Method::HEAD;
        let is_closing = request.version() <= http::Version::HTTP_11;
        let answer = self.route(request).await;
        let has_tensors = answer.is_inference;
        let mut response = app.answers.finish(answer, wish).await;
        if has_tensors {
            response.body_mut().time(app.metrics.send_timer(Protocol::Rest));
        }
        if is_head {
            *response.body_mut() = AnswerBody::default();
        }
        // A client that would send its next request on a kept connection just as the draining server closes it could not know
        // whether it was heard. (HTTP/2 has GOAWAY for that.)
        if is_closing && app.service.is_draining() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn route<B: RequestBody>(&self, request: Request<B>) -> Answer {
        let app = &*self.app;
        let Some(route) = Route::of(request.uri().path(), self.routes) else { return RestError::UnknownPath.into() };
        let method = request.method();
        let is_allowed = match route.method() {
            "POST" => method == Method::POST,
            _ => method == Method::GET || method == Method::HEAD,
        };
        if !is_allowed {
            return RestError::WrongMethod(route.method()).into();
        }
        let result = match route {
            Route::Infer(path) => {
                let target = Target::of(path);
                return infer::infer(app, target, request).await;
            }
            Route::RepositoryIndex => repository::index(app, request.into_body()).await,
            Route::Statistics(path) => {
                path.map(Target::of).transpose().and_then(|target| repository::statistics(app, target.as_ref()))
            }
            Route::Configuration(path) => Target::of(path).and_then(|target| repository::configuration(app, &target)),
            Route::ServerMetadata => Ok(server_metadata(app)),
            Route::Live => Ok(live(app)),
            Route::Ready => Ok(ready(app)),
            Route::Models => Ok(model_list(app)),
            Route::ModelMetadata(path) => Target::of(path).and_then(|target| model_metadata(app, &target)),
            Route::ModelReady(path) => Target::of(path).and_then(|target| model_ready(app, &target)),
            Route::Metrics => Ok(Answer::text(StatusCode::OK, CONTENT_TYPE, app.metrics.encode())),
        };
        result.unwrap_or_else(Into::into)
    }
}

fn live(app: &App) -> Answer {
    let is_live = app.service.is_live();
    let status = if is_live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Answer::json(status, &json!({ "live": is_live }))
}

fn ready(app: &App) -> Answer {
    match app.service.readiness() {
        Ok(()) => Answer::json(StatusCode::OK, &json!({ "ready": true })),
        Err(reason) => {
            Answer::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "ready": false, "reason": reason, "error": reason }))
        }
    }
}

fn server_metadata(app: &App) -> Answer {
    let metadata = app.service.server_metadata();
    let body = json!({ "name": metadata.name, "version": metadata.version, "extensions": metadata.extensions });
    Answer::json(StatusCode::OK, &body)
}

fn model_list(app: &App) -> Answer {
    let names = app.service.model_names();
    Answer::json(StatusCode::OK, &json!({ "models": names.iter().map(ModelName::as_str).collect::<Vec<_>>() }))
}

fn model_metadata(app: &App, target: &Target) -> Result<Answer, RestError> {
    let metadata = app.service.model_metadata(&target.model, target.version)?;
    Ok(Answer::json(StatusCode::OK, &metadata_json(&metadata)))
}

fn model_ready(app: &App, target: &Target) -> Result<Answer, RestError> {
    match app.service.model_readiness(&target.model, target.version) {
        Ok(()) => Ok(Answer::json(StatusCode::OK, &json!({ "name": target.model.as_str(), "ready": true }))),
        Err(InferError::NotReady(reason)) => {
            let body = json!({ "name": target.model.as_str(), "ready": false, "reason": reason, "error": reason });
            Ok(Answer::json(StatusCode::SERVICE_UNAVAILABLE, &body))
        }
        Err(error) => Err(error.into()),
    }
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
