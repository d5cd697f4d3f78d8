//! What REST alone has: routes, health, metadata, compression, the binary extension's headers, draining.

use std::io::{Read, Write};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use torchmodel_testing::{exchange, http, rest_outputs};

use crate::server::{MAX_REQUEST_BYTES, Server};

const VECTOR: &str = r#"{"inputs":[{"name":"input","shape":[2],"datatype":"FP32","data":[1.5,-2]}]}"#;

#[tokio::test]
async fn metadata_and_health_have_the_protocols_form() {
    let server = Server::start().await;
    let get = async |path: &str| http(server.rest, &format!("GET {path}"), &[], b"").await;
    for path in ["/v2", "/v2/"] {
        assert_eq!(get(path).await.json()["name"], "torchmodel-runtime");
    }
    assert_eq!(get("/v2/health/live").await.json(), json!({ "live": true }));
    assert_eq!(get("/v2/health/ready").await.json(), json!({ "ready": true }));
    assert_eq!(get("/v2/models/add_sub/ready").await.json(), json!({ "name": "add_sub", "ready": true }));
    assert_eq!(get("/v2/models/add_sub/versions/1/ready").await.status, 200);
    assert_eq!(get("/v2/models/nope/ready").await.status, 404);
    let metadata = get("/v2/models/vector").await.json();
    assert_eq!(metadata["inputs"], json!([{ "name": "input", "datatype": "FP32", "shape": [-1] }]));
    assert_eq!(metadata["versions"], json!(["1"]));
    assert_eq!(get("/v2/models/vector/versions/1").await.json(), metadata);
    let models = get("/v2/models").await.json();
    assert!(models["models"].as_array().unwrap().contains(&json!("vector")), "{models}");

    server.add_loading("later");
    let answer = get("/v2/health/ready").await;
    assert_eq!((answer.status, &answer.json()["ready"]), (503, &json!(false)));
    let answer = get("/v2/models/later/ready").await;
    assert_eq!((answer.status, &answer.json()["ready"]), (503, &json!(false)));
}

#[tokio::test]
async fn unknown_paths_and_methods_are_json_errors_and_head_has_no_body() {
    let server = Server::start().await;
    let cases = [
        ("GET /", 404, "Not Found"),
        ("GET /v2/nope", 404, "Not Found"),
        ("GET /v2/models/vector/infer", 405, "Method Not Allowed"),
        ("POST /v2", 405, "Method Not Allowed"),
        ("OPTIONS /v2", 405, "Method Not Allowed"),
    ];
    for (line, status, text) in cases {
        let answer = http(server.rest, line, &[], b"").await;
        assert_eq!((answer.status, answer.json()), (status, json!({ "error": text })), "{line}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{line}");
    }
    for (line, status) in [("HEAD /v2", 200), ("HEAD /nope", 404), ("HEAD /v2/models/vector/infer", 405)] {
        let answer = http(server.rest, line, &[], b"").await;
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{line}");
    }
}

#[tokio::test]
async fn model_names_are_percent_decoded() {
    let server = Server::start().await;
    let answer = http(server.rest, "POST /v2/models/a%20model%3A%20%C3%BC/infer", &[], VECTOR.as_bytes()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["model_name"], "a model: ü");
    let answer = http(server.rest, "GET /v2/models/%FF", &[], b"").await;
    assert!(answer.status == 400 && answer.json()["error"].is_string(), "{answer:?}");
}

#[tokio::test]
async fn a_raw_body_is_the_one_input_and_comes_back_binary() {
    let server = Server::start().await;
    let headers = [("inference-header-content-length", "0")];
    let answer = http(server.rest, "POST /v2/models/vector/infer", &headers, &[0, 0, 0x80, 0x3f]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    let outputs = rest_outputs(&answer);
    assert_eq!((outputs[0].shape.as_slice(), outputs[0].data.as_slice()), (&[1i64][..], &[0, 0, 0x80, 0x3f][..]));
    let answer = http(server.rest, "POST /v2/models/add_sub/infer", &headers, &[0; 4]).await;
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().unwrap().contains("Raw request must only have 1 input (found 2)"));
}

