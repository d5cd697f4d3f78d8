//! `serve`: from a file to a model that answers, and back down.
//!
//! The ports answer from the start (live, not ready); fetching, loading and warm-up run beside them. Invariants: ready only after
//! warm-up; whatever keeps a model from serving ends the process with one [`Failure`] line in the termination message.

use std::{
    fs,
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
};
use torchmodel_artifact::{self as artifact, ArtifactOptions};
use torchmodel_core::{
    engine::EngineLoader,
    metrics::Metrics,
    model_key::ModelVersion,
    repository::{ModelRepository, ModelState},
    service::InferenceService,
    version::Version,
};
use torchmodel_crds::{Failure, FailurePhase, FailureReason};
use torchmodel_server::{self as server, Listeners, Serving, admission::Admission, protocol::Limits};

use crate::{
    args::{ArtifactArguments, ServeArguments},
    machine,
    manifest::{ConfigError, ServeConfig},
    misused,
};

/// Connections that the system keeps while they are not accepted, so that a burst of clients is not turned away.
const BACKLOG: u32 = 1024;
/// How many of the largest requests are taken at one time.
const DEFAULT_INFLIGHT_REQUESTS: usize = 4;
/// The part of a container's memory that requests may take: one in so many.
const DEFAULT_MEMORY_PART: usize = 4;
/// First bytes of a zip file, which a TorchScript archive is.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Reads what `--file` names: a manifest, a configuration or an archive.
pub fn read_config(file: &Path) -> Result<ServeConfig, Failure> {
    let content = fs::read(file).map_err(|error| {
        misused(format!("reading {}: {error}", file.display()))
            .with_hint("--file takes a TorchModel manifest, a model configuration or a TorchScript archive (.pt)")
    })?;
    let config = if content.starts_with(ZIP_MAGIC) {
        ServeConfig::for_archive(file)
    } else {
        match String::from_utf8(content) {
            Ok(text) => ServeConfig::parse(&text, file),
            Err(_) => Err(ConfigError::Invalid {
                file: file.display().to_string(),
                message: "it is neither YAML nor a TorchScript archive (a zip file)".into(),
            }),
        }
    };
    config.map_err(|error| error.failure())
}

/// Where artifacts come from and go to, with the default cache folder filled in.
#[must_use]
pub fn artifact_options(arguments: &ArtifactArguments) -> ArtifactOptions {
    let user_cache = || {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(std::path::PathBuf::from);
        set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache"))).unwrap_or_else(std::env::temp_dir)
    };
    ArtifactOptions {
        cache_dir: arguments.cache_dir.clone().unwrap_or_else(|| user_cache().join("torchmodel")),
        credentials_dir: arguments.credentials_dir.clone(),
        local_file: arguments.artifact.clone(),
    }
}

/// SIGTERM and SIGINT, from the moment of [`Signals::listen`] on: one that comes while nobody waits is not lost.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Begins to listen. Call it on the async runtime.
    pub fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| misused(format!("listening for signals: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }
}

/// Serves until a signal or a fatal failure.
pub async fn serve(
    arguments: ServeArguments,
    loader: Arc<dyn EngineLoader>,
    mut signals: Signals,
) -> Result<(), Failure> {
    let config = read_config(&arguments.file)?;
    let listeners = bind(&arguments)?;
    let repository = Arc::new(ModelRepository::default());
    let name = config.model.name.clone();
    repository.set(&name, ModelState::Loading);
    let service = InferenceService::new(Arc::clone(&repository));
    let metrics = Metrics::new();
    let (stop, stopped) = watch::channel(false);
    let serving = Serving {
        service: service.clone(),
        metrics: metrics.clone(),
        limits: Limits { max_request_bytes: arguments.max_request_bytes, ..Limits::default() },
        admission: admission(&arguments)?,
        max_connections: server::connections_within(machine::raise_open_files()),
        io_threads: arguments.io_threads.map_or_else(machine::io_threads, NonZeroUsize::get),
        drain_timeout: arguments.drain_timeout.get(),
    };
    let shutdown = async move {
        let mut stopped = stopped;
        // An error means that the sender is gone, which is a stop too.
        drop(stopped.wait_for(|stop| *stop).await);
    };
    let servers = tokio::spawn(server::serve(listeners, serving, shutdown));

    let (fatal, mut fatalities) = mpsc::unbounded_channel();
    let starting = Starting { config, options: artifact_options(&arguments.artifact), loader, metrics, fatal };
    let model = tokio::select! {
        started = starting.run() => Some(started.inspect_err(|failure| {
            repository.set(&name, ModelState::Failed(failure.clone()));
        })?),
        _ = signals.next() => {
            service.start_draining();
            tracing::info!("told to stop before the model was ready");
            None
        }
    };
    let mut outcome = Ok(());
    if let Some(model) = model {
        let model = Arc::new(model);
        // Never dropped: that would wait for instances, and one may never come back. The process ends right after this.
        std::mem::forget(Arc::clone(&model));
        repository.set(&name, ModelState::Ready(model));
        tracing::info!(model = name.as_str(), "ready");
        tokio::select! {
            () = told_to_stop(&mut signals, arguments.shutdown_delay.get(), &service) => {}
            Some(failure) = fatalities.recv() => {
                service.set_dead();
                outcome = Err(failure);
            }
        }
    }
    stop.send_replace(true);
    match servers.await {
        Ok(true) => tracing::info!("stopped; every request was answered"),
        Ok(false) => tracing::warn!("stopped; the drain timeout ended requests that were in flight"),
        Err(error) => tracing::error!(%error, "a server panicked"),
    }
    repository.set(&name, ModelState::Unloading);
    outcome
}

/// Waits for a signal. After SIGTERM the server stays up, not ready, for the shutdown delay, since load balancers go on sending for
/// a moment; a second signal cuts that short.
async fn told_to_stop(signals: &mut Signals, shutdown_delay: Duration, service: &InferenceService) {
    let delay = if signals.next().await == SignalKind::terminate() { shutdown_delay } else { Duration::ZERO };
    service.start_draining();
    tracing::info!(
        delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
        "told to stop: not ready from now on"
    );
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        _ = signals.next() => {}
    }
}

