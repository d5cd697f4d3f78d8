//! How the protocol reaches a method: inputs to its arguments, the leaves of its result to output names.
//!
//! Made when a model is loaded, from the interface, the configuration and the plan; taught by the warm-up; asked for names after each
//! execution. Invariant: what the configuration declares and the interface contradicts is refused at load, with both named.

use torchmodel_crds::{Failure, FailurePhase, FailureReason, TensorSpec};

use crate::{
    config::ModelConfig,
    engine::{EngineError, EngineInput},
    inference::NamedTensor,
    interface::{Interface, MethodInterface, ValueType},
    plan::ExecutionPlan,
    signature::{InputSignature, OutputSignature, Signature},
    tensor::{DataType, DataTypeExt as _},
};

/// The argument types that the protocol can feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// A tensor of any datatype but `BYTES`.
    Tensor,
    /// One whole number.
    Int,
    /// One number.
    Float,
    /// One truth value.
    Bool,
    /// One text.
    Str,
    /// A list of whole numbers.
    IntList,
    /// A list of numbers.
    FloatList,
    /// A list of texts.
    StrList,
}

impl ParameterKind {
    fn of(value_type: &ValueType) -> Option<Self> {
        match value_type {
            ValueType::Tensor => Some(Self::Tensor),
            ValueType::Int => Some(Self::Int),
            ValueType::Float => Some(Self::Float),
            ValueType::Bool => Some(Self::Bool),
            ValueType::Str => Some(Self::Str),
            ValueType::Optional(item) => Self::of(item),
            ValueType::List(item) => match **item {
                ValueType::Int => Some(Self::IntList),
                ValueType::Float => Some(Self::FloatList),
                ValueType::Str => Some(Self::StrList),
                _ => None,
            },
            _ => None,
        }
    }

    const fn is_list(self) -> bool {
        matches!(self, Self::IntList | Self::FloatList | Self::StrList)
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
    method: MethodInterface,
    parameters: Vec<Parameter>,
    signature: Signature,
    declared_outputs: Vec<TensorSpec>,
}

fn mismatch(message: String) -> Failure {
    Failure::new(FailurePhase::Load, FailureReason::SignatureShapeMismatch, message)
}

impl Binding {
    /// Ties `config` to the method that it names.
    pub fn new(interface: &Interface, config: &ModelConfig, plan: &ExecutionPlan) -> Result<Self, Failure> {
        let method = interface.method(&config.method)?;
        let is_batched = plan.max_batch_size.is_some();
        let mut parameters = Vec::new();
        let mut inputs = Vec::new();
        for (position, argument) in method.arguments.iter().enumerate() {
            let is_optional = argument.has_default || matches!(argument.value_type, ValueType::Optional(_));
            let declared = config.inputs.iter().find(|input| input.name == argument.name);
            let Some(kind) = ParameterKind::of(&argument.value_type) else {
                if is_optional && declared.is_none() {
                    continue;
                }
                return Err(mismatch(format!(
                    "argument '{}' has type {}, which requests cannot carry; give it a default or wrap the model in one that \
                     takes tensors, numbers and strings",
                    argument.name, argument.value_type
                )));
            };
            parameters.push(Parameter { position, kind });
            let is_batched = is_batched && kind == ParameterKind::Tensor;
            inputs.push(InputSignature { is_optional, is_batched, ..input_signature(kind, &argument.name, declared)? });
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
            is_stateful: plan.is_stateful,
            max_batch_size: plan.max_batch_size,
        };
        Ok(Self { method: method.clone(), parameters, signature, declared_outputs: config.outputs.clone() })
    }

    /// A binding to nothing but a signature: for an engine whose outputs come under the names that clients see.
    #[must_use]
    pub(crate) fn of_signature(method: MethodInterface, signature: Signature) -> Self {
        Self { method, parameters: Vec::new(), signature, declared_outputs: Vec::new() }
    }

    /// The method that is served.
    #[must_use]
    pub fn method(&self) -> &MethodInterface {
        &self.method
    }

