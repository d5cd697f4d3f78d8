//! Brings a source's bytes into a partial file: asks, streams, and asks for the rest after a passing fault.
//!
//! `artifact` calls [`run`] with the part locked. Invariants: attempts without a new byte are counted and bounded; room on disk is
//! checked before the first byte of each answer; dropping the future leaves a part that can be continued.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use torchmodel_process::{error_chain, format_bytes};
use tracing::{info, warn};

use super::{
    FetchLimits,
    cache::{Cache, cache_error},
    error::{ArtifactError, is_out_of_space},
    fault,
    origin::{Answer, Ask, Body, Origin},
    part::Part,
    progress::Progress,
};

/// Chunks between the socket and the disk; a chunk is at most some hundred kilobytes.
const CHANNEL_CHUNKS: usize = 32;

/// How a download ended without an error.
pub(super) enum Outcome {
    /// Every announced byte is in the part.
    Complete(Box<Part>),
    /// The tag that the cache knows still holds.
    NotModified,
}

/// What a download works with.
pub(super) struct Download<'a> {
    /// The source.
    pub(super) origin: &'a dyn Origin,
    /// The cache folder, for its free space.
    pub(super) cache: &'a Cache,
    /// Attempts and times.
    pub(super) limits: &'a FetchLimits,
    /// A tag whose verified bytes are in the cache.
    pub(super) known_etag: Option<String>,
}

/// Downloads until the part is complete.
pub(super) async fn run(download: &Download<'_>, mut part: Part) -> Result<Outcome, ArtifactError> {
    let mut fruitless = 0;
    let mut progress = Progress::new(download.origin.target().uri.clone(), part.written(), Instant::now());
    loop {
        if part.written() > 0 && part.total() == Some(part.written()) {
            return Ok(Outcome::Complete(Box::new(part)));
        }
        let before = part.written();
        let (returned, result) = attempt(download, part, &mut progress).await;
        let fault = match (returned, result) {
            (Some(part), Ok(Step::Complete)) => return Ok(Outcome::Complete(Box::new(part))),
            (_, Ok(Step::NotModified)) => return Ok(Outcome::NotModified),
            (Some(returned), Err(error)) if error.is_transient() => {
                part = returned;
                error
            }
            (_, Err(error)) => return Err(error),
            (None, Ok(Step::Complete)) => return Err(lost_part(download)),
        };
        fruitless = if part.written() > before { 1 } else { fruitless + 1 };
        if fruitless >= download.limits.attempts {
            return Err(ArtifactError::Exhausted { attempts: fruitless, source: Box::new(fault) });
        }
        let pause = backoff(download.limits, fruitless);
        warn!(
            phase = "Fetch",
            attempt = fruitless,
            "{}; {} are there, trying again in {:.1} s",
            error_chain(&fault),
            format_bytes(part.written()),
            pause.as_secs_f32()
        );
        tokio::time::sleep(pause).await;
    }
}

enum Step {
    Complete,
    NotModified,
}

/// One request. The part comes back unless the blocking pool lost it.
async fn attempt(
    download: &Download<'_>,
    mut part: Part,
    progress: &mut Progress,
) -> (Option<Part>, Result<Step, ArtifactError>) {
    let ask =
        Ask { offset: part.written(), etag: part.etag().map(str::to_owned), known_etag: download.known_etag.clone() };
    let body = match open(download, &ask).await {
        Ok(Answer::Body(body)) => body,
        Ok(Answer::NotModified) => return (Some(part), Ok(Step::NotModified)),
        Ok(Answer::StartOver) => {
            let target = download.origin.target();
            info!(phase = "Fetch", "{} is not what it was, or cannot be continued: starting over", target.uri);
            let result = restart(&mut part)
                .and(Err(ArtifactError::CannotContinue { host: target.host.clone(), uri: target.uri.clone() }));
            return (Some(part), result);
        }
        Err(error) => return (Some(part), Err(error)),
    };
    if let Err(error) = prepare(download, &mut part, &body) {
        return (Some(part), Err(error));
    }
    stream(download, part, body, progress).await
}

async fn open(download: &Download<'_>, ask: &Ask) -> Result<Answer, ArtifactError> {
    let idle = download.limits.connect_timeout + download.limits.read_timeout;
    tokio::time::timeout(idle, download.origin.open(ask)).await.unwrap_or_else(|_| {
        let target = download.origin.target();
        let (host, uri) = (target.host.clone(), target.uri.clone());
        Err(ArtifactError::Stalled { host, uri, received: ask.offset, idle })
    })
}

