//! The life of one version, told by the thread that owns it from its load to its end.
//!
//! Begun by [`super::ModelRepository::load`]. The thread waits for a permit, loads, starts the instances, makes the version ready and then
//! sleeps until nobody holds it: neither the repository, which lets go when the version is unloaded, swapped or has failed, nor a
//! request in flight. Then it joins the instances and gives the memory back. Invariant: whatever takes long happens here, and a
//! thread that never comes back keeps this one only; the process does not wait for it when it ends.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Instant,
};

use tokio::sync::{oneshot, watch};
use torchmodel_crds::{Failure, FailurePhase, FailureReason};

use super::{
    OnFatal, Shared,
    load::{Load, LoadContext, LoadError, LoadRequest, LoadedVersion},
    state::{IllegalMove, Progress, Stage, Step},
};
use crate::{
    config::ModelConfig,
    metrics::ModelMetrics,
    model_key::ModelKey,
    version::{Retirement, Version, VersionOptions},
};

/// The owner of one life of a version.
#[derive(Clone)]
pub(super) struct Owner {
    pub(super) shared: Arc<Shared>,
    pub(super) id: u64,
    pub(super) key: ModelKey,
    pub(super) metrics: ModelMetrics,
}

/// The two ends that the thread has of the channels to those who asked for the version.
pub(super) struct Asked {
    /// Says that nobody wants it any more.
    pub(super) canceled: watch::Receiver<bool>,
    /// Is told what became of the load.
    pub(super) done: oneshot::Sender<Result<(), LoadError>>,
}

/// A version that can serve, and what ends it.
struct Born {
    version: Version,
    retirement: Retirement,
    lease: Box<dyn Any + Send>,
}

impl Owner {
    /// Starts the thread.
    pub(super) fn begin(self, request: LoadRequest, asked: Asked) -> io::Result<()> {
        let name = format!("life of {}", self.key.name);
        // The handle is not kept: nobody may have to wait for this thread.
        thread::Builder::new().name(name).spawn(move || self.live(request, asked)).map(drop)
    }

    fn live(self, request: LoadRequest, Asked { canceled, done }: Asked) {
        let life = self.clone();
        let context = LoadContext { report: Box::new(move |progress| life.report(progress)), canceled };
        let error = match self.load(request, &context) {
            Ok(Born { version, retirement, lease }) => {
                let published = self.publish(version).map_err(|_| LoadError::Unloaded);
                // Nobody has to wait for it.
                drop(done.send(published));
                retirement.wait();
                // The artifact may be changed or evicted only once nothing reads it.
                drop(lease);
                return self.end();
            }
            Err(LoadError::Failed(failure)) => match self.fail(&failure) {
                Ok(()) => LoadError::Failed(failure),
                Err(_) => LoadError::Unloaded,
            },
            Err(LoadError::Unloaded) => LoadError::Unloaded,
        };
        self.end();
        drop(done.send(Err(error)));
    }

    fn load(&self, request: LoadRequest, context: &LoadContext) -> Result<Born, LoadError> {
        let _permit = self.shared.permits.acquire(context).ok_or(LoadError::Unloaded)?;
        let LoadRequest { config, load, version: _ } = request;
        let started = Instant::now();
        let attempt = AssertUnwindSafe(|| self.bring_up(config, load, context));
        let born = catch_unwind(attempt).unwrap_or_else(|_| {
            let message = "loading panicked; the log says where";
            Err(Failure::new(FailurePhase::Load, FailureReason::CrashLoop, message))
        });
        match born {
            // The failure of a load that was given up is nobody's concern.
            Err(_) if context.is_canceled() => Err(LoadError::Unloaded),
            Err(failure) => Err(LoadError::Failed(failure)),
            Ok(born) => {
                self.metrics.set_load_duration(started.elapsed());
                Ok(born)
            }
        }
    }

    fn bring_up(&self, config: ModelConfig, load: Load, context: &LoadContext) -> Result<Born, Failure> {
        let LoadedVersion { model, artifact_size_bytes, lease } = load(context)?;
        self.metrics.set_artifact_size_bytes(artifact_size_bytes);
        let options =
            VersionOptions { key: self.key.clone(), config, metrics: self.metrics.clone(), on_fatal: self.on_fatal() };
        let (version, retirement) = Version::start(model, options)?;
        Ok(Born { version, retirement, lease })
    }

    fn report(&self, progress: Progress) {
        // A load that was given up may still report.
        self.advance(Stage::Loading(progress)).ok();
    }

    /// Hands the version out from now on, in place of the life of the same version that served until now.
    fn publish(&self, version: Version) -> Result<(), IllegalMove> {
        let replaced = self.shared.write().publish(&self.key, self.id, Arc::new(version))?;
        // Dropped here, where no lock is held: the last one to let go of a version wakes its thread.
        drop(replaced);
        self.shared.changed();
        tracing::info!(model = self.key.name.as_str(), version = self.key.version.get(), "ready");
        Ok(())
    }

    /// Marks the life as failed. Errors: it is on its way out anyway.
    fn fail(&self, failure: &Failure) -> Result<(), IllegalMove> {
        self.advance(Stage::Failed(failure.clone()))?;
        tracing::warn!(
            model = self.key.name.as_str(),
            version = self.key.version.get(),
            reason = failure.reason.as_str(),
            "failed: {}",
            failure.message
        );
        Ok(())
    }

    fn on_fatal(&self) -> OnFatal {
        let life = self.clone();
        Arc::new(move |failure| {
            // A version that is on its way out has failed nobody, but its device may be everybody's.
            life.fail(&failure).ok();
            (life.shared.options.on_fatal)(failure);
        })
    }

    fn advance(&self, next: Stage) -> Result<(), IllegalMove> {
        let was = self.shared.write().advance(&self.key, self.id, next)?;
        // Dropped here, where no lock is held.
        drop(was);
        self.shared.changed();
        Ok(())
    }

    /// Forgets the life; one that failed stays to say why.
    pub(super) fn end(&self) {
        let gone = {
            let mut models = self.shared.write();
            let step = models.life_mut(&self.key, self.id).map(|life| life.stage.step());
            // One that never became ready, and was never unloaded, has nobody else to move it on.
            if step == Some(Step::Loading) {
                drop(models.advance(&self.key, self.id, Stage::Unloading));
            }
            if step == Some(Step::Failed) { None } else { models.remove(&self.key, self.id) }
        };
        if gone.is_some() {
            tracing::info!(model = self.key.name.as_str(), version = self.key.version.get(), "unloaded");
        }
        drop(gone);
        self.shared.changed();
    }
}
