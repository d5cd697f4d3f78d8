//! An HTTP/1.1 connection that carries one request at a time.
//!
//! Used by `generator`. Requests are written as they were encoded, head and body in one call; answers are read into one buffer that
//! stays. Invariant: an answer ends where its head says (`content-length` or chunks), and one that is not 200 is an error.

use std::net::SocketAddr;

use bytes::Buf;
use httparse::{Header, Response, Status};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    exchange::{AnswerHead, Body, ExchangeError},
    request::EncodedRequest,
};

/// What one read takes at most.
const BUFFER_BYTES: usize = 512 << 10;
/// Most headers of an answer.
const MAX_HEADERS: usize = 64;

/// An open connection.
pub struct HttpConnection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer's head, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Bytes that it takes.
    bytes: usize,
    body: Framing,
    json_length: Option<usize>,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
}

impl HttpConnection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Result<Self, ExchangeError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Sends `request` and reads the answer into `body`.
    pub async fn exchange(&mut self, request: &EncodedRequest, body: &mut Body) -> Result<AnswerHead, ExchangeError> {
        let mut message = Buf::chain(&request.head[..], &request.body[..]);
        let written = self.stream.write_all_buf(&mut message).await;
        // A server that refuses a request may answer before it has read it all: the answer says more than the broken pipe.
        let (head, filled) = match (self.read_head().await, written) {
            (Ok(read), _) => read,
            (Err(_), Err(error)) => return Err(error.into()),
            (Err(error), Ok(())) => return Err(error),
        };
        if head.status != 200 {
            body.begin(true);
        }
        self.read_body(head, filled, body).await?;
        if head.status != 200 {
            return Err(ExchangeError::refused(&head.status, body.bytes().unwrap_or_default()));
        }
        Ok(AnswerHead { json_length: head.json_length, compression: None })
    }

    /// Reads until a head is there; gives it and the bytes that the buffer holds.
    async fn read_head(&mut self) -> Result<(Head, usize), ExchangeError> {
        let mut filled = 0;
        loop {
            filled += self.read(filled).await?;
            if let Some(head) = parse_head(self.buffer.get(..filled).unwrap_or_default())? {
                return Ok((head, filled));
            }
            if filled == self.buffer.len() {
                return Err(ExchangeError::Malformed(format!("its head has more than {filled} bytes")));
            }
        }
    }

    async fn read_body(&mut self, head: Head, filled: usize, body: &mut Body) -> Result<(), ExchangeError> {
        let mut piece = head.bytes..filled;
        let mut chunks = Chunks::default();
        loop {
            let bytes = self.buffer.get(piece).unwrap_or_default();
            let is_whole = match head.body {
                Framing::Length(length) => {
                    body.push(bytes);
                    if body.length() > length {
                        return Err(ExchangeError::Malformed("bytes follow its body".into()));
                    }
                    body.length() == length
                }
                Framing::Chunked => chunks.push(bytes, body)?,
            };
            if is_whole {
                return Ok(());
            }
            piece = 0..self.read(0).await?;
        }
    }

    async fn read(&mut self, from: usize) -> Result<usize, ExchangeError> {
        match self.stream.read(self.buffer.get_mut(from..).unwrap_or_default()).await? {
            0 => Err(ExchangeError::Malformed("the server closed the connection within it".into())),
            bytes => Ok(bytes),
        }
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<Head>, ExchangeError> {
    let malformed = |error: &dyn ToString| ExchangeError::Malformed(error.to_string());
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = Response::new(&mut headers);
    let Status::Complete(length) = response.parse(bytes).map_err(|error| malformed(&error))? else { return Ok(None) };
    let value = |name: &str| {
        let header = response.headers.iter().find(|header: &&Header<'_>| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    let number = |name| value(name).map(str::parse::<usize>).transpose().map_err(|error| malformed(&error));
    let is_chunked = value("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    let body = match (is_chunked, number("content-length")?) {
        (true, _) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => return Err(malformed(&"it does not say how long its body is")),
    };
    Ok(Some(Head {
        status: response.code.unwrap_or_default(),
        bytes: length,
        body,
        json_length: number("inference-header-content-length")?,
    }))
}

/// Reads a chunked body (RFC 9112, 7.1) piece by piece.
#[derive(Debug, Default)]
struct Chunks {
    /// Bytes of the current chunk that have not come.
    left: usize,
    /// The line that is being read: a chunk's size, the empty line after its data, or a trailer.
    line: Vec<u8>,
    is_after_data: bool,
    is_at_end: bool,
}

impl Chunks {
    /// Takes the next piece; says whether the body is whole.
    fn push(&mut self, mut bytes: &[u8], body: &mut Body) -> Result<bool, ExchangeError> {
        while !bytes.is_empty() {
            let data = bytes.split_off(..self.left.min(bytes.len())).unwrap_or_default();
            body.push(data);
            self.left -= data.len();
            self.is_after_data |= !data.is_empty() && self.left == 0;
            let Some(byte) = (self.left == 0).then(|| bytes.split_off_first()).flatten() else { continue };
            match byte {
                b'\r' => {}
                b'\n' => {
                    if self.end_line()? {
                        return Ok(true);
                    }
                }
                other => self.line.push(*other),
            }
        }
        Ok(false)
    }

    fn end_line(&mut self) -> Result<bool, ExchangeError> {
        let line = std::mem::take(&mut self.line);
        if self.is_at_end {
            return Ok(line.is_empty());
        }
        if std::mem::take(&mut self.is_after_data) && line.is_empty() {
            return Ok(false);
        }
        let text = String::from_utf8_lossy(&line);
        let size = text.split(';').next().unwrap_or_default().trim();
        self.left = usize::from_str_radix(size, 16)
            .map_err(|_| ExchangeError::Malformed(format!("'{text}' is no size of a chunk")))?;
        self.is_at_end = self.left == 0;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_parsed_once_it_is_whole() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nInference-Header-Content-Length: 8\r\n\r\nbody";
        let whole = text.len() - 4;
        assert!(parse_head(&text[..whole - 1]).unwrap().is_none());
        let head = Head { status: 200, bytes: whole, body: Framing::Length(12), json_length: Some(8) };
        assert_eq!(parse_head(text).unwrap(), Some(head));
        let chunked = parse_head(b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n").unwrap().unwrap();
        assert_eq!((chunked.status, chunked.body), (503, Framing::Chunked));
    }

    #[test]
    fn a_head_that_does_not_tell_its_bodys_length_is_malformed() {
        assert!(parse_head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parse_head(b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n").is_err());
        assert!(parse_head(b"\x00\x00\x12\x04\x00").is_err());
    }

    #[test]
    fn chunks_are_joined_wherever_they_are_cut() {
        let text = b"3\r\nabc\r\nA;name=value\r\n0123456789\r\n0\r\n\r\n";
        for cut in 0..text.len() {
            let (mut chunks, mut body) = (Chunks::default(), Body::default());
            body.begin(true);
            let (first, second) = text.split_at(cut);
            assert!(!chunks.push(first, &mut body).unwrap());
            assert!(chunks.push(second, &mut body).unwrap(), "{cut}");
            assert_eq!(body.bytes(), Some(&b"abc0123456789"[..]), "{cut}");
        }
        assert!(Chunks::default().push(b"xyz\r\n", &mut Body::default()).is_err());
    }
}
