//! What requests may take together: the one that is over the bound is refused, and taken once others are answered.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;
use torchmodel_server::grpc::proto::{ModelInferRequest, model_infer_request::InferInputTensor};
use torchmodel_testing::{Answer, grpc, http};

use crate::server::{MAX_REQUEST_BYTES, Server};

const INFER: &str = "POST /v2/models/vector/infer";
/// A model whose answer is small.
const SINK: &str = "POST /v2/models/sink/infer";
/// The body is the only input's data.
const RAW: (&str, &str) = ("inference-header-content-length", "0");
/// A quarter of what one request may be.
const QUARTER: usize = MAX_REQUEST_BYTES / 4;

/// Waits until requests hold so much: what was sent was read, what was answered was given back.
async fn until_held(server: &Server, bytes: usize) {
    while server.admission.held() != bytes {
        tokio::task::yield_now().await;
    }
}

fn grpc_request() -> ModelInferRequest {
    let shape = vec![i64::try_from(QUARTER / 4).unwrap()];
    let input = InferInputTensor { name: "input".into(), datatype: "FP32".into(), shape, ..Default::default() };
    ModelInferRequest {
        model_name: "vector".into(),
        inputs: vec![input],
        raw_input_contents: vec![vec![0; QUARTER].into()],
        ..Default::default()
    }
}

#[tokio::test]
async fn what_does_not_fit_beside_the_others_is_refused_until_they_are_answered() {
    let server = Server::start_within(MAX_REQUEST_BYTES).await;
    let quarter = vec![0; QUARTER];
    let head = format!("{SINK} HTTP/1.1\r\nhost: t\r\n{}: {}\r\nconnection: close\r\n", RAW.0, RAW.1);
    let mut slow = TcpStream::connect(server.rest).await.unwrap();
    slow.write_all(format!("{head}content-length: {MAX_REQUEST_BYTES}\r\n\r\n").as_bytes()).await.unwrap();
    // What was announced is held before any of it comes.
    until_held(&server, MAX_REQUEST_BYTES).await;

    let refused = http(server.rest, INFER, &[RAW], &quarter).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{refused:?}");
    let error = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(error.ends_with("may hold 4194304 (--max-inflight-bytes); try again later"), "{error}");

    let status = grpc(server.grpc).await.model_infer(grpc_request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("--max-inflight-bytes"), "{status:?}");

    // Little comes, much is made of it.
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&quarter).unwrap();
    let answer = http(server.rest, INFER, &[RAW, ("content-encoding", "gzip")], &gzip.finish().unwrap()).await;
    assert_eq!(answer.status, 503, "{answer:?}");

    slow.write_all(&vec![0; MAX_REQUEST_BYTES]).await.unwrap();
    let mut bytes = Vec::new();
    slow.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(Answer::parse(&bytes).unwrap().status, 200);
    until_held(&server, 0).await;
    let answer = http(server.rest, INFER, &[RAW], &quarter).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body[..200.min(answer.body.len())]));
    grpc(server.grpc).await.model_infer(grpc_request()).await.unwrap();

    let metrics = String::from_utf8(http(server.admin, "GET /metrics", &[], b"").await.body).unwrap();
    let line = "torchmodel_request_total{model=\"\",protocol=\"grpc\",code=\"overloaded\"} 1\n";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn json_is_counted_with_the_tensors_that_are_made_of_it() {
    let server = Server::start_within(MAX_REQUEST_BYTES).await;
    // Half a MiB of text, one MiB of tensor.
    let elements = vec!["0"; QUARTER / 4].join(",");
    let json =
        format!(r#"{{"inputs":[{{"name":"input","shape":[{}],"datatype":"FP32","data":[{elements}]}}]}}"#, QUARTER / 4);
    let mut slow = TcpStream::connect(server.rest).await.unwrap();
    let head = format!("{SINK} HTTP/1.1\r\nhost: t\r\n{}: {}\r\nconnection: close\r\n", RAW.0, RAW.1);
    let bytes = 3 * QUARTER;
    slow.write_all(format!("{head}content-length: {bytes}\r\n\r\n").as_bytes()).await.unwrap();
    until_held(&server, bytes).await;
    let answer = http(server.rest, INFER, &[], json.as_bytes()).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    until_held(&server, bytes).await;

    slow.write_all(&vec![0; bytes]).await.unwrap();
    slow.read_to_end(&mut Vec::new()).await.unwrap();
    until_held(&server, 0).await;
    assert_eq!(http(server.rest, INFER, &[], json.as_bytes()).await.status, 200);
    until_held(&server, 0).await;
}

#[tokio::test]
async fn a_lone_request_is_answered_though_it_and_its_answer_are_more_than_may_be_held() {
    let server = Server::start_within(QUARTER + QUARTER / 4).await;
    let body = vec![0; QUARTER];
    let rest = http(server.rest, INFER, &[RAW], &body).await;
    assert_eq!(rest.status, 200, "{}", String::from_utf8_lossy(&rest.body[..200.min(rest.body.len())]));
    until_held(&server, 0).await;
    let answer = grpc(server.grpc).await.model_infer(grpc_request()).await.unwrap().into_inner();
    assert_eq!(answer.raw_output_contents[0].len(), QUARTER);
    until_held(&server, 0).await;
}
