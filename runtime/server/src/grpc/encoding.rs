//! `grpc-encoding`, `grpc-accept-encoding` and `grpc-timeout`: what a call's headers say about its messages and its time.
//!
//! Read by `infer`. Invariant: an answer is compressed only when its request was, and never because a client merely can read it:
//! stock clients announce that on every call.

use std::time::Duration;

use http::HeaderMap;

use crate::compression::Encoding;

/// The compressions that are served, as `grpc-accept-encoding` names them.
pub(super) const ACCEPTED: &str = "identity,gzip,deflate";

/// The encoding of a request's message, `None` for none; or the name of one that is not served.
pub(super) fn encoding_of(headers: &HeaderMap) -> Result<Option<Encoding>, String> {
    let Some(value) = headers.get("grpc-encoding") else { return Ok(None) };
    match value.to_str().unwrap_or("?").trim() {
        "identity" => Ok(None),
        text => {
            let known = [Encoding::Gzip, Encoding::Deflate];
            known.into_iter().find(|encoding| encoding.as_str() == text).map(Some).ok_or_else(|| text.to_owned())
        }
    }
}

/// The encoding for the answer to a request in `encoding`: the same, if the client reads it.
pub(super) fn encoding_for_answer(encoding: Option<Encoding>, headers: &HeaderMap) -> Option<Encoding> {
    let values = headers.get_all("grpc-accept-encoding").iter().filter_map(|value| value.to_str().ok());
    let mut names = values.flat_map(|value| value.split(',')).map(str::trim);
    encoding.filter(|encoding| names.any(|name| name == encoding.as_str()))
}

/// Reads a `grpc-timeout`: at most eight digits and a unit. A malformed one is ignored, as gRPC servers do.
pub(super) fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    parse_timeout(headers.get("grpc-timeout")?.to_str().ok()?)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn an_answer_is_compressed_only_as_its_request_was() {
        let all = "identity, deflate, gzip";
        let table = [
            (None, Some(all), None),
            (Some("identity"), Some(all), None),
            (Some("gzip"), Some(all), Some(Encoding::Gzip)),
            (Some("deflate"), Some(all), Some(Encoding::Deflate)),
            (Some("gzip"), Some("deflate"), None),
            (Some("gzip"), None, None),
        ];
        for (sent, accepted, expected) in table {
            let sent = sent.map(|value| ("grpc-encoding", value));
            let accepted = accepted.map(|value| ("grpc-accept-encoding", value));
            let headers = headers(&sent.into_iter().chain(accepted).collect::<Vec<_>>());
            let encoding = encoding_of(&headers).unwrap();
            assert_eq!(encoding_for_answer(encoding, &headers), expected, "{headers:?}");
        }
        assert_eq!(encoding_of(&headers(&[("grpc-encoding", "snappy")])), Err("snappy".into()));
    }

    #[test]
    fn timeouts_have_at_most_eight_digits_and_a_unit() {
        let table = [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("0n", Some(Duration::ZERO)),
            ("123456789n", None),
            ("1", None),
            ("S", None),
            ("-1S", None),
            ("1x", None),
            ("", None),
            ("ü", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }
}
