//! From [`InferError`] to a gRPC status.
//!
//! Used by `grpc`'s service. The table stands here and nowhere else.

use tonic::{Code, Status};
use torchmodel_core::inference::InferError;

/// gRPC's word for each error of the layers below.
pub(super) const fn code_of(error: &InferError) -> Code {
    match error {
        InferError::NotFound(_) => Code::NotFound,
        InferError::InvalidRequest(_) => Code::InvalidArgument,
        InferError::NotReady(_) | InferError::Overloaded(_) => Code::Unavailable,
        InferError::DeadlineExceeded(_) => Code::DeadlineExceeded,
        InferError::Unsupported(_) => Code::Unimplemented,
        InferError::Internal(_) => Code::Internal,
    }
}

/// The status with the error's own text.
pub(super) fn status_of(error: &InferError) -> Status {
    Status::new(code_of(error), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_code() {
        let text = String::new;
        let table = [
            (InferError::NotFound(text()), Code::NotFound),
            (InferError::InvalidRequest(text()), Code::InvalidArgument),
            (InferError::NotReady(text()), Code::Unavailable),
            (InferError::Overloaded(text()), Code::Unavailable),
            (InferError::DeadlineExceeded(text()), Code::DeadlineExceeded),
            (InferError::Unsupported(text()), Code::Unimplemented),
            (InferError::Internal(text()), Code::Internal),
        ];
        for (error, code) in table {
            assert_eq!(code_of(&error), code, "{error:?}");
        }
    }
}
