//! Pods that are told to stop answer what reaches them first.

use std::sync::Arc;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use torchmodel_testing::TestTensor;
use torchmodel_tests::{GrpcClient, Namespace, RestClient, Traffic, gone};

use crate::update::factor;

pub async fn no_request_fails_while_pods_are_replaced(namespace: Namespace<'_>) -> Result<()> {
    namespace.serve("model", &namespace.cluster.stock.double.spec()).await?;
    let old = namespace.pod("model").await?.name_any();
    let (http, grpc) = (namespace.address("model", 8080).await?, namespace.address("model", 8081).await?);
    let mut traffic = vec![("REST, a connection for each request", over_rest(RestClient::without_keep_alive(http)?))];
    if namespace.cluster.is_direct() {
        traffic.push(("REST, connections kept", over_rest(RestClient::new(http)?)));
        traffic.push(("gRPC", over_grpc(GrpcClient::new(grpc)?)));
    } else {
        println!("drain: kept connections are not tried, since a forwarded port ends them in its own way");
    }
    for (_, traffic) in &traffic {
        traffic.answered(5).await?;
    }
    namespace.kubectl(&["rollout", "restart", "deployment/model"]).await?;
    namespace.kubectl(&["rollout", "status", "deployment/model", "--timeout=120s"]).await?;
    gone(&namespace.api::<Pod>(), &old).await?;
    for (_, traffic) in &traffic {
        traffic.answered(5).await?;
    }
    let mut failed = Vec::new();
    for (what, traffic) in traffic {
        match traffic.finish().await {
            Ok(answers) => println!("drain: {what}: {answers} requests were answered, none failed"),
            Err(error) => failed.push(format!("{what}: {error:#}")),
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn over_rest(rest: RestClient) -> Traffic {
    let rest = Arc::new(rest);
    Traffic::start(move || {
        let rest = Arc::clone(&rest);
        async move {
            let answer = factor(&rest, "model").await?;
            ensure!(answer == [2.0], "{answer:?}");
            Ok(())
        }
    })
}

fn over_grpc(grpc: GrpcClient) -> Traffic {
    Traffic::start(move || {
        let grpc = grpc.clone();
        async move {
            let answer = grpc.infer("model", &[TestTensor::fp32("x", &[1], &[2.0])]).await?;
            ensure!(answer == [4.0], "{answer:?}");
            Ok(())
        }
    })
}
