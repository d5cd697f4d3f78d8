//! `serve`: from a file to a model that answers, and back down.
//!
//! The ports answer from the start (live, not ready); fetching, loading and warm-up run beside them. Invariants: ready only after
//! warm-up; whatever keeps a model from serving ends the process with one [`Failure`] line in the termination message.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    num::NonZeroUsize,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpListener,
    signal::unix::SignalKind,
    sync::{mpsc, watch},
};
use torchmodel_artifact::{self as artifact, ArtifactOptions};
use torchmodel_core::{
    loader::{Loader, ModelFiles},
    metrics::Metrics,
    model_key::ModelVersion,
    repository::{ModelRepository, ModelState},
    service::InferenceService,
    version::Version,
};
use torchmodel_crds::{Failure, FailurePhase, FailureReason};
use torchmodel_process::{Signals, listen};
use torchmodel_server::{self as server, Listeners, Serving, admission::Admission, protocol::Limits};

use crate::{
    args::{ArtifactArguments, ServeArguments},
    machine,
    manifest::{ServeConfig, requested_models},
    misused,
};

/// How many of the largest requests are taken at one time.
const DEFAULT_INFLIGHT_REQUESTS: usize = 4;
/// The part of a container's memory that requests may take: one in so many.
const DEFAULT_MEMORY_PART: usize = 4;

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

/// Serves until a signal or a fatal failure.
pub async fn serve(arguments: ServeArguments, loader: Arc<dyn Loader>, mut signals: Signals) -> Result<(), Failure> {
    let configs = requested_models(&arguments.files, arguments.artifact.artifact.as_deref())?;
    let [config] = <[ServeConfig; 1]>::try_from(configs).map_err(|configs| {
        misused(format!("--file names {} models; start one program for each of them", configs.len()))
    })?;
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
    loader: Arc<dyn Loader>,
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
            let in_memory = loader.load(&ModelFiles { archive: artifact.file, path: artifact.path }, &config)?;
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

fn bind(arguments: &ServeArguments) -> Result<Listeners, Failure> {
    let bind = |address: SocketAddr, flag: &str| {
        listen(address)
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
