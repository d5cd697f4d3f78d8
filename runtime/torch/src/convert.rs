//! Between the protocol's tensors and libtorch's values.
//!
//! In: one part that is aligned becomes a tensor without a copy; several are gathered into one new tensor, the only host copy.
//! Out: contiguous host memory becomes `Bytes` without a copy. Invariant: memory of a request is never written to.

use bytes::Bytes;
use torch_shim::{
    Argument, Output, OutputValue, ScalarType, TensorBuffer, TorchError, tensor_from_bytes, tensor_to_host,
};
use torchmodel_core::{
    binding::{Binding, ParameterKind},
    engine::EngineInput,
    inference::NamedTensor,
    tensor::{BytesElements, DataType, DataTypeExt as _, Tensor, push_bytes_element},
};

/// `c10::ScalarType` of every datatype but `BYTES` (c10/core/ScalarType.h).
const SCALAR_TYPES: [(DataType, ScalarType); 13] = [
    (DataType::Uint8, ScalarType(0)),
    (DataType::Int8, ScalarType(1)),
    (DataType::Int16, ScalarType(2)),
    (DataType::Int32, ScalarType(3)),
    (DataType::Int64, ScalarType(4)),
    (DataType::Fp16, ScalarType(5)),
    (DataType::Fp32, ScalarType(6)),
    (DataType::Fp64, ScalarType(7)),
    (DataType::Bool, ScalarType(11)),
    (DataType::Bf16, ScalarType(15)),
    (DataType::Uint16, ScalarType(27)),
    (DataType::Uint32, ScalarType(28)),
    (DataType::Uint64, ScalarType(29)),
];

/// Why a value has no form on the other side.
#[derive(Debug)]
pub enum ConvertError {
    /// libtorch failed.
    Torch(TorchError),
    /// The request holds what the argument does not take.
    Refused(String),
    /// The model gave, or was given, what the engine cannot carry.
    Failed(String),
}

impl From<TorchError> for ConvertError {
    fn from(error: TorchError) -> Self {
        Self::Torch(error)
    }
}

/// The arguments of a call with `inputs`; what is missing takes its default. With `must_copy` their memory is the engine's own.
pub fn arguments(
    binding: &Binding,
    inputs: &[EngineInput],
    device: tch::Device,
    must_copy: bool,
) -> Result<Vec<Argument>, ConvertError> {
    let mut arguments: Vec<Argument> = binding.method().arguments.iter().map(|_| Argument::Default).collect();
    for input in inputs {
        let Some(parameter) = binding.parameters().get(input.index) else { continue };
        let argument = argument(input, parameter.kind, device, must_copy)?;
        if let Some(slot) = arguments.get_mut(parameter.position) {
            *slot = argument;
        }
    }
    Ok(arguments)
}

/// What a call returned in the protocol's form, each leaf under its path; with `copy` in memory of its own.
pub fn outputs(outputs: Vec<Output>, copy: bool) -> Result<Vec<NamedTensor>, ConvertError> {
    let named = outputs.into_iter().map(|Output { path, value }| match output(value, copy) {
        Ok(tensor) => Ok(NamedTensor { name: path, tensor }),
        Err(ConvertError::Failed(message)) => Err(ConvertError::Failed(format!("output '{path}': {message}"))),
        Err(error) => Err(error),
    });
    named.collect()
}

/// The argument for `input`. With `must_copy` its memory is the engine's own.
fn argument(
    input: &EngineInput,
    kind: ParameterKind,
    device: tch::Device,
    must_copy: bool,
) -> Result<Argument, ConvertError> {
    match kind {
        ParameterKind::Tensor => Ok(Argument::Tensor(tensor(input, device, must_copy)?)),
        ParameterKind::Int => Ok(Argument::Int(*single(&integers(input)?)?)),
        ParameterKind::Float => Ok(Argument::Double(*single(&numbers(input)?)?)),
        ParameterKind::Bool => Ok(Argument::Bool(*single(&integers(input)?)? != 0)),
        ParameterKind::Str => Ok(Argument::Str(single(&texts(input)?)?.clone())),
        ParameterKind::IntList => Ok(Argument::IntList(integers(input)?)),
        ParameterKind::FloatList => Ok(Argument::DoubleList(numbers(input)?)),
        ParameterKind::StrList => Ok(Argument::StrList(texts(input)?)),
    }
}

