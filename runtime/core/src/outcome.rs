//! How a request ended: the one closed list that HTTP statuses, gRPC codes, metrics and logs are mapped from.
//!
//! Every mapping is an exhaustive match beside what it maps to: `server`'s REST and gRPC errors, `metrics`. Invariant: a request
//! ends with exactly one [`Outcome`], and a new one does not compile until every mapping knows it.

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It was answered.
    Ok,
    /// No such model or version.
    NotFound,
    /// The request contradicts the protocol or the model's signature.
    InvalidRequest,
    /// The model is loading, failed to load, or is being unloaded.
    NotReady,
    /// A limit of queue or memory was reached.
    Overloaded,
    /// The deadline passed before an answer was there.
    DeadlineExceeded,
    /// Legal, but not something this server does.
    Unsupported,
    /// The client left before the answer, or stopped sending.
    Canceled,
    /// The server's or the model's fault.
    Internal,
}

impl Outcome {
    /// Every outcome, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::NotFound,
        Self::InvalidRequest,
        Self::NotReady,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::Unsupported,
        Self::Canceled,
        Self::Internal,
    ];

    /// The word for metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotFound => "not_found",
            Self::InvalidRequest => "invalid_request",
            Self::NotReady => "not_ready",
            Self::Overloaded => "overloaded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Unsupported => "unsupported",
            Self::Canceled => "canceled",
            Self::Internal => "internal",
        }
    }

    /// Position in [`Self::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_stands_at_its_own_place_and_has_its_own_word() {
        let mut words: Vec<_> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
        for (position, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome.index(), position);
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Outcome::ALL.len());
    }
}