    /// For each input of the signature, where it goes.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// What the model takes and gives, as far as is known.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Gives the leaves of what the method returned the names that clients see.
    pub fn named(&self, mut outputs: Vec<NamedTensor>) -> Result<Vec<NamedTensor>, EngineError> {
        if self.signature.are_outputs_known {
            if outputs.len() != self.signature.outputs.len() {
                let (expected, actual) = (self.signature.outputs.len(), outputs.len());
                return Err(EngineError::Failed(format!(
                    "the method returned {actual} values, its schema says {expected}"
                )));
            }
            for (output, known) in outputs.iter_mut().zip(&self.signature.outputs) {
                output.name.clone_from(&known.name);
            }
            return Ok(outputs);
        }
        for output in &mut outputs {
            output.name = output_name(&output.name);
        }
        let has = |name: &str| outputs.iter().any(|output| output.name == name);
        if let Some(missing) = self.declared_outputs.iter().find(|declared| !has(&declared.name)) {
            let names: Vec<_> = outputs.iter().map(|output| output.name.as_str()).collect();
            return Err(EngineError::Failed(format!(
                "model.outputs names '{}', but the method returned {}",
                missing.name,
                names.join(", ")
            )));
        }
        Ok(outputs)
    }

    /// Takes what a warm-up run gave into the signature. Errors: a declared output that came out as another datatype or shape.
    pub(crate) fn learn(&mut self, outputs: &[NamedTensor], inputs: &[EngineInput]) -> Result<(), Failure> {
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

/// The form of an input. A list takes elements in any shape, unless one is declared; it is shown with one open dimension.
fn input_signature(kind: ParameterKind, name: &str, declared: Option<&TensorSpec>) -> Result<InputSignature, Failure> {
    let datatype = declared.and_then(|declared| declared.datatype).or_else(|| kind.datatypes().first().copied());
    if let Some(datatype) = datatype.filter(|datatype| !kind.accepts(*datatype)) {
        return Err(mismatch(format!(
            "model.inputs declares '{name}' as {}, which an argument of its type does not take",
            datatype.as_str()
        )));
    }
    let declared_shape = declared.and_then(|declared| declared.shape.clone());
    let is_flattened = kind.is_list() && declared_shape.is_none();
    let shape = kind.shape();
    if let (Some(fixed), Some(declared)) = (&shape, &declared_shape)
        && fixed != declared
        && !kind.is_list()
    {
        return Err(mismatch(format!(
            "model.inputs declares '{name}' with shape {declared:?}, but it takes {fixed:?}"
        )));
    }
    let shape = declared_shape.or(shape);
    Ok(InputSignature { name: name.to_owned(), datatype, shape, is_optional: false, is_batched: false, is_flattened })
}

/// Outputs as far as the interface tells, and whether that is all.
fn output_signatures(method: &MethodInterface, config: &ModelConfig) -> Result<(Vec<OutputSignature>, bool), Failure> {
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

/// Paths of the leaves of `returned`, as the engine will name them; `false` when only a run can tell.
fn collect_paths(returned: &ValueType, path: &str, paths: &mut Vec<String>) -> bool {
    match returned {
        ValueType::Tensor | ValueType::Int | ValueType::Float | ValueType::Bool | ValueType::Str => {
            paths.push(path.to_owned());
            true
        }
        ValueType::List(item) if matches!(**item, ValueType::Int | ValueType::Float | ValueType::Str) => {
            paths.push(path.to_owned());
            true
        }
        ValueType::None => true,
        ValueType::Tuple { items, names } => items.iter().enumerate().all(|(index, item)| {
            let name = names.get(index).cloned().unwrap_or_else(|| index.to_string());
            let path = if path.is_empty() { name } else { format!("{path}.{name}") };
            collect_paths(item, &path, paths)
        }),
        ValueType::List(_) | ValueType::Optional(_) | ValueType::Dict { .. } | ValueType::Other(_) => false,
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

#[cfg(test)]
mod tests;
