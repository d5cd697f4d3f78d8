//! The models of this process, each version with one owner from its load to its end: [`ModelRepository`].
//!
//! `serve` loads versions, the service looks them up for every request. A version lives on a thread of its own (`life`), which loads
//! it, waits until neither the repository nor a request holds it any more, joins its instances and gives its memory back.
//! Invariants: a version is found by its exact name, and handed out only while it is ready; a load that fails, and the end of a
//! version, disturb no other; nothing is joined on a request's path.

mod life;
mod load;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{oneshot, watch};
use torchmodel_crds::Failure;

use self::{
    life::{Asked, Owner},
    load::Permits,
    state::Stage,
};
pub use self::{
    load::{Load, LoadContext, LoadError, LoadRequest, LoadedVersion, PendingLoad},
    state::{IllegalMove, Progress, Step, VersionState},
};
use crate::{
    inference::InferError,
    metrics::{Metrics, RegisteredSeries},
    model_key::{ModelKey, ModelName, ModelVersion},
    version::Version,
};

/// Called when a version can never answer again; the process should end.
pub type OnFatal = Arc<dyn Fn(Failure) + Send + Sync>;

/// Loads that run at a time where nobody says otherwise.
const DEFAULT_CONCURRENT_LOADS: usize = 2;

/// What a repository needs.
#[derive(Clone)]
pub struct RepositoryOptions {
    /// Where its versions are recorded.
    pub metrics: Metrics,
    /// How many loads run at a time, at least 1; more wait.
    pub concurrent_loads: usize,
    /// What a failure means that a version does not survive.
    pub on_fatal: OnFatal,
}

impl RepositoryOptions {
    /// Two loads at a time, and nothing done about fatal failures.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, concurrent_loads: DEFAULT_CONCURRENT_LOADS, on_fatal: Arc::new(|_| {}) }
    }
}

/// Why a load was not begun.
#[derive(Debug, thiserror::Error)]
pub enum LoadRefused {
    /// The same version is being loaded.
    #[error("model {0} is already loading; wait until it is ready, or unload it first")]
    AlreadyLoading(ModelKey),
    /// The system gave no thread.
    #[error("starting the thread that would load model {key}")]
    NoThread {
        /// The version.
        key: ModelKey,
        /// The system's reason.
        source: io::Error,
    },
}

/// One row of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The version.
    pub key: ModelKey,
    /// What became of it.
    pub state: VersionState,
}

/// One life of a version: it may be loaded again, beside a life that still serves or ends.
struct Life {
    id: u64,
    stage: Stage,
    series: RegisteredSeries,
    /// Tells the load that nobody wants it any more.
    cancel: watch::Sender<bool>,
}

/// The versions of one model; each list is a version's lives, the oldest first, of which at most one is ready.
type Versions = BTreeMap<ModelVersion, Vec<Life>>;

#[derive(Default)]
struct Models {
    by_name: BTreeMap<ModelName, Versions>,
    /// Names without which the server is not ready.
    required: BTreeSet<ModelName>,
}

struct Shared {
    models: RwLock<Models>,
    options: RepositoryOptions,
    permits: Permits,
    next_id: AtomicU64,
    revision: watch::Sender<u64>,
}

/// The models of this process. Dropping it unloads them all, without waiting for their end.
pub struct ModelRepository {
    shared: Arc<Shared>,
}

impl ModelRepository {
    /// Without models.
    #[must_use]
    pub fn new(options: RepositoryOptions) -> Self {
        let permits = Permits::new(options.concurrent_loads);
        let (revision, _) = watch::channel(0);
        let shared = Shared { models: RwLock::default(), options, permits, next_id: AtomicU64::new(0), revision };
        Self { shared: Arc::new(shared) }
    }

    /// From now on the server is ready only while some version of `name` is, until it is unloaded.
    pub fn require(&self, name: &ModelName) {
        self.shared.write().required.insert(name.clone());
        self.shared.changed();
    }

    /// Begins to load a version, on a thread of its own. While the same version serves, it goes on until the new one is ready and takes
    /// its place at once; if the load fails, it stays.
    pub fn load(&self, request: LoadRequest) -> Result<PendingLoad, LoadRefused> {
        let key = ModelKey { name: request.config.name.clone(), version: request.version };
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let series = self.shared.options.metrics.register(key.clone());
        let metrics = series.handle();
        let (cancel, canceled) = watch::channel(false);
        let forgotten = {
            let mut models = self.shared.write();
            let lives = models.by_name.entry(key.name.clone()).or_default().entry(key.version).or_default();
            if lives.iter().any(|life| matches!(life.stage, Stage::Loading(_))) {
                return Err(LoadRefused::AlreadyLoading(key));
            }
            let forgotten: Vec<_> = lives.extract_if(.., |life| matches!(life.stage, Stage::Failed(_))).collect();
            lives.push(Life { id, stage: Stage::Loading(Progress::Waiting), series, cancel });
            forgotten
        };
        drop(forgotten);
        self.shared.changed();
        let (done, pending) = oneshot::channel();
        let owner = Owner { shared: Arc::clone(&self.shared), id, key: key.clone(), metrics };
        match owner.clone().begin(request, Asked { canceled, done }) {
            Ok(()) => Ok(PendingLoad(pending)),
            Err(source) => {
                owner.end();
                Err(LoadRefused::NoThread { key, source })
            }
        }
    }

