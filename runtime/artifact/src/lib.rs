//! From a source in a manifest to a verified local file.
//!
//! `serve` and `pull` call [`pull`]; everything it needs from outside stands in [`ArtifactOptions`] and [`PullContext`].
//! Invariants: no file is returned whose bytes were not hashed in this very call, through the descriptor that is returned, and
//! compared with the source's digest, where it names one; no message holds a secret; every wait, retry and size has a limit in [`FetchLimits`].
//!
//! A source with a digest that is in the cache needs no network. An `s3://` source without one is asked each time whether its
//! entity tag still holds, and sent again only if it does not.

mod cache;
mod client;
mod credentials;
mod digest;
mod download;
mod environment;
mod error;
mod fault;
mod http;
mod origin;
mod part;
mod progress;
mod s3;
mod uri;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use torchmodel_crds::ModelSource;
use torchmodel_process::{format_bytes, format_rate};
use tracing::{info, warn};

use self::{
    cache::{Blob, Cache, SourceRecord, cache_error, source_key},
    digest::{Digest, Hashed},
    download::{Download, Outcome},
    http::HttpOrigin,
    origin::Origin,
    part::Part,
    s3::{S3Origin, S3Source},
    uri::Location,
};
pub use self::{environment::Environment, error::ArtifactError};

/// Where artifacts are kept and what opens their sources.
#[derive(Clone, Debug)]
pub struct ArtifactOptions {
    /// Folder of the content-addressed cache. Made where it is absent; may be shared by several processes.
    pub cache_dir: PathBuf,
    /// Folder of a mounted Secret: files `AWS_ACCESS_KEY_ID` and so on, or one named `credentials` in the form of
    /// `~/.aws/credentials`. Goes before the environment; without keys in it the pull fails.
    pub credentials_dir: Option<PathBuf>,
    /// A file that takes the place of the source. The source's digest still applies to it.
    pub local_file: Option<PathBuf>,
}

/// A local file with the bytes that the source names.
#[derive(Clone, Debug)]
pub struct VerifiedArtifact {
    /// The file, open: the descriptor whose bytes were hashed. Whoever loads the model reads this and not the path, which may name
    /// another file by then.
    pub file: Arc<File>,
    /// Where the file is. In the cache it is read-only; a local source is used where it is.
    pub path: PathBuf,
    /// SHA-256 of its bytes, 64 lower-case hexadecimal digits, computed in this call.
    pub sha256: String,
    /// Its size.
    pub size_bytes: u64,
    /// Where it came from: scheme, host and path.
    pub uri: String,
}

/// What bounds a download.
#[derive(Clone, Debug)]
pub struct FetchLimits {
    /// To open a connection, name look-up and TLS included. Default: 10 s.
    pub connect_timeout: Duration,
    /// Longest silence while an answer or its bytes are awaited. Default: 30 s.
    pub read_timeout: Duration,
    /// To get credentials from a service: web identity, container, instance metadata. Default: 3 s.
    pub credentials_timeout: Duration,
    /// Attempts in a row that bring no new byte. Default: 5. One that does begins the count again.
    pub attempts: u32,
    /// Wait after the first such attempt; doubles. Default: 0.5 s, of which a random half.
    pub backoff_base: Duration,
    /// Longest wait between attempts. Default: 8 s.
    pub backoff_max: Duration,
    /// For everything from the first look at the cache to the verified file. Default: 6 h.
    pub total_timeout: Duration,
    /// Largest artifact. Default: 1 TiB.
    pub max_size_bytes: u64,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            credentials_timeout: Duration::from_secs(3),
            attempts: 5,
            backoff_base: Duration::from_millis(500),
            backoff_max: Duration::from_secs(8),
            total_timeout: Duration::from_secs(6 * 60 * 60),
            max_size_bytes: 1 << 40,
        }
    }
}

/// What a pull takes from the process around it; a test passes its own.
#[derive(Clone, Debug, Default)]
pub struct PullContext {
    /// Environment variables; the AWS SDK's usual ones are read.
    pub environment: Environment,
    /// Limits.
    pub limits: FetchLimits,
}

impl PullContext {
    /// This process's environment, the default limits.
    #[must_use]
    pub fn of_process() -> Self {
        Self { environment: Environment::of_process(), limits: FetchLimits::default() }
    }
}

/// Brings a source's artifact to a local file and verifies it, with this process's environment and the default limits.
///
/// Must run on a tokio runtime; reading, writing and hashing use its blocking pool. Dropping the future leaves a partial
/// download that the next call continues.
pub async fn pull(source: &ModelSource, options: &ArtifactOptions) -> Result<VerifiedArtifact, ArtifactError> {
    pull_in(source, options, &PullContext::of_process()).await
}

