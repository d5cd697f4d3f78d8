//! A server for tests: it echoes over gRPC and REST on loopback, and spoils what it is told to.
//!
//! Used by the tests of `answer` and `load`. Invariant: it ends with the runtime that it was started on.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Response};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    answer::ModelInferResponse,
    exchange::AnswerHead,
    load::Target,
    request::{InferTensor, ModelInferRequest},
    tensor::{DataType, Tensor},
};

/// What the server does with the answer to the request of this number on a connection, counted from 0: the body to send, or a refusal.
pub(crate) type Spoil = Arc<dyn Fn(usize, Vec<u8>) -> Option<Vec<u8>> + Send + Sync>;

/// A gRPC message with its prefix.
pub(crate) fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[flag], &length[..], message].concat()
}

/// The answer with these outputs over gRPC.
pub(crate) fn grpc_answer(outputs: &[Tensor]) -> Vec<u8> {
    let response = ModelInferResponse {
        outputs: outputs.iter().map(InferTensor::of).collect(),
        raw_output_contents: outputs.iter().map(|output| output.data.clone()).collect(),
    };
    framed(0, &response.encode_to_vec())
}

/// The same over REST, in binary form.
pub(crate) fn rest_answer(outputs: &[Tensor]) -> (AnswerHead, Vec<u8>) {
    let head = |output: &Tensor| {
        format!(
            r#"{{"name":"{}","datatype":"{}","shape":[{}],"parameters":{{"binary_data_size":{}}}}}"#,
            output.name,
            output.datatype.as_str(),
            output.elements(),
            output.data.len()
        )
    };
    let heads: Vec<String> = outputs.iter().map(head).collect();
    let json = format!(r#"{{"model_name":"m","model_version":"1","outputs":[{}]}}"#, heads.join(","));
    let head = AnswerHead { json_length: Some(json.len()), compression: None };
    let mut body = json.into_bytes();
    for output in outputs {
        body.extend_from_slice(&output.data);
    }
    (head, body)
}

fn echoed(data: Bytes) -> [Tensor; 1] {
    [Tensor { name: "OUTPUT0", datatype: DataType::Fp32, data }]
}

/// Starts the server on `runtime`.
pub(crate) fn start(runtime: &tokio::runtime::Runtime, spoil: Spoil) -> Target {
    let (http, rest) = runtime.block_on(listen());
    let (grpc, inference) = runtime.block_on(listen());
    let rest_spoil = Arc::clone(&spoil);
    runtime.spawn(async move {
        while let Ok((stream, _)) = rest.accept().await {
            tokio::spawn(serve_rest(stream, Arc::clone(&rest_spoil)));
        }
    });
    runtime.spawn(async move {
        while let Ok((stream, _)) = inference.accept().await {
            tokio::spawn(serve_grpc(stream, Arc::clone(&spoil)));
        }
    });
    Target { http, grpc, metrics: None, pid: Some(std::process::id()) }
}

async fn listen() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), listener)
}

async fn serve_rest(mut stream: TcpStream, spoil: Spoil) {
    for number in 0.. {
        let mut received = Vec::new();
        let (head_length, length, json_length) = loop {
            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut request = httparse::Request::new(&mut headers);
            if let Ok(httparse::Status::Complete(head_length)) = request.parse(&received) {
                let number = |name: &str| {
                    let header = request.headers.iter().find(|header| header.name == name).unwrap();
                    std::str::from_utf8(header.value).unwrap().parse::<usize>().unwrap()
                };
                break (head_length, number("content-length"), number("inference-header-content-length"));
            }
            if stream.read_buf(&mut received).await.unwrap_or(0) == 0 {
                return;
            }
        };
        while received.len() < head_length + length {
            stream.read_buf(&mut received).await.unwrap();
        }
        let (head, body) = rest_answer(&echoed(received[head_length + json_length..].to_vec().into()));
        let answer = match spoil(number, body) {
            Some(body) => {
                let (length, json_length) = (body.len(), head.json_length.unwrap());
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nInference-Header-Content-Length: {json_length}\r\n\r\n"
                );
                [head.into_bytes(), body].concat()
            }
            None => b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy".to_vec(),
        };
        stream.write_all(&answer).await.unwrap();
    }
}

async fn serve_grpc(stream: TcpStream, spoil: Spoil) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let mut number = 0;
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let spoil = Arc::clone(&spoil);
        tokio::spawn(async move {
            let mut body = request.into_body();
            let mut received = Vec::new();
            while let Some(Ok(piece)) = body.data().await {
                received.extend_from_slice(&piece);
                body.flow_control().release_capacity(piece.len()).unwrap();
            }
            let request = ModelInferRequest::decode(&received[5..]).unwrap();
            let answer = spoil(number, grpc_answer(&echoed(request.raw_input_contents[0].clone())));
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            let status = if let Some(answer) = answer {
                stream.send_data(answer.into(), false).unwrap();
                "0"
            } else {
                "14"
            };
            let trailers = HeaderMap::from_iter([
                ("grpc-status".parse().unwrap(), status.parse().unwrap()),
                ("grpc-message".parse().unwrap(), "busy".parse().unwrap()),
            ]);
            stream.send_trailers(trailers).unwrap();
        });
        number += 1;
    }
}
