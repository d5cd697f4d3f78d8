//! The operator's own life against a real API server: scopes, restarts, elections, health and metrics.
//!
//! Each test installs the chart for its own namespace alone, so operators do not meet.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::OnceLock,
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{Secret, Service},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use torchmodel_crds::TorchModel;

use crate::{
    api_server::{ApiServer, Identity},
    cluster::{Operator, User, condition, eventually, in_time, install_chart},
};

fn server() -> &'static ApiServer {
    static SERVER: OnceLock<ApiServer> = OnceLock::new();
    SERVER.get_or_init(ApiServer::start)
}

/// A namespace with the chart installed for it alone: roles of that namespace only.
struct Site {
    user: User,
    account: String,
}

impl Site {
    async fn new(namespace: &str) -> Self {
        let server = tokio::task::spawn_blocking(server).await.unwrap();
        let values = json!({"scope": {"namespaced": true}});
        let account = install_chart(server, &format!("torchmodel-{namespace}"), namespace, values).await;
        Self { user: User::new(server, namespace).await, account }
    }

    async fn operator(&self, identity: &str) -> Operator {
        let namespace = &self.user.namespace;
        let flags = [
            format!("--namespace={namespace}"),
            format!("--lease-namespace={namespace}"),
            format!("--lease-name={}", self.account),
            format!("--identity={identity}"),
        ];
        let account = Identity::ServiceAccount(namespace.clone(), self.account.clone());
        Operator::start(server(), account, &flags.each_ref().map(String::as_str)).await
    }

    fn writes(&self) -> Vec<String> {
        let namespace = &self.user.namespace;
        server().writes(&format!("system:serviceaccount:{namespace}:{}", self.account), namespace)
    }

    async fn lease_holder(&self, is_so: impl Fn(Option<&str>) -> bool) {
        let leases: Api<Lease> = self.user.api();
        eventually(&leases, &self.account, "the Lease's holder", |lease| {
            is_so(lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()))
        })
        .await;
    }
}

/// Status and body of a GET.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n");
    let exchange = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = tokio::task::spawn_blocking(exchange).await.unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, answer)
}

#[tokio::test]
async fn with_roles_alone_it_serves_its_namespace_and_no_other() {
    let site = Site::new("scoped").await;
    let operator = site.operator("one").await;
    let elsewhere = User::new(server(), "elsewhere").await;
    elsewhere.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    site.user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    site.user.deployment("vad", "").await;
    site.user.status("vad", "a status", |status| !status.conditions.is_empty()).await;
    assert!(elsewhere.api::<TorchModel>().get("vad").await.unwrap().status.is_none());

    // What the chart does not give: other namespaces, and Secrets anywhere.
    let client = server().client(&Identity::ServiceAccount("scoped".to_owned(), site.account.clone())).await;
    let forbidden = |result: kube::Result<()>| matches!(result, Err(kube::Error::Api(status)) if status.is_forbidden());
    let everywhere: Api<Service> = Api::all(client.clone());
    assert!(forbidden(everywhere.list(&ListParams::default()).await.map(drop)));
    let secrets: Api<Secret> = Api::namespaced(client, "scoped");
    assert!(forbidden(secrets.list(&ListParams::default()).await.map(drop)));
    assert!(forbidden(secrets.get("any").await.map(drop)));
    operator.stop().await;
}

