//! Hostile clients of HTTP/1.1.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};

use crate::server::{MAX_CONNECTIONS, MAX_REQUEST_BYTES, Server};

/// A connection on which nobody waits for long.
fn connect(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_write_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(100))).ok()?;
    Some(stream)
}

/// Sends the bytes on so many connections and keeps those that took them.
fn hold(address: SocketAddr, connections: usize, bytes: impl Fn(usize) -> Vec<u8>) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for number in 0..connections {
        let Some(mut stream) = connect(address) else { continue };
        if stream.write_all(&bytes(number)).is_ok() {
            held.push(stream);
        }
    }
    held
}

/// Gzip of these bytes.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn head(fields: &str) -> String {
    format!("POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\n{fields}\r\n")
}

#[test]
fn heads_without_an_end_hold_no_more_than_their_limit() {
    let server = Server::start();
    server.withstands(|| {
        hold(server.rest, MAX_CONNECTIONS, |number| {
            let filler = "x".repeat(30 << 10);
            format!("GET /v2 HTTP/1.1\r\nhost: x\r\nfiller-{number}: {filler}").into_bytes()
        })
    });
    server.serves_a_friendly_client();
}

#[test]
fn a_head_beyond_the_limit_is_refused() {
    let server = Server::start();
    server.withstands(|| {
        for _ in 0..16 {
            let mut stream = connect(server.rest).unwrap();
            let filler = "x".repeat(1 << 20);
            // The server may close while we send.
            drop(write!(stream, "GET /v2 HTTP/1.1\r\nhost: x\r\nfiller: {filler}\r\n\r\n"));
            let mut answer = String::new();
            drop(stream.read_to_string(&mut answer));
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        }
    });
    server.serves_a_friendly_client();
}

#[test]
fn bodies_held_open_hold_no_more_than_the_budget() {
    let server = Server::start();
    server.withstands(|| {
        let body = vec![b' '; MAX_REQUEST_BYTES - 1];
        hold(server.rest, 64, |_| {
            let mut bytes = head(&format!("content-length: {MAX_REQUEST_BYTES}\r\n")).into_bytes();
            bytes.extend_from_slice(&body);
            bytes
        })
    });
    server.serves_a_friendly_client();
}

#[test]
fn lengths_that_are_only_announced_are_charged_and_given_back() {
    let server = Server::start();
    server.withstands(|| {
        hold(server.rest, MAX_CONNECTIONS - 8, |_| {
            head(&format!("content-length: {MAX_REQUEST_BYTES}\r\n")).into_bytes()
        })
    });
    server.serves_a_friendly_client();
}

#[test]
fn gzip_held_open_inflates_within_the_budget() {
    let server = Server::start();
    let bomb = gzip(&vec![b' '; MAX_REQUEST_BYTES - 100]);
    server.withstands(|| {
        hold(server.rest, 64, |_| {
            let mut bytes = head("content-encoding: gzip\r\ntransfer-encoding: chunked\r\n").into_bytes();
            bytes.extend_from_slice(format!("{:x}\r\n", bomb.len()).as_bytes());
            bytes.extend_from_slice(&bomb);
            bytes.extend_from_slice(b"\r\n");
            bytes
        })
    });
    server.serves_a_friendly_client();
}

#[test]
fn gzip_bombs_are_refused() {
    let server = Server::start();
    let bomb = gzip(&vec![0; 256 << 20]);
    server.withstands(|| {
        for _ in 0..8 {
            let mut stream = connect(server.rest).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let length = bomb.len();
            let head = head(&format!("content-encoding: gzip\r\nconnection: close\r\ncontent-length: {length}\r\n"));
            drop(stream.write_all(head.as_bytes()));
            drop(stream.write_all(&bomb));
            let mut answer = String::new();
            drop(stream.read_to_string(&mut answer));
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
        }
    });
    server.serves_a_friendly_client();
}

