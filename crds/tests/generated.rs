//! The files generated from the types are those that are committed, and small enough for `kubectl apply`.

use std::{fs, path::Path};

fn committed(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; run make generate", path.display()))
}

/// Whether the file holds that text; `make generate` writes it first.
fn is_current(path: &str, text: &str) -> bool {
    if std::env::var_os("TORCHMODEL_GENERATE").is_some() {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(path), text).unwrap();
    }
    committed(path) == text
}

#[test]
fn the_committed_crd_is_the_generated_one() {
    let is_current = is_current("torchmodels.yaml", &torchmodel_crds::crd_yaml());
    assert!(is_current, "crds/torchmodels.yaml is stale: run `make generate`");
}

#[test]
fn the_charts_crd_is_the_generated_one() {
    let is_current = is_current("../charts/torchmodel/templates/crd.yaml", &torchmodel_crds::chart_yaml());
    assert!(is_current, "the chart's crd.yaml is stale: run `make generate`");
}

#[test]
fn the_crd_is_at_most_65536_bytes_and_has_nothing_nullable() {
    let yaml = torchmodel_crds::crd_yaml();
    assert!(yaml.len() <= 65_536, "{} bytes", yaml.len());
    assert!(!yaml.contains("nullable"));
    assert!(!yaml.contains("uint32"));
}

#[test]
fn conditions_merge_by_type() {
    let crd = serde_json::to_value(torchmodel_crds::crd()).unwrap();
    let conditions =
        &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"];
    assert_eq!(conditions["x-kubernetes-list-type"], "map");
    assert_eq!(conditions["x-kubernetes-list-map-keys"], serde_json::json!(["type"]));
}
