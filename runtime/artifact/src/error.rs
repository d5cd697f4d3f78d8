//! Why an artifact could not be pulled, and how each cause stands in the closed list of failures.
//!
//! Every layer of `artifact` returns [`ArtifactError`]. Invariants: no message holds a key, a token or the query of a URI, and
//! [`ArtifactError::failure`] maps every variant without a catch-all arm.

use std::{io, path::PathBuf, time::Duration};

use torchmodel_crds::{Failure, FailurePhase, FailureReason, redact_uri};
use torchmodel_process::{error_chain, format_bytes};

/// Any cause, kept for the source chain.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why no verified artifact came out of a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The source contradicts itself or cannot be read as what it should be.
    #[error("source.{field} {problem}")]
    SpecInvalid {
        /// Field below `spec.source`.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The URI begins with a scheme that is not read.
    #[error("source.uri {uri} has the scheme {scheme:?}, which this version does not read")]
    SchemeUnsupported {
        /// The URI without its secrets.
        uri: String,
        /// Its scheme.
        scheme: String,
    },
    /// The source is signed for, and nothing to sign with was found.
    #[error("found no credentials for {uri}: {searched}")]
    CredentialsMissing {
        /// The URI without its secrets.
        uri: String,
        /// Where they were looked for.
        searched: String,
        /// What the last place answered.
        source: Option<BoxError>,
    },
    /// The source answered that these credentials may not read it.
    #[error("{host} denied access to {uri}: {detail}")]
    AccessDenied {
        /// Host that answered.
        host: String,
        /// The URI without its secrets.
        uri: String,
        /// Status, code and message of the answer.
        detail: String,
        /// Whether the request carried credentials that this program can be given.
        is_signed: bool,
    },
    /// The source has no such object.
    #[error("{host} has no {uri}: {detail}")]
    NotFound {
        /// Host that answered.
        host: String,
        /// The URI without its secrets.
        uri: String,
        /// Status, code and message of the answer.
        detail: String,
    },
    /// The source refused the request as it is; asking again would not help.
    #[error("{host} refused the request for {uri}: {detail}")]
    Rejected {
        /// Host that answered.
        host: String,
        /// The URI without its secrets.
        uri: String,
        /// Status, code and message of the answer.
        detail: String,
    },
    /// The source led elsewhere in a way that is not followed.
    #[error("{host} redirects {uri} in a way that is not followed")]
    Redirected {
        /// Host that was asked first.
        host: String,
        /// The URI without its secrets.
        uri: String,
        /// The rule that the redirect broke.
        source: BoxError,
    },
    /// No connection came about, or it broke.
    #[error("could not fetch {uri} from {host}")]
    Unreachable {
        /// Host that was asked.
        host: String,
        /// The URI without its secrets.
        uri: String,
        /// What the network said.
        source: BoxError,
    },
    /// The source's certificate is not one that the trusted authorities signed.
    #[error("did not trust the TLS certificate of {host} for {uri}")]
    Untrusted {
        /// Host that was asked.
        host: String,
        /// The URI without its secrets.
        uri: String,
        /// What the check said.
        source: BoxError,
    },
    /// The source answered that it cannot serve at the moment.
    #[error("{host} could not serve {uri}: {detail}")]
    Unavailable {
        /// Host that answered.
        host: String,
        /// The URI without its secrets.
        uri: String,
        /// Status, code and message of the answer.
        detail: String,
    },
    /// The source went silent.
    #[error("{host} sent nothing for {} s, after {received} bytes of {uri}", .idle.as_secs_f32())]
    Stalled {
        /// Host that was asked.
        host: String,
        /// The URI without its secrets.
        uri: String,
        /// Bytes that had come.
        received: u64,
        /// How long nothing came.
        idle: Duration,
    },
    /// The source changed or misread what was asked, so that what is on disk cannot be continued.
    #[error("{host} cannot continue {uri} where it stopped")]
    CannotContinue {
        /// Host that was asked.
        host: String,
        /// The URI without its secrets.
        uri: String,
    },
    /// The whole pull took too long.
    #[error("{uri} was not complete after {} s", .limit.as_secs_f32())]
    OutOfTime {
        /// The URI without its secrets.
        uri: String,
        /// The limit.
        limit: Duration,
    },
    /// The body ended early.
    #[error("{uri} ended after {received} bytes; {host} had announced {}", announced_text(*.announced))]
    Truncated {
        /// Host that was asked.
        host: String,
        /// The URI without its secrets.
        uri: String,
        /// Bytes that came.
        received: u64,
        /// Bytes that were announced.
        announced: Option<u64>,
    },
    /// The bytes are not those that the digest names.
    #[error("{uri} has the sha256 {actual} ({size_bytes} bytes); source.sha256 is {expected}")]
    DigestMismatch {
        /// The URI without its secrets.
        uri: String,
        /// Digest that the source names.
        expected: String,
        /// Digest of what came.
        actual: String,
        /// Its size.
        size_bytes: u64,
    },
    /// The cache folder's file system has too little room.
    #[error("the cache folder {} has no room for {uri}: {} needed, {} free", .dir.display(), format_bytes(*.needed), format_bytes(*.free))]
    CacheFull {
        /// The cache folder.
        dir: PathBuf,
        /// The URI without its secrets.
        uri: String,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes that the file system offers.
        free: u64,
    },
    /// The artifact is larger than this program takes.
    #[error("{uri} has {size_bytes} bytes or more; the limit is {limit}")]
    TooLarge {
        /// The URI without its secrets.
        uri: String,
        /// Bytes announced or received.
        size_bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The cache folder cannot be used.
    #[error("could not {action} {} in the cache folder", .path.display())]
    Cache {
        /// What was being done.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A local file cannot be read.
    #[error("could not read the file {}", redact_uri(&.path.to_string_lossy()))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The HTTP client could not be set up.
    #[error("could not set up the HTTP client")]
    Client {
        /// What it said.
        source: BoxError,
    },
    /// A fault that was tried again until the attempts ran out.
    #[error("gave up after {attempts} attempts that brought nothing new")]
    Exhausted {
        /// Attempts in a row without a new byte.
        attempts: u32,
        /// The last fault.
        source: Box<ArtifactError>,
    },
}

impl ArtifactError {
    /// The failure to report: phase, closed reason, the whole source chain as message, and a hint.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let (phase, reason) = self.classify();
        let mut failure = Failure::new(phase, reason, error_chain(self));
        if let Some(hint) = self.own_hint() {
            hint.clone_into(&mut failure.hint);
        }
        failure
    }

    /// Whether the same request may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Unavailable { .. }
            | Self::Stalled { .. }
            | Self::Truncated { .. }
            | Self::CannotContinue { .. } => true,
            Self::SpecInvalid { .. }
            | Self::SchemeUnsupported { .. }
            | Self::CredentialsMissing { .. }
            | Self::AccessDenied { .. }
            | Self::NotFound { .. }
            | Self::Rejected { .. }
            | Self::Redirected { .. }
            | Self::Untrusted { .. }
            | Self::OutOfTime { .. }
            | Self::DigestMismatch { .. }
            | Self::CacheFull { .. }
            | Self::TooLarge { .. }
            | Self::Cache { .. }
            | Self::File { .. }
            | Self::Client { .. }
            | Self::Exhausted { .. } => false,
        }
    }

    fn classify(&self) -> (FailurePhase, FailureReason) {
        use FailurePhase::{Configure, Fetch, Verify};
        match self {
            Self::SchemeUnsupported { .. } => (Configure, FailureReason::SchemeUnsupported),
            Self::CredentialsMissing { .. } => (Fetch, FailureReason::CredentialsMissing),
            Self::AccessDenied { .. } => (Fetch, FailureReason::AccessDenied),
            Self::NotFound { .. } => (Fetch, FailureReason::NotFound),
            Self::Rejected { .. } | Self::Redirected { .. } => (Fetch, FailureReason::SpecInvalid),
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::Unavailable { .. }
            | Self::Stalled { .. }
            | Self::CannotContinue { .. }
            | Self::OutOfTime { .. } => (Fetch, FailureReason::FetchTimeout),
            Self::Truncated { .. } => (Fetch, FailureReason::DigestMismatch),
            Self::DigestMismatch { .. } => (Verify, FailureReason::DigestMismatch),
            Self::CacheFull { .. } | Self::TooLarge { .. } => (Fetch, FailureReason::CacheFull),
            Self::Cache { source, .. } if is_out_of_space(source) => (Fetch, FailureReason::CacheFull),
            Self::SpecInvalid { .. } | Self::Cache { .. } | Self::Client { .. } => {
                (Configure, FailureReason::SpecInvalid)
            }
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => (Fetch, FailureReason::NotFound),
                io::ErrorKind::PermissionDenied => (Fetch, FailureReason::AccessDenied),
                _ => (Fetch, FailureReason::SpecInvalid),
            },
            Self::Exhausted { source, .. } => source.classify(),
        }
    }

    /// A hint that fits better than the reason's own, where the reason's speaks of another kind of source.
    fn own_hint(&self) -> Option<&'static str> {
        match self {
            Self::AccessDenied { is_signed: false, .. } => Some(
                "use a URL that opens without credentials, such as a presigned one, or an s3:// source with a Secret",
            ),
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some("check the path; in a pod it is read inside the container"),
                io::ErrorKind::PermissionDenied => Some("let the user that runs the runtime read the file"),
                _ => Some("name a regular file"),
            },
            Self::Cache { source, .. } if !is_out_of_space(source) => {
                Some("mount a folder there that the user of the runtime may write to")
            }
            Self::Redirected { .. } => Some("name the final URI in spec.source.uri"),
            Self::Untrusted { .. } => {
                Some("name a file with the authority's certificate in SSL_CERT_FILE of the runtime's environment")
            }
            Self::TooLarge { .. } => Some("use a smaller artifact; the limit is fixed"),
            Self::Truncated { .. } => {
                Some("check the upload and any proxy on the way: the source ends early each time")
            }
            Self::Exhausted { source, .. } => source.own_hint(),
            _ => None,
        }
    }
}

