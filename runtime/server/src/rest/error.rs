//! What went wrong, as HTTP says it: a status and `{"error": "…"}`, always JSON.
//!
//! Used by every handler of `rest`. The table from [`InferError`] to statuses stands here and nowhere else.

use http::{HeaderValue, StatusCode, header};
use torchmodel_core::{inference::InferError, outcome::Outcome};

use super::answer::Answer;
use crate::{admission::AdmissionError, protocol::shortened};

/// Seconds after which a refused client may try again; the queue's own times are much shorter.
const RETRY_AFTER_S: &str = "1";

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RestError {
    /// The layers below, or a decoder, refused.
    Infer(InferError),
    /// The body is longer than the limit, as it came or after decompression.
    TooLarge(usize),
    /// A `Content-Encoding` that is not served.
    UnsupportedEncoding(String),
    /// The body stopped coming, or came too slowly.
    BodyTimeout,
    /// No such path.
    UnknownPath,
    /// The path exists for this other method.
    WrongMethod(&'static str),
}

impl From<InferError> for RestError {
    fn from(error: InferError) -> Self {
        Self::Infer(error)
    }
}

impl From<AdmissionError> for RestError {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::Full { .. } => Self::Infer(error.into()),
            AdmissionError::Timeout => Self::BodyTimeout,
        }
    }
}

/// HTTP's status for each outcome.
pub(super) const fn status_of(outcome: Outcome) -> StatusCode {
    match outcome {
        Outcome::Ok => StatusCode::OK,
        Outcome::NotFound => StatusCode::NOT_FOUND,
        Outcome::InvalidRequest => StatusCode::BAD_REQUEST,
        Outcome::NotReady | Outcome::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        Outcome::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Outcome::Unsupported => StatusCode::NOT_IMPLEMENTED,
        // Nobody is there to read it.
        Outcome::Canceled => StatusCode::REQUEST_TIMEOUT,
        Outcome::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl RestError {
    /// A client's fault, told in `message`.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::Infer(InferError::InvalidRequest(message.into()))
    }

    /// How the request ended, for the metrics.
    pub(super) const fn outcome(&self) -> Outcome {
        match self {
            Self::Infer(error) => error.outcome(),
            Self::BodyTimeout => Outcome::Canceled,
            Self::TooLarge(_) | Self::UnsupportedEncoding(_) | Self::UnknownPath | Self::WrongMethod(_) => {
                Outcome::InvalidRequest
            }
        }
    }

    /// Whether the rest of the body may still come and should be taken in before the answer.
    pub(super) const fn may_leave_body(&self) -> bool {
        !matches!(self, Self::BodyTimeout)
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Infer(error) => status_of(error.outcome()),
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedEncoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Infer(error) => error.to_string(),
            Self::TooLarge(limit) => {
                format!("the request body is longer than the limit of {limit} bytes (--max-request-bytes)")
            }
            Self::UnsupportedEncoding(encoding) => {
                format!("Content-Encoding '{encoding}' is not supported, use gzip or deflate")
            }
            Self::BodyTimeout => AdmissionError::Timeout.to_string(),
            Self::UnknownPath => "Not Found".into(),
            Self::WrongMethod(_) => "Method Not Allowed".into(),
        }
    }
}

impl From<RestError> for Answer {
    fn from(error: RestError) -> Self {
        let mut answer = Self::json(error.status(), &serde_json::json!({ "error": shortened(error.message()) }));
        let (name, value) = match error {
            RestError::Infer(InferError::Overloaded(_)) => (header::RETRY_AFTER, RETRY_AFTER_S),
            RestError::UnsupportedEncoding(_) => (header::ACCEPT_ENCODING, "gzip, deflate"),
            RestError::WrongMethod(allowed) => (header::ALLOW, allowed),
            // The rest of the body is not read, so the connection cannot be used again.
            RestError::TooLarge(_) | RestError::BodyTimeout => (header::CONNECTION, "close"),
            RestError::Infer(_) | RestError::UnknownPath => return answer,
        };
        answer.response.headers_mut().insert(name, HeaderValue::from_static(value));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_status() {
        let statuses = Outcome::ALL.map(|outcome| status_of(outcome).as_u16());
        assert_eq!(statuses, [200, 404, 400, 503, 503, 504, 501, 408, 500], "{:?}", Outcome::ALL);
    }

    #[test]
    fn an_overloaded_server_says_when_to_come_back() {
        let answer = Answer::from(RestError::from(InferError::Overloaded("full".into())));
        assert_eq!(answer.response.headers()[header::RETRY_AFTER], "1");
    }
}
