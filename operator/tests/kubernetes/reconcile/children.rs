//! Children come, stay as they should be, and go.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service, ServiceAccount},
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use torchmodel_crds::TorchModel;

use super::{OPERATOR, server, user};
use crate::cluster::{User, condition, eventually, gone, revision};

/// Resource versions of everything of a model.
async fn versions(user: &User, name: &str) -> Vec<String> {
    async fn of<K>(api: Api<K>, list: &ListParams) -> Vec<String>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let objects = api.list(list).await.unwrap().items;
        objects
            .iter()
            .map(|object| format!("{} {} {:?}", K::kind(&()), object.name_any(), object.resource_version()))
            .collect()
    }
    let labelled = ListParams::default().labels(&format!("serving.torchmodel.dev/model={name}"));
    let mut all = of(user.api::<Deployment>(), &labelled).await;
    all.extend(of(user.api::<Service>(), &labelled).await);
    all.extend(of(user.api::<ConfigMap>(), &labelled).await);
    all.extend(of(user.api::<ServiceAccount>(), &labelled).await);
    all.extend(of(user.api::<TorchModel>(), &ListParams::default().fields(&format!("metadata.name={name}"))).await);
    all
}

#[tokio::test]
async fn a_model_gets_its_children_and_serves_once_its_pods_are_ready() {
    let user = user("serves").await;
    user.apply("vad", json!({"source": {"uri": "s3://models/vad.pt"}, "replicas": 2})).await.unwrap();
    let status = user.status("vad", "a first status", |status| !status.conditions.is_empty()).await;
    let types: Vec<_> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    let expected = ["Ready", "Available", "Progressing", "ArtifactReady", "ModelLoaded", "Degraded", "Reconciling"];
    assert_eq!(types, expected);
    assert_eq!(condition(&status, "Ready"), "False RolloutInProgress");
    assert_eq!(status.selector.as_deref(), Some("serving.torchmodel.dev/model=vad"));

    let deployment = user.deployment("vad", "").await;
    user.api::<Service>().get("vad").await.unwrap();
    user.api::<ServiceAccount>().get("vad").await.unwrap();
    let config_map = user.api::<ConfigMap>().get(&revision(&deployment)).await.unwrap();
    assert_eq!(config_map.data.unwrap()["model.yaml"], "source:\n  uri: s3://models/vad.pt\nmodel:\n  name: vad\n");

    user.roll_out(&deployment).await;
    let status = user.status("vad", "Ready", |status| condition(status, "Ready") == "True Serving").await;
    assert_eq!(condition(&status, "Available"), "True MinimumAvailable");
    assert_eq!(condition(&status, "Degraded"), "False AsExpected");
    assert_eq!(condition(&status, "Reconciling"), "");
    assert_eq!(status.replicas_summary.as_deref(), Some("2/2"));
}

#[tokio::test]
async fn what_is_as_it_should_be_is_never_written_again() {
    let user = user("quiet").await;
    // Quantities and empty texts that the API server stores in another form.
    let spec = json!({"source": {"uri": "s3://models/vad.pt", "credentials": {"secretName": "s3"}},
        "resources": {"requests": {"cpu": "0.5", "memory": "1024Mi"}, "limits": {"cpu": 2}},
        "runtime": {"env": [{"name": "EMPTY", "value": ""}, {"name": "HOME", "value": "/mnt"}], "args": ["--log=debug"]},
        "accelerator": {"count": 1, "nodeSelector": {"pool": "gpu"}}});
    user.apply("vad", spec.clone()).await.unwrap();
    let deployment = user.deployment("vad", "").await;
    let container = &deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0];
    assert_eq!(container.resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "2");
    user.roll_out(&deployment).await;
    user.status("vad", "Ready", |status| condition(status, "Ready") == "True Serving").await;

    let (before, writes) = (versions(&user, "vad").await, server().writes(OPERATOR.1, "quiet"));
    user.apply("vad", spec).await.unwrap();
    // Something that makes the operator look again, and something that shows that it has.
    touch(&user, "vad").await;
    user.apply("marker", json!({"source": {"uri": "s3://models/marker.pt"}})).await.unwrap();
    touch(&user, "vad").await;
    user.status("marker", "a status", |status| !status.conditions.is_empty()).await;
    let after: Vec<_> =
        versions(&user, "vad").await.into_iter().filter(|line| !line.starts_with("TorchModel")).collect();
    let before: Vec<_> = before.into_iter().filter(|line| !line.starts_with("TorchModel")).collect();
    assert_eq!(after, before);
    let since: Vec<_> = server().writes(OPERATOR.1, "quiet").split_off(writes.len());
    assert!(since.iter().any(|write| write == "patch deployments marker"), "{since:?}");
    assert!(!since.iter().any(|write| write.contains("vad")), "{since:?}");
}

