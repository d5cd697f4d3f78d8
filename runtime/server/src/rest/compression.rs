//! Compresses answers, where that was asked for and is worth its time.
//!
//! Used by `rest` on every answer. That a client can read compressed data is no wish for it: stock clients announce it on every
//! request, and compressing a tensor takes ten times as long as sending it. Invariants: a tensor is compressed only for a client that
//! compressed its request, or where the server is configured so; nothing is compressed on a thread that serves connections;
//! `Inference-Header-Content-Length` still counts the JSON before compression, as the binary tensor extension says.

use std::{io::Write, sync::Arc};

use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use http::{HeaderMap, HeaderValue, Response, header};
use tokio::sync::Semaphore;
use torchmodel_core::inference::InferError;

use super::{
    answer::{Answer, AnswerBody},
    error::RestError,
    reserved::hold,
};
use crate::admission::Admission;

/// Shorter bodies fit one packet, or nearly.
const MIN_BYTES: usize = 1 << 10;

/// A compression that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Gzip,
    Deflate,
}

impl Encoding {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }
}

/// Compresses answers, a bounded number at one time.
#[derive(Clone, Debug)]
pub(super) struct Compressor {
    admission: Admission,
    permits: Arc<Semaphore>,
    are_tensors_compressed: bool,
}

/// What a request's head says of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    encoding: Option<Encoding>,
    is_request_compressed: bool,
}

impl Wish {
    /// Reads it.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let is_request_compressed = headers.contains_key(header::CONTENT_ENCODING);
        Self { encoding: preferred(headers), is_request_compressed }
    }
}

impl Compressor {
    /// Compresses on half of the machine's CPUs at most; tensors for everybody who can read it if `are_tensors_compressed`.
    pub(super) fn new(admission: Admission, are_tensors_compressed: bool) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self { admission, permits: Arc::new(Semaphore::new(cpus.div_ceil(2))), are_tensors_compressed }
    }

    /// The answer as it is sent.
    pub(super) async fn finish(&self, answer: Answer, wish: Wish) -> Response<AnswerBody> {
        let Answer { response, is_inference } = answer;
        let is_wanted = !is_inference || wish.is_request_compressed || self.are_tensors_compressed;
        match wish.encoding.filter(|_| is_wanted && response.body().len() >= MIN_BYTES) {
            None => response,
            Some(encoding) => match self.compress(response, encoding).await {
                Ok(response) => response,
                Err(error) => Answer::from(error).response,
            },
        }
    }

    async fn compress(
        &self,
        response: Response<AnswerBody>,
        encoding: Encoding,
    ) -> Result<Response<AnswerBody>, RestError> {
        let failed = || RestError::from(InferError::Internal("the answer could not be compressed".into()));
        let _permit = self.permits.acquire().await.map_err(|_| failed())?;
        let (mut parts, body) = response.into_parts();
        let mut reservation = self.admission.reserve(body.len())?;
        let work = move || {
            let compressed = deflate(body, encoding)?;
            reservation.shrink_to(compressed.capacity());
            Some(hold(compressed, reservation))
        };
        let compressed = tokio::task::spawn_blocking(work).await.ok().flatten().ok_or_else(failed)?;
        parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.as_str()));
        parts.headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        Ok(Response::from_parts(parts, compressed.into()))
    }
}

fn deflate(mut plain: AnswerBody, encoding: Encoding) -> Option<Vec<u8>> {
    match encoding {
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            while let Some(piece) = plain.next() {
                encoder.write_all(&piece).ok()?;
            }
            encoder.finish().ok()
        }
        Encoding::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            while let Some(piece) = plain.next() {
                encoder.write_all(&piece).ok()?;
            }
            encoder.finish().ok()
        }
    }
}

/// The encoding with the highest weight (RFC 9110, 12.5.3), when it is above that of no encoding. gzip wins a tie.
fn preferred(headers: &HeaderMap) -> Option<Encoding> {
    let mut weights: [(&str, Option<f32>); 4] = [("gzip", None), ("deflate", None), ("identity", None), ("*", None)];
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    for item in values.flat_map(|value| value.split(',')) {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let name = if name.eq_ignore_ascii_case("x-gzip") { "gzip" } else { name };
        let weight = parts
            .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
            .map_or(1.0, |weight| weight.trim().parse().unwrap_or(0.0));
        if let Some((_, slot)) = weights.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            *slot = Some(weight);
        }
    }
    let [(_, gzip), (_, deflate), (_, identity), (_, any)] = weights;
    let gzip = gzip.or(any).unwrap_or(0.0);
    let deflate = deflate.or(any).unwrap_or(0.0);
    // What is not named is acceptable, but less than anything that is.
    let identity = identity.unwrap_or(0.0);
    let (encoding, weight) = if gzip >= deflate { (Encoding::Gzip, gzip) } else { (Encoding::Deflate, deflate) };
    (weight > 0.0 && weight >= identity).then_some(encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_weight_wins() {
        let table = [
            ("", None),
            ("identity", None),
            ("gzip", Some(Encoding::Gzip)),
            ("GZIP", Some(Encoding::Gzip)),
            ("deflate", Some(Encoding::Deflate)),
            ("gzip, deflate", Some(Encoding::Gzip)),
            ("gzip;q=0.3, deflate;q=0.8", Some(Encoding::Deflate)),
            ("gzip;q=0.3,deflate; q=0.8,identity;q=1", None),
            ("gzip;q=0", None),
            ("*", Some(Encoding::Gzip)),
            ("gzip;q=0, *;q=0.5", Some(Encoding::Deflate)),
            ("br, zstd", None),
            ("gzip;q=many", None),
        ];
        for (value, expected) in table {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, value.parse().unwrap())]);
            assert_eq!(preferred(&headers), expected, "{value}");
        }
        assert_eq!(preferred(&HeaderMap::new()), None);
    }
}
