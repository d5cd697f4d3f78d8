//! Fourth step: makes the cluster hold the children, in a stated order, writing only what differs.
//!
//! Order: what a pod needs before the pod. A child whose stored form already is what is desired costs no request; before any
//! write the object and its owner are read afresh, since a store may be a moment behind. Invariants: an object that another
//! owner made is never touched, and nothing is created for a TorchModel that is gone.

mod difference;

use std::{fmt::Debug, marker::PhantomData, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, api::core::v1::ConfigMap};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions},
    core::ApiResource,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use torchmodel_crds::{FailureReason, TorchModel};
use tracing::info;

use super::{
    Context,
    build::{self, Applied, Children, Prepared, content_hash, short},
    dereference::{Dereferenced, Existing},
    error::{Error as ReconcileError, Reason, Requeue},
    status::Rollout,
};
use crate::{FIELD_MANAGER, metrics::Metrics, metrics::Write};

/// Annotation of each child: the hash of what was applied, so that a field that is no longer desired is noticed.
const APPLIED_ANNOTATION: &str = "serving.torchmodel.dev/applied";

/// Why a child is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request failed.
    #[error("{action} {kind} {name}")]
    Request {
        /// What was done.
        action: &'static str,
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: kube::Error,
    },
    /// The name is taken.
    #[error("{kind} {name} exists and belongs to {owner}; delete it or rename the TorchModel")]
    NotOurs {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Who made it.
        owner: String,
    },
    /// A child has no JSON form.
    #[error("writing {kind} {name} as JSON")]
    Json {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The owner could not be read before a write.
    #[error("reading the TorchModel")]
    Owner(#[source] kube::Error),
}

impl Error {
    /// The reason, from the closed list.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotOurs { .. } => Reason::Failure(FailureReason::FieldConflict),
            Self::Json { .. } => Reason::Failure(FailureReason::SpecInvalid),
            Self::Request { source: kube::Error::Api(status), .. } => match status.code {
                400 | 422 => Reason::Failure(FailureReason::SpecInvalid),
                409 => Reason::Failure(FailureReason::FieldConflict),
                _ => Reason::ApiError,
            },
            Self::Request { .. } | Self::Owner(_) => Reason::ApiError,
        }
    }

    /// What the API server calls invalid stays so until somebody changes it.
    pub fn requeue(&self) -> Requeue {
        if self.reason() == Reason::Failure(FailureReason::SpecInvalid) {
            Requeue::AwaitChange
        } else {
            Requeue::Backoff
        }
    }
}

/// Writes what differs; removes what is no longer desired.
pub async fn apply(
    children: Children<Prepared>,
    dereferenced: &Dereferenced,
    context: &Context,
) -> Result<Children<Applied>, ReconcileError> {
    // Without `..`: a child that nobody applies does not compile.
    let Children { service_account, config_map, service, deployment, stage: _ } = children;
    let Existing { deployment: live_deployment, service: live_service, service_account: live_account, config_maps } =
        &dereferenced.existing;
    let mut applier = Applier::new(dereferenced, context);

    let service_account = if let Some(desired) = service_account {
        Some(applier.apply(desired, live_account.as_ref()).await?)
    } else {
        if let Some(unwanted) = live_account {
            applier.delete(&**unwanted).await?;
        }
        None
    };
    let desired = config_map.name_any();
    let live = config_maps.iter().find(|live| live.name_any() == desired);
    let config_map = applier.apply(config_map, live).await?;
    let service = applier.apply(service, live_service.as_ref()).await?;
    let deployment = applier.apply(deployment, live_deployment.as_ref()).await?;
    if Rollout::of(&deployment).is_complete {
        applier.delete_old_revisions(config_maps, &desired).await?;
    }
    Ok(Children { service_account, config_map, service, deployment, stage: PhantomData })
}

struct Applier<'a> {
    client: &'a Client,
    metrics: &'a Metrics,
    namespace: &'a str,
    owner: &'a str,
    owner_uid: &'a str,
    is_owner_confirmed: bool,
}

impl<'a> Applier<'a> {
    fn new(dereferenced: &'a Dereferenced, context: &'a Context) -> Self {
        Self {
            client: &context.client,
            metrics: &context.metrics,
            namespace: &dereferenced.namespace,
            owner: &dereferenced.name,
            owner_uid: &dereferenced.uid,
            is_owner_confirmed: false,
        }
    }

