//! The content-addressed folder: where verified blobs, partial downloads and what is known of sources lie.
//!
//! Layout: `blobs/sha256/HEX`, `partial/KEY.{part,json,lock}`, `sources/KEY.json`. Invariants: a file appears under `blobs` only
//! complete, verified and by an atomic rename; every blob is hashed again before it is handed out.

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::{
    digest::{self, Digest, Hashed},
    error::ArtifactError,
};

const LOCK_POLL: Duration = Duration::from_millis(100);

/// The cache folder.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

/// What an S3 source without a digest in the manifest last turned out to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SourceRecord {
    /// The source, as it may be logged.
    pub(super) uri: String,
    /// Entity tag that the source gave the bytes.
    pub(super) etag: String,
    /// Digest of the bytes.
    pub(super) sha256: String,
}

/// A verified blob.
#[derive(Debug)]
pub(super) struct Blob {
    /// The descriptor whose bytes were hashed.
    pub(super) file: File,
    /// Where it lies.
    pub(super) path: PathBuf,
    /// Its size.
    pub(super) size_bytes: u64,
}

/// Names of one partial download's files, and the lock on them.
#[derive(Debug)]
pub(super) struct PartSlot {
    /// The bytes so far.
    pub(super) part: PathBuf,
    /// What is known about them.
    pub(super) record: PathBuf,
    /// Held until the slot is dropped; `None` where the file system has no locks and the names are unique instead.
    _lock: Option<File>,
}

impl Cache {
    /// Makes the folders where they are absent.
    pub(super) fn open(dir: &Path) -> Result<Self, ArtifactError> {
        for folder in ["blobs/sha256", "partial", "sources"] {
            let path = dir.join(folder);
            std::fs::create_dir_all(&path).map_err(|source| cache_error("make the folder", &path, source))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// The folder itself, for messages.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the blob of a digest lies, or would.
    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.as_str())
    }

    /// The blob of a digest, if it is there and still has that digest. A damaged one is removed.
    pub(super) async fn verified_blob(&self, wanted: &Digest) -> Result<Option<Blob>, ArtifactError> {
        let path = self.blob_path(wanted);
        match digest::hash_file(&path).await {
            Ok(Hashed { file, digest, size_bytes }) if digest == *wanted => Ok(Some(Blob { file, path, size_bytes })),
            Ok(Hashed { digest, size_bytes, .. }) => {
                warn!(
                    phase = "Verify",
                    "the cached blob {wanted} has the digest {digest} ({size_bytes} bytes); removing it"
                );
                std::fs::remove_file(&path).map_err(|source| cache_error("remove the damaged blob", &path, source))?;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(cache_error("read the blob", &path, source)),
        }
    }

    /// What is remembered of a source; a record that cannot be read is none.
    pub(super) fn recall(&self, key: &str) -> Option<SourceRecord> {
        read_json(&self.source_path(key))
    }

    /// Remembers what a source turned out to be.
    pub(super) fn remember(&self, key: &str, record: &SourceRecord) -> Result<(), ArtifactError> {
        let path = self.source_path(key);
        write_json(&path, record).map_err(|source| cache_error("write the record", &path, source))
    }

    fn source_path(&self, key: &str) -> PathBuf {
        self.dir.join("sources").join(format!("{key}.json"))
    }

    /// Bytes that this user may still write.
    pub(super) fn free_bytes(&self) -> Result<u64, ArtifactError> {
        let stat = rustix::fs::statvfs(&self.dir)
            .map_err(|error| cache_error("ask for the free space of", &self.dir, error.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The files of one partial download, once nobody else uses them. The caller bounds the wait.
    pub(super) async fn part_slot(&self, key: &str, uri: &str) -> Result<PartSlot, ArtifactError> {
        let path = self.dir.join("partial").join(format!("{key}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| cache_error("open the lock", &path, source))?;
        let mut is_told = false;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(self.slot(key, Some(lock))),
                Err(TryLockError::WouldBlock) => {
                    if !is_told {
                        info!(phase = "Fetch", "waiting for another download of {uri} into the same cache");
                        is_told = true;
                    }
                    tokio::time::sleep(LOCK_POLL).await;
                }
                Err(TryLockError::Error(error)) => {
                    warn!("the cache's file system has no locks ({error}); this download cannot be continued later");
                    return Ok(self.slot(&unique(key), None));
                }
            }
        }
    }

    fn slot(&self, key: &str, lock: Option<File>) -> PartSlot {
        let file = |extension: &str| self.dir.join("partial").join(format!("{key}.{extension}"));
        PartSlot { part: file("part"), record: file("json"), _lock: lock }
    }
}

/// The name under which a source's files are kept: a hash, since a URI is no file name.
pub(super) fn source_key(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part.as_bytes());
    }
    Digest::of(hasher).as_str().to_owned()
}

/// A value read from a JSON file, if the file is there and holds one.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Writes a JSON file by an atomic rename.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let temporary = PathBuf::from(unique(&path.to_string_lossy()));
    std::fs::write(&temporary, serde_json::to_vec(value)?)?;
    std::fs::rename(&temporary, path)
}

/// An error of the cache folder.
pub(super) fn cache_error(action: &'static str, path: &Path, source: io::Error) -> ArtifactError {
    ArtifactError::Cache { action, path: path.to_owned(), source }
}

fn unique(name: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{name}.{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}
