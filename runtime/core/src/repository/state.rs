//! The states of a version and the moves between them, checked.
//!
//! [`super::ModelRepository`] keeps one [`Stage`] for each version that it holds. Invariants: a stage changes by [`Stage::advance`] alone,
//! which refuses what [`Step::may_become`] does not list; only a ready stage has a [`Version`] to hand out.

use std::{fmt, sync::Arc};

use torchmodel_crds::Failure;

use crate::version::Version;

/// How far a load has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It waits for other loads to end.
    Waiting,
    /// The artifact is fetched and verified.
    Fetching,
    /// The model is brought into memory and warmed up.
    Loading,
}

/// What became of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionState {
    /// It is on its way to being ready.
    Loading(Progress),
    /// It answers.
    Ready,
    /// It takes no new requests; those in flight finish, then it is gone.
    Unloading,
    /// It answers no requests, and why.
    Failed(Failure),
}

impl VersionState {
    /// The word of the repository index (Triton's `model_repository` extension).
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Loading(_) => "LOADING",
            Self::Ready => "READY",
            Self::Unloading => "UNLOADING",
            Self::Failed(_) => "UNAVAILABLE",
        }
    }

    /// Why a version is not to be had; empty for every other state.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Failed(failure) => format!("{}: {}", failure.reason, failure.message),
            Self::Loading(_) | Self::Ready | Self::Unloading => String::new(),
        }
    }
}

/// A state without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`VersionState::Loading`].
    Loading,
    /// [`VersionState::Ready`].
    Ready,
    /// [`VersionState::Unloading`].
    Unloading,
    /// [`VersionState::Failed`].
    Failed,
    /// No state any more.
    Gone,
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 5] = [Self::Loading, Self::Ready, Self::Unloading, Self::Failed, Self::Gone];

    /// Whether a version may go from this step to `next`. A ready version fails when its instances can never work again; one that
    /// failed holds nothing that would have to be unloaded.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            Self::Loading => matches!(next, Self::Loading | Self::Ready | Self::Unloading | Self::Failed),
            Self::Ready => matches!(next, Self::Unloading | Self::Failed),
            Self::Unloading | Self::Failed => matches!(next, Self::Gone),
            Self::Gone => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Unloading => "unloading",
            Self::Failed => "failed",
            Self::Gone => "gone",
        })
    }
}

/// A move that no version makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a version that is {from} does not become {to}")]
pub struct IllegalMove {
    /// Where the version is.
    pub from: Step,
    /// Where it cannot go from there.
    pub to: Step,
}

/// A version's state with what only the repository may touch.
pub(super) enum Stage {
    Loading(Progress),
    Ready(Arc<Version>),
    Unloading,
    Failed(Failure),
}

impl Stage {
    pub(super) const fn step(&self) -> Step {
        match self {
            Self::Loading(_) => Step::Loading,
            Self::Ready(_) => Step::Ready,
            Self::Unloading => Step::Unloading,
            Self::Failed(_) => Step::Failed,
        }
    }

    /// Becomes `next` and gives what it was, so that the caller can drop it where no lock is held.
    pub(super) fn advance(&mut self, next: Self) -> Result<Self, IllegalMove> {
        let (from, to) = (self.step(), next.step());
        if from.may_become(to) { Ok(std::mem::replace(self, next)) } else { Err(IllegalMove { from, to }) }
    }

    pub(super) const fn ready(&self) -> Option<&Arc<Version>> {
        match self {
            Self::Ready(version) => Some(version),
            Self::Loading(_) | Self::Unloading | Self::Failed(_) => None,
        }
    }

    /// The state as others may see it.
    pub(super) fn state(&self) -> VersionState {
        match self {
            Self::Loading(progress) => VersionState::Loading(*progress),
            Self::Ready(_) => VersionState::Ready,
            Self::Unloading => VersionState::Unloading,
            Self::Failed(failure) => VersionState::Failed(failure.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use torchmodel_crds::{FailurePhase, FailureReason};

    use super::*;

    #[test]
    fn only_the_listed_moves_are_legal() {
        let legal = [
            (Step::Loading, Step::Loading),
            (Step::Loading, Step::Ready),
            (Step::Loading, Step::Unloading),
            (Step::Loading, Step::Failed),
            (Step::Ready, Step::Unloading),
            (Step::Ready, Step::Failed),
            (Step::Unloading, Step::Gone),
            (Step::Failed, Step::Gone),
        ];
        for from in Step::ALL {
            for to in Step::ALL {
                assert_eq!(from.may_become(to), legal.contains(&(from, to)), "{from} to {to}");
            }
        }
    }

    #[test]
    fn an_illegal_move_changes_nothing_and_says_what_it_was() {
        let failure = Failure::new(FailurePhase::Load, FailureReason::NotTorchScript, "no");
        let mut stage = Stage::Failed(failure.clone());
        let refused = stage.advance(Stage::Unloading).err().unwrap();
        assert_eq!(refused.to_string(), "a version that is failed does not become unloading");
        assert_eq!(stage.state(), VersionState::Failed(failure));
        let mut stage = Stage::Unloading;
        assert!(stage.advance(Stage::Loading(Progress::Waiting)).is_err());
        assert_eq!(stage.step(), Step::Unloading);
    }
}
