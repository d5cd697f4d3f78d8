//! First step: gathers what the TorchModel names and what exists for it.
//!
//! Everything comes from the stores that watches fill, so this step waits for nothing. Invariant: Secrets are never read; the
//! kubelet mounts them into the pod.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
};
use kube::{
    Resource as _,
    core::ObjectMeta,
    runtime::reflector::{Lookup, ObjectRef, Store},
};
use torchmodel_crds::TorchModel;

use super::{
    Guarded,
    stores::{Stores, labelled},
};

/// A TorchModel and what exists for it.
pub struct Dereferenced {
    /// The model, or why it cannot be read.
    pub model: Result<TorchModel, String>,
    /// Its metadata, which can be read in any case.
    pub meta: ObjectMeta,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID: children that do not name it belong to somebody else.
    pub uid: String,
    /// Objects of the names that its children take, whoever made them.
    pub existing: Existing,
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
}

/// Children as last seen.
#[derive(Default)]
pub struct Existing {
    pub deployment: Option<Arc<Deployment>>,
    pub service: Option<Arc<Service>>,
    pub service_account: Option<Arc<ServiceAccount>>,
    /// Of every revision.
    pub config_maps: Vec<Arc<ConfigMap>>,
}

/// The object is not one that this version can reconcile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every stored object has these; a missing one is a bug of the API server.
    #[error("the stored object has no {0}")]
    Missing(&'static str),
}

/// Gathers it all.
pub fn dereference(object: &Guarded, stores: &Stores) -> Result<Dereferenced, Error> {
    let meta = object.meta();
    let name = meta.name.clone().ok_or(Error::Missing("name"))?;
    let namespace = meta.namespace.clone().ok_or(Error::Missing("namespace"))?;
    let uid = meta.uid.clone().ok_or(Error::Missing("uid"))?;
    let existing = Existing {
        deployment: get(&stores.deployments, &namespace, &name),
        service: get(&stores.services, &namespace, &name),
        service_account: get(&stores.service_accounts, &namespace, &name),
        config_maps: labelled(&stores.config_maps, &namespace, &name),
    };
    let pods = labelled(&stores.pods, &namespace, &name);
    let model = object.0.clone().map_err(|invalid| invalid.error);
    Ok(Dereferenced { model, meta: meta.clone(), name, namespace, uid, existing, pods })
}

fn get<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<Arc<K>>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(namespace))
}

#[cfg(test)]
pub mod testing {
    //! A TorchModel as stored, from its spec alone.

    use serde_json::{Value, json};

    use super::{Dereferenced, Existing, TorchModel};

    /// Of generation 3, in namespace `speech`, with no children.
    pub fn dereferenced(name: &str, spec: &Value) -> Dereferenced {
        let model: TorchModel = serde_json::from_value(json!({
            "apiVersion": "serving.torchmodel.dev/v1alpha1", "kind": "TorchModel", "spec": spec,
            "metadata": {"name": name, "namespace": "speech", "uid": "c0ffee", "generation": 3},
        }))
        .unwrap();
        Dereferenced {
            meta: model.metadata.clone(),
            name: name.to_owned(),
            namespace: "speech".to_owned(),
            uid: "c0ffee".to_owned(),
            existing: Existing::default(),
            pods: Vec::new(),
            model: Ok(model),
        }
    }
}
