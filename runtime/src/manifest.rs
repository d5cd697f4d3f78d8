//! From files to checked configurations: TorchModel manifests, model configuration files, bare archives, and folders of manifests.
//!
//! Called by `serve` and `pull`. A manifest and a configuration hold the same two parts, `source` and `model` (types of
//! torchmodel-crds). Invariants: what an API server refuses is refused here, with the file and the field; no two models have one
//! name.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::Value;
use torchmodel_core::config::ModelConfig;
use torchmodel_crds::{
    Failure, FailurePhase, FailureReason, KIND, ModelSource, ModelSpec,
    schema::{Violation, configuration_violations, violations},
};

use crate::misused;

/// First bytes of a zip file, which a TorchScript archive is.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
/// Largest file of manifests. An API server takes 3 MiB at most for one object.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;
/// Endings of the files that are read in a folder.
const EXTENSIONS: [&str; 2] = ["yaml", "yml"];

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file or folder cannot be read.
    #[error("reading {file}: {source}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// The text is not YAML.
    #[error("reading {file}: {source}")]
    Parse {
        /// Where the text came from.
        file: String,
        /// What serde says, with the line.
        source: serde_yaml::Error,
    },
    /// The schema of TorchModels refuses it.
    #[error("{file}: {}", .violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused {
        /// Where the text came from.
        file: String,
        /// What is refused.
        violations: Vec<Violation>,
    },
    /// A field has a value that the schema takes and the program cannot hold.
    #[error("{file}: {field}: {source}")]
    Field {
        /// Where the text came from.
        file: String,
        /// The field's path.
        field: String,
        /// What serde says.
        source: serde_json::Error,
    },
    /// The text reads, but asks for something impossible.
    #[error("{file}: {message}")]
    Invalid {
        /// Where the text came from.
        file: String,
        /// The field and what is wrong with it.
        message: String,
    },
    /// Two models have one name.
    #[error(
        "model '{name}' stands twice, in {first} and in {second}: give one of them another metadata.name or model.name"
    )]
    NameTwice {
        /// The name.
        name: String,
        /// Where it stands first.
        first: String,
        /// Where it stands again.
        second: String,
    },
}

impl ConfigError {
    /// The failure to report.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let failure = Failure::new(FailurePhase::Configure, FailureReason::SpecInvalid, self.to_string());
        match self {
            Self::Unreadable { .. } => failure.with_hint(
                "--file takes a TorchModel manifest, a folder of manifests, a model configuration or a TorchScript archive (.pt)",
            ),
            _ => failure,
        }
    }
}

/// What `serve` was given for one model, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeConfig {
    /// Where the artifact comes from.
    pub source: ModelSource,
    /// How to serve it.
    pub model: ModelConfig,
}

/// A configuration and where it stands, for messages.
#[derive(Debug)]
struct Found {
    place: String,
    config: ServeConfig,
}

/// Reads what `--file` names: each a manifest, a configuration, an archive, or a folder whose `*.yaml` and `*.yml` files are read in
/// the order of their names. There is at least one model in each, and no name twice in all.
///
/// # Errors
/// What cannot be read or is refused, with the file and the field.
pub fn read_configs(files: &[PathBuf]) -> Result<Vec<ServeConfig>, Failure> {
    let mut found = Vec::new();
    for file in files {
        found.extend(read_argument(file).map_err(|error| error.failure())?);
    }
    let mut places: BTreeMap<String, &str> = BTreeMap::new();
    for Found { place, config } in &found {
        let name = config.model.name.to_string();
        if let Some(first) = places.insert(name.clone(), place) {
            let twice = ConfigError::NameTwice { name, first: first.to_owned(), second: place.clone() };
            return Err(twice.failure());
        }
    }
    Ok(found.into_iter().map(|found| found.config).collect())
}

/// The models that a command line asks for. `artifact`, the file that `--artifact` puts in place of a source, can stand for one only.
///
/// # Errors
/// As [`read_configs`]; several models and an artifact.
pub fn requested_models(files: &[PathBuf], artifact: Option<&Path>) -> Result<Vec<ServeConfig>, Failure> {
    let configs = read_configs(files)?;
    match artifact {
        Some(artifact) if configs.len() > 1 => {
            let names: Vec<String> = configs.iter().map(|config| config.model.name.to_string()).collect();
            Err(misused(format!(
                "--artifact {} takes the place of one model's source, but --file names {} models: {}",
                artifact.display(),
                names.len(),
                names.join(", ")
            )))
        }
        _ => Ok(configs),
    }
}

fn read_argument(file: &Path) -> Result<Vec<Found>, ConfigError> {
    if !file.is_dir() {
        let found = read_file(file)?;
        let nothing = "it holds no TorchModel and no model configuration (with the keys `source` and `model`)";
        return if found.is_empty() { Err(invalid(file, nothing)) } else { Ok(found) };
    }
    let mut found = Vec::new();
    for file in manifests_in(file)? {
        found.extend(read_file(&file)?);
    }
    let nothing = "none of its *.yaml and *.yml files holds a TorchModel or a model configuration";
    if found.is_empty() { Err(invalid(file, nothing)) } else { Ok(found) }
}

