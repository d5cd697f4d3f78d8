//! From a TorchScript schema and the configuration to a signature.
//!
//! A [`Binding`] ties protocol inputs to the method's arguments and the leaves of its result to output names. Invariant: what the
//! configuration declares and the schema contradicts is refused at load, with both named.

use torch_shim::{Method, ModuleFacts, Output, Type};
use torchmodel_core::{
    config::ModelConfig,
    engine::{EngineError, EngineInput},
    inference::NamedTensor,
    signature::{InputSignature, OutputSignature, Signature},
    tensor::{DataType, DataTypeExt as _},
};
use torchmodel_crds::{Failure, FailurePhase, FailureReason, TensorSpec};

/// The argument types that the protocol can feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    Tensor,
    Int,
    Float,
    Bool,
    Str,
    IntList,
    FloatList,
    StrList,
}

impl ParameterKind {
    fn of(argument_type: &Type) -> Option<Self> {
        match argument_type {
            Type::Tensor => Some(Self::Tensor),
            Type::Int => Some(Self::Int),
            Type::Float => Some(Self::Float),
            Type::Bool => Some(Self::Bool),
            Type::Str => Some(Self::Str),
            Type::Optional { item } => Self::of(item),
            Type::List { item } => match **item {
                Type::Int => Some(Self::IntList),
                Type::Float => Some(Self::FloatList),
                Type::Str => Some(Self::StrList),
                _ => None,
            },
            _ => None,
        }
    }

    /// The datatype when nobody declares one, and those that may be declared; none for a tensor, which takes any but `BYTES`.
    fn datatypes(self) -> &'static [DataType] {
        match self {
            Self::Tensor => &[],
            Self::Int | Self::IntList => &[
                DataType::Int64,
                DataType::Int32,
                DataType::Int16,
                DataType::Int8,
                DataType::Uint32,
                DataType::Uint16,
                DataType::Uint8,
            ],
            Self::Float | Self::FloatList => &[DataType::Fp64, DataType::Fp32],
            Self::Bool => &[DataType::Bool],
            Self::Str | Self::StrList => &[DataType::Bytes],
        }
    }

    fn accepts(self, datatype: DataType) -> bool {
        match self {
            Self::Tensor => datatype != DataType::Bytes,
            _ => self.datatypes().contains(&datatype),
        }
    }

    fn shape(self) -> Option<Vec<i64>> {
        match self {
            Self::Tensor => None,
            Self::Int | Self::Float | Self::Bool | Self::Str => Some(vec![1]),
            Self::IntList | Self::FloatList | Self::StrList => Some(vec![-1]),
        }
    }
}

/// Where a protocol input goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Position among the method's arguments.
    pub position: usize,
    /// What the argument takes.
    pub kind: ParameterKind,
}

/// A method and how the protocol reaches it.
#[derive(Clone, Debug)]
pub struct Binding {
    method: Method,
    parameters: Vec<Parameter>,
    signature: Signature,
    declared_outputs: Vec<TensorSpec>,
}

fn mismatch(message: String) -> Failure {
    Failure::new(FailurePhase::Load, FailureReason::SignatureShapeMismatch, message)
}

impl Binding {
    /// Ties `config` to the method that it names.
    pub fn new(facts: &ModuleFacts, config: &ModelConfig) -> Result<Self, Failure> {
        let method = facts.method(&config.method).ok_or_else(|| {
            let known: Vec<_> = facts.methods.iter().map(|method| method.name.as_str()).collect();
            mismatch(format!("the model has no method '{}'; it has {}", config.method, known.join(", ")))
        })?;
        let is_batched = config.batching.is_some() && !method.is_stateful;
        let mut parameters = Vec::new();
        let mut inputs = Vec::new();
        for (position, argument) in method.arguments.iter().enumerate() {
            let is_optional = argument.has_default || matches!(argument.argument_type, Type::Optional { .. });
            let declared = config.inputs.iter().find(|input| input.name == argument.name);
            let Some(kind) = ParameterKind::of(&argument.argument_type) else {
                if is_optional && declared.is_none() {
                    continue;
                }
                return Err(mismatch(format!(
                    "argument '{}' has type {}, which requests cannot carry; give it a default or wrap the model in one that \
                     takes tensors, numbers and strings",
                    argument.name, argument.argument_type
                )));
            };
            parameters.push(Parameter { position, kind });
            inputs.push(input_signature(kind, &argument.name, declared, is_optional, is_batched)?);
        }
        if let Some(unknown) = config.inputs.iter().find(|input| !inputs.iter().any(|known| known.name == input.name)) {
            let known: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
            return Err(mismatch(format!(
                "model.inputs names '{}', but method '{}' takes {}",
                unknown.name,
                method.name,
                known.join(", ")
            )));
        }
        let (outputs, are_outputs_known) = output_signatures(method, config)?;
        let signature = Signature {
            inputs,
            outputs,
            are_outputs_known,
            is_stateful: method.is_stateful,
            max_batch_size: config.batching.filter(|_| is_batched).map(|batching| batching.max_batch_size),
        };
        Ok(Self { method: method.clone(), parameters, signature, declared_outputs: config.outputs.clone() })
    }

