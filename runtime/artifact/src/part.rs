//! One partial download on disk: its bytes, their running digest, and what must match to continue it.
//!
//! All methods block; `download` calls them on the blocking pool. Invariants: the hasher has seen exactly the first `written`
//! bytes of the file; without a digest to check against, only bytes that were flushed to disk count after a restart; the lock
//! lives as long as anything can still write.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{
    cache::{self, PartSlot},
    digest::{self, Digest},
};

/// Flushed to disk after this many bytes, so that a crash loses no more.
const SYNC_BYTES: u64 = 64 << 20;

/// A download that is not complete yet.
#[derive(Debug)]
pub(super) struct Part {
    slot: PartSlot,
    file: File,
    hasher: Sha256,
    written: u64,
    record: PartRecord,
}

/// What is known about the bytes of a partial download.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PartRecord {
    etag: Option<String>,
    total: Option<u64>,
    synced_bytes: u64,
}

impl Part {
    /// Opens what an earlier attempt left and hashes it, or begins anew.
    ///
    /// `is_checked`: the manifest names a digest, so that damage will be noticed at the end.
    pub(super) fn open(slot: PartSlot, is_checked: bool) -> io::Result<Self> {
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&slot.part)?;
        let record: PartRecord = cache::read_json(&slot.record).unwrap_or_default();
        let length = file.metadata()?.len();
        let mut usable = if is_checked { length } else { length.min(record.synced_bytes) };
        let can_match = is_checked || record.etag.is_some();
        if !can_match || record.total.is_some_and(|total| usable > total) {
            usable = 0;
        }
        file.set_len(usable)?;
        let mut hasher = Sha256::new();
        let written = digest::hash_rest(&mut file, &mut hasher)?;
        let mut part = Self { slot, file, hasher, written, record };
        if written == 0 {
            part.restart()?;
        }
        Ok(part)
    }

    /// Bytes that are there.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Size of the whole, if a source announced it.
    pub(super) fn total(&self) -> Option<u64> {
        self.record.total
    }

    /// Entity tag of the whole, if the source gave one.
    pub(super) fn etag(&self) -> Option<&str> {
        self.record.etag.as_deref()
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.slot.part
    }

    /// Forgets every byte.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.hasher, self.written, self.record) = (Sha256::new(), 0, PartRecord::default());
        cache::write_json(&self.slot.record, &self.record)
    }

    /// Notes what the source says about the whole.
    pub(super) fn describe(&mut self, etag: Option<String>, total: Option<u64>) -> io::Result<()> {
        (self.record.etag, self.record.total) = (etag, total);
        cache::write_json(&self.slot.record, &self.record)
    }

    /// Appends and hashes what comes until the sender is dropped, then flushes. The part comes back in any case.
    pub(super) fn drain(mut self, chunks: mpsc::Receiver<Bytes>) -> (Self, io::Result<()>) {
        let result = self.append(chunks);
        let flushed = self.checkpoint();
        (self, result.and(flushed))
    }

    fn append(&mut self, mut chunks: mpsc::Receiver<Bytes>) -> io::Result<()> {
        while let Some(chunk) = chunks.blocking_recv() {
            self.file.write_all(&chunk)?;
            self.hasher.update(&chunk);
            self.written = self.written.saturating_add(chunk.len() as u64);
            if self.written.saturating_sub(self.record.synced_bytes) >= SYNC_BYTES {
                self.checkpoint()?;
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.record.synced_bytes = self.written;
        cache::write_json(&self.slot.record, &self.record)
    }

    /// Digest of what is there.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(self.hasher.clone())
    }

    /// Moves the complete file to its place and gives the descriptor through which its bytes were written and hashed. The caller has
    /// compared the digest.
    pub(super) fn commit(self, blob: &Path) -> io::Result<File> {
        let mut permissions = self.file.metadata()?.permissions();
        permissions.set_readonly(true);
        self.file.set_permissions(permissions)?;
        self.file.sync_all()?;
        std::fs::rename(&self.slot.part, blob)?;
        if let Some(folder) = blob.parent() {
            File::open(folder)?.sync_all()?;
        }
        remove_if_there(&self.slot.record)?;
        Ok(self.file)
    }

    /// Removes the files of a download that must not be continued.
    pub(super) fn discard(self) -> io::Result<()> {
        remove_if_there(&self.slot.part)?;
        remove_if_there(&self.slot.record)
    }
}

fn remove_if_there(path: &PathBuf) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;

    async fn part(cache: &Cache, is_checked: bool) -> Part {
        Part::open(cache.part_slot("key", "s3://models/a.pt").await.unwrap(), is_checked).unwrap()
    }

    async fn filled(cache: &Cache, is_checked: bool, etag: Option<&str>) {
        let mut part = part(cache, is_checked).await;
        part.describe(etag.map(str::to_owned), Some(10)).unwrap();
        let (sender, receiver) = mpsc::channel(1);
        let task = tokio::task::spawn_blocking(move || part.drain(receiver));
        sender.send(Bytes::from_static(b"abcd")).await.unwrap();
        drop(sender);
        task.await.unwrap().1.unwrap();
    }

    #[tokio::test]
    async fn a_reopened_part_goes_on_with_the_digest_of_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        filled(&cache, false, Some("\"1\"")).await;
        let part = part(&cache, false).await;
        assert_eq!((part.written(), part.total(), part.etag()), (4, Some(10), Some("\"1\"")));
        let expected = "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589";
        assert_eq!(part.digest().as_str(), expected);
    }

    #[tokio::test]
    async fn without_digest_only_flushed_bytes_of_a_tagged_object_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        filled(&cache, false, Some("\"1\"")).await;
        std::fs::write(dir.path().join("partial/key.part"), "abcdUNSYNC").unwrap();
        assert_eq!(part(&cache, false).await.written(), 4);

        std::fs::write(dir.path().join("partial/key.part"), "abcdUNSYNC").unwrap();
        assert_eq!(part(&cache, true).await.written(), 10);

        std::fs::remove_file(dir.path().join("partial/key.part")).unwrap();
        filled(&cache, false, None).await;
        assert_eq!(part(&cache, false).await.written(), 0);
    }
}
