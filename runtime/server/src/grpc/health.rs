//! `grpc.health.v1`: what kubelet's gRPC probes and client load balancers ask.
//!
//! Added to the routes by `grpc`. Invariant: the answer is the service's readiness at the moment of the question; nothing is
//! kept beside it. The empty name and the inference service's name mean the server, any other name a model.

use std::{pin::Pin, time::Duration};

use futures::{Stream, stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};
use torchmodel_core::{inference::InferError, service::InferenceService};

use super::SERVICE_NAME;

/// How often a watched status is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Answers health questions from the service.
#[derive(Clone)]
pub(super) struct HealthOf(pub(super) InferenceService);

impl HealthOf {
    /// `None` for a name that is not served.
    fn status(&self, name: &str) -> Option<ServingStatus> {
        let is_ready = if name.is_empty() || name == SERVICE_NAME {
            self.0.readiness().is_ok()
        } else {
            match self.0.model_readiness(&name.parse().ok()?, None) {
                Err(InferError::NotFound(_)) => return None,
                result => result.is_ok(),
            }
        };
        Some(if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

fn message(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthOf {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        let status = self.status(&name).ok_or_else(|| Status::not_found(format!("unknown service '{name}'")))?;
        Ok(Response::new(message(status)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Tells the status now and whenever it changes. The stream ends after SERVING became anything else, so that it does not
    /// hold up a server that drains; clients watch again.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watch = Watch { health: self.clone(), name: request.into_inner().service, last: None, is_over: false };
        Ok(Response::new(Box::pin(stream::unfold(watch, Watch::next))))
    }
}

/// One watched name.
struct Watch {
    health: HealthOf,
    name: String,
    last: Option<ServingStatus>,
    is_over: bool,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        if self.is_over {
            return None;
        }
        loop {
            let now = self.health.status(&self.name).unwrap_or(ServingStatus::ServiceUnknown);
            if self.last != Some(now) {
                self.is_over = self.last == Some(ServingStatus::Serving);
                self.last = Some(now);
                return Some((Ok(message(now)), self));
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}
