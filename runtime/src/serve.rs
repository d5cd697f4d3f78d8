//! `serve`: from files to models that answer. It wires only: read, bind, build, load, wait for the end.
//!
//! The ports answer from the start (live, not ready); fetching, loading and warm-up run beside them. Invariant: every decision stands
//! in the module that is called here; how it all ends, in `termination`.

use std::{num::NonZeroUsize, sync::Arc};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use torchmodel_core::{
    loader::Loader,
    metrics::Metrics,
    repository::{ModelRepository, RepositoryOptions},
    service::InferenceService,
};
use torchmodel_crds::Failure;
use torchmodel_process::Signals;
use torchmodel_server::{self as server, Serving, connections_within, protocol::Limits};

use crate::{
    admission::admission,
    args::ServeArguments,
    machine::{io_threads, raise_open_files},
    manifest::requested_models,
    misused,
    ports::bind,
    source::{Sources, artifact_options},
    termination::{Ending, log_drained},
};

/// Serves until a signal or a fatal failure.
pub async fn serve(arguments: ServeArguments, loader: Arc<dyn Loader>, signals: Signals) -> Result<(), Failure> {
    let models = requested_models(&arguments.files, arguments.artifact.artifact.as_deref())?;
    let listeners = bind(&arguments)?;
    let metrics = Metrics::new();
    let (report, fatal) = mpsc::unbounded_channel();
    let repository = Arc::new(ModelRepository::new(RepositoryOptions {
        // A closed channel means that the process is ending already.
        on_fatal: Arc::new(move |failure| drop(report.send(failure))),
        ..RepositoryOptions::new(metrics.clone())
    }));
    let service = InferenceService::new(Arc::clone(&repository));
    let serving = Serving {
        service: service.clone(),
        metrics,
        limits: Limits { max_request_bytes: arguments.max_request_bytes, ..Limits::default() },
        admission: admission(&arguments)?,
        max_connections: connections_within(raise_open_files()),
        io_threads: arguments.io_threads.map_or_else(io_threads, NonZeroUsize::get),
        drain_timeout: arguments.drain_timeout.get(),
        release_memory: torch_shim::release_free_memory,
    };

    let sources = Sources { options: artifact_options(&arguments.artifact), loader, runtime: Handle::current() };
    // All of them, before the first can be ready: the server is not, before they all are.
    for model in &models {
        repository.require(&model.model.name);
    }
    let loads = models.into_iter().map(|model| repository.load(sources.load_request(model)));
    let loads = loads.collect::<Result<Vec<_>, _>>().map_err(|error| misused(error.to_string()))?;

    let (stop, stopped) = oneshot::channel::<()>();
    let servers = tokio::spawn(server::serve(listeners, serving, async { drop(stopped.await) }));
    let ending = Ending { signals, fatal, loads, shutdown_delay: arguments.shutdown_delay.get() };
    let result = ending.wait(&service).await;
    drop(stop);
    match servers.await {
        Ok(is_drained) => log_drained(is_drained),
        Err(error) => tracing::error!(%error, "a server panicked"),
    }
    // Versions that still serve, or have a thread that never returns, end with the process.
    std::mem::forget(repository);
    result
}
