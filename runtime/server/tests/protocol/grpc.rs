//! What gRPC alone has: health, reflection, compression, sizes and statuses of malformed messages.

use std::net::SocketAddr;

use bytes::Bytes;
use prost::Message as _;
use tonic::{Code, codec::CompressionEncoding, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use torchmodel_core::tensor::DataType;
use torchmodel_server::grpc::proto::{
    ModelInferRequest, ModelMetadataRequest, ModelReadyRequest, ServerLiveRequest, ServerMetadataRequest,
    ServerReadyRequest,
};
use torchmodel_testing::{TestTensor, grpc, grpc_input};

use crate::{
    h2_client::{call, prefixed},
    server::{MAX_REQUEST_BYTES, Server},
};

async fn channel(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

fn vector(elements: usize) -> ModelInferRequest {
    let tensor = TestTensor {
        name: "input".into(),
        datatype: DataType::Fp32,
        shape: vec![i64::try_from(elements).unwrap()],
        data: vec![0; 4 * elements],
    };
    ModelInferRequest {
        model_name: "vector".into(),
        inputs: vec![grpc_input(&tensor, None)],
        raw_input_contents: vec![tensor.data.into()],
        ..Default::default()
    }
}

#[tokio::test]
async fn metadata_and_readiness_are_told() {
    let server = Server::start().await;
    let mut client = grpc(server.grpc).await;
    assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let metadata = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!(metadata.name, "torchmodel-runtime");
    let named = |name: &str| ModelMetadataRequest { name: name.into(), version: String::new() };
    let metadata = client.model_metadata(named("vector")).await.unwrap().into_inner();
    assert_eq!((metadata.inputs[0].datatype.as_str(), metadata.inputs[0].shape.as_slice()), ("FP32", &[-1i64][..]));
    assert_eq!(client.model_metadata(named("nope")).await.unwrap_err().code(), Code::NotFound);
    server.add_loading("later");
    for (name, expected) in [("vector", true), ("nope", false), ("later", false)] {
        let request = ModelReadyRequest { name: name.into(), version: String::new() };
        assert_eq!(client.model_ready(request).await.unwrap().into_inner().ready, expected, "{name}");
    }
    let request = ModelReadyRequest { name: "vector".into(), version: "x".into() };
    assert_eq!(client.model_ready(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn health_follows_readiness_and_a_watch_ends_when_serving_does() {
    let server = Server::start().await;
    let mut client = HealthClient::new(channel(server.grpc).await);
    let of = |service: &str| HealthCheckRequest { service: service.into() };
    for service in ["", "inference.GRPCInferenceService", "vector"] {
        let status = client.check(of(service)).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    assert_eq!(client.check(of("nope")).await.unwrap_err().code(), Code::NotFound);
    let mut watch = client.watch(of("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.service.start_draining();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(watch.message().await.unwrap(), None);
    assert_eq!(client.check(of("")).await.unwrap().into_inner().status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn reflection_names_the_services() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let server = Server::start().await;
    let mut client = ServerReflectionClient::new(channel(server.grpc).await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = client.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["inference.GRPCInferenceService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }
}

#[tokio::test]
async fn messages_beyond_tonics_default_pass_up_to_the_limit() {
    let server = Server::start().await;
    let mut client = grpc(server.grpc).await;
    let fits = vector(MAX_REQUEST_BYTES / 4 - 100);
    let response = client.model_infer(fits).await.unwrap().into_inner();
    assert_eq!(response.raw_output_contents[0].len(), MAX_REQUEST_BYTES - 400);
    let status = client.model_infer(vector(MAX_REQUEST_BYTES / 4 + 100)).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
}

#[tokio::test]
async fn messages_may_be_compressed_both_ways() {
    let server = Server::start().await;
    let mut client =
        grpc(server.grpc).await.send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip);
    let response = client.model_infer(vector(1000)).await.unwrap();
    assert_eq!(response.metadata().get("grpc-encoding").unwrap(), "gzip");
    assert_eq!(response.into_inner().raw_output_contents[0], Bytes::from(vec![0; 4000]));
    let bomb = client.model_infer(vector(4 * MAX_REQUEST_BYTES)).await.unwrap_err();
    assert_eq!(bomb.code(), Code::ResourceExhausted, "{bomb:?}");
}

#[tokio::test]
async fn a_call_deadline_ends_the_wait() {
    let server = Server::start().await;
    // By hand: a channel would keep the time itself and not wait for the server's answer.
    let message = ModelInferRequest { model_name: "slow".into(), ..Default::default() };
    let answer = call(server.grpc, &[("grpc-timeout", "1m")], &prefixed(0, &message.encode_to_vec())).await;
    assert_eq!(answer.headers["grpc-status"], "4", "{answer:?}");
}

#[tokio::test]
async fn http_2_without_tls_works_on_the_rest_port_too() {
    let server = Server::start().await;
    // REST has no such path: an HTTP status, not a broken connection.
    let status = grpc(server.rest).await.server_live(ServerLiveRequest {}).await.unwrap_err();
    assert!(status.message().contains("404"), "{status:?}");
}
