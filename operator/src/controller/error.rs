//! Why a reconcile failed, and what that means for the next one.
//!
//! Each step has its own error; this one holds them. Invariant: every error has a reason from a closed list, which the
//! condition, the event, the metric and the log share.

use std::fmt;

use torchmodel_crds::{FailureReason, redact_uris};
use torchmodel_process::error_chain_by;

use super::{apply, build, dereference, status, validate};

/// A reconcile that failed, by the step that did.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object as stored is not a TorchModel that this version knows.
    #[error(transparent)]
    Dereference(#[from] dereference::Error),
    /// The spec contradicts itself.
    #[error(transparent)]
    Validate(#[from] validate::Error),
    /// A child could not be described.
    #[error(transparent)]
    Build(#[from] build::Error),
    /// A child could not be written.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// The status could not be written.
    #[error(transparent)]
    Status(#[from] status::Error),
    /// The TorchModel was deleted while it was reconciled: no failure, but nothing may be written.
    #[error("the TorchModel was deleted")]
    OwnerGone,
}

/// A reason as conditions, events, metrics and logs show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// One that the runtime and the operator share.
    Failure(FailureReason),
    /// The API server refused or did not answer a request of the operator.
    ApiError,
}

/// When the object is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// When it, or a child of it, changes: trying again would end the same way.
    AwaitChange,
    /// After a while that grows with each failure.
    Backoff,
}

impl Reason {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failure(reason) => reason.as_str(),
            Self::ApiError => "ApiError",
        }
    }

    /// What a person can do about it.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Failure(reason) => reason.hint(),
            Self::ApiError => {
                "the operator tries again by itself; if this stays, check its permissions and the namespace's quota"
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Error {
    /// The reason, from the closed list.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Dereference(_) | Self::Validate(_) | Self::Build(_) => Reason::Failure(FailureReason::SpecInvalid),
            Self::Apply(error) => error.reason(),
            Self::Status(_) | Self::OwnerGone => Reason::ApiError,
        }
    }

    /// When to look again.
    pub fn requeue(&self) -> Requeue {
        match self {
            Self::Dereference(_) | Self::Validate(_) | Self::Build(_) | Self::OwnerGone => Requeue::AwaitChange,
            Self::Apply(error) => error.requeue(),
            Self::Status(_) => Requeue::Backoff,
        }
    }
}

/// An error and its causes in one line, without what a URI keeps secret; of an answer of the API server, what it said itself.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let text = error_chain_by(error, |error| match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.message.clone(),
        _ => error.to_string(),
    });
    redact_uris(&text)
}

#[cfg(test)]
mod tests {
    use torchmodel_crds::schema::Violation;

    use super::*;

    #[test]
    fn an_invalid_spec_waits_for_a_change_and_names_the_shared_reason() {
        let violation = Violation { path: "spec.source".to_owned(), message: "set exactly one".to_owned() };
        let error = Error::Validate(validate::Error::Violations(vec![violation]));
        assert_eq!(error.reason().as_str(), "SpecInvalid");
        assert_eq!(error.requeue(), Requeue::AwaitChange);
        assert_eq!(chain(&error), "spec.source: set exactly one");
    }

    #[test]
    fn an_error_shows_no_secret_of_a_uri() {
        let said = "invalid type: string \"https://store/m.pt?X-Amz-Signature=hunter2\", expected struct ModelSource";
        let text = chain(&Error::Validate(validate::Error::Unreadable(said.to_owned())));
        assert!(text.contains("\"https://store/m.pt\"") && !text.contains("hunter2"), "{text}");
    }
}