fn tensor(input: &EngineInput, device: tch::Device, must_copy: bool) -> Result<tch::Tensor, ConvertError> {
    let (_, scalar_type) = SCALAR_TYPES
        .into_iter()
        .find(|(datatype, _)| *datatype == input.datatype)
        .ok_or_else(|| ConvertError::Refused("a Tensor argument cannot take BYTES".into()))?;
    let size = input.datatype.size_bytes().unwrap_or(1);
    let parts = host_parts(input)?;
    let host = match parts.as_slice() {
        [only] if !must_copy && only.as_ptr().align_offset(size) == 0 => {
            tensor_from_bytes(Bytes::clone(only), &input.shape, scalar_type, size)
        }
        parts => TensorBuffer::new(&input.shape, scalar_type).and_then(|mut buffer| {
            parts.iter().try_for_each(|part| buffer.push(part))?;
            buffer.finish()
        }),
    }?;
    Ok(if device.is_cuda() { torch_shim::tensor_to_device(&host, device)? } else { host })
}

/// The parts as the host reads them. The scheduler lets no others pass.
fn host_parts(input: &EngineInput) -> Result<Vec<&Bytes>, ConvertError> {
    let parts: Option<Vec<&Bytes>> = input.parts.iter().map(|part| part.host()).collect();
    parts.ok_or_else(|| ConvertError::Failed(format!("input {} is not in the host's memory", input.index)))
}

fn single<T>(values: &[T]) -> Result<&T, ConvertError> {
    match values {
        [only] => Ok(only),
        _ => Err(ConvertError::Refused(format!("expected one element, got {}", values.len()))),
    }
}

/// Elements of `N` bytes each, over all parts.
fn elements<const N: usize>(input: &EngineInput) -> impl Iterator<Item = [u8; N]> + '_ {
    input.parts.iter().filter_map(|part| part.host()).flat_map(|part| part.as_chunks::<N>().0.iter().copied())
}

fn integers(input: &EngineInput) -> Result<Vec<i64>, ConvertError> {
    Ok(match input.datatype {
        DataType::Bool | DataType::Uint8 => elements(input).map(u8::from_le_bytes).map(i64::from).collect(),
        DataType::Int8 => elements(input).map(i8::from_le_bytes).map(i64::from).collect(),
        DataType::Int16 => elements(input).map(i16::from_le_bytes).map(i64::from).collect(),
        DataType::Int32 => elements(input).map(i32::from_le_bytes).map(i64::from).collect(),
        DataType::Int64 => elements(input).map(i64::from_le_bytes).collect(),
        DataType::Uint16 => elements(input).map(u16::from_le_bytes).map(i64::from).collect(),
        DataType::Uint32 => elements(input).map(u32::from_le_bytes).map(i64::from).collect(),
        other => return Err(ConvertError::Refused(format!("{} is not a whole number", other.as_str()))),
    })
}

fn numbers(input: &EngineInput) -> Result<Vec<f64>, ConvertError> {
    Ok(match input.datatype {
        DataType::Fp32 => elements(input).map(f32::from_le_bytes).map(f64::from).collect(),
        DataType::Fp64 => elements(input).map(f64::from_le_bytes).collect(),
        other => return Err(ConvertError::Refused(format!("{} is not FP64 or FP32", other.as_str()))),
    })
}

fn texts(input: &EngineInput) -> Result<Vec<Vec<u8>>, ConvertError> {
    input
        .parts
        .iter()
        .filter_map(|part| part.host())
        .flat_map(|part| BytesElements::new(part))
        .map(|element| element.map(<[u8]>::to_vec).map_err(|error| ConvertError::Refused(error.to_string())))
        .collect()
}

/// The protocol's form of a leaf; with `copy` in memory of its own.
fn output(value: OutputValue, copy: bool) -> Result<Tensor, ConvertError> {
    let failed = ConvertError::Failed;
    match value {
        OutputValue::Tensor(tensor) => {
            let host = tensor_to_host(&tensor, copy)?;
            let (datatype, _) =
                SCALAR_TYPES.into_iter().find(|(_, scalar_type)| *scalar_type == host.scalar_type()).ok_or_else(
                    || failed(format!("element type {:?} has no word in the inference protocol", tensor.f_kind())),
                )?;
            let shape = host.shape().to_vec();
            Tensor::new(datatype, shape, Bytes::from_owner(host)).map_err(|error| failed(error.to_string()))
        }
        OutputValue::Strings(texts) => {
            let mut data = Vec::with_capacity(texts.iter().map(|text| text.len() + 4).sum());
            if !texts.iter().all(|text| push_bytes_element(&mut data, text)) {
                return Err(failed("a string is longer than 4 GiB".into()));
            }
            let shape = vec![i64::try_from(texts.len()).unwrap_or(i64::MAX)];
            Tensor::new(DataType::Bytes, shape, data.into()).map_err(|error| failed(error.to_string()))
        }
    }
}