/// Whether an I/O error says that a file system or quota is full.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

fn announced_text(announced: Option<u64>) -> String {
    announced.map_or_else(|| "more".to_owned(), |bytes| bytes.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri() -> String {
        "s3://models/a.pt".to_owned()
    }

    fn host() -> String {
        "storage.example:443".to_owned()
    }

    #[test]
    fn every_cause_has_its_place_in_the_closed_list() {
        use FailurePhase::{Configure, Fetch, Verify};
        let io = |kind: io::ErrorKind| io::Error::new(kind, "as the system says");
        let cache = |kind| ArtifactError::Cache { action: "write", path: "/cache/x".into(), source: io(kind) };
        let file = |kind| ArtifactError::File { path: "/m.pt".into(), source: io(kind) };
        let table = [
            (
                ArtifactError::SpecInvalid { field: "uri", problem: "is empty".into() },
                Configure,
                FailureReason::SpecInvalid,
            ),
            (
                ArtifactError::NotFound { host: host(), uri: uri(), detail: "404".into() },
                Fetch,
                FailureReason::NotFound,
            ),
            (
                ArtifactError::Stalled { host: host(), uri: uri(), received: 1, idle: Duration::from_secs(30) },
                Fetch,
                FailureReason::FetchTimeout,
            ),
            (
                ArtifactError::Truncated { host: host(), uri: uri(), received: 1, announced: Some(2) },
                Fetch,
                FailureReason::DigestMismatch,
            ),
            (
                ArtifactError::DigestMismatch { uri: uri(), expected: "a".into(), actual: "b".into(), size_bytes: 3 },
                Verify,
                FailureReason::DigestMismatch,
            ),
            (cache(io::ErrorKind::StorageFull), Fetch, FailureReason::CacheFull),
            (cache(io::ErrorKind::ReadOnlyFilesystem), Configure, FailureReason::SpecInvalid),
            (file(io::ErrorKind::NotFound), Fetch, FailureReason::NotFound),
            (file(io::ErrorKind::PermissionDenied), Fetch, FailureReason::AccessDenied),
            (file(io::ErrorKind::IsADirectory), Fetch, FailureReason::SpecInvalid),
        ];
        for (error, phase, reason) in table {
            let failure = error.failure();
            assert_eq!((failure.phase, failure.reason), (phase, reason), "{error}");
            let exhausted = ArtifactError::Exhausted { attempts: 5, source: Box::new(error) }.failure();
            assert_eq!((exhausted.phase, exhausted.reason, exhausted.hint), (phase, reason, failure.hint));
        }
    }

    #[test]
    fn the_message_is_the_whole_source_chain_without_echoes() {
        let refused = io::Error::from_raw_os_error(111);
        let error = ArtifactError::Exhausted {
            attempts: 5,
            source: Box::new(ArtifactError::Unreachable { host: host(), uri: uri(), source: Box::new(refused) }),
        };
        assert_eq!(
            error.failure().message,
            "gave up after 5 attempts that brought nothing new: could not fetch s3://models/a.pt from storage.example:443: \
             Connection refused (os error 111)"
        );
    }
}
