//! The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`, health and reflection.
//!
//! `server` serves [`routes`] on the gRPC port. The service decodes, asks the [`InferenceService`] and encodes; it decides nothing
//! about models. Invariant: a client's fault is never INTERNAL or UNKNOWN.

mod bounds;
pub mod codec;
mod count;
mod decode;
mod encode;
mod health;
mod status;

use std::{sync::Arc, time::Instant};

use tonic::{Request, Response, Status, codec::CompressionEncoding, service::Routes};
use tonic_health::pb::health_server::HealthServer;
use torchmodel_core::{
    inference::InferError,
    metrics::Metrics,
    model_key::{ModelName, ModelVersion},
    outcome::Outcome,
    service::InferenceService,
};

use self::{
    count::{Count, Counted},
    proto::{
        ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
        ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
        ServerReadyRequest, ServerReadyResponse,
        grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    },
    status::status_of,
};
use crate::{
    intake::{IntakeError, Share},
    protocol::Limits,
};

/// The messages and stubs generated from `proto/inference.proto`.
#[expect(missing_docs, clippy::all, clippy::pedantic, unused_qualifications, reason = "generated")]
pub mod proto {
    tonic::include_proto!("inference");
}

/// What the paths of the inference service's calls begin with.
pub const SERVICE_PREFIX: &str = "/inference.GRPCInferenceService/";

/// Full name of the inference service.
const SERVICE_NAME: &str = "inference.GRPCInferenceService";

/// Descriptors of `proto/inference.proto`, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference_descriptor.bin"));

/// The services of the gRPC port: inference, `grpc.health.v1`, and reflection in both its versions.
#[must_use]
pub fn routes(service: InferenceService, metrics: Metrics, limits: Limits) -> Routes {
    let health = HealthServer::new(health::HealthOf(service.clone()));
    let inference = GrpcInferenceServiceServer::new(Inference { service, metrics: metrics.clone(), limits })
        .max_decoding_message_size(limits.max_request_bytes)
        .max_encoding_message_size(usize::MAX)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Deflate)
        .send_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Deflate);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::new(Counted { service: inference, metrics }).add_service(health);
    let routes = match reflection().build_v1() {
        Ok(reflection) => routes.add_service(reflection),
        Err(_) => routes,
    };
    match reflection().build_v1alpha() {
        Ok(reflection) => routes.add_service(reflection),
        Err(_) => routes,
    }
}

/// What tonic answers when a body was not taken: it looks for a status in the body's error.
#[must_use]
pub fn refuse(error: IntakeError) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(status_of(&error.into()))
}

/// The name and version of a request about a model.
fn requested(name: &str, version: &str) -> Result<(ModelName, Option<ModelVersion>), InferError> {
    Ok((name.parse()?, ModelVersion::parse_requested(version)?))
}

/// The six calls of the protocol's core.
struct Inference {
    service: InferenceService,
    metrics: Metrics,
    limits: Limits,
}

#[tonic::async_trait]
impl GrpcInferenceService for Inference {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: self.service.is_live() }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.service.readiness().is_ok() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
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
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(encode::encode_server(self.service.server_metadata())))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        let metadata = requested(&request.name, &request.version)
            .and_then(|(name, version)| self.service.model_metadata(&name, version))
            .map_err(|error| status_of(&error))?;
        Ok(Response::new(encode::encode_model(metadata)))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let arrival = Instant::now();
        let (metadata, extensions, message) = request.into_parts();
        let model = message.model_name.parse().ok();
        let mut count = Count::new(&self.metrics, &extensions, arrival, model);
        let decoded = decode::decode(message, &metadata, arrival, self.limits).and_then(|mut request| {
            if let Some(share) = extensions.get::<Arc<Share>>() {
                share.hold(&mut request.inputs)?;
            }
            Ok(request)
        });
        drop(extensions);
        let result = match decoded {
            Ok(request) => self.service.infer(request).await,
            Err(error) => Err(error),
        };
        count.outcome = result.as_ref().map_or_else(InferError::outcome, |_| Outcome::Ok);
        match result {
            Ok(response) => Ok(Response::new(encode::encode(response))),
            Err(error) => Err(status_of(&error)),
        }
    }
}
