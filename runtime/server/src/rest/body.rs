//! Reads a request's body: whole, within the limit, decompressed.
//!
//! Called by `rest::infer`. Invariant: memory follows the bytes that came, not the length that was announced, and never passes
//! the limit, compressed or not; what decompression makes is counted like what came (`intake`).

use std::{
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use flate2::bufread::{GzDecoder, ZlibDecoder};
use http::{HeaderMap, header};
use http_body_util::BodyExt;

use super::error::RestError;
use crate::{admission::AdmissionError, intake::Share};

/// How long the body of a refused request may pause before it is given up, and how long it may take.
const DISCARD_PAUSE: Duration = Duration::from_secs(2);
const DISCARD_TIMEOUT: Duration = Duration::from_secs(30);

/// The most that is allocated on the word of a `Content-Length`.
const TRUSTED_LENGTH: usize = 4 << 20;

/// Bodies below this are decompressed where they are; larger ones on a thread that may block.
const INLINE_BYTES: usize = 64 << 10;

/// A `Content-Encoding` that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    /// The zlib format, as HTTP means it.
    Deflate,
}

/// The decoded body of a request, at most `limit` bytes long.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    share: Option<&Arc<Share>>,
) -> Result<Bytes, RestError> {
    let encoding = match encoding(headers) {
        Ok(encoding) => encoding,
        Err(error) => {
            discard(headers, body, limit).await;
            return Err(error);
        }
    };
    let bytes = collect(headers, body, limit).await?;
    if encoding == Encoding::Identity {
        return Ok(bytes);
    }
    if bytes.len() <= INLINE_BYTES {
        return decompress(&bytes, encoding, limit, share);
    }
    let share = share.cloned();
    let task = tokio::task::spawn_blocking(move || decompress(&bytes, encoding, limit, share.as_ref()));
    task.await.unwrap_or_else(|_| Err(RestError::invalid("the request body could not be decompressed")))
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, RestError> {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    let Some(value) = values.next() else { return Ok(Encoding::Identity) };
    let text = value.to_str().unwrap_or("?").trim();
    let encoding = match text.to_ascii_lowercase().as_str() {
        "" | "identity" => Some(Encoding::Identity),
        "gzip" | "x-gzip" => Some(Encoding::Gzip),
        "deflate" => Some(Encoding::Deflate),
        _ => None,
    };
    match (encoding, values.next()) {
        (Some(encoding), None) => Ok(encoding),
        _ => Err(RestError::UnsupportedEncoding(text.to_owned())),
    }
}

/// Takes in and forgets what a client still sends of a refused request, up to `limit` bytes: an answer before the end of the
/// body would be lost to many clients, whose connection is reset while they send. A client that waits for `100 Continue` is not
/// told to go on.
pub(super) async fn discard(headers: &HeaderMap, mut body: Body, limit: usize) {
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let mut left = limit;
    let end = tokio::time::Instant::now() + DISCARD_TIMEOUT;
    loop {
        let pause = end.min(tokio::time::Instant::now() + DISCARD_PAUSE);
        let Ok(Some(Ok(frame))) = tokio::time::timeout_at(pause, body.frame()).await else { return };
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

async fn collect(headers: &HeaderMap, mut body: Body, limit: usize) -> Result<Bytes, RestError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        discard(headers, body, limit).await;
        return Err(RestError::TooLarge(limit));
    }
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                drop((first, whole));
                return Err(refused(headers, body, limit, error).await);
            }
        };
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > limit.saturating_sub(first.len().saturating_add(whole.len())) {
            drop((first, whole));
            discard(headers, body, limit).await;
            return Err(RestError::TooLarge(limit));
        }
        if first.is_empty() && whole.is_empty() {
            // A body of one frame is not copied.
            first = data;
            continue;
        }
        if whole.is_empty() {
            whole.reserve(announced.unwrap_or_default().min(TRUSTED_LENGTH).max(first.len() + data.len()));
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

/// Why the body ended early: `intake` has refused it, or the connection broke.
async fn refused(headers: &HeaderMap, body: Body, limit: usize, error: axum::Error) -> RestError {
    match error.into_inner().downcast::<AdmissionError>() {
        Ok(error) => {
            if matches!(*error, AdmissionError::Full { .. }) {
                discard(headers, body, limit).await;
            }
            (*error).into()
        }
        Err(error) => RestError::invalid(format!("failed to read the request body: {error}")),
    }
}

/// Counts what is read.
struct Counted<'a, R> {
    reader: R,
    share: Option<&'a Arc<Share>>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.reader.read(buffer)?;
        self.share.map_or(Ok(()), |share| share.add(bytes)).map_err(io::Error::other)?;
        Ok(bytes)
    }
}

