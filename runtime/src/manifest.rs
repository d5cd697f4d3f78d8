//! From text to a checked configuration: a TorchModel manifest, a model configuration file, or a bare archive.
//!
//! Called by `serve` and `pull`. Both texts hold the same two parts, `source` and `model` (types of torchmodel-crds). Invariant: what
//! is not usable is refused with the file and the field.

use std::path::Path;

use serde::{Deserialize, de::DeserializeOwned};
use torchmodel_core::config::ModelConfig;
use torchmodel_crds::{Failure, FailurePhase, FailureReason, ModelSource, ModelSpec, TorchModel};

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not YAML, or not of the expected form.
    #[error("reading {file}: {source}")]
    Parse {
        /// Where the text came from.
        file: String,
        /// What serde says, with the line.
        source: serde_yaml::Error,
    },
    /// A field has a value that it cannot have.
    #[error("{file}: {field}: {source}")]
    Field {
        /// Where the text came from.
        file: String,
        /// The field's path.
        field: String,
        /// What serde says.
        source: serde_yaml::Error,
    },
    /// The text reads, but asks for something impossible.
    #[error("{file}: {message}")]
    Invalid {
        /// Where the text came from.
        file: String,
        /// The field and what is wrong with it.
        message: String,
    },
}

impl ConfigError {
    /// The failure to report.
    #[must_use]
    pub fn failure(&self) -> Failure {
        Failure::new(FailurePhase::Configure, FailureReason::SpecInvalid, self.to_string())
    }
}

/// What `serve` was given, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeConfig {
    /// Where the artifact comes from.
    pub source: ModelSource,
    /// How to serve it.
    pub model: ModelConfig,
}

/// A model configuration file: what a TorchModel's spec says of the model, without Kubernetes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    source: ModelSource,
    #[serde(default)]
    model: Option<ModelSpec>,
}

#[derive(Deserialize)]
struct TypeMeta {
    kind: Option<String>,
}

impl ServeConfig {
    /// Reads a TorchModel manifest (one of possibly several YAML documents) or a model configuration from `text`; `file` names it
    /// in errors and gives the model its name where nothing else does.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let shown = file.display().to_string();
        let parse_error = |source| ConfigError::Parse { file: shown.clone(), source };
        let invalid = |message: String| ConfigError::Invalid { file: shown.clone(), message };
        let mut found = Vec::new();
        for document in serde_yaml::Deserializer::from_str(text) {
            let value = serde_yaml::Value::deserialize(document).map_err(parse_error)?;
            if value.is_null() {
                continue;
            }
            match TypeMeta::deserialize(&value).map_err(parse_error)?.kind.as_deref() {
                Some("TorchModel") => {
                    let object: TorchModel = read(value, &shown)?;
                    found.push((object.metadata.name, object.spec.source, object.spec.model));
                }
                Some(_) => {}
                None => {
                    let config: ConfigFile = read(value, &shown)?;
                    found.push((None, config.source, config.model));
                }
            }
        }
        let count = found.len();
        let (name, source, model) = match (found.pop(), count) {
            (Some(only), 1) => only,
            (Some(_), _) => {
                return Err(invalid(format!("it holds {count} TorchModels; the runtime serves one: split the file")));
            }
            (None, _) => {
                return Err(invalid(
                    "it holds no TorchModel and no model configuration (with the keys `source` and `model`)".into(),
                ));
            }
        };
        let name = name.or_else(|| file_stem(file));
        let model = ModelConfig::check(&model.unwrap_or_default(), name).map_err(invalid)?;
        Ok(Self { source, model })
    }

    /// A bare archive, with everything else derived.
    pub fn for_archive(path: &Path) -> Result<Self, ConfigError> {
        let invalid = |message| ConfigError::Invalid { file: path.display().to_string(), message };
        let model = ModelConfig::check(&ModelSpec::default(), file_stem(path)).map_err(invalid)?;
        let absolute = std::path::absolute(path).map_err(|error| invalid(error.to_string()))?;
        let source = ModelSource { uri: Some(absolute.display().to_string()), ..ModelSource::default() };
        Ok(Self { source, model })
    }
}

