//! What REST alone has: routes, health, metadata, compression, the binary extension's headers, draining.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    time::Duration,
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use torchmodel_core::metrics::Protocol;
use torchmodel_server::admission::Direction;
use torchmodel_testing::{Answer, exchange, http, rest_outputs};

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

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A request for `vector` of so many elements, in JSON.
fn zeros(count: usize) -> String {
    let elements = vec!["0"; count].join(",");
    format!(r#"{{"inputs":[{{"name":"input","shape":[{count}],"datatype":"FP32","data":[{elements}]}}]}}"#)
}

#[tokio::test]
async fn answers_are_compressed_for_clients_that_compress_and_errors_and_metadata_when_they_are_long() {
    let server = Server::start().await;
    let accept = ("accept-encoding", "deflate;q=0.5, gzip;q=0.9");
    let ask = async |headers: &[(&str, &str)], body: &[u8]| {
        let answer = http(server.rest, "POST /v2/models/vector/infer", headers, body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    };
    let (short, long) = (zeros(2), zeros(1000));
    let compressed = ask(&[("content-encoding", "gzip"), accept], &gzip(long.as_bytes())).await;
    assert_eq!(compressed.header("content-encoding"), Some("gzip"));
    let mut text = String::new();
    GzDecoder::new(compressed.body.as_slice()).read_to_string(&mut text).unwrap();
    let plain = [
        ask(&[accept], long.as_bytes()).await,
        ask(&[("content-encoding", "gzip")], &gzip(long.as_bytes())).await,
        ask(&[("content-encoding", "gzip"), accept], &gzip(short.as_bytes())).await,
    ];
    assert!(plain.iter().all(|answer| answer.header("content-encoding").is_none()));
    assert_eq!(text.as_bytes(), plain[0].body);

    let short = http(server.rest, "GET /nope", &[accept], b"").await;
    assert_eq!((short.status, short.header("content-encoding")), (404, None));
    let long = http(server.rest, &format!("GET /v2/models/{}", "x".repeat(2000)), &[accept], b"").await;
    assert_eq!((long.status, long.header("content-encoding")), (404, Some("gzip")));
}

#[tokio::test]
async fn a_bomb_ends_at_the_limit() {
    let server = Server::start().await;
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
async fn halves_are_numbers_in_json() {
    let server = Server::start().await;
    let ask = async |datatype: &str, data: &str| {
        let body = format!(r#"{{"inputs":[{{"name":"input","shape":[1,2],"datatype":"{datatype}","data":{data}}}]}}"#);
        let line = format!("POST /v2/models/identity_{}/infer", datatype.to_lowercase());
        let answer = http(server.rest, &line, &[], body.as_bytes()).await;
        (answer.status, String::from_utf8(answer.body).unwrap())
    };
    let (status, text) = ask("FP16", "[[0.1,-65504]]").await;
    assert!(status == 200 && text.ends_with(r#""data":[0.099975586,-65504.0]}]}"#), "{text}");
    let (status, text) = ask("BF16", "[[1,NaN]]").await;
    assert!(status == 200 && text.ends_with(r#""data":[1.0,NaN]}]}"#), "{text}");
    let (status, text) = ask("FP16", "[[0,70000]]").await;
    assert!(status == 400 && text.contains("element 1 of 'data' is 70000, which is not a value of FP16"), "{text}");
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
    assert_eq!(answer.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
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
async fn binary_tensors_are_copied_once_on_the_way_in_and_not_at_all_on_the_way_out() {
    let server = Server::start().await;
    let copied = |direction| server.admission.copied_bytes(Protocol::Rest, direction);
    let mut expected = 0;
    for count in [16usize, 10_000, 500_000] {
        let head = format!(
            r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{{"name":"input","shape":[{count}],"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}]}}"#,
            4 * count
        );
        let data: Vec<u8> = (0..count).flat_map(|index| (index % 251).to_le_bytes()).take(4 * count).collect();
        let length = head.len().to_string();
        let headers = [("inference-header-content-length", length.as_str())];
        let body = [head.as_bytes(), &data].concat();
        let answer = http(server.rest, "POST /v2/models/vector/infer", &headers, &body).await;
        assert_eq!(rest_outputs(&answer)[0].data, data);
        let total = answer.header("content-length").unwrap().parse::<usize>().unwrap();
        assert_eq!(total, answer.body.len());
        expected += data.len() as u64;
        assert_eq!(copied(Direction::In), expected);
    }
    assert_eq!(copied(Direction::Out), 0);
    while server.admission.held() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_chunked_body_is_read_like_any_other() {
    let server = Server::start().await;
    let request = |body: &str, header: &str| {
        let mut chunks = String::new();
        for chunk in body.as_bytes().chunks(if body.len() < 1000 { 7 } else { 10_000 }) {
            write!(chunks, "{:x};note=1\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)).unwrap();
        }
        format!(
            "POST /v2/models/vector/infer HTTP/1.1\r\nhost: t\r\nconnection: close\r\n{header}transfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
        )
    };
    let answer = Answer::parse(&exchange(server.rest, request(VECTOR, "").as_bytes()).await).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["outputs"][0]["data"], json!([1.5, -2.0]));
    let json = r#"{"inputs":[{"name":"input","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
    let binary = request(&format!("{json}abcdefgh"), &format!("inference-header-content-length: {}\r\n", json.len()));
    let answer = Answer::parse(&exchange(server.rest, binary.as_bytes()).await).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let long = request(&zeros(MAX_REQUEST_BYTES / 2), "");
    let answer = Answer::parse(&exchange(server.rest, long.as_bytes()).await).unwrap();
    assert_eq!(answer.status, 413, "{answer:?}");
}

#[tokio::test]
async fn a_connection_is_kept_and_answers_in_order() {
    let server = Server::start().await;
    let post = |connection: &str, id: usize| {
        let body = VECTOR.replacen('{', &format!(r#"{{"id":"{id}","#), 1);
        format!(
            "POST /v2/models/vector/infer HTTP/1.1\r\nhost: t\r\n{connection}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let wrong = "POST /v2/models/vector/infer HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\n\r\n{]";
    let requests = [
        post("", 1),
        wrong.into(),
        "HEAD /v2 HTTP/1.1\r\nhost: t\r\n\r\n".into(),
        post("", 2),
        post("connection: close\r\n", 3),
    ];
    let answers = String::from_utf8(exchange(server.rest, requests.concat().as_bytes()).await).unwrap();
    let statuses: Vec<_> = answers.match_indices("HTTP/1.1 ").map(|(at, _)| &answers[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "400", "200", "200", "200"], "{answers}");
    let ids: Vec<_> = answers.match_indices(r#""id":""#).map(|(at, _)| &answers[at + 6..at + 7]).collect();
    assert_eq!(ids, ["1", "2", "3"], "{answers}");
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

#[tokio::test]
async fn a_stopping_server_lets_a_slow_client_read_its_answer() {
    let mut server = Server::start().await;
    let count = MAX_REQUEST_BYTES / 8;
    let json = format!(
        r#"{{"inputs":[{{"name":"input","shape":[{count}],"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}]}}"#,
        4 * count
    );
    // Less than the answer, on both sides of the connection.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let mut stream = socket.connect(server.rest).await.unwrap();
    let length = json.len() + 4 * count;
    let head = format!(
        "POST /v2/models/vector/infer HTTP/1.1\r\nhost: t\r\ninference-header-content-length: {}\r\ncontent-length: {length}\r\n\r\n",
        json.len()
    );
    let numbers: Vec<u8> = (0..count).flat_map(|_| 1.234_567_8e-30_f32.to_le_bytes()).collect();
    stream.write_all(&[head.as_bytes(), json.as_bytes(), &numbers].concat()).await.unwrap();
    let mut answer = vec![0; 1 << 10];
    stream.read_exact(&mut answer).await.unwrap();
    let stopped = server.stop();
    // For longer than a connection without a request is kept.
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..120 {
        pace.tick().await;
        let mut more = vec![0; 1 << 10];
        stream.read_exact(&mut more).await.unwrap();
        answer.append(&mut more);
    }
    let head_bytes = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&answer[..head_bytes]).to_lowercase();
    let body_bytes: usize =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().trim().parse().unwrap();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.len(), head_bytes + body_bytes);
    assert!(stopped.await.unwrap(), "everything was answered");
}