fn decompress(bytes: &Bytes, encoding: Encoding, limit: usize, share: Option<&Arc<Share>>) -> Result<Bytes, RestError> {
    let refuse = |what: &str| RestError::invalid(format!("failed to decompress the request body: {what}"));
    let mut out = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let (result, rest) = match encoding {
        Encoding::Identity => return Ok(bytes.clone()),
        Encoding::Gzip => {
            let mut decoder = GzDecoder::new(bytes.as_ref());
            (Counted { reader: decoder.by_ref().take(most), share }.read_to_end(&mut out), decoder.into_inner())
        }
        Encoding::Deflate => {
            let mut decoder = ZlibDecoder::new(bytes.as_ref());
            (Counted { reader: decoder.by_ref().take(most), share }.read_to_end(&mut out), decoder.into_inner())
        }
    };
    result.map_err(|error| match error.downcast::<AdmissionError>() {
        Ok(error) => error.into(),
        Err(error) => refuse(&error.to_string()),
    })?;
    if out.len() > limit {
        return Err(RestError::TooLarge(limit));
    }
    if !rest.is_empty() {
        return Err(refuse("there are bytes after the compressed data"));
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{
        Compression,
        write::{GzEncoder, ZlibEncoder},
    };

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    async fn read_as(encoding: &str, bytes: Vec<u8>, limit: usize) -> Result<Bytes, RestError> {
        let headers = HeaderMap::from_iter([(header::CONTENT_ENCODING, encoding.parse().unwrap())]);
        read(&headers, Body::from(bytes), limit, None).await
    }

    #[tokio::test]
    async fn gzip_and_deflate_are_decompressed_whatever_the_size() {
        for size in [0, 10, 300_000] {
            let plain: Vec<u8> = (0..size).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            assert_eq!(read_as("gzip", gzip(&plain), 301_000).await, Ok(plain.clone().into()));
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&plain).unwrap();
            assert_eq!(read_as("Deflate", encoder.finish().unwrap(), 301_000).await, Ok(plain.into()));
        }
    }

    #[tokio::test]
    async fn a_bomb_ends_at_the_limit() {
        let bomb = gzip(&vec![0; 1 << 20]);
        assert!(bomb.len() < 10_000);
        assert_eq!(read_as("gzip", bomb, 10_000).await, Err(RestError::TooLarge(10_000)));
    }

    #[tokio::test]
    async fn corrupt_cut_or_trailing_data_is_the_clients_fault() {
        let good = gzip(b"hello");
        let mut corrupt = good.clone();
        corrupt[12] ^= 0xff;
        let trailing = [good.clone(), b"x".to_vec()].concat();
        let cut = good[..good.len() - 3].to_vec();
        for wrong in [corrupt, trailing, cut, b"hello".to_vec(), vec![]] {
            let error = read_as("gzip", wrong, 100).await.unwrap_err();
            assert_eq!(error.outcome(), torchmodel_core::outcome::Outcome::InvalidRequest);
        }
    }

    #[tokio::test]
    async fn a_body_of_many_frames_is_joined_and_limited() {
        let frames = || futures::stream::iter((0..10).map(|i| Ok::<_, io::Error>(Bytes::from(vec![i; 3]))));
        let read = |limit| async move { read(&HeaderMap::new(), Body::from_stream(frames()), limit, None).await };
        assert_eq!(read(30).await.unwrap().len(), 30);
        assert_eq!(read(29).await, Err(RestError::TooLarge(29)));
    }

    #[tokio::test]
    async fn an_unknown_encoding_is_refused_and_a_long_announcement_is_not_believed() {
        let error = read_as("br", vec![], 10).await.unwrap_err();
        assert_eq!(error, RestError::UnsupportedEncoding("br".into()));
        assert!(read_as("gzip, gzip", vec![], 10).await.is_err());
        let headers = HeaderMap::from_iter([(header::CONTENT_LENGTH, "11".parse().unwrap())]);
        assert_eq!(read(&headers, Body::empty(), 10, None).await, Err(RestError::TooLarge(10)));
    }
}
