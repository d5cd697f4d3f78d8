//! What a person sees and does with kubectl.

use anyhow::Result;
use torchmodel_tests::{Namespace, PATIENCE};

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

pub async fn columns_category_short_name_and_scale_work(namespace: Namespace<'_>) -> Result<()> {
    let stored = &namespace.cluster.stock.double;
    namespace.serve("model", &stored.spec()).await?;
    let table = namespace.kubectl(&["get", "torchmodels"]).await?;
    let lines: Vec<Vec<&str>> = table.lines().map(words).collect();
    assert_eq!(lines[0], ["NAME", "READY", "REPLICAS", "REASON", "AGE"], "{table}");
    assert_eq!(lines[1][..4], ["model", "True", "1/1", "Serving"], "{table}");
    let wide = namespace.kubectl(&["get", "tm", "--output=wide"]).await?;
    assert!(wide.contains("DIGEST") && wide.contains(&stored.sha256), "{wide}");
    assert!(wide.contains(&format!("http://model.{}.svc:8080", namespace.name)), "{wide}");
    let all = namespace.kubectl(&["get", "all"]).await?;
    assert!(all.contains("torchmodel.serving.torchmodel.dev/model"), "{all}");

    namespace.kubectl(&["scale", "torchmodel/model", "--replicas=2"]).await?;
    let scaled = |summary: &'static str| {
        move |status: &torchmodel_crds::TorchModelStatus| status.replicas_summary.as_deref() == Some(summary)
    };
    namespace.status("model", ("two pods are ready", PATIENCE), scaled("2/2")).await?;
    namespace.ready("model").await?;
    let selector = namespace.kubectl(&["get", "tm", "model", "--output=jsonpath={.status.selector}"]).await?;
    let pods = namespace.kubectl(&["get", "pods", "--selector", &selector, "--output=name"]).await?;
    assert_eq!(pods.lines().count(), 2, "{pods}");
    namespace.kubectl(&["scale", "torchmodel/model", "--replicas=0"]).await?;
    namespace.status("model", ("no pod is left", PATIENCE), scaled("0/0")).await?;
    Ok(())
}

pub async fn explain_describes_the_fields(namespace: Namespace<'_>) -> Result<()> {
    let source = namespace.kubectl(&["explain", "torchmodel.spec.source"]).await?;
    for text in ["Where the model's artifact comes from", "s3://BUCKET/KEY", "Required for http and https"] {
        assert!(source.contains(text), "{text:?} is not in: {source}");
    }
    let model = namespace.kubectl(&["explain", "torchmodel.spec.model.batching"]).await?;
    assert!(model.contains("maxBatchSize"), "{model}");
    Ok(())
}
