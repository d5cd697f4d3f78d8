//! Why a model does not serve: the closed list of reasons that runtime and operator share.
//!
//! The runtime writes one [`Failure`] as a JSON line to the container's termination message; the operator reads it back into
//! status, a condition and an event. Invariant: a reason's text never changes, since alerts and tests match it.

use serde::{Deserialize, Serialize};

use crate::redact_uris;

macro_rules! closed_list {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "kubernetes", derive(schemars::JsonSchema))]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $name {
            /// Every member, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name as it stands in manifests, metrics and events.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

closed_list! {
    /// The step of a model's way to serving in which it failed.
    FailurePhase {
        /// The manifest or configuration was read.
        Configure,
        /// A node was looked for, or the image pulled.
        Schedule,
        /// The artifact was fetched.
        Fetch,
        /// Its digest was compared.
        Verify,
        /// TorchScript was loaded.
        Load,
        /// Warm-up inferences ran.
        Warmup,
        /// The model was serving.
        Serve,
    }
}

closed_list! {
    /// What went wrong, as one word that conditions, events, metrics and logs share.
    FailureReason {
        /// The manifest contradicts itself or asks for what the model does not have.
        SpecInvalid,
        /// The URI's scheme is not one that this version reads.
        SchemeUnsupported,
        /// The source needs credentials and none were found.
        CredentialsMissing,
        /// The source refused the credentials.
        AccessDenied,
        /// The source has no such object.
        NotFound,
        /// The source could not be reached, or stopped sending.
        FetchTimeout,
        /// Fewer bytes came than were announced, or other bytes than the digest names.
        DigestMismatch,
        /// The cache folder has no room for the artifact.
        CacheFull,
        /// The container image could not be pulled.
        ImagePullFailed,
        /// No node can take the pod.
        Unschedulable,
        /// No node has enough free accelerators.
        InsufficientGPU,
        /// The driver is older than the runtime's CUDA, or shows no accelerator.
        DriverTooOld,
        /// The file is not a TorchScript archive.
        NotTorchScript,
        /// The model calls an operator that this runtime does not have.
        UnsupportedOperator,
        /// The archive was written by a newer PyTorch.
        TorchVersionTooNew,
        /// The model does not fit the accelerator's memory.
        OutOfDeviceMemory,
        /// The model does not fit the container's memory limit.
        OutOfHostMemory,
        /// The declared inputs or outputs are not the model's.
        SignatureShapeMismatch,
        /// A warm-up inference failed.
        WarmupFailed,
        /// The container runs but does not become ready.
        ProbeFailed,
        /// The container ends again and again without saying why.
        CrashLoop,
        /// The rollout did not finish within its deadline.
        ProgressDeadlineExceeded,
        /// Another field manager owns a field that the operator must set.
        FieldConflict,
    }
}

impl FailureReason {
    /// What a person can do about it, in one sentence.
    #[must_use]
    pub const fn hint(self) -> &'static str {
        match self {
            Self::SpecInvalid => "correct the manifest; the message names the field",
            Self::SchemeUnsupported => "use an s3://, https:// or http:// URI, or a volume",
            Self::CredentialsMissing => {
                "name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in spec.source.credentials.secretName"
            }
            Self::AccessDenied => "check the keys in the Secret and that they may read this object",
            Self::NotFound => "check the URI's bucket and key; the name is case-sensitive",
            Self::FetchTimeout => "check that the pod's network reaches the source, and spec.source.s3.endpoint",
            Self::DigestMismatch => {
                "the bytes are not those that spec.source.sha256 names: upload again, or correct the digest"
            }
            Self::CacheFull => "give the node more ephemeral storage, or the cache folder a larger disk",
            Self::ImagePullFailed => "check spec.runtime.image and the pull secrets of the service account",
            Self::Unschedulable => "see the message for what the nodes lack",
            Self::InsufficientGPU => "free or add accelerators, or lower spec.accelerator.count",
            Self::DriverTooOld => {
                "install or update the node's GPU driver: it must support CUDA 13 and show the GPU to the container"
            }
            Self::NotTorchScript => {
                "export with torch.jit.script or torch.jit.trace and save with torch.jit.save; a state_dict is not enough"
            }
            Self::UnsupportedOperator => "export without the custom operator, or use a runtime image that has it",
            Self::TorchVersionTooNew => "export again with PyTorch 2.11 or older, or use a newer runtime image",
            Self::OutOfDeviceMemory => "use a larger accelerator, fewer instances or a smaller maxBatchSize",
            Self::OutOfHostMemory => "raise spec.resources.limits.memory",
            Self::SignatureShapeMismatch => {
                "compare spec.model.inputs and outputs with what `torchmodel-runtime inspect` prints"
            }
            Self::WarmupFailed => "give spec.model.warmup.inputs values that the model accepts, or set iterations to 0",
            Self::ProbeFailed => {
                "see the pod's log; raise spec.rollout.progressDeadline if the model only takes long to load"
            }
            Self::CrashLoop => "see the log of the pod's last container: kubectl logs --previous",
            Self::ProgressDeadlineExceeded => {
                "see lastFailure and the pods; raise spec.rollout.progressDeadline if it is only slow"
            }
            Self::FieldConflict => "let one manager own the field; the message names the other",
        }
    }
}

