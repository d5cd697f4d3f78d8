//! What files, folders and documents become models, and with which sentence the others are refused.

use std::time::Duration;

use tempfile::TempDir;
use torchmodel_core::config::{Batching, Warmup};

use super::*;

const MANIFEST: &str = "apiVersion: serving.torchmodel.dev/v1alpha1\nkind: TorchModel\nmetadata: {name: resnet}\nspec:\n  source: {uri: 's3://b/k.pt'}\n  replicas: 2\n";

fn parse_all(text: &str) -> Result<Vec<ServeConfig>, String> {
    parse(text, Path::new("dir/vad.yaml")).map_err(|error| error.failure().message)
}

fn parse_one(text: &str) -> Result<ServeConfig, String> {
    let mut configs = parse_all(text)?;
    assert_eq!(configs.len(), 1);
    Ok(configs.remove(0))
}

fn model(text: &str) -> ModelConfig {
    parse_one(&format!("source: {{uri: 's3://b/k.pt'}}\nmodel: {text}\n")).unwrap().model
}

fn manifest(name: &str) -> String {
    MANIFEST.replace("resnet", name)
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

/// The names of the models in these files of a folder, or why there are none, without the folder's own path.
fn names(folder: &TempDir, files: &[&str]) -> Result<Vec<String>, String> {
    let files: Vec<PathBuf> = files.iter().map(|file| folder.path().join(file)).collect();
    let shown = |failure: Failure| failure.message.replace(&format!("{}/", folder.path().display()), "");
    Ok(read_configs(&files).map_err(shown)?.iter().map(|config| config.model.name.to_string()).collect())
}

#[test]
fn a_manifest_and_a_configuration_give_the_same() {
    let manifest = parse_one(MANIFEST).unwrap();
    let config = parse_one("source: {uri: 's3://b/k.pt'}\nmodel: {name: resnet}\n").unwrap();
    assert_eq!(manifest, config);
    assert_eq!((manifest.model.name.to_string().as_str(), manifest.model.method.as_str()), ("resnet", "forward"));
    assert_eq!(parse_one("source: {uri: 's3://b/k.pt'}\n").unwrap().model.name.to_string(), "vad");
}

#[test]
fn every_torchmodel_of_a_file_is_a_model_and_other_documents_are_passed_over() {
    let text = format!(
        "# a comment\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n---\n{}---\n---\n{}",
        manifest("a"),
        manifest("b")
    );
    let found: Vec<String> = parse_all(&text).unwrap().iter().map(|config| config.model.name.to_string()).collect();
    assert_eq!(found, ["a", "b"]);
    assert!(parse_all("kind: Secret\n").unwrap().is_empty());
}

#[test]
fn a_refused_document_is_named_with_its_number_and_its_field() {
    let text = format!("{MANIFEST}---\n{}", manifest("b").replace("replicas: 2", "replicas: many"));
    let error = parse_all(&text).unwrap_err();
    assert_eq!(error, "dir/vad.yaml, document 2: spec.replicas: must be an integer, not a string");
    let error = parse_all(&format!("{MANIFEST}---\n{{")).unwrap_err();
    assert!(error.starts_with("reading dir/vad.yaml, document 2: ") && error.contains("line 9"), "{error}");
}

#[test]
fn what_the_schema_refuses_is_refused_with_file_and_field() {
    let at_top = MANIFEST.replace("spec:", "model: {instances: 2}\nspec:");
    let version = MANIFEST.replace("v1alpha1", "v1");
    for (text, expected) in [
        (at_top.as_str(), "dir/vad.yaml: model: is not a field here: it belongs below `spec`"),
        (
            version.as_str(),
            "dir/vad.yaml: apiVersion: must be serving.torchmodel.dev/v1alpha1, not 'serving.torchmodel.dev/v1'",
        ),
        ("kind: 5\n", "kind: must be a string, not an integer: put it in quotes"),
        ("apiVersion: serving.torchmodel.dev/v1alpha1\nspec: {}\n", "kind: is required: add `kind: TorchModel`"),
        (
            "apiVersion: serving.torchmodel.dev/v1alpha1\nkind: TorchModel\nspec: {source: {uri: 's3://b/k'}}\n",
            "dir/vad.yaml: metadata: is required: add it",
        ),
        ("- source\n", "dir/vad.yaml: must be an object, not a list"),
        ("hello\n", "dir/vad.yaml: must be an object, not a string"),
    ] {
        let error = parse_all(text).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_server_that_could_serve_nothing_is_not_started() {
    for (model, expected) in [
        ("{limits: {maxQueue: 0}}", "maxQueue: is 0; it must be at least 1"),
        ("{limits: {requestTimeout: 0s}}", "model.limits.requestTimeout must be between 1ms and 24h"),
        ("{instances: 1000}", "instances: is 1000; it must be at most 64"),
    ] {
        for text in [
            format!("source: {{uri: 's3://b/k.pt'}}\nmodel: {model}\n"),
            MANIFEST.replace("replicas: 2", &format!("model: {model}")),
        ] {
            let error = parse_all(&text).unwrap_err();
            assert!(error.starts_with("dir/vad.yaml: ") && error.contains(expected), "{error}");
        }
    }
}

#[test]
fn every_default_is_a_value_afterwards() {
    let model = model("{batching: {maxBatchSize: 8}}");
    assert_eq!(model.batching, Some(Batching { max_batch_size: 8, max_delay: Duration::ZERO }));
    assert_eq!(model.warmup, Warmup { iterations: 3, batch_sizes: vec![], inputs: vec![] });
    assert_eq!((model.max_queue, model.request_timeout, model.instances), (512, Duration::from_secs(60), None));
}

#[test]
fn refuses_what_cannot_be_and_names_the_field() {
    for (model, expected) in [
        ("{inputs: [{name: a}, {name: a}]}", "model: model.inputs must have different names"),
        ("{inputs: [{name: a, shape: [-2]}]}", "model.inputs[0].shape[0]: is -2; it must be at least -1"),
        ("{name: 'a/b'}", "model: model.name must be of letters, digits and - _ ."),
        ("{warmup: {batchSizes: [4]}}", "model.warmup.batchSizes holds 4"),
        ("{inputs: [{name: a, datatype: FLOAT}]}", "model.inputs[0].datatype: must be one of BOOL, UINT8"),
        ("{maxBatchSize: 4}", "model.maxBatchSize: is not a field here: it belongs below `batching`"),
        (
            "{batching: {maxBatchSize: 4, maxDelay: 5}}",
            "model.batching.maxDelay: must be a string, not an integer: write a number and a unit, such as 500us",
        ),
        ("{batching: {maxBatchSize: 4, maxDelay: 0.1ns}}", "model.batching.maxDelay: '0.1ns' is not a duration"),
        ("{batching: {maxBatchSize: 4, maxDelay: 2m}}", "model.batching.maxDelay must be shorter than"),
    ] {
        let message = parse_all(&format!("source: {{uri: 's3://b/k.pt'}}\nmodel: {model}\n")).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_configuration_may_name_a_local_file_and_a_manifest_may_not() {
    for uri in ["/mnt/source/m.pt", "file:///mnt/source/m.pt", "m.pt"] {
        let config = parse_one(&format!("source: {{uri: '{uri}'}}\n")).unwrap();
        assert_eq!(config.source.uri.as_deref(), Some(uri));
        let error = parse_all(&MANIFEST.replace("s3://b/k.pt", uri)).unwrap_err();
        assert!(error.contains("spec.source: source.uri must begin with s3://, https:// or http://"), "{error}");
    }
}

#[test]
fn an_archive_is_a_model_of_its_files_name() {
    let folder = folder(&[("twice.pt", "PK\x03\x04 garbage")]);
    let configs = read_configs(&[folder.path().join("twice.pt")]).unwrap();
    let [ServeConfig { source, model }] = configs.as_slice() else { panic!("{configs:?}") };
    assert_eq!(model.name.to_string(), "twice");
    assert_eq!(source.uri.as_deref(), folder.path().join("twice.pt").to_str());
}

#[test]
fn files_and_folders_give_their_models_in_the_order_of_arguments_and_names() {
    let (second, first) = (format!("{}---\n{}", manifest("b"), manifest("c")), manifest("a"));
    let folder = folder(&[
        ("2.yml", &second),
        ("1.yaml", &first),
        ("secret.yaml", "kind: Secret\n"),
        (".hidden.yaml", "nonsense: true\n"),
        ("notes.txt", "nonsense: true\n"),
    ]);
    fs::create_dir(folder.path().join("folder.yaml")).unwrap();
    assert_eq!(names(&folder, &["."]).unwrap(), ["a", "b", "c"]);
    assert_eq!(names(&folder, &["2.yml", "1.yaml"]).unwrap(), ["b", "c", "a"]);
}

#[test]
fn two_models_of_one_name_are_refused_with_both_files() {
    let (a, b) = (manifest("a"), manifest("b"));
    let mixed = format!("{b}---\n{a}");
    let folder = folder(&[("1.yaml", &a), ("2.yaml", &mixed), ("a.pt", "PK\x03\x04 garbage")]);
    let twice = "model 'a' stands twice, in 1.yaml and in";
    for (files, second) in [
        (&["1.yaml", "2.yaml"][..], "2.yaml, document 2"),
        (&["1.yaml", "a.pt"], "a.pt"),
        (&["1.yaml", "1.yaml"], "1.yaml"),
    ] {
        let error = names(&folder, files).unwrap_err();
        assert!(error.starts_with(&format!("{twice} {second}: give one of them another")), "{error}");
    }
}

#[test]
fn what_holds_no_model_or_cannot_be_read_is_named() {
    let folder = folder(&[("secret.yaml", "kind: Secret\n"), ("empty.yaml", ""), ("binary", "\u{0}")]);
    fs::write(folder.path().join("binary"), [0xff, 0xfe, 0x00]).unwrap();
    let huge = File::create(folder.path().join("huge.yaml")).unwrap();
    huge.set_len(MAX_MANIFEST_BYTES + 1).unwrap();
    fs::create_dir(folder.path().join("bare")).unwrap();
    for (file, expected) in [
        ("secret.yaml", "secret.yaml: it holds no TorchModel and no model configuration"),
        ("empty.yaml", "empty.yaml: it holds no TorchModel and no model configuration"),
        ("bare", "bare: none of its *.yaml and *.yml files holds a TorchModel"),
        ("binary", "binary: it is neither YAML nor a TorchScript archive"),
        ("huge.yaml", "huge.yaml: it is no TorchScript archive (a zip file), and no manifest: those have at most"),
        ("absent.yaml", "reading absent.yaml: No such file"),
    ] {
        let error = names(&folder, &[file]).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
    let failure = read_configs(&[folder.path().join("absent.yaml")]).unwrap_err();
    assert!(failure.hint.starts_with("--file takes a TorchModel manifest, a folder"), "{}", failure.hint);
}

#[test]
fn what_a_cluster_gives_back_can_be_served() {
    let exported = MANIFEST.replace(
        "metadata: {name: resnet}",
        "metadata:\n  name: resnet\n  namespace: vision\n  uid: c0ffee\n  resourceVersion: '7'\n  generation: 2\n  creationTimestamp: 2026-01-01T00:00:00Z\n  annotations: {a: b}",
    );
    let exported = format!("{exported}status: {{replicas: 2, conditions: []}}\n");
    assert_eq!(parse_one(&exported).unwrap(), parse_one(MANIFEST).unwrap());
}

#[test]
fn an_artifact_takes_the_place_of_one_model_only() {
    let (a, b) = (manifest("a"), manifest("b"));
    let folder = folder(&[("1.yaml", &a), ("2.yaml", &b)]);
    let artifact = Some(Path::new("m.pt"));
    assert_eq!(requested_models(&[folder.path().join("1.yaml")], artifact).unwrap().len(), 1);
    let folder = [folder.path().to_owned()];
    assert_eq!(requested_models(&folder, None).unwrap().len(), 2);
    let message = requested_models(&folder, artifact).unwrap_err().message;
    assert_eq!(message, "--artifact m.pt takes the place of one model's source, but --file names 2 models: a, b");
}