/// [`pull`] with a given environment and given limits.
pub async fn pull_in(
    source: &ModelSource,
    options: &ArtifactOptions,
    context: &PullContext,
) -> Result<VerifiedArtifact, ArtifactError> {
    let wanted = source.sha256.as_deref().map(Digest::parse).transpose()?;
    if let Some(file) = &options.local_file {
        return verify_file(file, wanted.as_ref()).await;
    }
    let location = match (&source.uri, &source.volume) {
        (Some(uri), None) => Location::parse(uri)?,
        (Some(_), Some(_)) => {
            return Err(spec_invalid("uri", "and source.volume are both set; set exactly one of them"));
        }
        (None, Some(_)) => {
            return Err(spec_invalid("volume", "is mounted by a pod only; name the file on it with --artifact"));
        }
        (None, None) => return Err(spec_invalid("uri", "and source.volume are both missing; set exactly one of them")),
    };
    match &location {
        Location::File(path) => return verify_file(path, wanted.as_ref()).await,
        Location::Http(_) if wanted.is_none() => {
            let problem = "is required for an http:// or https:// source: anyone on the way could change the file \
                           (sha256sum FILE prints it)";
            return Err(spec_invalid("sha256", problem));
        }
        Location::Http(_) | Location::S3 { .. } => {}
    }
    let fetch = Fetch { source, options, context, location: &location, wanted };
    let limit = context.limits.total_timeout;
    tokio::time::timeout(limit, fetch.run())
        .await
        .unwrap_or_else(|_| Err(ArtifactError::OutOfTime { uri: location.to_string(), limit }))
}

/// One pull over the network.
struct Fetch<'a> {
    source: &'a ModelSource,
    options: &'a ArtifactOptions,
    context: &'a PullContext,
    location: &'a Location,
    wanted: Option<Digest>,
}

