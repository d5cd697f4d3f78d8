//! Which part may know of which: a word that stands in a part's code although it must not is a breach.

use std::process::Command;

use super::{File, assert_none, files, root};

/// Parts (a file, or a folder with a final slash), the words that may not stand in their code, and why. What one crate may know of
/// another stands in the crates' manifests, and Cargo refuses the rest.
const RULES: &[(&[&str], &[&str], &str)] = &[
    (
        &["runtime/core/src/tensor.rs", "runtime/core/src/inference.rs", "runtime/core/src/batcher.rs"],
        &["tokio", "Instant::now", "scheduler", "engine", "repository"],
        "the words between the layers, and the policy, know no thread, clock or layer",
    ),
    (
        &["runtime/server/src/rest.rs", "runtime/server/src/rest/"],
        &["grpc", "tonic", "scheduler", "engine", "batcher", "ModelRepository"],
        "REST decodes, asks the service and encodes",
    ),
    (
        &["runtime/server/src/grpc.rs", "runtime/server/src/grpc/"],
        &["crate::rest", "scheduler", "engine", "batcher", "ModelRepository"],
        "gRPC decodes, asks the service and encodes",
    ),
    (
        &[
            "operator/src/controller/validate.rs",
            "operator/src/controller/build.rs",
            "operator/src/controller/build/",
            "operator/src/controller/status/conditions.rs",
            "operator/src/controller/status/failure.rs",
            "operator/src/controller/status/rollout.rs",
        ],
        &["Client", "Api", "tokio", "async", "Timestamp::now", "Instant::now", "SystemTime", "std::env"],
        "pure steps see no client, clock or environment",
    ),
];

/// For each crate, the crates that it must not depend on, by any way, as `cargo tree` tells it.
const MUST_NOT_DEPEND: &[(&str, &[&str])] = &[
    ("torchmodel-core", &["axum", "hyper", "tonic", "tch", "torch-sys", "torchmodel-server", "torchmodel-artifact"]),
    ("torchmodel-server", &["tch", "torch-sys", "torchmodel-artifact", "torchmodel-torch"]),
    ("torchmodel-artifact", &["axum", "tonic", "tch", "torch-sys", "torchmodel-core"]),
    ("torchmodel-torch", &["axum", "hyper", "tonic", "torchmodel-server", "torchmodel-artifact"]),
    ("torchmodel-operator", &["tch", "torch-sys", "tonic", "torchmodel-core"]),
    ("torchmodel-runtime", &["kube", "k8s-openapi"]),
    // Without its features, as the core has it.
    ("torchmodel-crds", &["axum", "tonic", "tch", "reqwest", "kube", "k8s-openapi", "schemars", "serde_yaml"]),
];

fn is_in(file: &File, parts: &[&str]) -> bool {
    parts.iter().any(|part| file.path == *part || (part.ends_with('/') && file.path.starts_with(part)))
}

/// Whether `word` stands in `line` as a whole word.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
}

/// The lines of a file's code in which one of the words stands, without the tests at its end.
fn breaches(file: &File, words: &[&str], why: &str) -> Vec<String> {
    file.program()
        .filter_map(|(number, line)| {
            let word = words.iter().find(|word| has_word(&line, word))?;
            Some(format!("{}:{number}: `{word}`: {why}", file.path))
        })
        .collect()
}

#[test]
fn no_part_imports_what_it_must_not_know() {
    let files = files(".rs");
    let mut found = Vec::new();
    for (parts, words, why) in RULES {
        let members: Vec<&File> = files.iter().filter(|file| is_in(file, parts) && !file.is_test()).collect();
        assert!(!members.is_empty(), "{parts:?} have gone; correct the rule");
        found.extend(members.into_iter().flat_map(|file| breaches(file, words, why)));
    }
    assert_none("imports", &found);
}

#[test]
fn no_crate_depends_on_what_it_must_not_know() {
    let mut found = Vec::new();
    for (name, others) in MUST_NOT_DEPEND {
        let tree = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--locked",
                "--offline",
                "--prefix=none",
                "--format={p}",
                "--edges=normal",
                "--package",
                name,
            ])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(tree.status.success(), "{name}: {}", String::from_utf8_lossy(&tree.stderr));
        let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
        let known: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(known.first(), Some(name), "the tree begins with the crate itself");
        found.extend(others.iter().filter(|other| known.contains(other)).map(|other| format!("{name} knows {other}")));
    }
    assert_none("dependencies", &found);
}

#[test]
fn unsafe_code_stands_in_the_shim_alone() {
    let others = files(".rs").into_iter().filter(|file| !file.path.starts_with("runtime/torch-shim/"));
    let found: Vec<String> = others
        .flat_map(|file| breaches(&file, &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"], "only the shim"))
        .collect();
    assert_none("unsafe", &found);
}

#[test]
fn a_breach_is_found_and_a_mention_is_not() {
    let file = |text: &str| File { path: "a.rs".to_owned(), text: text.to_owned() };
    let count = |text: &str| breaches(&file(text), &["tokio"], "").len();
    assert_eq!(count("use tokio::net;\nlet a = \"b\"; tokio::spawn(c);"), 2);
    assert_eq!(
        count("//! no tokio\n/// tokio\nuse my_tokio::a; // tokio\nlet a = \"tokio\";\n#[cfg(test)]\nuse tokio;"),
        0
    );
}