/// The manifests of a folder in the order of their names. Hidden ones are passed over: a mounted ConfigMap has its own there.
fn manifests_in(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { file: folder.display().to_string(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        let is_manifest = path.extension().is_some_and(|ending| EXTENSIONS.iter().any(|known| ending == *known));
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        if is_manifest && !is_hidden && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(file: &Path) -> Result<Vec<Found>, ConfigError> {
    let mut content = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_MANIFEST_BYTES.saturating_add(1)).read_to_end(&mut content))
        .map_err(|source| ConfigError::Unreadable { file: file.display().to_string(), source })?;
    if content.starts_with(ZIP_MAGIC) {
        return Ok(vec![Found { place: file.display().to_string(), config: ServeConfig::for_archive(file)? }]);
    }
    if u64::try_from(content.len()).is_ok_and(|length| length > MAX_MANIFEST_BYTES) {
        let message = format!(
            "it is no TorchScript archive (a zip file), and no manifest: those have at most {MAX_MANIFEST_BYTES} bytes"
        );
        return Err(invalid(file, message));
    }
    let text = String::from_utf8(content)
        .map_err(|_| invalid(file, "it is neither YAML nor a TorchScript archive (a zip file)"))?;
    parse_documents(&text, file)
}

/// Every TorchModel and model configuration among the YAML documents of `text`; what is of another kind is passed over. `file`
/// names it in errors and gives a model configuration its name where nothing else does.
///
/// # Errors
/// The first document that is refused.
pub fn parse(text: &str, file: &Path) -> Result<Vec<ServeConfig>, ConfigError> {
    Ok(parse_documents(text, file)?.into_iter().map(|found| found.config).collect())
}

fn parse_documents(text: &str, file: &Path) -> Result<Vec<Found>, ConfigError> {
    let mut found = Vec::new();
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let place = match index {
            0 => file.display().to_string(),
            _ => format!("{}, document {}", file.display(), index.saturating_add(1)),
        };
        let value = serde_yaml::Value::deserialize(document)
            .map_err(|source| ConfigError::Parse { file: place.clone(), source })?;
        let value = serde_json::to_value(value)
            .map_err(|error| ConfigError::Invalid { file: place.clone(), message: error.to_string() })?;
        let config = match value.get("kind") {
            _ if value.is_null() => continue,
            Some(Value::String(kind)) if kind != KIND => continue,
            None if value.get("apiVersion").is_none() => from_configuration(&value, file, &place)?,
            _ => from_manifest(&value, &place)?,
        };
        found.push(Found { place, config });
    }
    Ok(found)
}

fn from_manifest(object: &Value, place: &str) -> Result<ServeConfig, ConfigError> {
    refuse(violations(object), place)?;
    let name = object.pointer("/metadata/name").and_then(Value::as_str).map(str::to_owned);
    from_parts(object.get("spec").unwrap_or(&Value::Null), "spec.", name, place)
}

fn from_configuration(configuration: &Value, file: &Path, place: &str) -> Result<ServeConfig, ConfigError> {
    refuse(configuration_violations(configuration), place)?;
    from_parts(configuration, "", file_stem(file), place)
}

/// From the object with the keys `source` and `model`, whose own path in the document is `prefix`.
fn from_parts(parts: &Value, prefix: &str, name: Option<String>, place: &str) -> Result<ServeConfig, ConfigError> {
    let source: Option<ModelSource> = read(parts.get("source"), &format!("{prefix}source"), place)?;
    let model: Option<ModelSpec> = read(parts.get("model"), &format!("{prefix}model"), place)?;
    let model = ModelConfig::check(&model.unwrap_or_default(), name)
        .map_err(|message| ConfigError::Invalid { file: place.to_owned(), message: format!("{prefix}{message}") })?;
    Ok(ServeConfig { source: source.unwrap_or_default(), model })
}

fn read<T: DeserializeOwned>(value: Option<&Value>, path: &str, place: &str) -> Result<Option<T>, ConfigError> {
    serde_path_to_error::deserialize(value.unwrap_or(&Value::Null)).map_err(|error| ConfigError::Field {
        file: place.to_owned(),
        field: format!("{path}.{}", error.path()),
        source: error.into_inner(),
    })
}

fn refuse(violations: Vec<Violation>, place: &str) -> Result<(), ConfigError> {
    if violations.is_empty() { Ok(()) } else { Err(ConfigError::Refused { file: place.to_owned(), violations }) }
}

fn invalid(file: &Path, message: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { file: file.display().to_string(), message: message.into() }
}

fn file_stem(path: &Path) -> Option<String> {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned())
}

impl ServeConfig {
    /// A bare archive, with everything else derived.
    pub fn for_archive(path: &Path) -> Result<Self, ConfigError> {
        let model =
            ModelConfig::check(&ModelSpec::default(), file_stem(path)).map_err(|message| invalid(path, message))?;
        let absolute = std::path::absolute(path).map_err(|error| invalid(path, error.to_string()))?;
        let source = ModelSource { uri: Some(absolute.display().to_string()), ..ModelSource::default() };
        Ok(Self { source, model })
    }
}

#[cfg(test)]
mod tests;