#[tokio::test]
async fn wrong_bodies_are_the_clients_fault() {
    let server = Server::start().await;
    let ask = async |body: &[u8], headers: &[(&str, &str)]| {
        http(server.rest, "POST /v2/models/vector/infer", headers, body).await
    };
    let deep =
        format!(r#"{{"inputs":[{{"name":"input","shape":[1],"datatype":"FP32","data":{}}}]}}"#, "[".repeat(100_000));
    let nested = format!(
        r#"{{"inputs":[{{"name":"input","shape":[1],"datatype":"FP32","data":{}1{}}}]}}"#,
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    for body in ["", "{", "null", "[]", "{}", "\u{feff}{}", "{\"inputs\":[]} x", deep.as_str(), nested.as_str()] {
        let answer = ask(body.as_bytes(), &[]).await;
        assert_eq!(answer.status, 400, "{body:.40}: {answer:?}");
        assert!(answer.json()["error"].is_string());
    }
    assert_eq!(ask(b"\xff\xfe", &[]).await.status, 400);
    assert_eq!(ask(VECTOR.as_bytes(), &[("inference-header-content-length", "+5")]).await.status, 400);
    assert_eq!(ask(VECTOR.as_bytes(), &[("inference-header-content-length", "9999")]).await.status, 400);
    assert_eq!(ask(VECTOR.as_bytes(), &[("x-request-timeout", "soon")]).await.status, 400);
    let answer = ask(VECTOR.as_bytes(), &[("content-encoding", "br")]).await;
    assert_eq!((answer.status, answer.header("accept-encoding")), (415, Some("gzip, deflate")));
    assert_eq!(ask(VECTOR.as_bytes(), &[("content-encoding", "gzip")]).await.status, 400);
    // The answer reaches also a client that sends to the end before it reads.
    let large = vec![b' '; 2 * MAX_REQUEST_BYTES - 1];
    assert_eq!(ask(&large, &[]).await.status, 413);
    assert_eq!(ask(&large[..MAX_REQUEST_BYTES], &[("content-encoding", "br")]).await.status, 415);
    assert_eq!(ask(&large[..MAX_REQUEST_BYTES], &[("x-request-timeout", "soon")]).await.status, 400);
}

#[tokio::test]
async fn bodies_are_compressed_both_ways_within_the_limit() {
    let server = Server::start().await;
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let headers = [("content-encoding", "gzip"), ("accept-encoding", "deflate;q=0.5, gzip;q=0.9")];
    let answer = http(server.rest, "POST /v2/models/vector/infer", &headers, &gzip(VECTOR.as_bytes())).await;
    assert_eq!((answer.status, answer.header("content-encoding")), (200, Some("gzip")));
    let mut text = String::new();
    GzDecoder::new(answer.body.as_slice()).read_to_string(&mut text).unwrap();
    assert!(text.contains("\"data\":[1.5,-2.0]"), "{text}");
    let error = http(server.rest, "GET /nope", &[("accept-encoding", "gzip")], b"").await;
    assert_eq!((error.status, error.header("content-encoding")), (404, Some("gzip")));

    let bomb = gzip(&vec![b' '; 16 * MAX_REQUEST_BYTES]);
    let answer = http(server.rest, "POST /v2/models/vector/infer", &[("content-encoding", "gzip")], &bomb).await;
    assert_eq!(answer.status, 413);
}

#[tokio::test]
async fn non_finite_numbers_travel_both_ways() {
    let server = Server::start().await;
    let ask = async |parameters: &str| {
        let body = format!(
            r#"{{"parameters":{{{parameters}}},"inputs":[{{"name":"input","shape":[3],"datatype":"FP32","data":[NaN,Infinity,-Infinity]}}]}}"#
        );
        let answer = http(server.rest, "POST /v2/models/vector/infer", &[], body.as_bytes()).await;
        String::from_utf8(answer.body).unwrap()
    };
    assert!(ask("").await.ends_with(r#""data":[NaN,Infinity,-Infinity]}]}"#));
    assert!(ask(r#""strict_json":true"#).await.ends_with(r#""data":[null,null,null]}]}"#));
}

#[tokio::test]
async fn a_request_timeout_header_is_a_deadline() {
    let server = Server::start().await;
    let answer =
        http(server.rest, "POST /v2/models/slow/infer", &[("x-request-timeout", "1ms")], br#"{"inputs":[]}"#).await;
    assert_eq!(answer.status, 504, "{answer:?}");
}

#[tokio::test]
async fn metrics_count_requests_by_model_and_code() {
    let server = Server::start().await;
    http(server.rest, "POST /v2/models/vector/infer", &[], VECTOR.as_bytes()).await;
    http(server.rest, "POST /v2/models/invented/infer", &[], VECTOR.as_bytes()).await;
    let answer = http(server.admin, "GET /metrics", &[], b"").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = String::from_utf8(answer.body).unwrap();
    for line in [
        "torchmodel_request_total{model=\"vector\",protocol=\"rest\",code=\"ok\"} 1\n",
        "torchmodel_request_total{model=\"\",protocol=\"rest\",code=\"not_found\"} 1\n",
        "nv_inference_request_success{model=\"vector\",version=\"1\"} 1\n",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert_eq!(http(server.admin, "GET /v2/health/ready", &[], b"").await.status, 200);
    assert_eq!(http(server.rest, "GET /metrics", &[], b"").await.status, 404);
}

#[tokio::test]
async fn pipelined_requests_are_all_answered() {
    let server = Server::start().await;
    let one = "GET /v2/health/live HTTP/1.1\r\nhost: test\r\n\r\n";
    let last = "GET /v2/health/live HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    let answer = String::from_utf8(exchange(server.rest, format!("{one}{one}{last}").as_bytes()).await).unwrap();
    assert_eq!(answer.matches("{\"live\":true}").count(), 3, "{answer}");
}

#[tokio::test]
async fn heads_that_are_malformed_or_too_large_get_an_answer() {
    let server = Server::start().await;
    let status = async |bytes: String| {
        let answer = String::from_utf8_lossy(&exchange(server.rest, bytes.as_bytes()).await).into_owned();
        answer.split(' ').nth(1).map(str::to_owned)
    };
    assert_eq!(status("GET / HTTP/1.1\r\nbad header\r\n\r\n".into()).await.as_deref(), Some("400"));
    let long = format!("GET /{} HTTP/1.1\r\nhost: t\r\n\r\n", "x".repeat(100_000));
    assert!(matches!(status(long).await.as_deref(), Some("414" | "431")));
    let many = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(600_000));
    assert_eq!(status(many).await.as_deref(), Some("431"));
}

#[tokio::test]
async fn a_stopping_server_answers_what_is_in_flight_and_takes_nothing_new() {
    let mut server = Server::start().await;
    let mut stream = TcpStream::connect(server.rest).await.unwrap();
    let body = r#"{"inputs":[]}"#;
    let request =
        format!("POST /v2/models/slow/infer HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let is_in_flight = async || {
        let text = String::from_utf8(http(server.admin, "GET /metrics", &[], b"").await.body).unwrap();
        text.contains("torchmodel_inflight_requests{model=\"slow\",version=\"1\"} 1\n")
    };
    while !is_in_flight().await {
        tokio::task::yield_now().await;
    }
    let stopped = server.stop();
    // The port closes while the request is still held.
    while TcpStream::connect(server.rest).await.is_ok() {
        tokio::task::yield_now().await;
    }
    server.gate.open();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert!(stopped.await.unwrap(), "everything was answered");
}
