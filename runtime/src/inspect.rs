//! `inspect`: what is in a TorchScript archive, and a manifest to start from.
//!
//! Pure but for the archive that the engine reads. Invariant: the manifest it prints is one that the CRD accepts.

use std::fmt::Write as _;

use torch_shim::ModuleFacts;
use torchmodel_core::interface::{Interface, MethodInterface, ValueType};
use torchmodel_process::format_bytes;
use torchmodel_torch::interface;

/// Everything worth knowing about an archive, as text. `name` is what the model would be called, `sha256` the file's digest.
#[must_use]
pub fn describe(facts: &ModuleFacts, name: &str, sha256: &str) -> String {
    let mut text = String::new();
    let interface = interface::of(facts);
    // Writing to a String cannot fail.
    let _infallible = write_facts(&mut text, facts, sha256);
    let _infallible = write_methods(&mut text, &interface.methods);
    let _infallible = write_manifest(&mut text, &interface, name, sha256);
    text
}

fn write_facts(text: &mut String, facts: &ModuleFacts, sha256: &str) -> std::fmt::Result {
    writeln!(text, "class:       {}", facts.class_name)?;
    writeln!(text, "sha256:      {sha256}")?;
    let types = if facts.parameter_types.is_empty() { "none".into() } else { facts.parameter_types.join(", ") };
    writeln!(text, "parameters:  {} ({}), {types}", facts.parameters.count, format_bytes(facts.parameters.size_bytes))?;
    writeln!(text, "buffers:     {} ({})", facts.buffers.count, format_bytes(facts.buffers.size_bytes))?;
    let devices = if facts.constant_devices.is_empty() { "none".into() } else { facts.constant_devices.join(", ") };
    writeln!(text, "constants on devices: {devices}")
}

fn write_methods(text: &mut String, methods: &[MethodInterface]) -> std::fmt::Result {
    writeln!(text, "methods:")?;
    for method in methods {
        let arguments: Vec<_> = method
            .arguments
            .iter()
            .map(|argument| {
                let default = if argument.has_default { " = default" } else { "" };
                format!("{}: {}{default}", argument.name, argument.value_type)
            })
            .collect();
        writeln!(text, "  {}({}) -> {}", method.name, arguments.join(", "), method.returns)?;
        if method.is_stateful {
            writeln!(text, "    stateful: it may write to the model itself, so requests run one at a time, in order")?;
        }
        if method.mutates_inputs {
            writeln!(text, "    writes to its inputs: they are copied for each request")?;
        }
        if method.duration_depends_on_values {
            writeln!(text, "    may take longer for other values: it runs on threads of its own, however quick")?;
        }
    }
    Ok(())
}

fn write_manifest(text: &mut String, interface: &Interface, name: &str, sha256: &str) -> std::fmt::Result {
    let method = interface.method("forward").ok().or(interface.methods.first());
    writeln!(
        text,
        "\n# A TorchModel to start from: set the URI, and datatypes and shapes where they are commented out."
    )?;
    writeln!(
        text,
        "apiVersion: serving.torchmodel.dev/v1alpha1\nkind: TorchModel\nmetadata:\n  name: {}",
        dns_label(name)
    )?;
    // Quoted, since a file's name may be anything, and a method or argument may be called `null` or `y`: JSON's quotes are YAML's.
    let quoted = |text: &str| serde_json::Value::from(text);
    let uri = quoted(&format!("s3://BUCKET/{name}.pt"));
    writeln!(text, "spec:\n  source:\n    uri: {uri}\n    sha256: {sha256}")?;
    let Some(method) = method else { return Ok(()) };
    writeln!(text, "  model:\n    method: {}", quoted(&method.name))?;
    let tensors: Vec<_> = method.arguments.iter().filter(|argument| argument.value_type == ValueType::Tensor).collect();
    if !tensors.is_empty() {
        writeln!(text, "    inputs:")?;
    }
    for argument in tensors {
        writeln!(
            text,
            "    - name: {}\n      # datatype: FP32\n      # shape: [-1, 3, 224, 224]",
            quoted(&argument.name)
        )?;
    }
    Ok(())
}

