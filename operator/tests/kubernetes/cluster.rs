//! What tests do with an API server: install the chart's rules, run the operator under them, play the parts of the cluster
//! that do not run, and wait for what should come.

use std::{fmt::Debug, future::Future, sync::OnceLock, time::Duration};

use clap::Parser as _;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    core::{GroupVersionKind, TypeMeta},
    runtime::wait::{await_condition, conditions::is_crd_established},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use torchmodel_crds::{TorchModel, TorchModelStatus};
use torchmodel_operator::{Args, Error, Process, QUIET_LIBRARIES, run};
use torchmodel_process::log::{self, Log};

use crate::{
    api_server::{ApiServer, Identity},
    helm::render_chart,
};

/// Longest that anything here may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The result of `future`, or a panic that says what did not happen.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// Resolves with the object once `is_so` holds for it.
pub async fn eventually<K>(api: &Api<K>, name: &str, what: &str, is_so: impl Fn(&K) -> bool) -> K
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let condition = |object: Option<&K>| object.is_some_and(&is_so);
    match tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, condition)).await {
        Ok(object) => object.unwrap().unwrap(),
        Err(elapsed) => panic!("{what}: {elapsed} after {PATIENCE:?}; last seen: {:#?}", api.get_opt(name).await),
    }
}

/// Resolves once there is no such object.
pub async fn gone<K>(api: &Api<K>, name: &str)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    in_time(&format!("{name} is gone"), await_condition(api.clone(), name, |object: Option<&K>| object.is_none()))
        .await
        .unwrap();
}

/// Installs the CustomResourceDefinition and the chart's roles as they come out of `helm template`.
pub async fn install_chart(server: &ApiServer, release: &str, namespace: &str, values: Value) -> String {
    let client = server.client(&Identity::Admin).await;
    create_namespace(&client, namespace).await;
    let mut account = String::new();
    for manifest in render_chart(release, namespace, &values).unwrap() {
        let object: DynamicObject = serde_json::from_value(manifest).unwrap();
        let types = object.types.clone().unwrap();
        match types.kind.as_str() {
            // Nothing here could run the operator's pod.
            "Deployment" => continue,
            "ServiceAccount" => account = object.name_any(),
            _ => {}
        }
        apply(&client, &object, &types).await;
    }
    let crds: Api<CustomResourceDefinition> = Api::all(client);
    let established = await_condition(crds, "torchmodels.serving.torchmodel.dev", is_crd_established());
    in_time("the CRD is established", established).await.unwrap();
    account
}

async fn apply(client: &Client, object: &DynamicObject, types: &TypeMeta) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(types).unwrap());
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let parameters = PatchParams::apply("test").force();
    api.patch(&object.name_any(), &parameters, &Patch::Apply(object)).await.unwrap();
}

/// Makes a namespace; one that exists is fine.
pub async fn create_namespace(client: &Client, name: &str) {
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    match api.create(&PostParams::default(), &namespace).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => panic!("{error}"),
    }
}

/// An operator that runs in this process.
pub struct Operator {
    /// Where it serves health and metrics.
    pub address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Error>>,
}

impl Operator {
    /// Starts one as that identity.
    pub async fn start(server: &ApiServer, identity: Identity, flags: &[&str]) -> Self {
        let args = Args::try_parse_from([&["torchmodel-operator", "--listen=127.0.0.1:0"], flags].concat()).unwrap();
        if std::env::var_os("TORCHMODEL_LOG").is_some() {
            static LOG: OnceLock<Log> = OnceLock::new();
            LOG.get_or_init(|| log::init(&args.log, QUIET_LIBRARIES));
        }
        let listener = TcpListener::bind(args.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = server.client(&identity).await;
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let task = tokio::spawn(run(Process { client, listener, args }, shutdown));
        Self { address, stop, task }
    }

    /// Tells it to stop and waits until it has.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        in_time("the operator ends", self.task).await.unwrap().unwrap();
    }
}

/// A namespace with its TorchModels, as a person sees them.
pub struct User {
    /// An administrator's client.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

impl User {
    /// In a namespace of their own.
    pub async fn new(server: &ApiServer, namespace: &str) -> Self {
        let client = server.client(&Identity::Admin).await;
        create_namespace(&client, namespace).await;
        Self { client, namespace: namespace.to_owned() }
    }

    /// The namespace's objects of a kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// `kubectl apply` of a TorchModel.
    pub async fn apply(&self, name: &str, spec: Value) -> kube::Result<TorchModel> {
        let manifest = json!({"apiVersion": "serving.torchmodel.dev/v1alpha1", "kind": "TorchModel",
            "metadata": {"name": name}, "spec": spec});
        let parameters = PatchParams::apply("kubectl").validation_strict();
        self.api::<TorchModel>().patch(name, &parameters, &Patch::Apply(manifest)).await
    }

    /// The model's status once `is_so` holds for it.
    pub async fn status(&self, name: &str, what: &str, is_so: impl Fn(&TorchModelStatus) -> bool) -> TorchModelStatus {
        let is_so = |model: &TorchModel| {
            model
                .status
                .as_ref()
                .is_some_and(|status| status.observed_generation == model.metadata.generation && is_so(status))
        };
        eventually(&self.api::<TorchModel>(), name, what, is_so).await.status.unwrap()
    }

    /// The model's Deployment, once its pods read a revision other than `old`.
    pub async fn deployment(&self, name: &str, old: &str) -> Deployment {
        eventually(&self.api::<Deployment>(), name, "the Deployment has the desired revision", |deployment| {
            revision(deployment) != old
        })
        .await
    }

    /// Plays the deployment controller and the kubelet: so many pods of the newest template are ready.
    pub async fn roll_out(&self, deployment: &Deployment) {
        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
        let status = json!({"status": {"observedGeneration": deployment.metadata.generation, "replicas": replicas,
            "updatedReplicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas}});
        self.patch_status::<Deployment>(&deployment.name_any(), status).await;
    }

    /// Plays the replica set controller: a pod of the Deployment's template.
    pub async fn create_pod(&self, deployment: &Deployment, name: &str) -> Pod {
        let template = deployment.spec.as_ref().unwrap().template.clone();
        let mut pod = Pod { metadata: template.metadata.unwrap(), spec: template.spec, ..Pod::default() };
        pod.metadata.name = Some(name.to_owned());
        self.api::<Pod>().create(&PostParams::default(), &pod).await.unwrap()
    }

    /// Plays the kubelet.
    pub async fn patch_status<K>(&self, name: &str, status: Value)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
    {
        self.api::<K>().patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
}

/// Name of the ConfigMap that a Deployment's pods read.
pub fn revision(deployment: &Deployment) -> String {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap_or_default();
    let config_map = pod.volumes.unwrap_or_default().into_iter().find_map(|volume| volume.config_map);
    config_map.map(|config_map| config_map.name).unwrap_or_default()
}

/// Status and reason of a condition, "True Serving"; empty when it is absent.
pub fn condition(status: &TorchModelStatus, type_: &str) -> String {
    let condition = status.conditions.iter().find(|condition| condition.type_ == type_);
    condition.map(|condition| format!("{} {}", condition.status, condition.reason)).unwrap_or_default()
}
