//! Which answers are compressed, and how: what a request's head says of it, and what the answer is.
//!
//! Used by `rest` on every answer. Invariant: `Inference-Header-Content-Length` still counts the JSON before compression, as the binary
//! tensor extension says.

use http::{HeaderMap, HeaderValue, Response, header};

use super::{
    answer::{Answer, AnswerBody},
    error::RestError,
};
use crate::{
    admission::Admission,
    compression::{Compressor, Encoding, MIN_BYTES},
};

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

/// Compresses the answers of one port.
#[derive(Clone, Debug)]
pub(super) struct AnswerCompressor {
    pub(super) admission: Admission,
    pub(super) compressor: Compressor,
    /// Tensors for everybody who can read it.
    pub(super) are_tensors_compressed: bool,
}

impl AnswerCompressor {
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
        let (mut parts, body) = response.into_parts();
        let bytes = body.len();
        let mut reservation = self.admission.reserve_beside(bytes);
        reservation.grow_within(bytes)?;
        let (pieces, _) = body.into_parts();
        let compress = move || encoding.compress(pieces.iter().map(|piece| &**piece), Vec::new());
        let compressed = self.compressor.run(reservation, compress).await?;
        parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.as_str()));
        parts.headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        Ok(Response::from_parts(parts, compressed.into()))
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
