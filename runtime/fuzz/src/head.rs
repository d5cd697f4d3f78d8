//! What stands before a request's body: path and headers of REST, the timeout of a gRPC call.
//!
//! An input is a path in its first line and headers in the others, `name: value`.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use torchmodel_server::{
    grpc::offline::timeout,
    rest::offline::{RequestHead, read_head},
};

/// No timeout is longer: a year.
const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// A head: what is wrong with it is the client's fault, and what was read of it can be said again.
pub fn check_request_head(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let path = lines.next().and_then(|path| std::str::from_utf8(path).ok());
    let headers: HeaderMap = lines.filter_map(header).collect();
    check_timeout(&headers);
    let Some(head) = path.and_then(|path| read_head(path, &headers)) else { return };
    match head {
        Ok(head) => check_again(&head),
        Err((status, text)) => assert!(matches!(status, 400 | 404), "{status} {text}"),
    }
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at(colon);
    let value = value.get(1..).unwrap_or_default().trim_ascii();
    Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
}

/// gRPC's timeout is at most eight digits and a unit.
fn check_timeout(headers: &HeaderMap) {
    let Some(value) = headers.get("grpc-timeout") else { return };
    if let Some(timeout) = timeout(value.as_bytes()) {
        let (digits, unit) = value.as_bytes().split_at(value.len() - 1);
        let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u64>().ok());
        let nanoseconds: u64 = match unit {
            b"H" => 3_600_000_000_000,
            b"M" => 60_000_000_000,
            b"S" => 1_000_000_000,
            b"m" => 1_000_000,
            b"u" => 1_000,
            _ => 1,
        };
        assert!(
            digits.len() <= 8
                && number.map(|number| u128::from(number) * u128::from(nanoseconds)) == Some(timeout.as_nanos())
        );
    }
}

/// The same head, with as much of it encoded as can be.
fn check_again(head: &RequestHead) {
    let encoded = percent_encode(head.model.as_str().as_bytes(), NON_ALPHANUMERIC);
    let version = head.version.map(|version| format!("/versions/{version}")).unwrap_or_default();
    let length =
        head.header_length.map(|length| (HeaderName::from_static("inference-header-content-length"), length.into()));
    let headers: HeaderMap = length.into_iter().collect();
    let again = read_head(&format!("/v2/models/{encoded}{version}/infer"), &headers).and_then(Result::ok);
    assert_eq!(again, Some(RequestHead { timeout: None, ..head.clone() }));
    assert!(head.timeout.is_none_or(|timeout| !timeout.is_zero() && timeout <= MAX_TIMEOUT), "{:?}", head.timeout);
}
