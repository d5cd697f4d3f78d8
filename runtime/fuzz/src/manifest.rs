//! The manifest: what `serve -f` reads of a file of YAML documents.
//!
//! Invariants that hold: what is refused is told with the file's name, and what is taken means the same as JSON.

use std::path::Path;

use serde::Deserialize as _;
use torchmodel_crds::FailureReason;
use torchmodel_runtime::manifest::{ConfigError, ServeConfig, parse};

const FILE: &str = "folder/model.yaml";

/// A file of manifests and model configurations.
pub fn check_manifest(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match parse(text, Path::new(FILE)) {
        Ok(configs) => {
            let again = parse_as_json(text).unwrap_or_else(|error| panic!("its JSON is refused: {error}"));
            assert_eq!(again, configs, "its JSON means something else");
        }
        Err(error) => {
            let failure = error.failure();
            assert_eq!(failure.reason, FailureReason::SpecInvalid);
            assert!(failure.message.contains(FILE), "{}", failure.message);
        }
    }
}

/// Reads each document of `text` again, from the JSON that says the same.
fn parse_as_json(text: &str) -> Result<Vec<ServeConfig>, ConfigError> {
    let mut configs = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = serde_yaml::Value::deserialize(document).expect("it was read before");
        let value = serde_json::to_value(value).expect("it was read before");
        configs.extend(parse(&ascii(&value.to_string()), Path::new(FILE))?);
    }
    Ok(configs)
}

/// The JSON in ASCII: YAML does not take every character as it is.
fn ascii(json: &str) -> String {
    let escape = |char: char| match u32::from(char) {
        0x20..=0x7e => char.to_string(),
        code @ ..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    };
    json.chars().map(escape).collect()
}