async fn touch(user: &User, name: &str) {
    let patch = json!({"metadata": {"annotations": {"touched": format!("{:?}", std::time::Instant::now())}}});
    user.api::<TorchModel>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

#[tokio::test]
async fn a_child_that_is_deleted_comes_back_and_one_that_is_edited_is_repaired() {
    let user = user("repair").await;
    user.apply("vad", json!({"source": {"uri": "s3://models/vad.pt"}})).await.unwrap();
    let deployment = user.deployment("vad", "").await;
    user.status("vad", "a first status", |status| !status.conditions.is_empty()).await;

    replaced::<Service>(&user, "vad").await;
    replaced::<ServiceAccount>(&user, "vad").await;
    replaced::<ConfigMap>(&user, &revision(&deployment)).await;
    replaced::<Deployment>(&user, "vad").await;

    let edits = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "somebody"}}, "spec": {"replicas": 7}});
    let deployments = user.api::<Deployment>();
    let edited = deployments.patch("vad", &PatchParams::default(), &Patch::Merge(edits)).await.unwrap();
    let what = "the Deployment is repaired";
    let repaired = eventually(&deployments, "vad", what, |live| live.spec.as_ref().unwrap().replicas == Some(1)).await;
    assert_eq!(repaired.labels()["app.kubernetes.io/managed-by"], "torchmodel-operator");
    assert_eq!(repaired.uid(), edited.uid());

    let edits = json!([{"op": "replace", "path": "/spec/ports/0/port", "value": 9999}]);
    let patch: Patch<Service> = Patch::Json(serde_json::from_value(edits).unwrap());
    let services = user.api::<Service>();
    services.patch("vad", &PatchParams::default(), &patch).await.unwrap();
    eventually(&services, "vad", "the Service is repaired", |live| {
        live.spec.as_ref().unwrap().ports.iter().flatten().any(|port| port.port == 8080)
    })
    .await;
}

/// Deletes a child and waits for another of its name.
async fn replaced<K>(user: &User, name: &str)
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    let api = user.api::<K>();
    let uid = api.get(name).await.unwrap().uid();
    api.delete(name, &DeleteParams::background()).await.unwrap();
    eventually(&api, name, &format!("{} {name} is made anew", K::kind(&())), |live| live.uid() != uid).await;
}

#[tokio::test]
async fn a_changed_model_is_a_new_revision_and_the_old_one_goes_when_nobody_needs_it() {
    let user = user("revisions").await;
    user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    let first = user.deployment("vad", "").await;
    user.roll_out(&first).await;
    user.status("vad", "Ready", |status| condition(status, "Ready") == "True Serving").await;

    user.apply("vad", json!({"source": {"uri": "s3://models/2.pt"}})).await.unwrap();
    let second = user.deployment("vad", &revision(&first)).await;
    let status =
        user.status("vad", "not Ready", |status| condition(status, "Ready") == "False RolloutInProgress").await;
    assert_eq!(condition(&status, "Available"), "True MinimumAvailable", "the old revision still serves");
    user.api::<ConfigMap>().get(&revision(&first)).await.expect("the old pods may still need their revision");

    user.roll_out(&second).await;
    let status = user.status("vad", "Ready", |status| condition(status, "Ready") == "True Serving").await;
    assert_eq!(status.update_revision.as_deref(), Some(revision(&second).as_str()));
    gone(&user.api::<ConfigMap>(), &revision(&first)).await;
}