    pub fn method(&self) -> &Method {
        &self.method
    }

    /// For each input of the signature, where it goes.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Whether every input's datatype and shape is known.
    pub fn is_fully_declared(&self) -> bool {
        self.signature.inputs.iter().all(|input| input.datatype.is_some() && input.shape.is_some())
    }

    /// Whether an input's values, and not its form alone, may be wrong: numbers that count or select, and texts that are looked
    /// up.
    pub fn depends_on_values(&self) -> bool {
        let is_float = |datatype| matches!(datatype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64);
        self.signature.inputs.iter().any(|input| !input.datatype.is_some_and(is_float))
    }

    /// Names for what the method returned, in order.
    pub fn output_names(&self, outputs: &[Output]) -> Result<Vec<String>, EngineError> {
        if !self.signature.are_outputs_known {
            let names: Vec<_> = outputs.iter().map(|output| output_name(&output.path)).collect();
            if let Some(missing) = self.declared_outputs.iter().find(|declared| !names.contains(&declared.name)) {
                return Err(EngineError::Failed(format!(
                    "model.outputs names '{}', but the method returned {}",
                    missing.name,
                    names.join(", ")
                )));
            }
            return Ok(names);
        }
        if outputs.len() != self.signature.outputs.len() {
            let (expected, actual) = (self.signature.outputs.len(), outputs.len());
            return Err(EngineError::Failed(format!(
                "the method returned {actual} values, its schema says {expected}"
            )));
        }
        Ok(self.signature.outputs.iter().map(|output| output.name.clone()).collect())
    }

    /// Takes what a warm-up run gave into the signature. Errors: a declared output that came out as another datatype or shape.
    pub fn learn(&mut self, outputs: &[NamedTensor], inputs: &[EngineInput]) -> Result<(), Failure> {
        let is_fixed = self.signature.inputs.iter().enumerate().all(|(index, input)| {
            let is_given = inputs.iter().any(|given| given.index == index);
            let rest = input.shape.as_ref().map(|shape| shape.get(usize::from(input.is_batched)..).unwrap_or_default());
            !is_given || rest.is_some_and(|rest| !rest.contains(&-1))
        });
        let is_batched = self.signature.max_batch_size.is_some();
        let learned = outputs.iter().map(|output| {
            let mut shape = output.tensor.shape().to_vec();
            if is_fixed {
                shape.iter_mut().take(usize::from(is_batched)).for_each(|first| *first = -1);
            } else {
                shape.fill(-1);
            }
            let declared = self.declared_of(&output.name);
            OutputSignature {
                name: output.name.clone(),
                datatype: Some(output.tensor.datatype()),
                shape: declared.and_then(|declared| declared.shape.clone()).or(Some(shape)),
            }
        });
        let learned: Vec<_> = learned.collect();
        for output in outputs {
            if let Some(declared) = self.declared_of(&output.name) {
                check_output(declared, output)?;
            }
        }
        if is_batched {
            check_rows(&self.signature, outputs, inputs)?;
        }
        // Where the schema left the outputs open, another call may give others: each is named by its own path then.
        self.signature.outputs = learned;
        Ok(())
    }

    fn declared_of(&self, name: &str) -> Option<&TensorSpec> {
        self.declared_outputs.iter().find(|declared| declared.name == name)
    }
}

/// A batched model must give one row for each row that it takes, or answers would be cut apart wrongly.
fn check_rows(signature: &Signature, outputs: &[NamedTensor], inputs: &[EngineInput]) -> Result<(), Failure> {
    let batched = inputs.iter().find(|given| signature.inputs.get(given.index).is_some_and(|input| input.is_batched));
    let Some(rows) = batched.and_then(|given| given.shape.first().copied()).filter(|rows| *rows > 1) else {
        return Ok(());
    };
    match outputs.iter().find(|output| output.tensor.shape().first() != Some(&rows)) {
        None => Ok(()),
        Some(output) => Err(mismatch(format!(
            "for a batch of {rows} rows the model gives '{}' with shape {:?}, whose first dimension is not the batch: it cannot be \
             batched; remove model.batching or set maxBatchSize to 1",
            output.name,
            output.tensor.shape()
        ))),
    }
}

