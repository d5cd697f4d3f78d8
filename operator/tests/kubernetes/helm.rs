//! What `helm template` makes of the chart, and where it and the programs of the local cluster are (`make cluster-programs`).

use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize as _;
use serde_json::Value;

/// The manifests of a release with these values, or what helm says against them.
pub fn render_chart(release: &str, namespace: &str, values: &Value) -> Result<Vec<Value>, String> {
    let home = tempfile::tempdir().unwrap();
    let mut helm = Command::new(programs().join("helm"))
        .args(["template", release, "--namespace", namespace, "--values", "-"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/torchmodel"))
        .env("HOME", home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("helm runs");
    // Taken, so that it closes.
    helm.stdin.take().unwrap().write_all(values.to_string().as_bytes()).unwrap();
    let output = helm.wait_with_output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap());
    Ok(documents.filter(|document| !document.is_null()).collect())
}

/// The folder with kube-apiserver, etcd and helm.
pub fn programs() -> PathBuf {
    let folder = env::var_os("TORCHMODEL_CLUSTER_BIN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/programs"), PathBuf::from);
    for program in ["kube-apiserver", "etcd", "helm"] {
        assert!(
            folder.join(program).exists(),
            "there is no {program} in {}: run `make cluster-programs`, or name another folder with TORCHMODEL_CLUSTER_BIN",
            folder.display()
        );
    }
    folder.canonicalize().unwrap()
}
