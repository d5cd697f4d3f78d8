//! Decompresses request bodies as they come, within the limits.
//!
//! Used by `rest::body`. Invariants: what comes out goes straight into the request, where it is reserved before it is kept; it ends
//! at the limit; the compressed data must be whole, and nothing may follow it.

use std::io::{self, Write};

use flate2::{Decompress, FlushDecompress, Status, write::GzDecoder};
use http::{HeaderMap, header};

use super::{assembly::Assembly, error::RestError};
use crate::{
    admission::{Admission, Reservation},
    compression::Encoding,
};

/// What a decoder keeps: a window and a buffer of 32 KiB each, and its tables.
const DECODER_BYTES: usize = 96 << 10;
/// What comes out at once.
const BUFFER_BYTES: usize = 32 << 10;
/// Up to so many compressed bytes, of one piece and of a body so far, are decompressed where they are: they become at most a thousand
/// times as many.
const INLINE_PIECE_BYTES: usize = 4 << 10;
const INLINE_BYTES: usize = 64 << 10;

/// The `Content-Encoding` of a request's body; `None` for none.
pub(super) fn encoding_of(headers: &HeaderMap) -> Result<Option<Encoding>, RestError> {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or("?").trim();
    let encoding = match text.to_ascii_lowercase().as_str() {
        "" | "identity" => Some(None),
        "gzip" | "x-gzip" => Some(Some(Encoding::Gzip)),
        "deflate" => Some(Some(Encoding::Deflate)),
        _ => None,
    };
    match (encoding, values.next()) {
        (Some(encoding), None) => Ok(encoding),
        _ => Err(RestError::UnsupportedEncoding(text.to_owned())),
    }
}

/// A body that is being decompressed into an [`Assembly`], which it owns from the head of the request to [`Self::finish`]. Each piece
/// of the body is given to [`Self::take`]. It holds its decoder's memory; what comes out is the assembly's.
pub(super) struct Inflation {
    decoder: Decoder,
    /// Compressed bytes so far.
    received: usize,
    _reservation: Reservation,
}

enum Decoder {
    Gzip(Box<GzDecoder<Output>>),
    Deflate(Box<Deflate>),
}

/// Where a decoder writes to.
struct Output {
    assembly: Assembly,
    /// Bytes that may still come out.
    left: usize,
    limit: usize,
    /// Why a write failed.
    error: Option<RestError>,
}

/// The zlib format; flate2's own writer does not tell a cut stream from a whole one.
struct Deflate {
    stream: Decompress,
    buffer: Vec<u8>,
    is_at_end: bool,
    output: Output,
}

impl Inflation {
    /// Begins to decompress into `assembly`, at most `limit` bytes.
    pub(super) fn new(
        encoding: Encoding,
        assembly: Assembly,
        admission: &Admission,
        limit: usize,
    ) -> Result<Self, RestError> {
        let reservation = admission.reserve(DECODER_BYTES)?;
        let output = Output { assembly, left: limit, limit, error: None };
        let decoder = match encoding {
            Encoding::Gzip => Decoder::Gzip(Box::new(GzDecoder::new(output))),
            Encoding::Deflate => Decoder::Deflate(Box::new(Deflate {
                stream: Decompress::new(true),
                buffer: vec![0; BUFFER_BYTES],
                is_at_end: false,
                output,
            })),
        };
        Ok(Self { decoder, received: 0, _reservation: reservation })
    }

    /// Whether [`Self::take`] with `piece` belongs on a thread that may block.
    pub(super) fn takes_long(&self, piece: &[u8]) -> bool {
        piece.len() > INLINE_PIECE_BYTES || self.received > INLINE_BYTES
    }

    /// Decompresses the next piece of the body.
    pub(super) fn take(&mut self, piece: &[u8]) -> Result<(), RestError> {
        self.received = self.received.saturating_add(piece.len());
        match &mut self.decoder {
            Decoder::Gzip(decoder) => {
                let result = decoder.write_all(piece);
                result.map_err(|error| reason(&error, decoder.get_mut()))
            }
            Decoder::Deflate(decoder) => decoder.take(piece),
        }
    }

    /// What was made of the body, at its end.
    pub(super) fn finish(self) -> Result<Assembly, RestError> {
        match self.decoder {
            Decoder::Gzip(mut decoder) => {
                let result = decoder.try_finish();
                result.map_err(|error| reason(&error, decoder.get_mut()))?;
                Ok(decoder.finish().map_err(|error| refuse(&error.to_string()))?.assembly)
            }
            Decoder::Deflate(decoder) if decoder.is_at_end => Ok(decoder.output.assembly),
            Decoder::Deflate(_) => Err(refuse("the compressed data is cut")),
        }
    }
}

impl Deflate {
    fn take(&mut self, mut piece: &[u8]) -> Result<(), RestError> {
        while !piece.is_empty() {
            if self.is_at_end {
                return Err(refuse(TRAILING));
            }
            let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.decompress(piece, &mut self.buffer, FlushDecompress::None);
            let status = status.map_err(|error| refuse(&error.to_string()))?;
            let count = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
            let taken = count(self.stream.total_in(), before_in);
            let made = count(self.stream.total_out(), before_out);
            self.output.push(self.buffer.get(..made).unwrap_or_default())?;
            piece = piece.get(taken..).unwrap_or_default();
            self.is_at_end = status == Status::StreamEnd;
            if taken == 0 && made == 0 && !self.is_at_end {
                return Err(refuse("the compressed data is corrupt"));
            }
        }
        Ok(())
    }
}

impl Output {
    fn push(&mut self, mut bytes: &[u8]) -> Result<(), RestError> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(RestError::TooLarge(self.limit))?;
        while !bytes.is_empty() {
            self.assembly.take(&mut bytes)?;
            if self.assembly.is_json_complete() {
                self.assembly.read_json()?;
            }
        }
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.error.is_none() {
            self.error = self.push(bytes).err();
        }
        if self.error.is_none() { Ok(bytes.len()) } else { Err(io::Error::other("refused")) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const TRAILING: &str = "there are bytes after the compressed data";

fn refuse(what: &str) -> RestError {
    RestError::invalid(format!("failed to decompress the request body: {what}"))
}

/// Why a decoder failed: its output was refused, or its input is wrong.
fn reason(error: &io::Error, output: &mut Output) -> RestError {
    output.error.take().unwrap_or_else(|| match error.kind() {
        io::ErrorKind::WriteZero => refuse(TRAILING),
        _ => refuse(&error.to_string()),
    })
}
