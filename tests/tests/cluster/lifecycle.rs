//! What exists because of a TorchModel: made once, made again when it is lost, left alone when it is right, gone with it.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    },
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use serde::de::DeserializeOwned;
use torchmodel_crds::{MODEL_LABEL, TorchModel};
use torchmodel_tests::{Namespace, PATIENCE, eventually, gone};

/// Kind and name of each child of a model, with its UID and, where the operator writes it, its resource version.
type Children = BTreeMap<(&'static str, String), (String, Option<String>)>;

async fn add<K>(namespace: Namespace<'_>, model: &str, kind: &'static str, children: &mut Children) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let labelled = ListParams::default().labels(&format!("{MODEL_LABEL}={model}"));
    for object in namespace.api::<K>().list(&labelled).await? {
        // Kubernetes itself makes these and goes on telling their status.
        let version = object.resource_version().filter(|_| !["Pod", "ReplicaSet"].contains(&kind));
        children.insert((kind, object.name_any()), (object.uid().unwrap_or_default(), version));
    }
    Ok(())
}

async fn children(namespace: Namespace<'_>, model: &str) -> Result<Children> {
    let mut children = Children::new();
    add::<Deployment>(namespace, model, "Deployment", &mut children).await?;
    add::<ReplicaSet>(namespace, model, "ReplicaSet", &mut children).await?;
    add::<Pod>(namespace, model, "Pod", &mut children).await?;
    add::<Service>(namespace, model, "Service", &mut children).await?;
    add::<ConfigMap>(namespace, model, "ConfigMap", &mut children).await?;
    add::<ServiceAccount>(namespace, model, "ServiceAccount", &mut children).await?;
    Ok(children)
}

async fn all_gone(namespace: Namespace<'_>, known: &Children) -> Result<()> {
    for (kind, name) in known.keys() {
        match *kind {
            "Deployment" => gone(&namespace.api::<Deployment>(), name).await?,
            "ReplicaSet" => gone(&namespace.api::<ReplicaSet>(), name).await?,
            "Pod" => gone(&namespace.api::<Pod>(), name).await?,
            "Service" => gone(&namespace.api::<Service>(), name).await?,
            "ConfigMap" => gone(&namespace.api::<ConfigMap>(), name).await?,
            _ => gone(&namespace.api::<ServiceAccount>(), name).await?,
        }
    }
    let left = children(namespace, "model").await?;
    ensure!(left.is_empty(), "left over: {left:?}");
    Ok(())
}

pub async fn deletion_removes_everything(namespace: Namespace<'_>) -> Result<()> {
    namespace.serve("model", &namespace.cluster.stock.double.spec()).await?;
    let made = children(namespace, "model").await?;
    let kinds: Vec<&str> = made.keys().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, ["ConfigMap", "Deployment", "Pod", "ReplicaSet", "Service", "ServiceAccount"]);
    namespace.kubectl(&["delete", "torchmodel", "model"]).await?;
    all_gone(namespace, &made).await
}

pub async fn a_model_deleted_while_it_is_created_leaves_nothing(namespace: Namespace<'_>) -> Result<()> {
    let spec = namespace.cluster.stock.double.spec();
    namespace.apply("model", &spec).await?;
    eventually(&namespace.api::<Deployment>(), "model", ("the Deployment exists", PATIENCE), |_| true).await?;
    let made = children(namespace, "model").await?;
    namespace.kubectl(&["delete", "torchmodel", "model"]).await?;
    all_gone(namespace, &made).await?;
    // Deleted before the operator has seen it, perhaps.
    namespace.apply("model", &spec).await?;
    namespace.api::<TorchModel>().delete("model", &DeleteParams::default()).await?;
    // What the operator says of a later model, it says after it has dealt with an earlier one.
    namespace.serve("later", &spec).await?;
    let made = children(namespace, "model").await?;
    all_gone(namespace, &made).await
}

async fn comes_back<K>(api: &Api<K>, name: &str) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let old = api.get(name).await?.uid();
    api.delete(name, &DeleteParams::background()).await?;
    let what = format!("{} {name} is back", K::kind(&()));
    eventually(api, name, (&what, PATIENCE), |object| object.uid() != old).await?;
    Ok(())
}

pub async fn a_child_deleted_by_hand_comes_back(namespace: Namespace<'_>) -> Result<()> {
    namespace.serve("model", &namespace.cluster.stock.double.spec()).await?;
    let revision = children(namespace, "model").await?.into_keys().find(|(kind, _)| *kind == "ConfigMap");
    comes_back(&namespace.api::<ConfigMap>(), &revision.expect("a revision").1).await?;
    comes_back(&namespace.api::<Service>(), "model").await?;
    comes_back(&namespace.api::<ServiceAccount>(), "model").await?;
    comes_back(&namespace.api::<Deployment>(), "model").await?;
    // The Deployment's new pods serve behind the new Service.
    let is_served =
        |deployment: &Deployment| deployment.status.as_ref().and_then(|status| status.ready_replicas) == Some(1);
    eventually(&namespace.api::<Deployment>(), "model", ("the new pod is ready", PATIENCE), is_served).await?;
    namespace.ready("model").await?;
    assert_eq!(crate::update::factor(&namespace.rest("model").await?, "model").await?, [2.0]);
    Ok(())
}

pub async fn applying_again_and_restarting_the_operator_write_nothing(namespace: Namespace<'_>) -> Result<()> {
    let cluster = namespace.cluster;
    let spec = cluster.stock.double.spec();
    namespace.serve("model", &spec).await?;
    let models = namespace.api::<TorchModel>();
    let made = children(namespace, "model").await?;
    let version = models.get("model").await?.resource_version();

    namespace.apply("model", &spec).await?;
    assert_eq!(models.get("model").await?.resource_version(), version, "applying the same again writes nothing");

    let old = cluster.release.operator_pod(&cluster.client, "").await?;
    let deployment = format!("deployment/{}", cluster.release.deployment());
    let restart = ["--namespace", cluster.release.namespace(), "rollout", "restart", &deployment];
    namespace.kubectl(&restart).await?;
    cluster.release.operator_pod(&cluster.client, &old).await?;
    // The new operator finds the models that exist before any that is made now.
    namespace.serve("later", &spec).await?;
    assert_eq!(children(namespace, "model").await?, made, "a new operator changes no child");
    assert_eq!(models.get("model").await?.resource_version(), version, "nor the TorchModel");

    cluster.release.upgrade("operator.podAnnotations.test=upgrade").await?;
    namespace.serve("latest", &spec).await?;
    assert_eq!(children(namespace, "model").await?, made, "an upgrade of the chart changes no child");
    Ok(())
}