#[tokio::test]
async fn a_restart_writes_nothing_and_repairs_what_happened_meanwhile() {
    let site = Site::new("restart").await;
    let operator = site.operator("one").await;
    site.user
        .apply("vad", json!({"source": {"uri": "s3://models/1.pt"}, "resources": {"limits": {"cpu": "1500m"}}}))
        .await
        .unwrap();
    let deployment = site.user.deployment("vad", "").await;
    site.user.roll_out(&deployment).await;
    site.user.status("vad", "Ready", |status| condition(status, "Ready") == "True Serving").await;
    operator.stop().await;
    site.lease_holder(|holder| holder.is_none()).await;

    let before = site.writes();
    let operator = site.operator("two").await;
    // The one write that shows that it has gone through everything.
    site.user.apply("zzz", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    site.user.status("zzz", "a status", |status| !status.conditions.is_empty()).await;
    let since = site.writes().split_off(before.len());
    assert!(!since.iter().any(|write| write.contains("vad")), "{since:?}");
    operator.stop().await;

    let uid = deployment.uid();
    site.user.api::<Deployment>().delete("vad", &DeleteParams::background()).await.unwrap();
    let operator = site.operator("three").await;
    eventually(&site.user.api::<Deployment>(), "vad", "made anew", |live| live.uid() != uid).await;
    operator.stop().await;
}

#[tokio::test]
async fn a_second_process_stands_by_and_takes_over_as_soon_as_the_first_ends() {
    let site = Site::new("election").await;
    let first = site.operator("first").await;
    site.lease_holder(|holder| holder == Some("first")).await;
    let second = site.operator("second").await;
    in_time("the second is ready", async {
        let mut turns = tokio::time::interval(std::time::Duration::from_millis(20));
        while get(second.address, "/readyz").await.0 != 200 {
            turns.tick().await;
        }
    })
    .await;
    assert!(
        get(second.address, "/metrics")
            .await
            .1
            .contains("leader_election_master_status{name=\"torchmodel-operator\"} 0")
    );

    let started = std::time::Instant::now();
    first.stop().await;
    site.lease_holder(|holder| holder == Some("second")).await;
    assert!(started.elapsed().as_secs() < 5, "the Lease was given back, not left to expire: {:?}", started.elapsed());
    site.user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    site.user.deployment("vad", "").await;
    second.stop().await;
    site.lease_holder(|holder| holder.is_none()).await;
}

#[tokio::test]
async fn it_ends_at_once_when_it_is_told_to_while_it_still_reads_the_cluster() {
    let site = Site::new("early").await;
    for turn in 0..10 {
        let operator = site.operator(&format!("turn-{turn}")).await;
        site.lease_holder(|holder| holder.is_some()).await;
        operator.stop().await;
        site.lease_holder(|holder| holder.is_none()).await;
    }
}

#[tokio::test]
async fn health_and_metrics_tell_what_it_does() {
    let site = Site::new("metrics").await;
    let operator = site.operator("one").await;
    site.user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    site.user.status("vad", "a status", |status| !status.conditions.is_empty()).await;
    assert_eq!(get(operator.address, "/healthz").await.0, 200);
    assert_eq!(get(operator.address, "/readyz").await.0, 200);
    let (status, metrics) = get(operator.address, "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "leader_election_master_status{name=\"torchmodel-operator\"} 1",
        "controller_runtime_reconcile_total{controller=\"torchmodel\",result=\"success\"}",
        "torchmodel_operator_writes_total{kind=\"Deployment\",operation=\"create\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    operator.stop().await;
}

#[tokio::test]
async fn the_scale_subresource_scales_the_pods_and_tells_autoscalers_how_many_there_are() {
    let site = Site::new("scale").await;
    let operator = site.operator("one").await;
    let user = &site.user;
    user.apply("vad", json!({"source": {"uri": "s3://models/1.pt"}})).await.unwrap();
    user.deployment("vad", "").await;
    let models = user.api::<TorchModel>();
    let scale = Patch::Merge(json!({"spec": {"replicas": 3}}));
    models.patch_scale("vad", &PatchParams::default(), &scale).await.unwrap();
    let what = "three replicas";
    let deployments = user.api::<Deployment>();
    let deployment =
        eventually(&deployments, "vad", what, |live| live.spec.as_ref().unwrap().replicas == Some(3)).await;
    user.roll_out(&deployment).await;
    user.status("vad", "Ready", |status| condition(status, "Ready") == "True Serving").await;
    let scale = models.get_scale("vad").await.unwrap();
    assert_eq!(scale.status.as_ref().map(|status| status.replicas), Some(3));
    assert_eq!(scale.status.and_then(|status| status.selector).as_deref(), Some("serving.torchmodel.dev/model=vad"));

    models.patch_scale("vad", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 0}}))).await.unwrap();
    let deployment =
        eventually(&deployments, "vad", "none", |live| live.spec.as_ref().unwrap().replicas == Some(0)).await;
    user.roll_out(&deployment).await;
    let status = user.status("vad", "nothing", |status| condition(status, "Ready") == "True ScaledToZero").await;
    assert_eq!(condition(&status, "Available"), "False ScaledToZero");
    operator.stop().await;
}