    /// Unloads one version of a model, or all of them. New requests do not reach it any more; those in flight finish, then it is gone.
    /// A load that is under way is given up. Errors: `NotFound`.
    pub fn unload(&self, name: &ModelName, version: Option<ModelVersion>) -> Result<(), InferError> {
        let retired = self.shared.write().unload(name, version).ok_or_else(|| not_found(name, version))?;
        // Dropped here, where no lock is held.
        drop(retired);
        self.shared.permits.wake();
        self.shared.changed();
        Ok(())
    }

    /// The version that answers a request for `name`: the one asked for, or the newest that is ready. Errors: `NotFound`, `NotReady`.
    pub fn get(&self, name: &ModelName, version: Option<ModelVersion>) -> Result<Arc<Version>, InferError> {
        let models = self.shared.read();
        let versions = models.by_name.get(name).ok_or_else(|| not_found(name, None))?;
        let found = match version {
            Some(number) => ready(versions.get(&number).ok_or_else(|| not_found(name, version))?),
            None => versions.values().rev().find_map(|lives| ready(lives)),
        };
        if let Some(found) = found {
            return Ok(Arc::clone(found));
        }
        let mut asked_for = match version {
            Some(number) => versions.get(&number).into_iter().rev().collect::<Vec<_>>(),
            None => versions.values().rev().collect(),
        };
        let state = asked_for.iter_mut().find_map(|lives| Some(visible(lives)?.stage.state()));
        Err(InferError::NotReady(reason(name, state.as_ref())))
    }

    /// The versions of `name` that are ready, the oldest first.
    #[must_use]
    pub(crate) fn ready_versions(&self, name: &ModelName) -> Vec<Arc<Version>> {
        let models = self.shared.read();
        let lives = models.by_name.get(name).into_iter().flat_map(BTreeMap::values);
        lives.filter_map(|lives| ready(lives)).cloned().collect()
    }

    /// Every version that is known, in the order of names and numbers. A version that is swapped stands once, as ready.
    #[must_use]
    pub fn index(&self) -> Vec<IndexEntry> {
        let models = self.shared.read();
        let versions = models.by_name.iter().flat_map(|(name, versions)| {
            versions.iter().map(move |(version, lives)| (ModelKey { name: name.clone(), version: *version }, lives))
        });
        versions.filter_map(|(key, lives)| Some(IndexEntry { key, state: visible(lives)?.stage.state() })).collect()
    }

    /// `Ok` while every model that was required has a ready version, and there is at least one, else the reason.
    pub fn readiness(&self) -> Result<(), String> {
        let models = self.shared.read();
        let has_ready = |versions: &Versions| versions.values().any(|lives| ready(lives).is_some());
        for name in &models.required {
            let versions = models.by_name.get(name);
            if !versions.is_some_and(has_ready) {
                let newest = versions.and_then(|versions| visible(versions.values().next_back()?));
                return Err(reason(name, newest.map(|life| life.stage.state()).as_ref()));
            }
        }
        if models.by_name.values().any(has_ready) { Ok(()) } else { Err("no model is loaded yet".into()) }
    }

    /// Changes whenever a version's state does.
    #[must_use]
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    /// Waits until the index is as `condition` says.
    pub async fn wait_until(&self, condition: impl Fn(&[IndexEntry]) -> bool) {
        let mut changes = self.subscribe();
        while !condition(&self.index()) {
            // The sender lives as long as `self`.
            drop(changes.changed().await);
        }
    }

    /// Where its versions are recorded.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.options.metrics
    }
}

impl Drop for ModelRepository {
    fn drop(&mut self) {
        let names: Vec<_> = self.shared.read().by_name.keys().cloned().collect();
        for name in names {
            // Whatever is not there any more is gone already.
            drop(self.unload(&name, None));
        }
    }
}

impl Models {
    fn life_mut(&mut self, key: &ModelKey, id: u64) -> Option<&mut Life> {
        let lives = self.by_name.get_mut(&key.name)?.get_mut(&key.version)?;
        lives.iter_mut().find(|life| life.id == id)
    }

