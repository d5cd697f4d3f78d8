//! The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`, health and reflection.
//!
//! The gRPC port's connections call `GrpcHandler`. It decodes, asks the [`InferenceService`] and encodes; it decides nothing about
//! models. Invariant: a client's fault is never INTERNAL or UNKNOWN.

mod bounds;
pub mod codec;
mod decode;
mod encode;
mod encoding;
mod health;
mod infer;
mod message;
pub mod offline;
mod repository;
mod status;
mod walker;

use std::sync::Arc;

use axum::Router;
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::Request;
use tonic::{Response, Status, codec::CompressionEncoding, service::Routes};
use tonic_health::pb::health_server::HealthServer;
use torchmodel_core::{
    inference::InferError,
    model_key::{ModelName, ModelVersion},
    repository::VersionState,
    service::InferenceService,
};

use self::{
    infer::Infer,
    proto::{
        ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
        ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
        RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
        ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
        grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    },
    status::status_of,
};
use crate::{
    Serving,
    admission::{Admission, AdmissionError},
    compression::Compressor,
    http2::{
        Handler,
        answer::{Answer, Unsent},
        router::route,
        window::Window,
    },
};

/// The messages and stubs generated from `proto/inference.proto`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("inference");
}

/// Full name of the inference service.
const SERVICE_NAME: &str = "inference.GRPCInferenceService";

/// Descriptors of `proto/inference.proto`, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference_descriptor.bin"));

/// The most bytes of a message of a call that carries no tensors, also after decompression.
const MAX_SMALL_MESSAGE_BYTES: usize = 16 << 10;
/// The same of health checks, which keep a model's name for as long as they watch it.
const MAX_HEALTH_MESSAGE_BYTES: usize = 4 << 10;

/// Serves the gRPC port: `ModelInfer` by itself, all other calls by tonic's router.
pub(crate) struct GrpcHandler {
    infer: Infer,
    router: Router,
}

impl GrpcHandler {
    /// Answers from what is served.
    pub(crate) fn new(serving: &Serving, compressor: Compressor) -> Self {
        let Serving { service, metrics, limits, admission, .. } = serving.clone();
        let router = routes(service.clone()).prepare().into_axum_router();
        Self { infer: Infer { service, metrics, limits, admission, compressor }, router }
    }
}

impl Handler for GrpcHandler {
    async fn call(
        self: Arc<Self>,
        request: Request<RecvStream>,
        respond: SendResponse<Answer>,
        window: Window,
    ) -> Option<Unsent> {
        if infer::is_infer(request.uri().path()) {
            return self.infer.call(request, respond, window).await;
        }
        Box::pin(route(self.router.clone(), request, respond, infer::refuse_body)).await
    }

    fn refuse(&self, error: AdmissionError) -> http::Response<Bytes> {
        infer::refuse(error)
    }

    fn admission(&self) -> &Admission {
        &self.infer.admission
    }
}

/// The calls without tensors, `grpc.health.v1`, and reflection in both its versions.
fn routes(service: InferenceService) -> Routes {
    let health =
        HealthServer::new(health::HealthOf(service.clone())).max_decoding_message_size(MAX_HEALTH_MESSAGE_BYTES);
    let inference = GrpcInferenceServiceServer::new(Inference { service })
        .max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Deflate);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::new(inference).add_service(health);
    let routes = match reflection().build_v1() {
        Ok(reflection) => routes.add_service(reflection.max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES)),
        Err(_) => routes,
    };
    match reflection().build_v1alpha() {
        Ok(reflection) => routes.add_service(reflection.max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES)),
        Err(_) => routes,
    }
}

/// The name and version of a request about a model.
fn requested(name: &str, version: &str) -> Result<(ModelName, Option<ModelVersion>), InferError> {
    Ok((name.parse()?, ModelVersion::parse_requested(version)?))
}

/// The calls without tensors of the protocol's core, and what Triton adds of them that is served here.
struct Inference {
    service: InferenceService,
}

#[tonic::async_trait]
impl GrpcInferenceService for Inference {
    async fn server_live(&self, _: tonic::Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: self.service.is_live() }))
    }

    async fn server_ready(
        &self,
        _: tonic::Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.service.readiness().is_ok() }))
    }

    async fn model_ready(
        &self,
        request: tonic::Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let request = request.into_inner();
        let readiness = requested(&request.name, &request.version)
            .and_then(|(name, version)| self.service.model_readiness(&name, version));
        let ready = match readiness {
            Ok(()) => true,
            Err(InferError::NotFound(_) | InferError::NotReady(_)) => false,
            Err(error) => return Err(status_of(&error)),
        };
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: tonic::Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(encode::encode_server(self.service.server_metadata())))
    }

    async fn model_metadata(
        &self,
        request: tonic::Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        let metadata = requested(&request.name, &request.version)
            .and_then(|(name, version)| self.service.model_metadata(&name, version))
            .map_err(|error| status_of(&error))?;
        Ok(Response::new(encode::encode_model(metadata)))
    }

    async fn model_config(
        &self,
        request: tonic::Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let request = request.into_inner();
        let configuration = requested(&request.name, &request.version)
            .and_then(|(name, version)| self.service.model_configuration(&name, version))
            .map_err(|error| status_of(&error))?;
        Ok(Response::new(ModelConfigResponse { config: Some(repository::encode_configuration(configuration)) }))
    }

    async fn model_statistics(
        &self,
        request: tonic::Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let request = request.into_inner();
        let statistics = if request.name.is_empty() {
            self.service.statistics(None, None)
        } else {
            requested(&request.name, &request.version)
                .and_then(|(name, version)| self.service.statistics(Some(&name), version))
        };
        let statistics = statistics.map_err(|error| status_of(&error))?;
        let model_stats = statistics.iter().map(repository::encode_statistics).collect();
        Ok(Response::new(ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: tonic::Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let RepositoryIndexRequest { repository_name, ready } = request.into_inner();
        if !repository_name.is_empty() {
            let text = format!("'{repository_name}': this server has one repository; leave its name empty");
            return Err(status_of(&InferError::Unsupported(text)));
        }
        let entries = self.service.repository_index();
        let wanted = entries.iter().filter(|entry| !ready || entry.state == VersionState::Ready);
        Ok(Response::new(RepositoryIndexResponse { models: wanted.map(repository::encode_index).collect() }))
    }

    /// Never called: the connection serves it beside the router.
    async fn model_infer(&self, _: tonic::Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        Err(Status::unimplemented("ModelInfer is not served by the router"))
    }
}