    /// Makes one object what `desired` says. `stored` is the object as the watch last saw it.
    async fn apply<K>(&mut self, desired: K, stored: Option<&Arc<K>>) -> Result<K, ReconcileError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let (kind, name) = (K::kind(&()).into_owned(), desired.name_any());
        let desired = annotated(desired)?;
        let json = |source| Error::Json { kind: kind.clone(), name: name.clone(), source };
        let desired = serde_json::to_value(&desired).map_err(json)?;
        if let Some(stored) = stored
            && self.is_ours(&**stored)
            && is_current(&desired, &**stored).map_err(json)?
        {
            return Ok((**stored).clone());
        }
        self.confirm_owner().await?;
        let api: Api<K> = Api::namespaced(self.client.clone(), self.namespace);
        let request = |action, source| Error::Request { action, kind: kind.clone(), name: name.clone(), source };
        let fresh = api.get_opt(&name).await.map_err(|source| request("reading", source))?;
        if let Some(fresh) = &fresh {
            if !self.is_ours(fresh) {
                return Err(Error::NotOurs { owner: owner_of(fresh), kind, name }.into());
            }
            if is_current(&desired, fresh).map_err(json)? {
                return Ok(fresh.clone());
            }
        }
        let applied =
            write(&api, &name, &desired, fresh.is_some()).await.map_err(|source| request("applying", source))?;
        let write = if fresh.is_none() { Write::Create } else { Write::Change };
        self.metrics.record_write(&kind, write);
        match write {
            Write::Create => info!(%kind, child = %name, "created a child"),
            Write::Change | Write::Delete => info!(%kind, child = %name, "changed a child to what is desired"),
        }
        Ok(applied)
    }

    /// Deletes an object that is ours and no longer desired.
    async fn delete<K>(&mut self, unwanted: &K) -> Result<(), ReconcileError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        if !self.is_ours(unwanted) || unwanted.meta().deletion_timestamp.is_some() {
            return Ok(());
        }
        let (kind, name) = (K::kind(&()).into_owned(), unwanted.name_any());
        let api: Api<K> = Api::namespaced(self.client.clone(), self.namespace);
        let preconditions = Preconditions { uid: unwanted.uid(), ..Preconditions::default() };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match api.delete(&name, &parameters).await {
            Ok(_) => {
                self.metrics.record_write(&kind, Write::Delete);
                info!(%kind, child = %name, "deleted a child that is no longer desired");
                Ok(())
            }
            // Gone already, or made anew meanwhile.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(source) => Err(Error::Request { action: "deleting", kind, name, source }.into()),
        }
    }

    async fn delete_old_revisions(
        &mut self,
        revisions: &[Arc<ConfigMap>],
        desired: &str,
    ) -> Result<(), ReconcileError> {
        for revision in revisions.iter().filter(|revision| revision.name_any() != desired) {
            self.delete(&**revision).await?;
        }
        Ok(())
    }

    fn is_ours<K: Resource>(&self, object: &K) -> bool {
        let owners = object.meta().owner_references.iter().flatten();
        owners.into_iter().any(|owner| owner.controller == Some(true) && owner.uid == self.owner_uid)
    }

    /// Reads the TorchModel afresh, once for each reconcile that writes.
    async fn confirm_owner(&mut self) -> Result<(), ReconcileError> {
        if self.is_owner_confirmed {
            return Ok(());
        }
        let resource = ApiResource::erase::<TorchModel>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), self.namespace, &resource);
        match api.get_metadata_opt(self.owner).await.map_err(Error::Owner)? {
            Some(owner)
                if owner.metadata.uid.as_deref() == Some(self.owner_uid)
                    && owner.metadata.deletion_timestamp.is_none() =>
            {
                self.is_owner_confirmed = true;
                Ok(())
            }
            _ => Err(ReconcileError::OwnerGone),
        }
    }
}

/// Server-side apply; where that makes no valid object of one that exists, because an edit by hand left items in a list that
/// contradict ours (two ports of one name), the lists are replaced as a whole.
async fn write<K>(api: &Api<K>, name: &str, desired: &Value, is_there: bool) -> kube::Result<K>
where
    K: Clone + Debug + DeserializeOwned,
{
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch(name, &parameters, &Patch::Apply(desired)).await {
        Err(kube::Error::Api(status)) if is_there && status.is_invalid() => {
            let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
            api.patch(name, &parameters, &Patch::Merge(desired)).await
        }
        result => result,
    }
}

fn annotated<K: Resource + Serialize>(mut desired: K) -> Result<K, build::Error> {
    let hash = content_hash(&desired)?;
    desired.annotations_mut().insert(APPLIED_ANNOTATION.to_owned(), short(&hash).to_owned());
    Ok(desired)
}

fn is_current<K: Serialize>(desired: &Value, live: &K) -> Result<bool, serde_json::Error> {
    Ok(difference::covers(&serde_json::to_value(live)?, desired))
}

/// Who made an object, in words.
fn owner_of<K: Resource>(object: &K) -> String {
    let controller = object.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    match controller {
        Some(owner) => format!("{} {}", owner.kind, owner.name),
        None => object
            .meta()
            .managed_fields
            .iter()
            .flatten()
            .find_map(|fields| fields.manager.clone())
            .unwrap_or_else(|| "another manager".to_owned()),
    }
}
