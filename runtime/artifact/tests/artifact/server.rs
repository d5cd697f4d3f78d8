//! A server on loopback that answers from a script, misbehaves as told and notes what it was asked.
//!
//! It speaks HTTP/1.1 over the bare socket, one request to a connection, so that a cut comes after exactly so many bytes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// One answer.
#[derive(Clone, Default)]
pub struct Reply {
    status: u16,
    bytes: Bytes,
    etag: Option<String>,
    ignores_range: bool,
    ignores_if_range: bool,
    cut_after: Option<usize>,
    stall_after: Option<usize>,
    announced: Option<u64>,
    location: Option<String>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub headers: HeaderMap,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Reply {
    /// The whole file, or the range asked for.
    pub fn file(bytes: &[u8], etag: &str) -> Self {
        Self { status: 200, bytes: Bytes::copy_from_slice(bytes), etag: Some(format!("\"{etag}\"")), ..Self::default() }
    }

    /// A status with a text.
    pub fn status(status: u16, text: &str) -> Self {
        Self { status, bytes: Bytes::copy_from_slice(text.as_bytes()), ..Self::default() }
    }

    /// An S3 server's error.
    pub fn s3_error(status: u16, code: &str) -> Self {
        Self::status(status, &format!("<Error><Code>{code}</Code><Message>about {code}</Message></Error>"))
    }

    pub fn redirect(location: impl Into<String>) -> Self {
        Self { status: 302, location: Some(location.into()), ..Self::default() }
    }

    /// Closes the connection after so many bytes of the body.
    pub fn cut_after(self, bytes: usize) -> Self {
        Self { cut_after: Some(bytes), ..self }
    }

    /// Sends nothing more after so many bytes of the body.
    pub fn stall_after(self, bytes: usize) -> Self {
        Self { stall_after: Some(bytes), ..self }
    }

    pub fn ignoring_range(self) -> Self {
        Self { ignores_range: true, ..self }
    }

    /// Sends the range asked for, whatever the version it was asked for.
    pub fn ignoring_if_range(self) -> Self {
        Self { ignores_if_range: true, ..self }
    }

    pub fn without_etag(self) -> Self {
        Self { etag: None, ..self }
    }

    pub fn announcing(self, bytes: u64) -> Self {
        Self { announced: Some(bytes), ..self }
    }

    /// The answer's head, its body, and whether the connection stays open after it.
    fn answer(self, request: &Seen) -> (String, Bytes, bool) {
        let matches = |name: &str| request.header(name).map(|value| Some(value) == self.etag.as_deref());
        if matches("if-match") == Some(false) {
            return (head(412, &[("content-length", "0")]), Bytes::new(), false);
        }
        if matches("if-none-match") == Some(true) {
            return (head(304, &[]), Bytes::new(), false);
        }
        let has_range = !self.ignores_range && (self.ignores_if_range || matches("if-range") != Some(false));
        let start = request.header("range").filter(|_| self.status == 200 && has_range).map(|range| {
            range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse::<usize>().unwrap()
        });
        let length = self.bytes.len();
        if start.is_some_and(|start| start >= length) {
            return (head(416, &[("content-length", "0")]), Bytes::new(), false);
        }
        let rest = self.bytes.slice(start.unwrap_or(0)..);
        let announced = self.announced.unwrap_or(rest.len() as u64).to_string();
        let range = start.map(|start| format!("bytes {start}-{}/{length}", length - 1));
        let mut headers = vec![("content-length", announced.as_str())];
        headers.extend(range.as_deref().map(|range| ("content-range", range)));
        headers.extend(self.etag.as_deref().map(|etag| ("etag", etag)));
        headers.extend(self.location.as_deref().map(|location| ("location", location)));
        let sent = self.cut_after.or(self.stall_after).unwrap_or(rest.len()).min(rest.len());
        let status = if start.is_some() { 206 } else { self.status };
        (head(status, &headers), rest.slice(..sent), self.stall_after.is_some())
    }
}

fn head(status: u16, headers: &[(&str, &str)]) -> String {
    let mut head = format!("HTTP/1.1 {status} scripted\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head + "\r\n"
}

/// The server; it stops with the test's runtime.
pub struct FaultServer {
    pub url: String,
    script: Arc<Mutex<Script>>,
}

struct Script {
    replies: VecDeque<Reply>,
    seen: Vec<Seen>,
}

impl FaultServer {
    /// Answers the replies in turn, and the last one from then on.
    pub async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script = Arc::new(Mutex::new(Script { replies: replies.into_iter().collect(), seen: Vec::new() }));
        let shared = script.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, shared.clone()));
            }
        });
        Self { url, script }
    }

    /// The same over TLS.
    pub async fn start_tls(acceptor: TlsAcceptor, replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let script = Arc::new(Mutex::new(Script { replies: replies.into_iter().collect(), seen: Vec::new() }));
        let shared = script.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, shared) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move { serve(acceptor.accept(socket).await.ok()?, shared).await });
            }
        });
        Self { url, script }
    }

    /// Replaces what is still to be answered.
    pub fn then(&self, replies: impl IntoIterator<Item = Reply>) {
        self.script.lock().unwrap().replies = replies.into_iter().collect();
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.script.lock().unwrap().seen.clone()
    }

    /// A header of every request so far.
    pub fn seen_header(&self, name: &str) -> Vec<Option<String>> {
        self.seen().iter().map(|seen| seen.header(name).map(str::to_owned)).collect()
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        self.url.trim_start_matches("http://")
    }
}

async fn serve(mut socket: impl AsyncRead + AsyncWrite + Unpin, script: Arc<Mutex<Script>>) -> Option<()> {
    let seen = read_request(&mut socket).await?;
    let reply = {
        let mut script = script.lock().unwrap();
        script.seen.push(seen.clone());
        if script.replies.len() == 1 { script.replies.front().cloned() } else { script.replies.pop_front() }
    };
    let (head, body, stays_open) = reply.unwrap_or_else(|| Reply::status(500, "the script is empty")).answer(&seen);
    socket.write_all(head.as_bytes()).await.ok()?;
    socket.write_all(&body).await.ok()?;
    if stays_open {
        std::future::pending::<()>().await;
    }
    socket.shutdown().await.ok()
}

/// Path and headers of a request; none that is made here has a body.
async fn read_request(socket: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        if socket.read_buf(&mut text).await.ok()? == 0 {
            return None;
        }
    }
    let text = String::from_utf8(text).unwrap();
    let mut lines = text.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap()));
    Some(Seen { path, headers: headers.collect() })
}
