//! gRPC's wire path: what is copied, what is reserved, what is compressed, and what is no call at all.

use bytes::Bytes;
use prost::Message as _;
use torchmodel_core::metrics::Protocol;
use torchmodel_server::{
    admission::Direction,
    grpc::proto::{ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor},
};
use torchmodel_testing::{grpc, http};

use crate::{
    h2_client::{self, call, connect, prefixed},
    server::{MAX_REQUEST_BYTES, Server},
};

fn vector(elements: usize) -> ModelInferRequest {
    let shape = vec![i64::try_from(elements).unwrap()];
    let input = InferInputTensor { name: "input".into(), datatype: "FP32".into(), shape, ..Default::default() };
    ModelInferRequest {
        model_name: "vector".into(),
        inputs: vec![input],
        raw_input_contents: vec![vec![0; 4 * elements].into()],
        ..Default::default()
    }
}

async fn until_held(server: &Server, bytes: usize) {
    while server.admission.held() != bytes {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn raw_tensors_are_copied_once_on_the_way_in_and_not_at_all_on_the_way_out() {
    let server = Server::start().await;
    let mut expected = 0;
    for elements in [256, 16 << 10, 512 << 10] {
        let response = grpc(server.grpc).await.model_infer(vector(elements)).await.unwrap().into_inner();
        assert_eq!(response.raw_output_contents[0].len(), 4 * elements);
        expected += 4 * elements as u64;
        assert_eq!(server.admission.copied_bytes(Protocol::Grpc, Direction::In), expected);
    }
    assert_eq!(server.admission.copied_bytes(Protocol::Grpc, Direction::Out), 0);
    until_held(&server, 0).await;
}

#[tokio::test]
async fn a_client_that_can_read_compression_is_not_sent_any_unless_it_compresses_itself() {
    let server = Server::start().await;
    let body = prefixed(0, &vector(100_000).encode_to_vec());
    let accepts = [("grpc-accept-encoding", "identity, deflate, gzip")];
    let answer = call(server.grpc, &accepts, &body).await;
    assert_eq!((answer.status, answer.headers.get("grpc-encoding")), (200, None));
    assert_eq!(answer.trailers["grpc-status"], "0");
    let message = ModelInferResponse::decode(&answer.body[5..]).unwrap();
    assert_eq!((answer.body[0], message.raw_output_contents[0].len()), (0, 400_000));
}

#[tokio::test]
async fn what_is_no_call_gets_an_http_status_and_what_is_a_wrong_one_a_grpc_status() {
    let server = Server::start().await;
    let good = prefixed(0, &vector(1).encode_to_vec());
    assert_eq!(call(server.grpc, &[("content-type", "application/json")], &good).await.status, 415);
    let unknown = call(server.grpc, &[("grpc-encoding", "snappy")], &good).await;
    assert_eq!((&unknown.headers["grpc-status"], unknown.status), (&"12".parse().unwrap(), 200));
    assert_eq!(unknown.headers["grpc-accept-encoding"], "identity,gzip,deflate");
    let table: [(&str, Vec<u8>); 6] = [
        ("no message", vec![]),
        ("half a prefix", vec![0, 0]),
        ("half a message", good[..good.len() - 1].to_vec()),
        ("two messages", [good.clone(), good.clone()].concat()),
        ("an unknown flag", prefixed(7, &good)),
        ("compressed by nobody", prefixed(1, &good)),
    ];
    for (what, body) in table {
        let answer = call(server.grpc, &[], &body).await;
        assert_eq!((answer.status, &answer.headers["grpc-status"]), (200, &"3".parse().unwrap()), "{what}: {answer:?}");
        assert!(answer.body.is_empty(), "trailers only");
    }
    let named = ModelInferRequest { model_name: "ü\n".into(), ..vector(1) };
    let answer = call(server.grpc, &[], &prefixed(0, &named.encode_to_vec())).await;
    let message = answer.headers["grpc-message"].to_str().unwrap();
    assert!(message.contains("%C3%BC%0A"), "{message}");
    let metrics = String::from_utf8(http(server.admin, "GET /metrics", &[], b"").await.body).unwrap();
    let refused = "torchmodel_request_total{model=\"\",protocol=\"grpc\",code=\"invalid_request\"} 8\n";
    assert!(metrics.contains(refused), "{metrics}");
}

#[tokio::test]
async fn a_body_is_reserved_before_it_comes_and_released_when_its_client_leaves() {
    let server = Server::start().await;
    let (client, connection) = connect(server.grpc).await;
    let mut client = client.ready().await.unwrap();
    let body = prefixed(0, &vector(MAX_REQUEST_BYTES / 8).encode_to_vec());
    let (_response, mut stream) = client.send_request(h2_client::request(&[]), false).unwrap();
    stream.send_data(Bytes::copy_from_slice(&body[..5]), false).unwrap();
    until_held(&server, body.len() - 5).await;
    connection.abort();
    drop((client, stream));
    until_held(&server, 0).await;
}

#[tokio::test]
async fn compressed_messages_that_never_end_hold_what_they_announced_and_no_more() {
    let server = Server::start_within(MAX_REQUEST_BYTES).await;
    let (client, _connection) = connect(server.grpc).await;
    let mut held = Vec::new();
    for _ in 0..6 {
        let mut client = client.clone().ready().await.unwrap();
        let request = h2_client::request(&[("grpc-encoding", "gzip")]);
        let (_, mut stream) = client.send_request(request, false).unwrap();
        stream.send_data(Bytes::from(prefixed(1, &vec![0x1f; 200_000])[..100_000].to_vec()), false).unwrap();
        held.push(stream);
    }
    until_held(&server, 6 * 200_000).await;
}

#[tokio::test]
async fn calls_beyond_the_free_ones_of_a_connection_are_charged_and_streams_beyond_the_limit_refused() {
    let server = Server::start_within(MAX_REQUEST_BYTES).await;
    let (client, _connection) = connect(server.grpc).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut client = client.clone().ready().await.unwrap();
        held.push(client.send_request(h2_client::request(&[]), false).unwrap());
    }
    until_held(&server, (100 - 8) * (24 << 10)).await;
    drop(held);
    until_held(&server, 0).await;
}

#[tokio::test]
async fn an_answer_is_charged_until_its_client_has_read_it() {
    let server = Server::start().await;
    let (client, _connection) = connect(server.grpc).await;
    let mut client = client.ready().await.unwrap();
    let request = prefixed(0, &vector(MAX_REQUEST_BYTES / 8).encode_to_vec());
    let (response, mut stream) = client.send_request(h2_client::request(&[]), false).unwrap();
    stream.send_data(request.into(), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let first = body.data().await.unwrap().unwrap();
    assert!(server.admission.held() >= MAX_REQUEST_BYTES / 2, "{}", server.admission.held());
    body.flow_control().release_capacity(first.len()).unwrap();
    let mut received = first.len();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        received += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert!(received > MAX_REQUEST_BYTES / 2);
    until_held(&server, 0).await;
}

#[tokio::test]
async fn an_error_never_fills_the_clients_head() {
    let server = Server::start().await;
    let message = ModelInferRequest { model_name: "vector".into(), id: "7".into(), ..vector(1) };
    let inputs = vec![InferInputTensor { name: "x".repeat(100_000), ..message.inputs[0].clone() }];
    let message = ModelInferRequest { inputs, ..message };
    let answer = call(server.grpc, &[], &prefixed(0, &message.encode_to_vec())).await;
    assert_eq!(answer.headers["grpc-status"], "3");
    assert!(answer.headers["grpc-message"].len() < 5000);
}

#[tokio::test]
async fn a_stopping_server_answers_the_call_in_flight_and_says_goodbye() {
    let mut server = Server::start().await;
    let (client, connection) = connect(server.grpc).await;
    let mut client = client.ready().await.unwrap();
    let body = prefixed(0, &ModelInferRequest { model_name: "slow".into(), ..Default::default() }.encode_to_vec());
    let (response, mut stream) = client.send_request(h2_client::request(&[]), false).unwrap();
    stream.send_data(body.into(), true).unwrap();
    let in_flight = "torchmodel_inflight_requests{model=\"slow\",version=\"1\"} 1\n";
    while !String::from_utf8_lossy(&http(server.admin, "GET /metrics", &[], b"").await.body).contains(in_flight) {
        tokio::task::yield_now().await;
    }
    let stopped = server.stop();
    while tokio::net::TcpStream::connect(server.grpc).await.is_ok() {
        tokio::task::yield_now().await;
    }
    server.gate.open();
    let answer = response.await.unwrap();
    assert_eq!(answer.status(), 200);
    drop((answer, client));
    connection.await.unwrap().unwrap();
    assert!(stopped.await.unwrap(), "everything was answered");
}

#[tokio::test]
async fn a_reset_call_is_given_up() {
    let server = Server::start().await;
    let (client, _connection) = connect(server.grpc).await;
    let mut client = client.ready().await.unwrap();
    let body = prefixed(0, &ModelInferRequest { model_name: "slow".into(), ..Default::default() }.encode_to_vec());
    let (response, mut stream) = client.send_request(h2_client::request(&[]), false).unwrap();
    stream.send_data(body.into(), true).unwrap();
    let metric = async |line: &str| {
        while !String::from_utf8_lossy(&http(server.admin, "GET /metrics", &[], b"").await.body).contains(line) {
            tokio::task::yield_now().await;
        }
    };
    metric("torchmodel_inflight_requests{model=\"slow\",version=\"1\"} 1\n").await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(response);
    metric("torchmodel_inflight_requests{model=\"slow\",version=\"1\"} 0\n").await;
    metric("torchmodel_request_total{model=\"slow\",protocol=\"grpc\",code=\"canceled\"} 1\n").await;
}
