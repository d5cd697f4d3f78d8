//! From an [`Outcome`] to a gRPC status.
//!
//! Used by `grpc`'s service. The table stands here and nowhere else.

use tonic::{Code, Status};
use torchmodel_core::{inference::InferError, outcome::Outcome};

use crate::protocol::shortened;

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

/// The status with the error's own text.
pub(super) fn status_of(error: &InferError) -> Status {
    Status::new(code_of(error.outcome()), shortened(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
