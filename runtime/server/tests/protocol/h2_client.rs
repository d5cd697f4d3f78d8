//! gRPC by hand, over h2: what no well-behaved client sends, and what a client library does not show.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderName, Request};
use tokio::{net::TcpStream, task::JoinHandle};

/// The path of the call.
pub const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// An answer: the head's fields, all bytes, the trailers.
#[derive(Debug)]
pub struct HttpAnswer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

/// A connection that is driven by a task of its own.
pub async fn connect(address: SocketAddr) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    (client, tokio::spawn(connection))
}

/// A request of the call with more, or other, headers.
pub fn request(headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::post(format!("http://test{INFER}")).body(()).unwrap();
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    for (name, value) in headers {
        request.headers_mut().insert(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    request
}

/// A message with its flag and length.
pub fn prefixed(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// Makes one call and reads the whole answer.
pub async fn call(address: SocketAddr, headers: &[(&str, &str)], body: &[u8]) -> HttpAnswer {
    let (client, _connection) = connect(address).await;
    let mut client = client.ready().await.unwrap();
    let (response, mut stream) = client.send_request(request(headers), false).unwrap();
    stream.send_data(Bytes::copy_from_slice(body), true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    HttpAnswer { status: head.status.as_u16(), headers: head.headers, body: bytes, trailers }
}
