//! Compresses answers as the client's `Accept-Encoding` prefers, and takes the body off answers to HEAD.
//!
//! A layer around all routes of `rest`. Invariant: `Inference-Header-Content-Length` still counts the JSON before compression, as
//! the binary tensor extension says.

use std::io::Read;

use axum::{
    body::Body,
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::{Buf, Bytes};
use flate2::{
    Compression,
    bufread::{GzEncoder, ZlibEncoder},
};
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::BodyExt;
use torchmodel_core::inference::InferError;

use super::error::RestError;

/// Bodies below this are compressed where they are; larger ones on a thread that may block.
const INLINE_BYTES: usize = 64 << 10;

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

/// Runs the request and finishes its answer.
pub(super) async fn layer(request: Request, next: Next) -> Response {
    let encoding = preferred(request.headers());
    let is_head = request.method() == Method::HEAD;
    let mut response = next.run(request).await;
    if let Some(encoding) = encoding {
        response = compress(response, encoding).await;
    }
    if is_head { response.map(|_| Body::empty()) } else { response }
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

async fn compress(response: Response, encoding: Encoding) -> Response {
    let (mut parts, body) = response.into_parts();
    // Our bodies are in memory and cannot fail.
    let Ok(collected) = body.collect().await else {
        return RestError::from(InferError::Internal("the answer could not be compressed".into())).into_response();
    };
    let plain = collected.aggregate();
    if !plain.has_remaining() {
        return Response::from_parts(parts, Body::empty());
    }
    let compressed = if plain.remaining() <= INLINE_BYTES {
        deflate(plain, encoding)
    } else {
        tokio::task::spawn_blocking(move || deflate(plain, encoding)).await.ok().flatten()
    };
    let Some(compressed) = compressed else {
        return RestError::from(InferError::Internal("the answer could not be compressed".into())).into_response();
    };
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.as_str()));
    parts.headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(compressed))
}

fn deflate(plain: impl Buf, encoding: Encoding) -> Option<Bytes> {
    let mut out = Vec::new();
    let reader = plain.reader();
    match encoding {
        Encoding::Gzip => GzEncoder::new(reader, Compression::fast()).read_to_end(&mut out).ok()?,
        Encoding::Deflate => ZlibEncoder::new(reader, Compression::fast()).read_to_end(&mut out).ok()?,
    };
    Some(out.into())
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
