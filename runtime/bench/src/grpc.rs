//! An HTTP/2 connection that carries one `ModelInfer` at a time.
//!
//! Used by `generator`. The settings take whatever the server sends without making it wait: windows of 1 GiB, frames of up to
//! 1 MiB. Invariant: the request's bytes are handed to h2 as they are, and an answer without `grpc-status: 0` is an error.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{
    RecvStream,
    client::{Builder, SendRequest},
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

use crate::exchange::{AnswerHead, Body, Compression, ExchangeError};

/// What the server may send before it must wait for us, on a stream and on the connection.
const WINDOW_BYTES: u32 = 1 << 30;
/// Largest frame that we take.
const MAX_FRAME_BYTES: u32 = 1 << 20;
/// How long the connection may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// An open connection.
pub struct GrpcConnection {
    sender: SendRequest<Bytes>,
    driver: JoinHandle<()>,
    request: Request<()>,
}

impl GrpcConnection {
    /// Connects. `is_announcing_compression`: whether requests say that the client reads deflate and gzip, as grpcio's do.
    pub async fn open(address: SocketAddr, is_announcing_compression: bool) -> Result<Self, ExchangeError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(MAX_FRAME_BYTES)
            .enable_push(false)
            .handshake(stream)
            .await?;
        // An error on the connection reaches the request that waits on it.
        let driver = tokio::spawn(async { drop(connection.await) });
        Ok(Self { sender, driver, request: head(address, is_announcing_compression)? })
    }

    /// Sends `message` (prefix included) and reads the answer into `body`.
    pub async fn exchange(&mut self, message: &Bytes, body: &mut Body) -> Result<AnswerHead, ExchangeError> {
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut stream) = sender.send_request(self.request.clone(), false)?;
        stream.send_data(message.clone(), true)?;
        let (parts, mut answer) = response.await?.into_parts();
        if parts.status != StatusCode::OK {
            return Err(ExchangeError::refused(&parts.status, b"no gRPC answer"));
        }
        let trailers = read(&mut answer, body).await?;
        // An answer without a message has its status in its head.
        accept(trailers.as_ref().unwrap_or(&parts.headers))?;
        Ok(AnswerHead { json_length: None, compression: compression(&parts.headers)? })
    }

    /// Closes the connection.
    pub async fn close(self) {
        let Self { sender, mut driver, .. } = self;
        drop(sender);
        if timeout(CLOSE_TIMEOUT, &mut driver).await.is_err() {
            driver.abort();
        }
    }
}

fn head(address: SocketAddr, is_announcing_compression: bool) -> Result<Request<()>, ExchangeError> {
    let uri = format!("http://{address}/inference.GRPCInferenceService/ModelInfer");
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::try_from(uri).map_err(|error| ExchangeError::Malformed(error.to_string()))?;
    let headers = request.headers_mut();
    headers.insert("te", HeaderValue::from_static("trailers"));
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("user-agent", HeaderValue::from_static("torchmodel-bench"));
    if is_announcing_compression {
        headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity, deflate, gzip"));
    }
    Ok(request)
}

async fn read(answer: &mut RecvStream, body: &mut Body) -> Result<Option<HeaderMap>, ExchangeError> {
    while let Some(piece) = answer.data().await {
        let piece = piece?;
        body.push(&piece);
        answer.flow_control().release_capacity(piece.len())?;
    }
    Ok(answer.trailers().await?)
}

fn accept(headers: &HeaderMap) -> Result<(), ExchangeError> {
    let value = |name| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
    match value("grpc-status") {
        b"0" => Ok(()),
        b"" => Err(ExchangeError::Malformed("it has no grpc-status".into())),
        status => Err(ExchangeError::refused(
            &format!("grpc-status {}", String::from_utf8_lossy(status)),
            value("grpc-message"),
        )),
    }
}

fn compression(headers: &HeaderMap) -> Result<Option<Compression>, ExchangeError> {
    match headers.get("grpc-encoding").map_or(&b"identity"[..], HeaderValue::as_bytes) {
        b"identity" => Ok(None),
        b"gzip" => Ok(Some(Compression::Gzip)),
        b"deflate" => Ok(Some(Compression::Deflate)),
        other => Err(ExchangeError::Malformed(format!("grpc-encoding is {}", String::from_utf8_lossy(other)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_of_zero_is_an_answer() {
        let headers = |entries: &[(&'static str, &'static str)]| {
            entries.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>()
        };
        assert!(accept(&headers(&[("grpc-status", "0")])).is_ok());
        let error = accept(&headers(&[("grpc-status", "14"), ("grpc-message", "busy")])).unwrap_err();
        assert_eq!(error.to_string(), "the server refused a request with grpc-status 14: busy");
        assert!(matches!(accept(&headers(&[])), Err(ExchangeError::Malformed(_))));
    }

    #[test]
    fn compression_is_announced_only_when_asked() {
        let address = "127.0.0.1:1".parse().unwrap();
        assert!(!head(address, false).unwrap().headers().contains_key("grpc-accept-encoding"));
        assert_eq!(head(address, true).unwrap().headers()["grpc-accept-encoding"], "identity, deflate, gzip");
    }
}