impl Fetch<'_> {
    async fn run(&self) -> Result<VerifiedArtifact, ArtifactError> {
        let cache = Cache::open(&self.options.cache_dir)?;
        if let Some(found) = self.wanted_in(&cache).await? {
            return Ok(found);
        }
        let origin = self.origin()?;
        let key = source_key(&[&origin.identity(), self.wanted.as_ref().map_or("", Digest::as_str)]);
        let slot = cache.part_slot(&key, &origin.target().uri).await?;
        // While this one waited for the lock, another may have brought the blob.
        if let Some(found) = self.wanted_in(&cache).await? {
            return Ok(found);
        }
        let known = self.known(&cache, &key).await?;
        let started = Instant::now();
        let download = Download {
            origin: &*origin,
            cache: &cache,
            limits: &self.context.limits,
            known_etag: known.as_ref().map(|(record, _)| record.etag.clone()),
        };
        let part = self.open_part(slot).await?;
        let is_continued = part.written() > 0;
        let part = match download::run(&download, part).await? {
            Outcome::Complete(part) => *part,
            Outcome::NotModified => return self.unchanged(known, &*origin),
        };
        let part = self.checked(&download, part, is_continued).await?;
        let (size_bytes, sha256, etag) = (part.written(), part.digest(), part.etag().map(str::to_owned));
        let blob = self.commit(&cache, part, &sha256).await?;
        if let (None, Some(etag)) = (&self.wanted, etag) {
            let uri = origin.target().uri.clone();
            cache.remember(&key, &SourceRecord { uri, etag, sha256: sha256.to_string() })?;
        }
        let elapsed = started.elapsed();
        info!(
            phase = "Verify",
            size_bytes,
            sha256 = sha256.as_str(),
            duration_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "fetched {} ({}) in {:.1} s, {}; its sha256 is {sha256}{}",
            self.location,
            format_bytes(size_bytes),
            elapsed.as_secs_f32(),
            format_rate(size_bytes, elapsed),
            if self.wanted.is_some() { ", as the source says" } else { "" }
        );
        Ok(self.artifact(blob, &sha256))
    }

    fn origin(&self) -> Result<Box<dyn Origin>, ArtifactError> {
        let client = client::build(self.context)?;
        Ok(match self.location {
            Location::Http(url) => Box::new(HttpOrigin::new(client, url.clone())),
            Location::S3 { bucket, key } => Box::new(S3Origin::new(
                client,
                &S3Source {
                    bucket,
                    key,
                    spec: self.source.s3.as_ref(),
                    secret: self.options.credentials_dir.as_deref(),
                    environment: &self.context.environment,
                    credentials_timeout: self.context.limits.credentials_timeout,
                },
            )?),
            Location::File(path) => return Err(cache_error("fetch", path, std::io::Error::other("a local file"))),
        })
    }

    /// The artifact from the cache, where the source names its digest.
    async fn wanted_in(&self, cache: &Cache) -> Result<Option<VerifiedArtifact>, ArtifactError> {
        let Some(wanted) = &self.wanted else { return Ok(None) };
        let started = Instant::now();
        let Some(blob) = cache.verified_blob(wanted).await? else { return Ok(None) };
        log_verified(&self.location.to_string(), blob.size_bytes, started, "found in the cache");
        Ok(Some(self.artifact(blob, wanted)))
    }

    /// What the cache has of a source without digest: its record and its verified blob.
    async fn known(&self, cache: &Cache, key: &str) -> Result<Option<(SourceRecord, Blob)>, ArtifactError> {
        let Some(record) = cache.recall(key).filter(|_| self.wanted.is_none()) else { return Ok(None) };
        let Ok(digest) = Digest::parse(&record.sha256) else { return Ok(None) };
        Ok(cache.verified_blob(&digest).await?.map(|blob| (record, blob)))
    }

    fn unchanged(
        &self,
        known: Option<(SourceRecord, Blob)>,
        origin: &dyn Origin,
    ) -> Result<VerifiedArtifact, ArtifactError> {
        let target = origin.target();
        let Some((record, blob)) = known else {
            let (host, uri) = (target.host.clone(), target.uri.clone());
            let detail = "it answered that nothing changed, though it was not asked so".to_owned();
            return Err(ArtifactError::Rejected { host, uri, detail });
        };
        let digest = Digest::parse(&record.sha256)?;
        info!(
            phase = "Verify",
            size_bytes = blob.size_bytes,
            "{} is unchanged since it was cached; its sha256 is {digest}",
            target.uri
        );
        Ok(self.artifact(blob, &digest))
    }

    async fn open_part(&self, slot: cache::PartSlot) -> Result<Part, ArtifactError> {
        let (path, is_checked) = (slot.part.clone(), self.wanted.is_some());
        let part = blocking(move || Part::open(slot, is_checked)).await;
        part.map_err(|source| cache_error("open the partial download", &path, source))
    }

    /// The part if its digest is the wanted one. One that was continued from an earlier download is fetched whole once more
    /// before the source is blamed.
    async fn checked(
        &self,
        download: &Download<'_>,
        mut part: Part,
        is_continued: bool,
    ) -> Result<Part, ArtifactError> {
        let Some(wanted) = &self.wanted else { return Ok(part) };
        if is_continued && part.digest() != *wanted {
            warn!(
                phase = "Verify",
                "{}, continued from an earlier download, has another digest: fetching it whole", self.location
            );
            let path = part.path().to_owned();
            part.restart().map_err(|source| cache_error("begin again", &path, source))?;
            if let Outcome::Complete(whole) = download::run(download, part).await? {
                part = *whole;
            } else {
                return Err(cache_error("fetch", &path, std::io::Error::other("the source sent nothing")));
            }
        }
        let actual = part.digest();
        if actual == *wanted {
            return Ok(part);
        }
        let (size_bytes, path) = (part.written(), part.path().to_owned());
        blocking(move || part.discard()).await.map_err(|source| cache_error("remove", &path, source))?;
        let (uri, expected, actual) = (self.location.to_string(), wanted.to_string(), actual.to_string());
        Err(ArtifactError::DigestMismatch { uri, expected, actual, size_bytes })
    }

    async fn commit(&self, cache: &Cache, part: Part, sha256: &Digest) -> Result<Blob, ArtifactError> {
        let path = cache.blob_path(sha256);
        let (to, size_bytes) = (path.clone(), part.written());
        let file = blocking(move || part.commit(&to))
            .await
            .map_err(|source| cache_error("move the artifact to", &path, source))?;
        Ok(Blob { file, path, size_bytes })
    }

    fn artifact(&self, blob: Blob, sha256: &Digest) -> VerifiedArtifact {
        let Blob { file, path, size_bytes } = blob;
        let (sha256, uri) = (sha256.to_string(), self.location.to_string());
        VerifiedArtifact { file: Arc::new(file), path, sha256, size_bytes, uri }
    }
}

/// Hashes a local file where it is.
async fn verify_file(path: &Path, wanted: Option<&Digest>) -> Result<VerifiedArtifact, ArtifactError> {
    let started = Instant::now();
    let uri = Location::File(path.to_owned()).to_string();
    let Hashed { file, digest: actual, size_bytes } =
        digest::hash_file(path).await.map_err(|source| ArtifactError::File { path: path.to_owned(), source })?;
    if let Some(expected) = wanted.filter(|wanted| **wanted != actual) {
        let (expected, actual) = (expected.to_string(), actual.to_string());
        return Err(ArtifactError::DigestMismatch { uri, expected, actual, size_bytes });
    }
    if wanted.is_some() {
        log_verified(&uri, size_bytes, started, "as the source says");
    }
    let (file, path, sha256) = (Arc::new(file), path.to_owned(), actual.to_string());
    Ok(VerifiedArtifact { file, path, sha256, size_bytes, uri })
}

fn log_verified(uri: &str, size_bytes: u64, started: Instant, remark: &str) {
    let elapsed = started.elapsed();
    info!(
        phase = "Verify",
        size_bytes,
        "verified {uri} ({}) in {:.2} s, {}: {remark}",
        format_bytes(size_bytes),
        elapsed.as_secs_f32(),
        format_rate(size_bytes, elapsed)
    );
}

fn spec_invalid(field: &'static str, problem: &str) -> ArtifactError {
    ArtifactError::SpecInvalid { field, problem: problem.to_owned() }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}