fn read<T: DeserializeOwned>(value: serde_yaml::Value, file: &str) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(value).map_err(|error| ConfigError::Field {
        file: file.to_owned(),
        field: error.path().to_string(),
        source: error.into_inner(),
    })
}

fn file_stem(path: &Path) -> Option<String> {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use torchmodel_core::config::{Batching, Warmup};

    use super::*;

    fn parse(text: &str) -> Result<ServeConfig, String> {
        ServeConfig::parse(text, Path::new("dir/vad.yaml")).map_err(|error| error.failure().message)
    }

    const MANIFEST: &str = "apiVersion: serving.torchmodel.dev/v1alpha1\nkind: TorchModel\nmetadata: {name: resnet}\nspec:\n  source: {uri: 's3://b/k.pt'}\n  replicas: 2\n";

    #[test]
    fn a_manifest_and_a_configuration_give_the_same() {
        let manifest = parse(MANIFEST).unwrap();
        let config = parse("source: {uri: 's3://b/k.pt'}\nmodel: {name: resnet}\n").unwrap();
        assert_eq!(manifest, config);
        assert_eq!((manifest.model.name.as_str(), manifest.model.method.as_str()), ("resnet", "forward"));
        assert_eq!(parse("source: {uri: 's3://b/k.pt'}\n").unwrap().model.name, "vad");
    }

    #[test]
    fn other_documents_of_a_manifest_file_are_passed_over() {
        let text = format!("# a comment\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n---\n{MANIFEST}");
        assert_eq!(parse(&text).unwrap().model.name, "resnet");
        let twice = parse(&format!("{MANIFEST}---\n{MANIFEST}")).unwrap_err();
        assert!(twice.contains("holds 2 TorchModels"), "{twice}");
        assert!(parse("kind: Secret\n").unwrap_err().contains("holds no TorchModel"));
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named_with_its_field() {
        let text = "source: {uri: 's3://b/k.pt'}\nmodel: {limits: {requestTimeout: 5}}\n";
        let error = parse(text).unwrap_err();
        assert!(error.starts_with("dir/vad.yaml: model.limits.requestTimeout: invalid type"), "{error}");
        let error = parse(&MANIFEST.replace("replicas: 2", "replicas: many")).unwrap_err();
        assert!(error.starts_with("dir/vad.yaml: spec.replicas: invalid type"), "{error}");
    }

    #[test]
    fn every_default_is_a_value_afterwards() {
        let model = parse("source: {uri: 's3://b/k.pt'}\nmodel: {batching: {maxBatchSize: 8}}\n").unwrap().model;
        assert_eq!(model.batching, Some(Batching { max_batch_size: 8, max_delay: Duration::ZERO }));
        assert_eq!(model.warmup, Warmup { iterations: 3, batch_sizes: vec![1, 8], inputs: vec![] });
        assert_eq!((model.max_queue, model.request_timeout, model.instances), (512, Duration::from_secs(60), 1));
    }

    #[test]
    fn refuses_what_cannot_be_and_names_the_field() {
        for (model, expected) in [
            ("{inputs: [{name: a}, {name: a}]}", "model.inputs names 'a' twice"),
            ("{inputs: [{name: a, shape: [-2]}]}", "the shape of 'a' has a dimension below -1"),
            ("{name: 'a/b'}", "must not contain '/'"),
            ("{warmup: {batchSizes: [4]}}", "model.warmup.batchSizes holds 4"),
            ("{inputs: [{name: a, datatype: FLOAT}]}", "unknown variant `FLOAT`"),
            ("{maxBatchSize: 4}", "unknown field `maxBatchSize`"),
            ("{batching: {maxBatchSize: 4, maxDelay: 5}}", "expected a number with a unit, such as 500us"),
        ] {
            let message = parse(&format!("source: {{uri: 's3://b/k.pt'}}\nmodel: {model}\n")).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }
}
