//! What the chart makes of its values, and which it refuses. Needs helm, but no cluster.

use clap::Parser as _;
use serde_json::{Value, json};
use torchmodel_operator::Args;

use crate::helm::render_chart;

/// Image and arguments of the operator's container.
fn operator(values: &Value) -> (String, Vec<String>) {
    let manifests = render_chart("torchmodel", "torchmodel-system", values).unwrap();
    let deployment = manifests.into_iter().find(|manifest| manifest["kind"] == "Deployment").unwrap();
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let args = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap().to_owned()).collect();
    (container["image"].as_str().unwrap().to_owned(), args)
}

/// What the operator reads from these arguments.
fn parsed(args: Vec<String>) -> Args {
    Args::try_parse_from([vec!["torchmodel-operator".to_owned()], args].concat()).unwrap()
}

#[test]
fn an_image_is_named_by_the_charts_version_a_tag_or_a_digest_which_wins() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    let version = env!("CARGO_PKG_VERSION");
    let (image, args) = operator(&json!({}));
    let args = parsed(args);
    assert_eq!(image, format!("torchmodel-operator:{version}"));
    assert_eq!(args.runtime_image, format!("torchmodel-runtime:{version}"));
    assert_eq!(args.runtime_cuda_image, format!("torchmodel-runtime-cuda:{version}"));

    let named = |name: &str| json!({"repository": format!("registry:5000/{name}"), "tag": "v1", "digest": digest});
    let (image, args) = operator(&json!({
        "operator": {"image": named("operator")},
        "runtime": {"image": named("runtime"), "cudaImage": {"repository": "cuda", "tag": "v1"}},
    }));
    let args = parsed(args);
    assert_eq!(image, format!("registry:5000/operator@{digest}"));
    assert_eq!(args.runtime_image, format!("registry:5000/runtime@{digest}"));
    assert_eq!(args.runtime_cuda_image, "cuda:v1");
    let (_, args) = operator(&json!({"runtime": {"cudaImage": named("cuda")}}));
    assert_eq!(parsed(args).runtime_cuda_image, format!("registry:5000/cuda@{digest}"));
}

#[test]
fn every_argument_is_one_that_the_operator_reads() {
    let (_, args) = operator(&json!({
        "scope": {"namespaced": true, "namespaces": ["a", "b"]},
        "runtime": {"env": {"AWS_REGION": "eu-west-1", "OMP_NUM_THREADS": 16_000_000, "FLAG": true}},
    }));
    let args = parsed(args);
    assert_eq!(args.listen, "[::]:8080".parse().unwrap());
    assert_eq!(args.namespaces, ["a", "b"]);
    let env = [("AWS_REGION", "eu-west-1"), ("FLAG", "true"), ("OMP_NUM_THREADS", "16000000")];
    assert_eq!(args.runtime_env, env.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn a_value_that_would_give_a_wrong_manifest_is_refused_by_its_name() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    for (values, name) in [
        (json!({"operator": {"image": {"tag": digest}}}), "/operator/image/tag"),
        (json!({"runtime": {"image": {"digest": "0a".repeat(32)}}}), "/runtime/image/digest"),
        (json!({"runtime": {"cudaImage": {"digest": "sha256:0A"}}}), "/runtime/cudaImage/digest"),
        (json!({"fullnameOverride": "Torch_Model"}), "/fullnameOverride"),
        (json!({"fullnameOverride": "torchmodel-"}), "/fullnameOverride"),
    ] {
        let error = render_chart("torchmodel", "torchmodel-system", &values).expect_err(name);
        assert!(error.contains(name), "{name} is not in: {error}");
    }
}
