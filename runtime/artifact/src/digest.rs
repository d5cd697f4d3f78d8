//! SHA-256 digests: their text form and the hashing of files.
//!
//! Hashing runs on the blocking pool and uses the processor's SHA instructions where it has them (sha2 looks at run time).
//! Invariant: a [`Digest`] is always 64 lower-case hexadecimal digits.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest as _, Sha256};

use super::error::ArtifactError;

const READ_BYTES: usize = 1 << 20;

/// A SHA-256 in the form that `sha256sum` prints.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Digest(String);

impl Digest {
    /// Reads `source.sha256`.
    pub(super) fn parse(text: &str) -> Result<Self, ArtifactError> {
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Self(text.to_owned()));
        }
        let problem = format!(
            "must be 64 lower-case hexadecimal digits, as sha256sum prints them; it is {:?}, {} characters",
            text.chars().take(80).collect::<String>(),
            text.chars().count()
        );
        Err(ArtifactError::SpecInvalid { field: "sha256", problem })
    }

    /// The digest of everything that `hasher` has seen.
    pub(super) fn of(hasher: Sha256) -> Self {
        Self(hex::encode(hasher.finalize()))
    }

    /// The 64 digits.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Feeds the rest of `file` to `hasher` and returns how many bytes that were. Blocks.
pub(super) fn hash_rest(file: &mut File, hasher: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0_u8; READ_BYTES];
    let mut total = 0_u64;
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(buffer.get(..count).unwrap_or_default());
        total = total.saturating_add(count as u64);
    }
}

/// A file that was read to its end, and what was read.
#[derive(Debug)]
pub(super) struct Hashed {
    /// The descriptor that was read.
    pub(super) file: File,
    /// Digest of its bytes.
    pub(super) digest: Digest,
    /// Number of them.
    pub(super) size_bytes: u64,
}

/// Opens and hashes a regular file, on the blocking pool.
pub(super) async fn hash_file(path: &Path) -> io::Result<Hashed> {
    let path = path.to_owned();
    let task = tokio::task::spawn_blocking(move || {
        let mut file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut hasher = Sha256::new();
        let size_bytes = hash_rest(&mut file, &mut hasher)?;
        Ok(Hashed { file, digest: Digest::of(hasher), size_bytes })
    });
    task.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_digest_is_refused() {
        let good = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        assert_eq!(Digest::parse(good).unwrap().as_str(), good);
        for bad in ["", "9f86", &good.to_uppercase(), &format!("sha256:{good}"), &format!("{good} "), &"é".repeat(32)]
        {
            let message = Digest::parse(bad).unwrap_err().to_string();
            assert!(message.starts_with("source.sha256 must be 64 lower-case hexadecimal digits"), "{message}");
        }
    }

    #[tokio::test]
    async fn a_file_is_hashed_whole_and_a_folder_is_not_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "test").unwrap();
        let hashed = hash_file(&path).await.unwrap();
        assert_eq!(hashed.digest.as_str(), "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08");
        assert_eq!(hashed.size_bytes, 4);
        assert!(hash_file(dir.path()).await.is_err());
    }
}
