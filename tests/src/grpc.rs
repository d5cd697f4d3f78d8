//! An inference client over gRPC.

use std::{error::Error, iter, net::SocketAddr};

use anyhow::{Context as _, Result};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use torchmodel_server::grpc::proto::{ModelReadyRequest, grpc_inference_service_client::GrpcInferenceServiceClient};
use torchmodel_testing::{TestTensor, fp32_values, grpc_request};

use crate::wait::{PATIENCE, in_time};

/// Asks one address, over one connection that is made again when it ends.
#[derive(Clone, Debug)]
pub struct GrpcClient(GrpcInferenceServiceClient<Channel>);

impl GrpcClient {
    /// Connects with the first request.
    pub fn new(address: SocketAddr) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_lazy();
        Ok(Self(GrpcInferenceServiceClient::new(channel)))
    }

    /// An inference; the first output's FP32 values.
    pub async fn infer(&self, model: &str, inputs: &[TestTensor]) -> Result<Vec<f32>> {
        let request = grpc_request(model, inputs);
        let ask = async || self.0.clone().model_infer(request.clone()).await;
        let answer = async {
            match ask().await {
                Err(status) if was_never_seen(&status) => ask().await,
                answer => answer,
            }
        };
        let answer = in_time("an answer over gRPC", PATIENCE, answer).await??.into_inner();
        Ok(fp32_values(answer.raw_output_contents.first().context("the answer has no output")?))
    }

    /// Whether the model takes requests.
    pub async fn is_ready(&self, model: &str) -> Result<bool> {
        let request = ModelReadyRequest { name: model.to_owned(), version: String::new() };
        let mut client = self.0.clone();
        Ok(in_time("readiness over gRPC", PATIENCE, client.model_ready(request)).await??.into_inner().ready)
    }
}

/// Whether the connection ended (GOAWAY) before the request left this process, or before the server looked at it. Other gRPC clients
/// send such a request again by themselves ("transparent retry", gRFC A6); tonic leaves it to the caller.
fn was_never_seen(status: &Status) -> bool {
    let mut causes = iter::successors(status.source(), |&error| error.source());
    causes.any(|error| {
        error.downcast_ref().is_some_and(hyper::Error::is_canceled)
            // A server that stops without an error answers what it has seen; h2 fails the other streams with its GOAWAY.
            || error.downcast_ref().is_some_and(|error: &h2::Error| {
                error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
            })
    })
}