    /// Forgets one life, or nothing when it is not in a step that may end.
    fn remove(&mut self, key: &ModelKey, id: u64) -> Option<Life> {
        let versions = self.by_name.get_mut(&key.name)?;
        let lives = versions.get_mut(&key.version)?;
        let position = lives.iter().position(|life| life.id == id && life.stage.step().may_become(Step::Gone))?;
        let gone = lives.remove(position);
        if lives.is_empty() {
            versions.remove(&key.version);
        }
        if versions.is_empty() {
            self.by_name.remove(&key.name);
        }
        Some(gone)
    }

    /// Moves one life on and gives what it was, so that the caller can drop it where no lock is held. A life that is not there any more
    /// is gone, and stays so.
    fn advance(&mut self, key: &ModelKey, id: u64, next: Stage) -> Result<Stage, IllegalMove> {
        let to = next.step();
        let life = self.life_mut(key, id).ok_or(IllegalMove { from: Step::Gone, to })?;
        let was = life.stage.advance(next)?;
        self.record_readiness(key);
        Ok(was)
    }

    /// Makes one life ready and retires the one that served until now; what they were comes back.
    fn publish(&mut self, key: &ModelKey, id: u64, version: Arc<Version>) -> Result<Vec<Stage>, IllegalMove> {
        let mut were = vec![self.advance(key, id, Stage::Ready(version))?];
        let lives = self.by_name.get_mut(&key.name).and_then(|versions| versions.get_mut(&key.version));
        for life in lives.into_iter().flatten().filter(|life| life.id != id && life.stage.step() == Step::Ready) {
            were.extend(life.stage.advance(Stage::Unloading));
        }
        Ok(were)
    }

    /// Moves what is asked for towards its end; `None` when there is nothing of that name and version.
    fn unload(&mut self, name: &ModelName, version: Option<ModelVersion>) -> Option<Retired> {
        let versions = self.by_name.get_mut(name)?;
        let mut asked_for: Vec<_> =
            versions.iter_mut().filter(|(number, _)| version.is_none_or(|version| version == **number)).collect();
        if asked_for.is_empty() {
            return None;
        }
        let mut retired = Retired::default();
        for (_, lives) in &mut asked_for {
            retired.failed.extend(lives.extract_if(.., |life| life.stage.step() == Step::Failed));
            for life in lives.iter_mut() {
                retired.stages.extend(life.stage.advance(Stage::Unloading));
                life.cancel.send_replace(true);
                life.series.handle().set_ready(false);
            }
        }
        versions.retain(|_, lives| !lives.is_empty());
        let is_wanted = versions.values().flatten().any(|life| life.stage.step() != Step::Unloading);
        if versions.is_empty() {
            self.by_name.remove(name);
        }
        if !is_wanted {
            self.required.remove(name);
        }
        Some(retired)
    }

    /// The lives of one version have one gauge.
    fn record_readiness(&self, key: &ModelKey) {
        let lives = self.by_name.get(&key.name).and_then(|versions| versions.get(&key.version));
        if let Some(lives) = lives
            && let Some(life) = lives.first()
        {
            life.series.handle().set_ready(ready(lives).is_some());
        }
    }
}

/// What an unload took out of the repository, to be dropped where no lock is held.
#[derive(Default)]
struct Retired {
    failed: Vec<Life>,
    stages: Vec<Stage>,
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Models> {
        self.models.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Models> {
        // Nothing that holds the lock can leave the maps half changed, so a poisoned lock is still good.
        self.models.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.revision.send_modify(|revision| *revision = revision.wrapping_add(1));
    }
}

/// The version of these lives that may be handed out.
fn ready(lives: &[Life]) -> Option<&Arc<Version>> {
    lives.iter().find_map(|life| life.stage.ready())
}

/// The life that says most about a version: one that is ready, else the newest that is not on its way out.
fn visible(lives: &[Life]) -> Option<&Life> {
    let is = |step: Step| move |life: &&Life| life.stage.step() == step;
    let newest = |step: Step| lives.iter().rev().find(is(step));
    newest(Step::Ready).or_else(|| newest(Step::Loading)).or_else(|| newest(Step::Failed)).or_else(|| lives.last())
}

/// Triton's words for what is not there.
fn not_found(name: &ModelName, version: Option<ModelVersion>) -> InferError {
    InferError::NotFound(match version {
        Some(version) => format!("Request for unknown model: '{name}' version {version} is not found"),
        None => format!("Request for unknown model: '{name}' is not found"),
    })
}

/// Why a model in that state answers nothing.
fn reason(name: &ModelName, state: Option<&VersionState>) -> String {
    match state {
        None | Some(VersionState::Ready) => format!("model '{name}' is not loaded yet"),
        Some(VersionState::Loading(_)) => format!("model '{name}' is loading; try again later"),
        Some(VersionState::Unloading) => format!("model '{name}' is being unloaded"),
        Some(VersionState::Failed(failure)) => {
            format!("model '{name}' failed to load: {}: {}", failure.reason, failure.message)
        }
    }
}

#[cfg(test)]
mod tests;
