//! A namespace for one test: everything in it is the test's own and is deleted afterwards, also when the test fails.
//!
//! Each enforces the "restricted" Pod Security Standard, so every test shows that model pods keep to it.

use std::{
    net::SocketAddr,
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Namespace as KubeNamespace, Pod},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use torchmodel_crds::{MODEL_LABEL, TorchModel, TorchModelStatus};

use crate::{
    Cluster, GrpcClient, RestClient, Stored,
    command::run,
    report::report,
    wait::{PATIENCE, eventually},
};

/// Label of the namespaces that tests make.
const OURS: (&str, &str) = ("app.kubernetes.io/part-of", "torchmodel-tests");
/// Name of the Secret with keys that open the bucket.
const SECRET: &str = "models-s3";

/// One test's namespace.
#[derive(Clone, Copy)]
pub struct Namespace<'a> {
    /// The cluster that it is in.
    pub cluster: &'a Cluster,
    /// Its name.
    pub name: &'a str,
}

/// Runs `test` in a namespace of its own. When it fails, prints what is in there; then deletes it.
pub async fn with_temp_namespace(
    cluster: &Cluster,
    label: &str,
    test: impl AsyncFnOnce(Namespace<'_>) -> Result<()>,
) -> Result<()> {
    let label: String =
        label.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).take(40).collect();
    let name = format!("{}-{}", label.trim_matches('-'), cluster.run);
    let api: Api<KubeNamespace> = Api::all(cluster.client.clone());
    let labels = json!({OURS.0: OURS.1, "pod-security.kubernetes.io/enforce": "restricted"});
    let object = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}}))?;
    api.create(&PostParams::default(), &object).await.with_context(|| format!("creating the namespace {name}"))?;
    let namespace = Namespace { cluster, name: &name };
    let result = AssertUnwindSafe(async {
        namespace.secret(SECRET, &cluster.settings.access_key_id, &cluster.settings.secret_access_key).await?;
        test(namespace).await
    })
    .catch_unwind()
    .await;
    if !matches!(result, Ok(Ok(()))) {
        report(namespace).await;
    }
    let deleted = api.delete(&name, &DeleteParams::default()).await;
    match result {
        Ok(result) => result.and(deleted.map(drop).with_context(|| format!("deleting the namespace {name}"))),
        Err(panic) => resume_unwind(panic),
    }
}

impl Namespace<'_> {
    /// Its objects of a kind.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client.clone(), self.name)
    }

    /// `kubectl` in this namespace; what it prints.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run("kubectl", &[&["--namespace", self.name], arguments].concat(), "").await
    }

    /// `kubectl apply` of a manifest from standard input, refused or not.
    pub async fn kubectl_apply(&self, manifest: &Value) -> Result<String> {
        run("kubectl", &["--namespace", self.name, "apply", "-f", "-"], &manifest.to_string()).await
    }

    /// Makes a Secret with S3 keys.
    pub async fn secret(&self, name: &str, id: &str, key: &str) -> Result<()> {
        let data = json!({"AWS_ACCESS_KEY_ID": id, "AWS_SECRET_ACCESS_KEY": key});
        let secret = serde_json::from_value(json!({"metadata": {"name": name}, "stringData": data}))?;
        self.api::<k8s_openapi::api::core::v1::Secret>().create(&PostParams::default(), &secret).await?;
        Ok(())
    }

    /// Server-side apply of a TorchModel.
    pub async fn apply(&self, name: &str, spec: &Value) -> Result<TorchModel> {
        let parameters = PatchParams::apply("end-to-end").validation_strict();
        Ok(self.api::<TorchModel>().patch(name, &parameters, &Patch::Apply(manifest(name, spec))).await?)
    }

    /// Applies a model and waits until it serves.
    pub async fn serve(&self, name: &str, spec: &Value) -> Result<TorchModelStatus> {
        self.apply(name, spec).await?;
        self.ready(name).await
    }

    /// Waits until the newest manifest serves.
    pub async fn ready(&self, name: &str) -> Result<TorchModelStatus> {
        self.status(name, (&format!("{name} is Ready"), PATIENCE), |status| {
            condition(status, "Ready") == Some(("True", "Serving"))
        })
        .await
    }

    /// The status that speaks of the newest manifest, once `is_so` holds for it.
    pub async fn status(
        &self,
        name: &str,
        (what, limit): (&str, Duration),
        is_so: impl Fn(&TorchModelStatus) -> bool,
    ) -> Result<TorchModelStatus> {
        let is_so = |model: &TorchModel| {
            let status = model.status.as_ref();
            status.is_some_and(|status| status.observed_generation == model.metadata.generation && is_so(status))
        };
        let model = eventually(&self.api::<TorchModel>(), name, (what, limit), is_so).await?;
        model.status.context("a status that was there")
    }

    /// A model's pods that are not about to end.
    pub async fn pods(&self, model: &str) -> Result<Vec<Pod>> {
        let pods = self.api::<Pod>().list(&ListParams::default().labels(&format!("{MODEL_LABEL}={model}"))).await?;
        Ok(pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// The model's only pod.
    pub async fn pod(&self, model: &str) -> Result<Pod> {
        let pods = self.pods(model).await?;
        let names: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
        <[Pod; 1]>::try_from(pods)
            .ok()
            .map(|[pod]| pod)
            .with_context(|| format!("expected one pod of {model}, found {names:?}"))
    }

    /// Address of a port of a Service.
    pub async fn address(&self, service: &str, port: u16) -> Result<SocketAddr> {
        self.cluster.reach.service(&self.cluster.client, (self.name, service), port).await
    }

    /// Address of a port of a pod.
    pub async fn pod_address(&self, pod: &str, port: u16) -> Result<SocketAddr> {
        self.cluster.reach.pod(&self.cluster.client, (self.name, pod), port).await
    }

    /// A client of the model's REST endpoint, through its Service.
    pub async fn rest(&self, model: &str) -> Result<RestClient> {
        RestClient::new(self.address(model, 8080).await?)
    }

    /// A client of the model's gRPC endpoint, through its Service.
    pub async fn grpc(&self, model: &str) -> Result<GrpcClient> {
        GrpcClient::new(self.address(model, 8081).await?)
    }
}

impl Stored {
    /// A TorchModel's spec that serves this object with the namespace's good keys.
    #[must_use]
    pub fn spec(&self) -> Value {
        json!({"source": {"uri": self.uri, "sha256": self.sha256, "credentials": {"secretName": SECRET}},
            "model": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}], "warmup": {"inputs": [{"name": "x", "shape": [2]}]}},
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}})
    }
}

/// A whole TorchModel manifest.
#[must_use]
pub fn manifest(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "serving.torchmodel.dev/v1alpha1", "kind": "TorchModel", "metadata": {"name": name}, "spec": spec})
}

/// Status and reason of a condition.
#[must_use]
pub fn condition<'a>(status: &'a TorchModelStatus, type_: &str) -> Option<(&'a str, &'a str)> {
    let condition = status.conditions.iter().find(|condition| condition.type_ == type_)?;
    Some((&condition.status, &condition.reason))
}
