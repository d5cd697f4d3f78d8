//! From an [`Outcome`] to a gRPC status.
//!
//! Used by `grpc`'s service. The table stands here and nowhere else.

use tonic::{Code, Status};
use torchmodel_core::{inference::InferError, outcome::Outcome};

/// gRPC's code for each outcome.
pub(super) const fn code_of(outcome: Outcome) -> Code {
    match outcome {
        Outcome::Ok => Code::Ok,
        Outcome::NotFound => Code::NotFound,
        Outcome::InvalidRequest => Code::InvalidArgument,
        Outcome::NotReady | Outcome::Overloaded => Code::Unavailable,
        Outcome::DeadlineExceeded => Code::DeadlineExceeded,
        Outcome::Unsupported => Code::Unimplemented,
        Outcome::Canceled => Code::Cancelled,
        Outcome::Internal => Code::Internal,
    }
}

/// The most of an error's text: it travels in a head, which clients bound, and may name what they sent.
const MAX_MESSAGE_BYTES: usize = 1 << 10;

/// The status with the error's own text.
pub(super) fn status_of(error: &InferError) -> Status {
    Status::new(code_of(error.outcome()), shortened(error.to_string()))
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_MESSAGE_BYTES {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_shortened_between_characters() {
        assert_eq!(shortened("short".into()), "short");
        let long = shortened("ü".repeat(2000));
        assert!(long.len() <= MAX_MESSAGE_BYTES + 3 && long.ends_with("ü…"));
        let odd = shortened(format!("x{}", "ü".repeat(2000)));
        assert!(odd.ends_with("ü…"));
    }

    #[test]
    fn every_outcome_has_its_code() {
        let codes = [
            Code::Ok,
            Code::NotFound,
            Code::InvalidArgument,
            Code::Unavailable,
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Unimplemented,
            Code::Cancelled,
            Code::Internal,
        ];
        assert_eq!(Outcome::ALL.map(code_of), codes, "{:?}", Outcome::ALL);
    }
}
