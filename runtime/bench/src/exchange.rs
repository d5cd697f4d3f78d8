//! One request and its answer on a connection: what the two protocols' connections (`grpc`, `http`) give alike.
//!
//! `generator` hands each connection a [`Body`] that it reuses. Invariant: an answer that is not a success is an error with the
//! server's own words; its body is never taken for an answer's.

use std::io;

/// Most of a refusal's text that is told.
const SHOWN_BYTES: usize = 300;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection broke, or could not be opened.
    #[error("the connection failed")]
    Connection(#[from] io::Error),
    /// The same, over HTTP/2.
    #[error("the connection failed")]
    Http2(#[from] h2::Error),
    /// The server answered, but not with a success.
    #[error("the server refused a request with {status}: {message}")]
    Refused {
        /// HTTP status, or gRPC code.
        status: String,
        /// What the server says.
        message: String,
    },
    /// The answer is not HTTP or gRPC.
    #[error("the answer is malformed: {0}")]
    Malformed(String),
}

impl ExchangeError {
    /// A refusal whose text may be long.
    pub(crate) fn refused(status: &impl ToString, message: &[u8]) -> Self {
        let shown = message.get(..SHOWN_BYTES).unwrap_or(message);
        Self::Refused { status: status.to_string(), message: String::from_utf8_lossy(shown).into_owned() }
    }
}

/// How a gRPC message is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// The zlib format.
    Deflate,
}

/// What an answer's head says of its body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerHead {
    /// REST: where the JSON ends and binary tensors begin.
    pub json_length: Option<usize>,
    /// gRPC: how a message with the compressed flag is compressed.
    pub compression: Option<Compression>,
}

/// An answer's body: counted always, kept when it is to be looked at. Its memory is reused from answer to answer.
#[derive(Debug, Default)]
pub struct Body {
    kept: Vec<u8>,
    length: usize,
    is_kept: bool,
}

impl Body {
    /// Forgets the last answer.
    pub fn begin(&mut self, is_kept: bool) {
        self.kept.clear();
        self.length = 0;
        self.is_kept = is_kept;
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.length += piece.len();
        if self.is_kept {
            self.kept.extend_from_slice(piece);
        }
    }

    /// Bytes that came.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// The bytes, if they were kept.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        self.is_kept.then_some(self.kept.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_counted_and_kept_only_when_asked() {
        let mut body = Body::default();
        body.begin(true);
        body.push(b"ab");
        body.push(b"c");
        assert_eq!((body.length(), body.bytes()), (3, Some(&b"abc"[..])));
        body.begin(false);
        body.push(b"abcd");
        assert_eq!((body.length(), body.bytes()), (4, None));
    }
}
