//! A source on the network, asked for its bytes from an offset on.
//!
//! [`Origin`] is the seam between `download` and the two transports. Invariant: a transport never tries again by itself; what
//! may be repeated is `download`'s to decide.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use super::{
    error::{ArtifactError, BoxError},
    fault::Target,
};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Ask {
    /// First byte that is wanted.
    pub(super) offset: u64,
    /// With an offset: the entity tag that the bytes before it had.
    pub(super) etag: Option<String>,
    /// Without an offset: a tag whose bytes are in the cache, so that nothing needs to be sent while it holds.
    pub(super) known_etag: Option<String>,
}

/// What came back.
pub(super) enum Answer {
    /// The tag of [`Ask::known_etag`] still holds.
    NotModified,
    /// The bytes before the offset are no longer the source's.
    StartOver,
    /// Bytes.
    Body(Body),
}

/// A body as it streams.
pub(super) struct Body {
    /// Where in the whole it begins: the offset asked for, or 0.
    pub(super) offset: u64,
    /// Size of the whole.
    pub(super) total: Option<u64>,
    /// Entity tag of the whole.
    pub(super) etag: Option<String>,
    /// The bytes.
    pub(super) stream: BoxStream<'static, Result<Bytes, BoxError>>,
}

/// A source on the network.
#[async_trait]
pub(super) trait Origin: Send + Sync {
    /// Asks once.
    async fn open(&self, ask: &Ask) -> Result<Answer, ArtifactError>;

    /// Whom faults are told about.
    fn target(&self) -> &Target;

    /// What tells this source from every other one, apart from what changes with each signature. Never shown, only hashed.
    fn identity(&self) -> String {
        format!("{} at {}", self.target().uri, self.target().host)
    }
}
