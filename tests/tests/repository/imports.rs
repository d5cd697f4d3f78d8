//! Which part may know of which: a word that stands in a part's code although it must not is a breach.

use super::{File, assert_none, files};

/// Parts (a file, or a folder with a final slash), the words that may not stand in their code, and why.
const RULES: &[(&[&str], &[&str], &str)] = &[
    (
        &["runtime/src/tensor.rs", "runtime/src/inference.rs", "runtime/src/batcher.rs"],
        &["tokio", "axum", "tonic", "tch", "hyper", "torch_shim", "crate::rest", "crate::grpc", "scheduler", "engine"],
        "the words between the layers know no layer",
    ),
    (
        &["runtime/src/rest.rs", "runtime/src/rest/"],
        &["grpc", "tonic", "scheduler", "engine", "batcher", "repository", "tch", "torch_shim"],
        "REST decodes, asks the service and encodes",
    ),
    (
        &["runtime/src/grpc.rs", "runtime/src/grpc/"],
        &["crate::rest", "axum", "scheduler", "engine", "batcher", "repository", "tch", "torch_shim"],
        "gRPC decodes, asks the service and encodes",
    ),
    (
        &["runtime/src/service.rs", "runtime/src/scheduler.rs", "runtime/src/model.rs", "runtime/src/repository.rs"],
        &["crate::rest", "crate::grpc", "axum", "tonic", "hyper", "tch", "torch_shim"],
        "serving knows neither protocols nor libtorch",
    ),
    (
        &["runtime/src/artifact.rs", "runtime/src/artifact/"],
        &["scheduler", "engine", "grpc", "axum", "tonic", "tch", "torch_shim"],
        "fetching knows nothing of serving",
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
    (&["crds/"], &["tokio", "axum", "tonic", "tch", "reqwest"], "the API's types do nothing"),
    (&["operator/"], &["tch", "torch_shim", "torchmodel_runtime", "tonic"], "the operator serves no model"),
];

/// Folders outside which the word may not stand in the code of programs (tests may use it).
const CONFINED: &[(&str, &[&str])] = &[
    ("tch", &["runtime/src/engine/torch.rs", "runtime/src/engine/torch/", "runtime/torch-shim/", "tests/"]),
    // `inspect` prints what the shim reads; lib.rs, which wires the program, ends the process through it.
    (
        "torch_shim",
        &[
            "runtime/src/engine/torch.rs",
            "runtime/src/engine/torch/",
            "runtime/src/inspect.rs",
            "runtime/src/lib.rs",
            "tests/",
        ],
    ),
];

fn is_in(file: &File, parts: &[&str]) -> bool {
    parts.iter().any(|part| file.path == *part || (part.ends_with('/') && file.path.starts_with(part)))
}

/// Whether a file holds tests only.
fn is_test(file: &File) -> bool {
    file.path.contains("/tests/") || file.path.ends_with("tests.rs")
}

/// Whether `word` stands in `line` as a whole word.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part))
}

/// The lines of a file's code in which one of the words stands, without the tests at its end.
fn breaches(file: &File, words: &[&str], why: &str) -> Vec<String> {
    let program = file.code().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    // A word within quotation marks names nothing.
    let named = |line: &str| line.split('"').step_by(2).collect::<Vec<_>>().join("\"");
    program
        .filter_map(|(number, line)| {
            let line = named(line);
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
        let members: Vec<&File> = files.iter().filter(|file| is_in(file, parts) && !is_test(file)).collect();
        assert!(!members.is_empty(), "{parts:?} have gone; correct the rule");
        found.extend(members.into_iter().flat_map(|file| breaches(file, words, why)));
    }
    assert_none("imports", &found);
}

#[test]
fn libtorch_is_called_by_its_engine_alone() {
    let mut found = Vec::new();
    for (word, homes) in CONFINED {
        let others = files(".rs").into_iter().filter(|file| !is_in(file, homes) && !is_test(file));
        found.extend(others.flat_map(|file| breaches(&file, &[word], "only the torch engine")));
    }
    assert_none("libtorch", &found);
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