/// One fatal failure, as the runtime reports it and the operator reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step that failed.
    pub phase: FailurePhase,
    /// What went wrong.
    pub reason: FailureReason,
    /// The details: what was expected, what was found.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl Failure {
    /// Kubelet keeps this many bytes of a termination message.
    pub const MAX_LINE_BYTES: usize = 4096;

    /// A failure with the reason's own hint. Of each URI in the message it keeps scheme, host and path.
    #[must_use]
    pub fn new(phase: FailurePhase, reason: FailureReason, message: impl Into<String>) -> Self {
        Self { phase, reason, message: redact_uris(&message.into()), hint: reason.hint().to_owned() }
    }

    /// The same with another hint, where more is known than the reason.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// The failure as one JSON line of at most [`Self::MAX_LINE_BYTES`], its message cut if need be.
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut failure = self.clone();
        loop {
            let line = serde_json::to_string(&failure).unwrap_or_default();
            if line.len() <= Self::MAX_LINE_BYTES || failure.message.is_empty() {
                return line;
            }
            let keep = failure.message.chars().count() * 3 / 4;
            failure.message = failure.message.chars().take(keep).collect();
        }
    }

    /// Reads a line that [`Self::to_line`] wrote; `None` for any other text.
    #[must_use]
    pub fn from_line(text: &str) -> Option<Self> {
        text.lines().rev().find_map(|line| serde_json::from_str(line.trim()).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_and_stays_within_what_kubelet_keeps() {
        let long = Failure::new(FailurePhase::Load, FailureReason::UnsupportedOperator, "ü\n\"".repeat(5000));
        let line = long.to_line();
        assert!(line.len() <= Failure::MAX_LINE_BYTES, "{}", line.len());
        let back = Failure::from_line(&format!("earlier output\n{line}\n")).unwrap();
        assert_eq!((back.phase, back.reason), (long.phase, long.reason));
        assert!(long.message.starts_with(&back.message));
    }

    #[test]
    fn a_failure_shows_no_secret_of_a_uri_that_its_cause_quotes() {
        let cause = "invalid type: string \"https://u:hunter2@store/a.pt?sig=hunter2\", expected a map";
        let failure = Failure::new(FailurePhase::Configure, FailureReason::SpecInvalid, cause);
        assert_eq!(failure.message, "invalid type: string \"https://store/a.pt\", expected a map");
    }

    #[test]
    fn every_reason_has_a_hint_that_is_a_plain_sentence() {
        for reason in FailureReason::ALL {
            assert!(reason.hint().len() > 10 && !reason.hint().ends_with('.'), "{reason}");
        }
    }
}
