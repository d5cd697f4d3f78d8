//! Bytes that are no protocol, on every port: the server goes on answering.

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use torchmodel_server::grpc::{
    codec::InferenceCodec,
    proto::{ModelInferResponse, ServerLiveRequest, ServerLiveResponse},
};
use torchmodel_testing::{grpc, http, raw};

use crate::server::Server;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

async fn still_answers(server: &Server) {
    assert_eq!(http(server.rest, "GET /v2/health/live", &[], b"").await.status, 200);
    assert!(grpc(server.grpc).await.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert_eq!(http(server.admin, "GET /metrics", &[], b"").await.status, 200);
}

fn samples(strategy: impl Strategy<Value = Vec<u8>>, count: usize) -> Vec<Vec<u8>> {
    let mut runner = TestRunner::new(Config::default());
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

#[tokio::test]
async fn random_bytes_on_any_port_end_only_their_own_connection() {
    let server = Server::start().await;
    let bytes = samples(prop::collection::vec(any::<u8>(), 0..2000), 100);
    for bytes in bytes {
        for port in [server.rest, server.grpc, server.admin] {
            raw(port, &bytes).await;
            raw(port, &[PREFACE, SETTINGS, &bytes].concat()).await;
        }
    }
    still_answers(&server).await;
}

#[tokio::test]
async fn requests_that_are_cut_anywhere_end_only_their_own_connection() {
    let server = Server::start().await;
    let body = r#"{"inputs":[{"name":"input","shape":[1],"datatype":"FP32","data":[1]}]}"#;
    let request = format!(
        "POST /v2/models/vector/infer HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    for length in 0..request.len() {
        raw(server.rest, &request.as_bytes()[..length]).await;
    }
    // HEADERS of a call, then a DATA frame that says more than it has.
    let headers: &[u8] = &[0, 0, 2, 1, 4, 0, 0, 0, 1, 0x83, 0x86];
    let data: &[u8] = &[0, 0, 9, 0, 0, 0, 0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff, 1, 2];
    let call = [PREFACE, SETTINGS, headers, data].concat();
    for length in 0..call.len() {
        raw(server.grpc, &call[..length]).await;
    }
    still_answers(&server).await;
}

#[tokio::test]
async fn connections_that_say_nothing_or_stop_half_way_hold_up_nobody() {
    let mut server = Server::start().await;
    let mut held = Vec::new();
    for begin in [&b""[..], b"POST /v2/models/vector/infer HT", b"PRI * HT", PREFACE] {
        for port in [server.rest, server.grpc, server.admin] {
            let mut stream = TcpStream::connect(port).await.unwrap();
            stream.write_all(begin).await.unwrap();
            held.push(stream);
        }
    }
    still_answers(&server).await;
    assert!(server.stop().await.unwrap(), "a stopping server waits for requests, not for silent connections");
    for mut stream in held {
        let mut rest = Vec::new();
        // Closed, cleanly or not.
        let _ = stream.read_to_end(&mut rest).await;
    }
}

#[tokio::test]
async fn malformed_protobuf_is_the_clients_fault() {
    let server = Server::start().await;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", server.grpc)).unwrap();
    let mut client = tonic::client::Grpc::new(channel.connect().await.unwrap());
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/inference.GRPCInferenceService/ModelInfer");
    // Field 1 is a number here and a text there.
    let codec = InferenceCodec::<ServerLiveResponse, ModelInferResponse>::default();
    let status = client.unary(tonic::Request::new(ServerLiveResponse { live: true }), path, codec).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    still_answers(&server).await;
}