/// `name` as Kubernetes allows it for a Service: lower-case letters, digits and dashes, beginning with a letter.
fn dns_label(name: &str) -> String {
    let label: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(50).collect();
    let label = label.trim_matches('-');
    if label.starts_with(|c: char| c.is_ascii_lowercase()) {
        label.to_owned()
    } else {
        format!("model-{label}").trim_end_matches('-').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use torchmodel_core::interface::ArgumentInterface;

    use super::*;

    #[test]
    fn the_manifest_it_prints_is_a_torchmodel() {
        let json = r#"{"class_name":"M","methods":[{"name":"forward","arguments":[{"name":"x","type":{"kind":"Tensor"},"has_default":false}],
            "returns":{"kind":"Tensor"},"is_stateful":true,"writes_constants":false,"mutates_inputs":false,"is_random":false,"duration_depends_on_values":true}],"parameters":{"count":2,"size_bytes":1234567},
            "buffers":{"count":0,"size_bytes":0},"parameter_types":["Float"],"constant_devices":[]}"#;
        let facts: ModuleFacts = serde_json::from_str(json).unwrap();
        let text = describe(&facts, "My: Model", &"0".repeat(64));
        assert!(text.contains("parameters:  2 (1.2 MB), Float"), "{text}");
        assert!(text.contains("forward(x: Tensor) -> Tensor\n    stateful"), "{text}");
        let (_, manifest) = text.split_once("\n\n").unwrap();
        let configs = crate::manifest::parse(manifest, std::path::Path::new("m.yaml")).unwrap();
        let names: Vec<String> = configs.iter().map(|config| config.model.name.to_string()).collect();
        assert_eq!(names, ["my--model"]);
    }

    #[test]
    fn types_are_printed_as_torchscript_writes_them() {
        let (list, table) = (ValueType::List(ValueType::Str.into()), ValueType::Other("__torch__.State".into()));
        let table = ValueType::Dict { key: ValueType::Int.into(), value: ValueType::Optional(table.into()).into() };
        let argument =
            |name: &str, value_type, has_default| ArgumentInterface { name: name.into(), value_type, has_default };
        let method = MethodInterface {
            name: "forward".into(),
            arguments: vec![argument("texts", list, false), argument("is_fast", ValueType::Bool, true)],
            returns: ValueType::Tuple { items: vec![ValueType::Float, table, ValueType::None], names: Vec::new() },
            is_stateful: false,
            mutates_inputs: true,
            duration_depends_on_values: true,
        };
        let mut text = String::new();
        write_methods(&mut text, &[method]).unwrap();
        let returns = "Tuple[float, Dict[int, Optional[__torch__.State]], None]";
        let expected = format!(
            "methods:\n  forward(texts: List[str], is_fast: bool = default) -> {returns}\n    \
             writes to its inputs: they are copied for each request\n    \
             may take longer for other values: it runs on threads of its own, however quick\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn names_that_are_other_values_in_yaml_stay_names() {
        let json = r#"{"class_name":"M","methods":[{"name":"null","arguments":[{"name":"true","type":{"kind":"Tensor"},"has_default":false}],
            "returns":{"kind":"Tensor"},"is_stateful":false,"writes_constants":false,"mutates_inputs":false,"is_random":false,"duration_depends_on_values":false}],"parameters":{"count":0,"size_bytes":0},
            "buffers":{"count":0,"size_bytes":0},"parameter_types":[],"constant_devices":[]}"#;
        let text = describe(&serde_json::from_str(json).unwrap(), "m", &"0".repeat(64));
        let (_, manifest) = text.split_once("\n\n").unwrap();
        let configs = crate::manifest::parse(manifest, std::path::Path::new("m.yaml")).unwrap();
        assert_eq!((configs[0].model.method.as_str(), configs[0].model.inputs[0].name.as_str()), ("null", "true"));
    }

    #[test]
    fn names_become_labels_that_kubernetes_takes() {
        assert_eq!([dns_label("A b_c"), dns_label("7z"), dns_label("--")], ["a-b-c", "model-7z", "model"]);
    }
}