/// The bound on all requests, which must leave room for the largest.
fn admission(arguments: &ServeArguments) -> Result<Admission, Failure> {
    let largest = arguments.max_request_bytes;
    let by_default = || {
        let most = largest.saturating_mul(DEFAULT_INFLIGHT_REQUESTS);
        machine::memory_limit().map_or(most, |limit| most.min(limit / DEFAULT_MEMORY_PART)).max(largest)
    };
    let most = arguments.max_inflight_bytes.unwrap_or_else(by_default);
    if most < largest {
        return Err(misused(format!(
            "--max-inflight-bytes is {most}: it must be at least --max-request-bytes, which is {largest}"
        )));
    }
    Ok(Admission::new(most))
}

/// What is needed to get from a configuration to a model.
struct Starting {
    config: ServeConfig,
    options: ArtifactOptions,
    loader: Arc<dyn EngineLoader>,
    metrics: Metrics,
    fatal: mpsc::UnboundedSender<Failure>,
}

impl Starting {
    async fn run(self) -> Result<Version, Failure> {
        let started = Instant::now();
        let artifact = artifact::pull(&self.config.source, &self.options).await.map_err(|error| error.failure())?;
        let name = &self.config.model.name;
        tracing::info!(model = name.as_str(), path = %artifact.path.display(), size_bytes = artifact.size_bytes, "loading");
        let metrics = self.metrics.model(name, ModelVersion::FIRST);
        metrics.set_artifact_size_bytes(artifact.size_bytes);
        let (config, loader, fatal) = (self.config.model, self.loader, self.fatal);
        let recorded = metrics.clone();
        let load = tokio::task::spawn_blocking(move || {
            let loading = Instant::now();
            let in_memory = loader.load(&artifact.path, &config)?;
            // A closed channel means that the process is stopping already.
            let model = Version::start(
                in_memory,
                config,
                recorded.clone(),
                Arc::new(move |failure| drop(fatal.send(failure))),
            )?;
            recorded.set_load_duration(loading.elapsed());
            recorded.set_ready(true);
            Ok(model)
        });
        let model = load.await.unwrap_or_else(|error| {
            Err(Failure::new(FailurePhase::Load, FailureReason::CrashLoop, format!("loading panicked: {error}")))
        })?;
        tracing::info!(
            elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "fetched, loaded and warmed up"
        );
        Ok(model)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted server gets its port back at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind(arguments: &ServeArguments) -> Result<Listeners, Failure> {
    let bind = |address: SocketAddr, flag: &str| {
        let mut listener = listen(address);
        // "Every address" means those of IPv4 where the kernel has no IPv6.
        let has_no_ipv6 = |error: &io::Error| error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error());
        if address.ip() == Ipv6Addr::UNSPECIFIED && listener.as_ref().is_err_and(has_no_ipv6) {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            listener = listen(address);
        }
        listener
            .map_err(|error| misused(format!("listening on {address}: {error}; choose another address with {flag}")))
    };
    let listeners = Listeners {
        rest: bind(arguments.http_address, "--http-address")?,
        grpc: bind(arguments.grpc_address, "--grpc-address")?,
        admin: bind(arguments.metrics_address, "--metrics-address")?,
    };
    let shown = |listener: &TcpListener| listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    tracing::info!(
        http = shown(&listeners.rest),
        grpc = shown(&listeners.grpc),
        metrics = shown(&listeners.admin),
        "listening"
    );
    Ok(listeners)
}

/// Says why the model cannot be served: in the log for people, in the termination message for the operator.
pub fn report(failure: &Failure, termination_message: Option<&Path>) {
    tracing::error!(
        phase = failure.phase.as_str(),
        reason = failure.reason.as_str(),
        hint = failure.hint,
        "{}",
        failure.message
    );
    let Some(path) = termination_message.filter(|path| path.exists()) else { return };
    let written = fs::OpenOptions::new().write(true).truncate(true).open(path);
    if let Err(error) = written.and_then(|mut file| file.write_all(failure.to_line().as_bytes())) {
        tracing::warn!(path = %path.display(), %error, "the termination message could not be written");
    }
}