#[tokio::test]
async fn a_named_service_account_replaces_the_models_own() {
    let user = user("accounts").await;
    user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    user.deployment("vad", "").await;
    user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}, "serviceAccountName": "models"})).await.unwrap();
    gone(&user.api::<ServiceAccount>(), "vad").await;
    eventually(&user.api::<Deployment>(), "vad", "the pods' account", |deployment| {
        let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap_or_default();
        pod.service_account_name.as_deref() == Some("models")
    })
    .await;
}

#[tokio::test]
async fn an_object_of_somebody_else_is_left_alone_and_named() {
    let user = user("taken").await;
    let theirs = json!({"metadata": {"name": "vad"}, "spec": {"ports": [{"port": 80}]}});
    let services = user.api::<Service>();
    services.create(&PostParams::default(), &serde_json::from_value(theirs).unwrap()).await.unwrap();
    user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    let status = user.status("vad", "a conflict", |status| condition(status, "Ready") == "False FieldConflict").await;
    let message = &status.conditions.first().unwrap().message;
    assert!(message.starts_with("Service vad exists and belongs to "), "{message}");
    assert!(services.get("vad").await.unwrap().labels().is_empty());
    services.delete("vad", &DeleteParams::default()).await.unwrap();
    user.deployment("vad", "").await;
}

#[tokio::test]
async fn a_model_deleted_while_its_children_are_made_leaves_nothing_that_stays() {
    let user = user("deleted").await;
    let models = user.api::<TorchModel>();
    let mut uids = Vec::new();
    for turn in 0..5 {
        let spec = json!({"source": {"uri": format!("s3://models/{turn}.pt")}});
        uids.push(user.apply("vad", spec).await.unwrap().uid().unwrap());
        models.delete("vad", &DeleteParams::background()).await.unwrap();
        gone(&models, "vad").await;
    }
    // No garbage collector runs here: what was made names a TorchModel of these, so a real one removes it.
    user.apply("marker", json!({"source": {"uri": "s3://models/marker.pt"}})).await.unwrap();
    user.deployment("marker", "").await;
    let label = ListParams::default().labels("serving.torchmodel.dev/model=vad");
    for service in user.api::<Service>().list(&label).await.unwrap() {
        assert!(uids.contains(&service.owner_references()[0].uid));
    }
    // Without the owner nothing comes back.
    for config_map in user.api::<ConfigMap>().list(&label).await.unwrap() {
        user.api::<ConfigMap>().delete(&config_map.name_any(), &DeleteParams::default()).await.unwrap();
    }
    user.apply("marker-2", json!({"source": {"uri": "s3://models/marker.pt"}})).await.unwrap();
    user.deployment("marker-2", "").await;
    assert!(user.api::<ConfigMap>().list(&label).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_model_that_waits_for_a_finalizer_gets_no_child_back() {
    let user = user("finalizer").await;
    user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    let deployment = user.deployment("vad", "").await;
    let models = user.api::<TorchModel>();
    let finalizers = |list: serde_json::Value| Patch::Merge(json!({"metadata": {"finalizers": list}}));
    models.patch("vad", &PatchParams::default(), &finalizers(json!(["example.com/wait"]))).await.unwrap();
    models.delete("vad", &DeleteParams::background()).await.unwrap();
    user.api::<Deployment>().delete(&deployment.name_any(), &DeleteParams::background()).await.unwrap();
    user.apply("marker", json!({"source": {"uri": "s3://models/marker.pt"}})).await.unwrap();
    user.deployment("marker", "").await;
    assert!(user.api::<Deployment>().get_opt("vad").await.unwrap().is_none());
    models.patch("vad", &PatchParams::default(), &finalizers(json!([]))).await.unwrap();
    gone(&models, "vad").await;
}