fn check_output(declared: &TensorSpec, output: &NamedTensor) -> Result<(), Failure> {
    let (name, actual) = (&declared.name, &output.tensor);
    if let Some(datatype) = declared.datatype
        && datatype != actual.datatype()
    {
        return Err(mismatch(format!(
            "model.outputs declares '{name}' as {}, but the model gives {}",
            datatype.as_str(),
            actual.datatype().as_str()
        )));
    }
    if let Some(shape) = &declared.shape {
        let fits = shape.len() == actual.shape().len()
            && shape.iter().zip(actual.shape()).all(|(want, have)| *want == -1 || want == have);
        if !fits {
            return Err(mismatch(format!(
                "model.outputs declares '{name}' with shape {shape:?}, but the model gives {:?}",
                actual.shape()
            )));
        }
    }
    Ok(())
}

fn input_signature(
    kind: ParameterKind,
    name: &str,
    declared: Option<&TensorSpec>,
    is_optional: bool,
    is_batched: bool,
) -> Result<InputSignature, Failure> {
    let datatype = declared.and_then(|declared| declared.datatype).or_else(|| kind.datatypes().first().copied());
    if let Some(datatype) = datatype.filter(|datatype| !kind.accepts(*datatype)) {
        return Err(mismatch(format!(
            "model.inputs declares '{name}' as {}, which an argument of its type does not take",
            datatype.as_str()
        )));
    }
    let shape = kind.shape();
    let declared_shape = declared.and_then(|declared| declared.shape.clone());
    if let (Some(fixed), Some(declared)) = (&shape, &declared_shape)
        && fixed != declared
    {
        return Err(mismatch(format!(
            "model.inputs declares '{name}' with shape {declared:?}, but it takes {fixed:?}"
        )));
    }
    Ok(InputSignature {
        name: name.to_owned(),
        datatype,
        shape: shape.or(declared_shape),
        is_optional,
        is_batched: is_batched && kind == ParameterKind::Tensor,
    })
}

/// Outputs as far as the schema tells, and whether that is all.
fn output_signatures(method: &Method, config: &ModelConfig) -> Result<(Vec<OutputSignature>, bool), Failure> {
    let mut paths = Vec::new();
    if !collect_paths(&method.returns, "", &mut paths) {
        let declared = config.outputs.iter().map(|output| OutputSignature {
            name: output.name.clone(),
            datatype: output.datatype,
            shape: output.shape.clone(),
        });
        return Ok((declared.collect(), false));
    }
    if !config.outputs.is_empty() && config.outputs.len() != paths.len() {
        return Err(mismatch(format!(
            "model.outputs declares {} outputs, but method '{}' returns {} ({})",
            config.outputs.len(),
            method.name,
            paths.len(),
            method.returns
        )));
    }
    let outputs = paths.iter().enumerate().map(|(index, path)| {
        let declared = config.outputs.get(index);
        OutputSignature {
            name: declared.map_or_else(|| output_name(path), |declared| declared.name.clone()),
            datatype: declared.and_then(|declared| declared.datatype),
            shape: declared.and_then(|declared| declared.shape.clone()),
        }
    });
    Ok((outputs.collect(), true))
}

/// Paths of the leaves of `returned`, as the shim will name them; `false` when only a run can tell.
fn collect_paths(returned: &Type, path: &str, paths: &mut Vec<String>) -> bool {
    match returned {
        Type::Tensor | Type::Int | Type::Float | Type::Bool | Type::Str => {
            paths.push(path.to_owned());
            true
        }
        Type::List { item } if matches!(**item, Type::Int | Type::Float | Type::Str) => {
            paths.push(path.to_owned());
            true
        }
        Type::None => true,
        Type::Tuple { items, names } => items.iter().enumerate().all(|(index, item)| {
            let name = names.get(index).cloned().unwrap_or_else(|| index.to_string());
            let path = if path.is_empty() { name } else { format!("{path}.{name}") };
            collect_paths(item, &path, paths)
        }),
        Type::List { .. } | Type::Optional { .. } | Type::Dict { .. } | Type::Other { .. } => false,
    }
}

/// The name that clients see for a leaf at `path`.
fn output_name(path: &str) -> String {
    match path.bytes().next() {
        None => "output".to_owned(),
        Some(first) if first.is_ascii_digit() => format!("output_{path}"),
        Some(_) => path.to_owned(),
    }
}