/// Readies the part for a body: starts over where the body does, notes tag and size, and looks for room.
fn prepare(download: &Download<'_>, part: &mut Part, body: &Body) -> Result<(), ArtifactError> {
    let target = download.origin.target();
    if body.offset == 0 && part.written() > 0 {
        info!(phase = "Fetch", "{} sends {} from the start again", target.host, target.uri);
        restart(part)?;
    }
    if body.offset != part.written() {
        restart(part)?;
        return Err(ArtifactError::CannotContinue { host: target.host.clone(), uri: target.uri.clone() });
    }
    let described = part.describe(body.etag.clone(), body.total);
    described.map_err(|source| cache_error("describe the download", part.path(), source))?;
    let Some(total) = body.total else { return Ok(()) };
    if total > download.limits.max_size_bytes {
        let (uri, limit) = (target.uri.clone(), download.limits.max_size_bytes);
        return Err(ArtifactError::TooLarge { uri, size_bytes: total, limit });
    }
    let (needed, free) = (total.saturating_sub(part.written()), download.cache.free_bytes()?);
    if needed > free {
        let (dir, uri) = (download.cache.dir().to_owned(), target.uri.clone());
        return Err(ArtifactError::CacheFull { dir, uri, needed, free });
    }
    info!(
        phase = "Fetch",
        total_bytes = total,
        offset_bytes = part.written(),
        "fetching {} ({}{}) from {}",
        target.uri,
        format_bytes(total),
        if part.written() > 0 { format!(", {} already there", format_bytes(part.written())) } else { String::new() },
        target.host
    );
    Ok(())
}

/// Moves the body to the blocking pool, which writes and hashes.
async fn stream(
    download: &Download<'_>,
    part: Part,
    body: Body,
    progress: &mut Progress,
) -> (Option<Part>, Result<Step, ArtifactError>) {
    let (total, path, start) = (body.total, part.path().to_owned(), part.written());
    let (sender, chunks) = mpsc::channel(CHANNEL_CHUNKS);
    let writer = tokio::task::spawn_blocking(move || part.drain(chunks));
    let received = receive(download, body, &sender, |received| {
        progress.update(start.saturating_add(received), total, Instant::now());
    })
    .await;
    drop(sender);
    let Ok((part, written)) = writer.await else { return (None, Err(lost_part(download))) };
    if let Err(source) = written {
        let error = match total {
            Some(total) if is_out_of_space(&source) => {
                let (needed, free) = (total.saturating_sub(part.written()), download.cache.free_bytes().unwrap_or(0));
                let (dir, uri) = (download.cache.dir().to_owned(), download.origin.target().uri.clone());
                ArtifactError::CacheFull { dir, uri, needed, free }
            }
            _ => cache_error("write", &path, source),
        };
        return (Some(part), Err(error));
    }
    let target = download.origin.target();
    let result = received.and_then(|()| match total {
        Some(total) if part.written() < total => Err(ArtifactError::Truncated {
            host: target.host.clone(),
            uri: target.uri.clone(),
            received: part.written(),
            announced: Some(total),
        }),
        _ => Ok(Step::Complete),
    });
    (Some(part), result)
}

/// Passes the body's chunks on until it ends, breaks, goes silent or grows too large.
async fn receive(
    download: &Download<'_>,
    mut body: Body,
    sender: &mpsc::Sender<Bytes>,
    mut on_bytes: impl FnMut(u64),
) -> Result<(), ArtifactError> {
    let (target, limits) = (download.origin.target(), download.limits);
    let mut received = 0_u64;
    loop {
        let at = body.offset.saturating_add(received);
        let Ok(next) = tokio::time::timeout(limits.read_timeout, body.stream.next()).await else {
            let (host, uri) = (target.host.clone(), target.uri.clone());
            return Err(ArtifactError::Stalled { host, uri, received: at, idle: limits.read_timeout });
        };
        let chunk = match next {
            None => return Ok(()),
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Err(fault::explain_body(target, at, body.total, error.as_ref())),
        };
        received = received.saturating_add(chunk.len() as u64);
        if body.offset.saturating_add(received) > limits.max_size_bytes {
            let (uri, limit) = (target.uri.clone(), limits.max_size_bytes);
            return Err(ArtifactError::TooLarge { uri, size_bytes: limit.saturating_add(1), limit });
        }
        on_bytes(received);
        if sender.send(chunk).await.is_err() {
            return Ok(()); // The writer stopped: its own error says why.
        }
    }
}

fn restart(part: &mut Part) -> Result<(), ArtifactError> {
    let path = part.path().to_owned();
    part.restart().map_err(|source| cache_error("begin again", &path, source))
}

fn lost_part(download: &Download<'_>) -> ArtifactError {
    cache_error("write", download.cache.dir(), std::io::Error::other("the writing task ended early"))
}

/// How long to wait after `fruitless` attempts: doubling from the base up to the maximum, the upper half of it at random.
fn backoff(limits: &FetchLimits, fruitless: u32) -> Duration {
    let doubled = limits.backoff_base.saturating_mul(1 << fruitless.saturating_sub(1).min(16));
    let full = doubled.min(limits.backoff_max);
    let random = RandomState::new().build_hasher().finish() % 1000;
    let share = u32::try_from(500 + random / 2).unwrap_or(1000);
    full.saturating_mul(share) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_vary_by_half() {
        let limits = FetchLimits::default();
        for (fruitless, full_ms) in [(1, 500), (2, 1000), (3, 2000), (4, 4000), (5, 8000), (9, 8000), (100, 8000)] {
            for _ in 0..50 {
                let wait = backoff(&limits, fruitless);
                assert!(
                    wait <= Duration::from_millis(full_ms) && wait >= Duration::from_millis(full_ms / 2),
                    "{wait:?}"
                );
            }
        }
    }
}
