//! What a signature is made of, and what a binding refuses, names and learns.

use torchmodel_crds::ModelSpec;

use super::*;
use crate::{
    interface::ArgumentInterface,
    plan::{DeviceKind, Machine},
    tensor::Tensor,
};

fn argument(name: &str, value_type: ValueType) -> ArgumentInterface {
    ArgumentInterface { name: name.into(), value_type, has_default: false }
}

fn bind(arguments: Vec<ArgumentInterface>, returns: ValueType, spec: &str) -> Result<Binding, String> {
    let method = MethodInterface {
        name: "forward".into(),
        arguments,
        returns,
        is_stateful: false,
        mutates_inputs: false,
        duration_depends_on_values: false,
    };
    let interface = Interface { methods: vec![method] };
    let spec: ModelSpec = serde_json::from_str(spec).unwrap();
    let config = ModelConfig::check(&spec, Some("m".into())).unwrap();
    let plan = ExecutionPlan::of(&interface, &config, &Machine { cpus: 1, devices: vec![DeviceKind::Cpu] }).unwrap();
    Binding::new(&interface, &config, &plan).map_err(|failure| failure.message)
}

fn list(item: ValueType) -> ValueType {
    ValueType::List(Box::new(item))
}

fn leaf(path: &str) -> NamedTensor {
    NamedTensor { name: path.into(), tensor: Tensor::new(DataType::Fp32, vec![3, 1], vec![0; 12].into()).unwrap() }
}

fn names(outputs: &[NamedTensor]) -> Vec<&str> {
    outputs.iter().map(|output| output.name.as_str()).collect()
}

#[test]
fn lists_take_elements_in_any_shape_unless_one_is_declared() {
    for (value_type, datatype) in [
        (list(ValueType::Str), DataType::Bytes),
        (list(ValueType::Int), DataType::Int64),
        (ValueType::Optional(Box::new(list(ValueType::Float))), DataType::Fp64),
    ] {
        let binding = bind(vec![argument("x", value_type.clone())], ValueType::Tensor, "{}").unwrap();
        let input = &binding.signature().inputs[0];
        assert_eq!((input.datatype, input.shape.as_deref()), (Some(datatype), Some(&[-1][..])));
        assert!(input.is_flattened, "{value_type}");
        let spec = r#"{"inputs": [{"name": "x", "shape": [-1, 1]}]}"#;
        let declared = bind(vec![argument("x", value_type)], ValueType::Tensor, spec).unwrap();
        let input = &declared.signature().inputs[0];
        assert_eq!((input.shape.as_deref(), input.is_flattened), (Some(&[-1, 1][..]), false));
    }
    let one = bind(vec![argument("x", ValueType::Str)], ValueType::Tensor, "{}").unwrap();
    assert!(!one.signature().inputs[0].is_flattened, "one text has one place");
}

#[test]
fn only_tensors_of_a_batched_model_carry_the_batch() {
    let arguments = vec![argument("x", ValueType::Tensor), argument("words", list(ValueType::Str))];
    let binding = bind(arguments, ValueType::Tensor, r#"{"batching": {"maxBatchSize": 4}}"#).unwrap();
    let batched: Vec<bool> = binding.signature().inputs.iter().map(|input| input.is_batched).collect();
    assert_eq!((batched, binding.signature().max_batch_size), (vec![true, false], Some(4)));
}

#[test]
fn what_the_configuration_says_and_the_interface_contradicts_is_named() {
    let tensor = || vec![argument("x", ValueType::Tensor)];
    let dict = ValueType::Dict { key: Box::new(ValueType::Str), value: Box::new(ValueType::Tensor) };
    for (arguments, spec, expected) in [
        (tensor(), r#"{"inputs": [{"name": "y"}]}"#, "names 'y', but method 'forward' takes x"),
        (tensor(), r#"{"inputs": [{"name": "x", "datatype": "BYTES"}]}"#, "declares 'x' as BYTES"),
        (
            tensor(),
            r#"{"outputs": [{"name": "a"}, {"name": "b"}]}"#,
            "declares 2 outputs, but method 'forward' returns 1",
        ),
        (
            vec![argument("n", ValueType::Int)],
            r#"{"inputs": [{"name": "n", "shape": [2]}]}"#,
            "declares 'n' with shape [2], but it takes [1]",
        ),
        (vec![argument("d", dict)], "{}", "argument 'd' has type Dict[str, Tensor]"),
    ] {
        let message = bind(arguments, ValueType::Tensor, spec).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn outputs_are_named_by_the_configuration_or_by_where_they_stand() {
    let pair = || ValueType::Tuple { items: vec![ValueType::Tensor, ValueType::Tensor], names: Vec::new() };
    let spec = r#"{"outputs": [{"name": "boxes"}, {"name": "scores"}]}"#;
    let declared = bind(Vec::new(), pair(), spec).unwrap();
    assert_eq!(names(&declared.named(vec![leaf("0"), leaf("1")]).unwrap()), ["boxes", "scores"]);
    let plain = bind(Vec::new(), pair(), "{}").unwrap();
    assert_eq!(names(&plain.named(vec![leaf("0"), leaf("1")]).unwrap()), ["output_0", "output_1"]);
    assert!(matches!(plain.named(vec![leaf("0")]), Err(EngineError::Failed(_))), "fewer than the interface says");
    let open = bind(Vec::new(), list(ValueType::Tensor), "{}").unwrap();
    assert_eq!(
        names(&open.named(vec![leaf(""), leaf("1.key"), leaf("cat")]).unwrap()),
        ["output", "output_1.key", "cat"]
    );
}

#[test]
fn a_warm_up_run_teaches_the_outputs_and_shows_a_model_that_cannot_be_batched() {
    let spec = r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}], "batching": {"maxBatchSize": 8}}"#;
    let mut binding = bind(vec![argument("x", ValueType::Tensor)], ValueType::Tensor, spec).unwrap();
    let input = |rows: i64| EngineInput { index: 0, datatype: DataType::Fp32, shape: vec![rows, 1], parts: Vec::new() };
    let outputs = binding.named(vec![leaf("")]).unwrap();
    binding.learn(&outputs, &[input(3)]).unwrap();
    let output = &binding.signature().outputs[0];
    assert_eq!((output.datatype, output.shape.as_deref()), (Some(DataType::Fp32), Some(&[-1, 1][..])));
    let failure = binding.learn(&outputs, &[input(2)]).unwrap_err();
    assert!(failure.message.contains("cannot be batched"), "{}", failure.message);
}
