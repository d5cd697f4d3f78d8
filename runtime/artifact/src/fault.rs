//! What a server's error answer or a broken connection means.
//!
//! Both transports come here: an answer that is no success becomes a [`StatusFault`], which [`StatusFault::explain`] turns into
//! the closed list; errors of the network are told apart by their causes, not by their text.

use std::{error::Error, io};

use http::{HeaderMap, StatusCode};
use torchmodel_crds::redact_uris;
use torchmodel_process::error_chain;

use super::error::{ArtifactError, BoxError};

/// How much of an error's body is read.
pub(super) const MAX_BODY_BYTES: usize = 64 << 10;
/// How much of a server's own words goes into a message.
const MAX_MESSAGE_CHARS: usize = 300;

/// An answer other than success, with what an S3 server says in its body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.detail())]
pub(super) struct StatusFault {
    status: StatusCode,
    code: Option<String>,
    message: Option<String>,
    region: Option<String>,
}

/// Whom a fault is told about.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The source, as it may be logged.
    pub(super) uri: String,
    /// Host and port.
    pub(super) host: String,
    /// Whether requests carry credentials that this program was given.
    pub(super) is_signed: bool,
}

/// What a [`StatusFault`] means for the artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The known bytes are still the source's.
    NotModified,
    /// What is on disk cannot be continued.
    StartOver,
    /// The credentials do not suffice.
    Denied,
    /// No such object.
    Absent,
    /// Not now.
    Busy,
    /// Never like this.
    Refused,
}

impl StatusFault {
    /// Reads an answer; `body` may be cut.
    pub(super) fn new(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let body = String::from_utf8_lossy(body);
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self {
            status,
            code: element(&body, "Code"),
            message: element(&body, "Message").map(|message| redact_uris(&message)),
            region: header("x-amz-bucket-region").or_else(|| element(&body, "Region")),
        }
    }

    /// What the answer means: the S3 error code where there is one, else the status.
    pub(super) fn meaning(&self) -> Meaning {
        let by_code = match self.code.as_deref() {
            Some("NoSuchKey" | "NoSuchBucket" | "NoSuchVersion") => Some(Meaning::Absent),
            Some(
                "AccessDenied"
                | "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "InvalidToken"
                | "InvalidSecurity"
                | "TokenRefreshRequired"
                | "RequestTimeTooSkewed"
                | "AllAccessDisabled"
                | "AccountProblem"
                | "InvalidObjectState"
                | "ExpiredTokenException"
                | "InvalidIdentityToken"
                | "XAdminUserNotFound", // versitygw says so, with 404, of an access key that it does not know.
            ) => Some(Meaning::Denied),
            Some("SlowDown" | "InternalError" | "ServiceUnavailable" | "RequestTimeout" | "Throttling") => {
                Some(Meaning::Busy)
            }
            Some("PermanentRedirect" | "AuthorizationHeaderMalformed" | "InvalidBucketName") => Some(Meaning::Refused),
            _ => None,
        };
        by_code.unwrap_or(match self.status.as_u16() {
            304 => Meaning::NotModified,
            412 | 416 => Meaning::StartOver,
            401 | 403 | 407 => Meaning::Denied,
            404 | 410 => Meaning::Absent,
            408 | 425 | 429 | 500..=599 => Meaning::Busy,
            _ => Meaning::Refused,
        })
    }

    /// The error to report when the answer ends an attempt.
    pub(super) fn explain(&self, target: &Target) -> ArtifactError {
        let (host, uri, detail) = (target.host.clone(), target.uri.clone(), self.detail());
        match self.meaning() {
            Meaning::Denied => ArtifactError::AccessDenied { host, uri, detail, is_signed: target.is_signed },
            Meaning::Absent => ArtifactError::NotFound { host, uri, detail },
            Meaning::Busy => ArtifactError::Unavailable { host, uri, detail },
            Meaning::Refused | Meaning::NotModified => ArtifactError::Rejected { host, uri, detail },
            Meaning::StartOver => ArtifactError::CannotContinue { host, uri },
        }
    }

    fn detail(&self) -> String {
        let mut text = self.status.to_string();
        if let Some(code) = &self.code {
            text = format!("{text}, {code}");
        }
        if let Some(message) = &self.message {
            text = format!("{text} ({message})");
        }
        if let Some(region) = self.region.as_deref().filter(|_| self.meaning() == Meaning::Refused) {
            text = format!("{text}; the bucket is in region {region}, to be set in source.s3.region");
        }
        text
    }
}

/// A cause of a type, anywhere in a chain; looks inside [`io::Error`], whose own chain leaves its content out.
pub(super) fn find_cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<T>() {
            return Some(found);
        }
        next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => cause.source(),
        };
    }
    None
}

/// A rule about redirects that a server's answer broke.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct RedirectFault(pub(super) String);