#[test]
fn slow_bytes_on_many_connections_do_not_stop_the_others() {
    let server = Server::start();
    server.withstands(|| {
        let mut held = hold(server.rest, MAX_CONNECTIONS - 8, |_| head("content-length: 1000\r\n").into_bytes());
        for _ in 0..20 {
            held.retain_mut(|stream| stream.write_all(b" ").is_ok());
        }
        server.serves_a_friendly_client();
        held
    });
    server.serves_a_friendly_client();
}

#[test]
fn answers_that_nobody_reads_hold_no_more_than_the_budget() {
    let server = Server::start();
    let rows = MAX_REQUEST_BYTES - 4096;
    let json = format!(
        r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{{"name":"input","datatype":"UINT8","shape":[{rows}],"parameters":{{"binary_data_size":{rows}}}}}]}}"#
    );
    let (json_length, length) = (json.len(), json.len() + rows);
    let mut request = head(&format!("inference-header-content-length: {json_length}\r\ncontent-length: {length}\r\n"));
    request.push_str(&json);
    let mut request = request.into_bytes();
    request.resize(request.len() + rows, 3);
    server.withstands(|| hold(server.rest, 48, |_| request.clone()));
    server.serves_a_friendly_client();
}

#[test]
fn refusals_that_nobody_reads_do_not_repeat_what_was_sent() {
    let server = Server::start();
    let name = "x".repeat(MAX_REQUEST_BYTES - 4096);
    let json = format!(r#"{{"inputs":[{{"name":"{name}","datatype":"UINT8","shape":[1],"data":[1]}}]}}"#);
    let request = head(&format!("content-length: {}\r\n", json.len())) + &json;
    server.withstands(|| hold(server.rest, 60, |_| request.clone().into_bytes()));
    server.serves_a_friendly_client();
}

#[test]
fn pipelined_requests_whose_answers_nobody_reads_are_not_taken_without_end() {
    let server = Server::start();
    let one = "GET /v2/models/echo HTTP/1.1\r\nhost: x\r\n\r\n";
    server.withstands(|| hold(server.rest, 16, |_| one.repeat(50_000).into_bytes()));
    server.serves_a_friendly_client();
}

#[test]
fn idle_connections_leave_health_and_a_free_connection_alone() {
    let server = Server::start();
    server.withstands(|| {
        let held = hold(server.rest, MAX_CONNECTIONS - 1, |_| Vec::new());
        server.serves_a_friendly_client();
        held
    });
    server.serves_a_friendly_client();
}

#[test]
fn json_that_costs_more_than_its_text_stays_within_the_budget() {
    let server = Server::start();
    let nested =
        format!(r#"{{"inputs":[{{"name":"input","datatype":"UINT8","shape":[1],"data":{}"#, "[".repeat(4 << 20 >> 1));
    let many = format!(r#"{{"inputs":[{}"#, r#"{"name":"","shape":[],"datatype":""},"#.repeat(100_000));
    let zeros =
        format!(r#"{{"inputs":[{{"name":"input","datatype":"FP64","shape":[1000000],"data":[{}"#, "0,".repeat(1 << 20));
    let keys: Vec<String> = (0..100_000).map(|number| format!(r#""{number}":0"#)).collect();
    let keys = keys.join(",");
    let keys = format!(r#"{{"parameters":{{{keys}"#);
    server.withstands(|| {
        for body in [nested, many, zeros, keys] {
            for _ in 0..8 {
                let mut stream = connect(server.rest).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let length = body.len();
                let head = head(&format!("connection: close\r\ncontent-length: {length}\r\n"));
                drop(stream.write_all(head.as_bytes()));
                drop(stream.write_all(body.as_bytes()));
                let mut answer = String::new();
                drop(stream.read_to_string(&mut answer));
                assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
            }
        }
    });
    server.serves_a_friendly_client();
}

#[test]
fn connections_that_are_reset_midway_leave_nothing_behind() {
    let server = Server::start();
    server.withstands(|| {
        for round in 0..20 {
            let held = hold(server.rest, 32, |_| {
                let mut bytes = head("content-length: 100000\r\n").into_bytes();
                bytes.resize(bytes.len() + round * 1000, b' ');
                bytes
            });
            drop(held);
        }
    });
    server.serves_a_friendly_client();
}
