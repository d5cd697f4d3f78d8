//! What went wrong, as HTTP says it: a status and `{"error": "…"}`, always JSON.
//!
//! Used by every handler of `rest`. The table from [`InferError`] to statuses stands here and nowhere else.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use torchmodel_core::{inference::InferError, outcome::Outcome};

use crate::admission::AdmissionError;

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
    /// The path exists for another method.
    WrongMethod,
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
            Self::TooLarge(_) | Self::UnsupportedEncoding(_) | Self::UnknownPath | Self::WrongMethod => {
                Outcome::InvalidRequest
            }
        }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Infer(error) => status_of(error.outcome()),
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedEncoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
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
            Self::WrongMethod => "Method Not Allowed".into(),
        }
    }
}

impl IntoResponse for RestError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.message() });
        let mut response = json(self.status(), &body);
        match self {
            Self::Infer(InferError::Overloaded(_)) => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
            }
            Self::UnsupportedEncoding(_) => {
                response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"));
            }
            // The rest of the body is not read, so the connection cannot be used again.
            Self::TooLarge(_) | Self::BodyTimeout => {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// A JSON answer that is no inference: metadata, health, errors.
pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Response {
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (status, content_type, body.to_string()).into_response()
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
        let response = RestError::from(InferError::Overloaded("full".into())).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