/// The error for a request that no answer came to.
pub(super) fn explain_network(target: &Target, source: &(dyn Error + 'static)) -> ArtifactError {
    let (host, uri) = (target.host.clone(), target.uri.clone());
    if let Some(error @ rustls::Error::InvalidCertificate(_)) = find_cause::<rustls::Error>(source) {
        return ArtifactError::Untrusted { host, uri, source: Box::new(error.clone()) };
    }
    if let Some(RedirectFault(rule)) = find_cause::<RedirectFault>(source) {
        return ArtifactError::Redirected { host, uri, source: rule.clone().into() };
    }
    ArtifactError::Unreachable { host, uri, source: network_cause(source) }
}

/// What the network or a server said, without the words of the libraries around it.
pub(super) fn network_cause(error: &(dyn Error + 'static)) -> BoxError {
    if let Some(fault) = find_cause::<StatusFault>(error) {
        return Box::new(fault.clone());
    }
    let mut cause = find_cause::<reqwest::Error>(error).and_then(Error::source).unwrap_or(error);
    while let Some(next) = cause.source().filter(|_| cause.to_string().starts_with("client error (")) {
        cause = next;
    }
    redact_uris(&error_chain(cause)).into()
}

/// The error for a body that broke off after `received` of `announced` bytes.
pub(super) fn explain_body(
    target: &Target,
    received: u64,
    announced: Option<u64>,
    source: &(dyn Error + 'static),
) -> ArtifactError {
    let is_early_end = find_cause::<hyper::Error>(source).is_some_and(hyper::Error::is_incomplete_message)
        || find_cause::<io::Error>(source).is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof);
    let (host, uri) = (target.host.clone(), target.uri.clone());
    if is_early_end {
        return ArtifactError::Truncated { host, uri, received, announced };
    }
    explain_network(target, source)
}

/// Text of the first element of a name in an S3 server's XML, shortened for a message.
fn element(xml: &str, name: &str) -> Option<String> {
    let rest = xml.split_once(&format!("<{name}>"))?.1;
    let text = rest.split_once(&format!("</{name}>"))?.0.trim();
    let mut text = text.to_owned();
    for (entity, character) in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")] {
        text = text.replace(entity, character);
    }
    let text: String = text.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use torchmodel_crds::FailureReason;

    fn fault(status: u16, code: &str) -> StatusFault {
        let body =
            format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>a &quot;b&quot;</Message></Error>");
        let body = if code.is_empty() { "<html>no".to_owned() } else { body };
        StatusFault::new(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes())
    }

    #[test]
    fn every_answer_has_its_reason_and_only_passing_ones_are_tried_again() {
        let target = Target { uri: "s3://models/a.pt".into(), host: "s3.example:443".into(), is_signed: true };
        let table = [
            (401, "", FailureReason::AccessDenied, false),
            (403, "", FailureReason::AccessDenied, false),
            (403, "AccessDenied", FailureReason::AccessDenied, false),
            (403, "InvalidAccessKeyId", FailureReason::AccessDenied, false),
            (403, "SignatureDoesNotMatch", FailureReason::AccessDenied, false),
            (400, "ExpiredToken", FailureReason::AccessDenied, false),
            (404, "", FailureReason::NotFound, false),
            (410, "", FailureReason::NotFound, false),
            (404, "NoSuchKey", FailureReason::NotFound, false),
            (404, "NoSuchBucket", FailureReason::NotFound, false),
            (400, "", FailureReason::SpecInvalid, false),
            (400, "AuthorizationHeaderMalformed", FailureReason::SpecInvalid, false),
            (301, "PermanentRedirect", FailureReason::SpecInvalid, false),
            (429, "", FailureReason::FetchTimeout, true),
            (500, "", FailureReason::FetchTimeout, true),
            (503, "SlowDown", FailureReason::FetchTimeout, true),
            (416, "InvalidRange", FailureReason::FetchTimeout, true),
        ];
        for (status, code, reason, is_transient) in table {
            let error = fault(status, code).explain(&target);
            assert_eq!((error.failure().reason, error.is_transient()), (reason, is_transient), "{status} {code}");
        }
    }

    #[test]
    fn the_message_quotes_the_server_and_names_the_region_to_set() {
        assert_eq!(fault(404, "NoSuchKey").to_string(), "404 Not Found, NoSuchKey (a \"b\")");
        assert_eq!(fault(500, "").to_string(), "500 Internal Server Error");
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-bucket-region", "eu-west-1".parse().unwrap());
        let fault = StatusFault::new(StatusCode::MOVED_PERMANENTLY, &headers, b"<Code>PermanentRedirect</Code>");
        assert!(fault.to_string().ends_with("the bucket is in region eu-west-1, to be set in source.s3.region"));
    }

    #[test]
    fn what_a_server_or_a_library_quotes_shows_no_secret_of_a_uri() {
        let quoted = "https://user:hunter2@s3.example/a.pt?X-Amz-Signature=hunter2";
        let fault = StatusFault::new(
            StatusCode::FORBIDDEN,
            &HeaderMap::new(),
            format!("<Message>bad: {quoted}</Message>").as_bytes(),
        );
        assert_eq!(fault.to_string(), "403 Forbidden (bad: https://s3.example/a.pt)");
        let library = io::Error::other(format!("error performing GET {quoted} in 3 ms"));
        assert_eq!(network_cause(&library).to_string(), "error performing GET https://s3.example/a.pt in 3 ms");
    }

    #[test]
    fn a_cause_is_found_inside_an_io_error() {
        let inner = io::Error::other(io::Error::other(RedirectFault("rule".into())));
        assert!(find_cause::<RedirectFault>(&inner).is_some());
        assert!(find_cause::<rustls::Error>(&inner).is_none());
    }
}
