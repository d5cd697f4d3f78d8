//! What is thrown at pods, what they are allowed to do, and what they and the operator tell.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::ResourceExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use torchmodel_tests::{Namespace, RestClient, in_time};

use crate::update::factor;

/// Beginnings of things that are not requests, and requests that are not inferences.
const GARBAGE: [&[u8]; 6] = [
    b"\0\0\0\0\0\0\0\0\xff\xff\xff\xff",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n{{{{",
    b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzzz\r\n",
];

pub async fn garbage_on_any_port_kills_nothing(namespace: Namespace<'_>) -> Result<()> {
    namespace.serve("model", &namespace.cluster.stock.double.spec()).await?;
    let pod = namespace.pod("model").await?.name_any();
    for port in [8080, 8081, 8082] {
        let address = namespace.pod_address(&pod, port).await?;
        for garbage in GARBAGE {
            let throw = async {
                let mut stream = TcpStream::connect(address).await?;
                // The pod may end the connection at any moment: that is its right.
                let _ = stream.write_all(garbage).await;
                let _ = stream.shutdown().await;
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
                anyhow::Ok(())
            };
            in_time(&format!("{garbage:?} on port {port} is answered or refused"), Duration::from_secs(20), throw)
                .await??;
        }
    }
    let rest = namespace.rest("model").await?;
    let (status, answer) = rest.post_raw("model", "{\"inputs\": [{\"name\": \"y\"}]}").await?;
    assert_eq!(status, 400, "{answer}");
    assert_eq!(factor(&rest, "model").await?, [2.0]);
    let pod = namespace.pod("model").await?;
    let restarts: i32 = pod
        .status
        .iter()
        .filter_map(|status| status.container_statuses.as_ref())
        .flatten()
        .map(|status| status.restart_count)
        .sum();
    assert_eq!(restarts, 0);
    Ok(())
}

pub async fn pods_are_restricted_and_counted(namespace: Namespace<'_>) -> Result<()> {
    let run = ["run", "refused", "--image=localhost/none:1", "--dry-run=server"];
    let said = namespace.kubectl(&run).await.expect_err("a pod without a security context").to_string();
    assert!(said.contains("violates PodSecurity \"restricted"), "{said}");
    namespace.serve("model", &namespace.cluster.stock.double.spec()).await?;
    let rest = namespace.rest("model").await?;
    for _ in 0..3 {
        factor(&rest, "model").await?;
    }
    let pod = namespace.pod("model").await?;
    let metrics = RestClient::new(namespace.pod_address(&pod.name_any(), 8082).await?)?;
    let (status, text) = metrics.get("/metrics").await?;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("nv_inference_request_success{model=\"model\",version=\"1\"} 3"), "{text}");
    Ok(())
}

pub async fn the_operator_tells_its_metrics(namespace: Namespace<'_>) -> Result<()> {
    let cluster = namespace.cluster;
    namespace.serve("model", &cluster.stock.double.spec()).await?;
    let operator = cluster.release.namespace();
    let pods = [
        "get",
        "pods",
        "--namespace",
        operator,
        "--field-selector=status.phase=Running",
        "--output=jsonpath={.items[*].metadata.name}",
    ];
    let names = namespace.kubectl(&pods).await?;
    let name = names.split_whitespace().next().context("the operator has no pod")?;
    let path = format!("/api/v1/namespaces/{operator}/pods/{name}:8080/proxy/metrics");
    let text = namespace.kubectl(&["get", "--raw", &path]).await?;
    for metric in
        ["controller_runtime_reconcile_total", "torchmodel_operator_writes_total", "leader_election_master_status"]
    {
        assert!(text.contains(metric), "{metric} is not in: {text}");
    }
    Ok(())
}
