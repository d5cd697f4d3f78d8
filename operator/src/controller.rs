//! Watches, the reconcile in five calls, and what happens when it fails.
//!
//! [`Controllers::run`] is called by the leader. For each scope (the cluster, or each named namespace) one controller watches
//! TorchModels, their children and their pods. Invariant: every decision is taken from the stores that the watches fill; a
//! request is sent only to confirm and make a change.

mod apply;
mod backoff;
mod build;
mod dereference;
mod error;
mod status;
mod stores;
mod validate;

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use futures::{StreamExt as _, future::join_all};
use kube::{
    Client, Resource as _,
    core::DeserializeGuard,
    runtime::{
        Config, Controller,
        controller::{Action, Error as ControllerError},
        events::Recorder,
    },
};
use tokio::sync::watch;
use torchmodel_crds::TorchModel;
use tracing::{Instrument as _, debug, info, info_span, warn};

use self::{
    backoff::Backoff,
    error::{Error, Requeue},
    stores::{Stores, Watches},
    validate::Defaults,
};
use crate::{Args, FIELD_MANAGER, metrics::Metrics, server::Health};

/// A TorchModel as watched: one that cannot be read does not stop the others.
type Guarded = DeserializeGuard<TorchModel>;

/// Reconciles that run at the same time in one scope; the same object never twice.
const CONCURRENCY: u16 = 32;

/// What a reconcile needs besides the object.
struct Context {
    client: Client,
    stores: Stores,
    defaults: Defaults,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    backoff: Backoff,
}

/// The controllers of every scope.
pub struct Controllers<'a> {
    /// Connection to the API server.
    pub client: Client,
    /// The command line: scopes and what pods get by default.
    pub args: &'a Args,
    /// Where reconciles and writes are counted.
    pub metrics: Arc<Metrics>,
    /// Told when the cluster's state is known.
    pub health: Arc<Health>,
}

impl Controllers<'_> {
    /// Reconciles until `stop` says true; then lets running reconciles finish.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        self.health.set_reading();
        let scopes = scopes(&self.args.namespaces);
        let recorder = Recorder::new(self.client.clone(), FIELD_MANAGER.into());
        let mut ready = Vec::new();
        let mut controllers = Vec::new();
        for scope in scopes {
            let (stores, watches) = stores::watch(&self.client, scope);
            ready.push(stores.clone());
            let context = Arc::new(Context {
                client: self.client.clone(),
                stores,
                defaults: Defaults::from(self.args),
                metrics: self.metrics.clone(),
                recorder: recorder.clone(),
                backoff: Backoff::default(),
            });
            controllers.push(run_scope(watches, context, stop.clone()));
        }
        let health = self.health.clone();
        let announce = async move {
            join_all(ready.iter().map(Stores::wait_until_ready)).await;
            health.set_leading();
            info!("reconciling TorchModels");
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = join_all(controllers) => {}
            () = announce => {}
        }
    }
}

/// The whole cluster (`None`), or each namespace once: two controllers must never meet at one object.
fn scopes(namespaces: &[String]) -> Vec<Option<&str>> {
    if namespaces.is_empty() {
        return vec![None];
    }
    let namespaces: BTreeSet<&str> = namespaces.iter().map(String::as_str).collect();
    namespaces.into_iter().map(Some).collect()
}

async fn run_scope(watches: Watches, context: Arc<Context>, stop: watch::Receiver<bool>) {
    let Watches { models, deployments, services, config_maps, service_accounts, pods } = watches;
    let (metrics, stores) = (context.metrics.clone(), context.stores.clone());
    let controller = Controller::for_stream(models, context.stores.models.clone())
        .owns_stream(deployments)
        .owns_stream(services)
        .owns_stream(config_maps)
        .owns_stream(service_accounts)
        .watches_stream(pods, |pod| stores::model_of_pod(&pod))
        .with_config(Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(crate::stopped(stop.clone()))
        .run(reconcile, error_policy, context)
        .for_each(|result| {
            match result {
                // The failure was logged by the error policy; a TorchModel that is gone needs nothing.
                Ok(_) | Err(ControllerError::ReconcilerFailed(..) | ControllerError::ObjectNotFound(_)) => {}
                Err(ControllerError::QueueError(error)) => {
                    metrics.record_watch_error();
                    warn!(error = error::chain(&error), "a watch failed and is tried again");
                }
                Err(ControllerError::RunnerError(error)) => warn!(%error, "the controller's queue failed"),
            }
            std::future::ready(())
        });
    tokio::select! {
        () = controller => {}
        () = stopped_too_early(&stores, stop) => {}
    }
}

/// Resolves when the end comes before every store was filled: a graceful end would wait for watches that it has ended itself.
/// Nothing was written by then, since each reconcile waits for the stores first.
async fn stopped_too_early(stores: &Stores, stop: watch::Receiver<bool>) {
    tokio::select! {
        biased;
        () = stores.wait_until_ready() => std::future::pending().await,
        () = crate::stopped(stop) => {}
    }
}

async fn reconcile(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let meta = object.meta();
    let span = info_span!("reconcile", namespace = meta.namespace, name = meta.name, generation = meta.generation);
    let started = Instant::now();
    let result = Box::pin(converge(&object, &context)).instrument(span).await;
    context.metrics.record_reconcile(started.elapsed(), result.is_ok());
    if result.is_ok() {
        context.backoff.forget(object.meta());
    }
    result.map(|()| Action::await_change())
}

/// The five steps. The status is written whether or not the steps before it succeeded.
async fn converge(object: &Guarded, context: &Context) -> Result<(), Error> {
    if object.meta().deletion_timestamp.is_some() {
        debug!("the TorchModel is being deleted; its children go with it");
        return Ok(());
    }
    context.stores.wait_until_ready().await;
    let dereferenced = dereference::dereference(object, &context.stores)?;
    let outcome = match validate::validate(&dereferenced, &context.defaults) {
        Ok(validated) => Box::pin(apply::apply(build::build(&validated)?, &dereferenced, context)).await,
        Err(error) => Err(error.into()),
    };
    if let Err(Error::OwnerGone) = outcome {
        debug!("the TorchModel was deleted meanwhile");
        return Ok(());
    }
    status::update(&dereferenced, outcome.as_ref(), context).await?;
    outcome.map(|_| ())
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is the controller's")]
fn error_policy(object: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    let meta = object.meta();
    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
    let (reason, message) = (error.reason(), error::chain(error));
    match error.requeue() {
        Requeue::AwaitChange => {
            if context.backoff.is_first(meta) {
                warn!(namespace, name, %reason, error = message, "the TorchModel cannot be reconciled until it is changed");
            }
            Action::await_change()
        }
        Requeue::Backoff => {
            let delay = context.backoff.next(meta);
            warn!(namespace, name, %reason, ?delay, error = message, "the reconcile failed and is tried again");
            Action::requeue(delay)
        }
    }
}
