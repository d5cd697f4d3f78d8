//! A changed model replaces the running one without a failed request, and a bad change never does.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use torchmodel_testing::TestTensor;
use torchmodel_tests::{Namespace, RestClient, Traffic, condition, gone};

/// What the model makes of 1: its factor. An error is a request that failed.
pub async fn factor(rest: &RestClient, model: &str) -> Result<Vec<f32>> {
    rest.infer(model, &[TestTensor::fp32("x", &[1], &[1.0])]).await
}

pub async fn a_bad_update_leaves_the_old_model_serving_and_a_correction_takes_over(
    namespace: Namespace<'_>,
) -> Result<()> {
    let stock = &namespace.cluster.stock;
    namespace.serve("model", &stock.double.spec()).await?;
    let rest = Arc::new(RestClient::without_keep_alive(namespace.address("model", 8080).await?)?);
    assert_eq!(factor(&rest, "model").await?, [2.0]);
    let asking = Arc::clone(&rest);
    let traffic = Traffic::start(move || {
        let rest = Arc::clone(&asking);
        async move {
            let factor = factor(&rest, "model").await?;
            ensure!(
                [[2.0], [3.0]].iter().any(|known| factor == known),
                "neither the old model nor the new one: {factor:?}"
            );
            Ok(())
        }
    });

    let mut bad = stock.triple.spec();
    bad["source"]["sha256"] = stock.text.sha256.as_str().into();
    namespace.apply("model", &bad).await?;
    let told = ("the bad update is told", Duration::from_secs(30));
    let status = namespace
        .status("model", told, |status| condition(status, "Ready") == Some(("False", "DigestMismatch")))
        .await?;
    assert_eq!(condition(&status, "Available"), Some(("True", "MinimumAvailable")));
    assert!(status.last_failure.is_some(), "{status:?}");
    traffic.answered(20).await?;
    assert_eq!(factor(&rest, "model").await?, [2.0], "the old model still answers");

    // Ready says that the new pods serve; those that are told to stop still answer what reaches them.
    let old: Vec<String> = namespace.pods("model").await?.iter().map(ResourceExt::name_any).collect();
    let status = namespace.serve("model", &stock.triple.spec()).await?;
    for pod in old {
        gone(&namespace.api::<Pod>(), &pod).await?;
    }
    assert!(status.last_failure.is_none(), "{status:?}");
    assert_eq!(factor(&rest, "model").await?, [3.0]);
    traffic.answered(20).await?;
    let answers = traffic.finish().await?;
    println!("update: {answers} requests were answered, none failed");
    Ok(())
}
