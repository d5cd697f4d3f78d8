//! Pulling artifacts, from end to end: a server that misbehaves on request, a fake S3 server and a real one.

mod files;
mod http;
mod processes;
mod s3;
mod s3_credentials;
mod server;
mod tls;
mod versitygw;

use std::{
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};
use torchmodel_artifact::{
    ArtifactError, ArtifactOptions, Environment, FetchLimits, PullContext, VerifiedArtifact, pull_in,
};
use torchmodel_crds::{Failure, ModelSource};

/// A cache folder of its own, short limits and no environment.
struct Puller {
    dir: tempfile::TempDir,
    options: ArtifactOptions,
    context: PullContext,
}

/// Everything that the artifact's own descriptor reads.
fn read_file(artifact: &VerifiedArtifact) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(artifact.size_bytes).unwrap()];
    artifact.file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

impl Puller {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = ArtifactOptions { cache_dir: dir.path().join("cache"), credentials_dir: None, local_file: None };
        let limits = FetchLimits {
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            credentials_timeout: Duration::from_millis(300),
            attempts: 3,
            backoff_base: Duration::from_millis(2),
            backoff_max: Duration::from_millis(4),
            total_timeout: Duration::from_secs(60),
            ..FetchLimits::default()
        };
        let environment = Environment::from_iter([("AWS_EC2_METADATA_DISABLED", "true")]);
        Self { dir, options, context: PullContext { environment, limits } }
    }

    fn with_environment(mut self, variables: &[(&str, &str)]) -> Self {
        self.context.environment = variables.iter().copied().collect();
        self
    }

    async fn pull(&self, source: &ModelSource) -> Result<VerifiedArtifact, ArtifactError> {
        pull_in(source, &self.options, &self.context).await
    }

    async fn failure(&self, source: &ModelSource) -> Failure {
        self.pull(source).await.expect_err("the pull must fail").failure()
    }

    /// Files under `partial` that are not locks.
    fn partial(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.options.cache_dir.join("partial")).unwrap();
        let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension != "lock"));
        files.sort();
        files
    }

    /// Whether a partial download of so many bytes is on disk; the folder need not be there yet.
    fn has_part_of(&self, bytes: usize) -> bool {
        let files = std::fs::read_dir(self.options.cache_dir.join("partial"));
        files.into_iter().flatten().flatten().any(|file| file.metadata().is_ok_and(|found| found.len() == bytes as u64))
    }

    fn part_file(&self) -> PathBuf {
        self.partial().into_iter().find(|path| path.extension().unwrap() == "part").expect("no partial download")
    }
}

fn source(uri: impl Into<String>, bytes: Option<&[u8]>) -> ModelSource {
    ModelSource { uri: Some(uri.into()), sha256: bytes.map(digest), ..ModelSource::default() }
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Bytes without a period that a wrong offset could hide in.
fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// Waits until `condition` holds, ten seconds at most.
async fn await_condition(what: &str, mut condition: impl FnMut() -> bool) {
    let check = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), check)
        .await
        .unwrap_or_else(|_| panic!("in 10 s it did not happen that {what}"));
}
