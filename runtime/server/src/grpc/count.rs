//! Counts every inference request once, also those that tonic refuses before the service sees them.
//!
//! `grpc` puts [`Counted`] around the generated server. Invariant: a request is counted by [`Count`] if it was decoded, and else
//! here, without a model's name, which nobody has read.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Instant,
};

use http::{Request, Response};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{BoxFuture, Service},
    server::NamedService,
};
use torchmodel_core::{
    metrics::{Metrics, Protocol},
    model_key::ModelName,
    outcome::Outcome,
};

use super::SERVICE_PREFIX;

/// Counts one decoded request when it is dropped, which is also what happens when the client leaves.
pub(super) struct Count<'a> {
    metrics: &'a Metrics,
    start: Instant,
    model: Option<ModelName>,
    /// How it ended.
    pub(super) outcome: Outcome,
}

impl<'a> Count<'a> {
    /// Begins to count a request for `model`; nobody else counts it any more.
    pub(super) fn new(
        metrics: &'a Metrics,
        extensions: &tonic::Extensions,
        start: Instant,
        model: Option<ModelName>,
    ) -> Self {
        if let Some(Decoded(is_decoded)) = extensions.get() {
            is_decoded.store(true, Relaxed);
        }
        Self { metrics, start, model, outcome: Outcome::Canceled }
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.metrics.record_response(Protocol::Grpc, self.model.as_ref(), self.outcome, self.start.elapsed());
    }
}

/// Travels with a request: whether it was decoded.
#[derive(Clone)]
struct Decoded(Arc<AtomicBool>);

/// The inference service, with what ends before it counted.
#[derive(Clone)]
pub(super) struct Counted<S> {
    pub(super) service: S,
    pub(super) metrics: Metrics,
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if request.uri().path().strip_prefix(SERVICE_PREFIX) != Some("ModelInfer") {
            return Box::pin(self.service.call(request));
        }
        let is_decoded = Arc::new(AtomicBool::new(false));
        request.extensions_mut().insert(Decoded(Arc::clone(&is_decoded)));
        let start = Instant::now();
        let (answer, metrics) = (self.service.call(request), self.metrics.clone());
        Box::pin(async move {
            let response = answer.await?;
            if !is_decoded.load(Relaxed) {
                let status = Status::from_header_map(response.headers());
                let outcome = outcome_of(status.map_or(Code::Unknown, |status| status.code()));
                metrics.record_response(Protocol::Grpc, None, outcome, start.elapsed());
            }
            Ok(response)
        })
    }
}

/// How a request ended that tonic answered by itself.
const fn outcome_of(code: Code) -> Outcome {
    match code {
        // Malformed, too long, or compressed in a way that is not served.
        Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted | Code::Unimplemented => {
            Outcome::InvalidRequest
        }
        Code::Unavailable => Outcome::Overloaded,
        // The client stopped sending.
        Code::DeadlineExceeded | Code::Cancelled => Outcome::Canceled,
        _ => Outcome::Internal,
    }
}
