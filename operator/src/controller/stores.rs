//! What the operator knows of the cluster: one watch for each kind, each filling a store.
//!
//! The controller drives the streams; steps read the stores. Invariant: an event has reached its store before the reconcile that
//! it triggers begins, and nothing is reconciled before every store was filled once.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use futures::{StreamExt as _, stream::BoxStream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use torchmodel_crds::MODEL_LABEL;

use super::Guarded;

/// Objects as last seen.
#[derive(Clone)]
pub struct Stores {
    pub models: Store<Guarded>,
    pub deployments: Store<Deployment>,
    pub services: Store<Service>,
    pub config_maps: Store<ConfigMap>,
    pub service_accounts: Store<ServiceAccount>,
    pub pods: Store<Pod>,
    /// For each store whether it was filled once. (`Store::wait_until_ready` wakes only the last of several tasks that wait.)
    filled: Vec<watch::Receiver<bool>>,
}

type Watch<K> = BoxStream<'static, Result<K, watcher::Error>>;

/// The streams that fill the stores and trigger reconciles.
pub struct Watches {
    pub models: Watch<Guarded>,
    pub deployments: Watch<Deployment>,
    pub services: Watch<Service>,
    pub config_maps: Watch<ConfigMap>,
    pub service_accounts: Watch<ServiceAccount>,
    pub pods: Watch<Pod>,
}

/// Stores and the streams that fill them, for one namespace or (`None`) the cluster. Children and pods are those with the
/// operator's label.
pub fn watch(client: &Client, namespace: Option<&str>) -> (Stores, Watches) {
    let mut scope = Scope { client, namespace, filled: Vec::new() };
    let labelled = watcher::Config::default().labels(MODEL_LABEL);
    let (models_store, models) = scope.watch::<Guarded>(watcher::Config::default(), true);
    let (deployments_store, deployments) = scope.watch::<Deployment>(labelled.clone(), false);
    let (services_store, services) = scope.watch::<Service>(labelled.clone(), false);
    let (config_maps_store, config_maps) = scope.watch::<ConfigMap>(labelled.clone(), false);
    let (service_accounts_store, service_accounts) = scope.watch::<ServiceAccount>(labelled.clone(), false);
    let (pods_store, pods) = scope.watch::<Pod>(labelled, false);
    let stores = Stores {
        models: models_store,
        deployments: deployments_store,
        services: services_store,
        config_maps: config_maps_store,
        service_accounts: service_accounts_store,
        pods: pods_store,
        filled: scope.filled,
    };
    (stores, Watches { models, deployments, services, config_maps, service_accounts, pods })
}

struct Scope<'a> {
    client: &'a Client,
    namespace: Option<&'a str>,
    filled: Vec<watch::Receiver<bool>>,
}

impl Scope<'_> {
    fn watch<K>(&mut self, config: watcher::Config, is_root: bool) -> (Store<K>, Watch<K>)
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Default + Clone + Eq + Hash + Send + Sync,
    {
        let api: Api<K> = match self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let (store, writer) = reflector::store();
        let (sender, receiver) = watch::channel(false);
        self.filled.push(receiver);
        let events = watcher(api, config)
            .default_backoff()
            .modify(|object: &mut K| object.meta_mut().managed_fields = None)
            .reflect(writer)
            .inspect(move |event| {
                if matches!(event, Ok(watcher::Event::InitDone)) {
                    sender.send_replace(true);
                }
            });
        // A TorchModel that is gone needs no reconcile; a child that is gone does.
        let objects = if is_root { events.applied_objects().boxed() } else { events.touched_objects().boxed() };
        (store, objects)
    }
}

impl Stores {
    /// Resolves when every store was filled once.
    pub async fn wait_until_ready(&self) {
        for filled in &self.filled {
            // An error means that the watch has ended, and with it the controller that waits here.
            let _ = filled.clone().wait_for(|filled| *filled).await;
        }
    }
}

/// The TorchModel that a pod serves, by its label.
pub fn model_of_pod(pod: &Pod) -> Option<ObjectRef<Guarded>> {
    let name = pod.labels().get(MODEL_LABEL)?;
    Some(ObjectRef::new(name).within(pod.metadata.namespace.as_deref()?))
}

/// Objects of a store that carry the label of the TorchModel `name`.
pub fn labelled<K>(store: &Store<K>, namespace: &str, name: &str) -> Vec<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.state_filter(|object: &K| {
        object.meta().namespace.as_deref() == Some(namespace)
            && object.labels().get(MODEL_LABEL).is_some_and(|label| label == name)
    })
}
