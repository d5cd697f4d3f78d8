//! Between the protocol's tensors and libtorch's values.
//!
//! In: one part that is aligned becomes a tensor without a copy; several are gathered into one new tensor, the only host copy.
//! Out: contiguous host memory becomes `Bytes` without a copy. Invariant: memory of a request is never written to.

use bytes::Bytes;
use torch_shim::{Argument, OutputValue, ScalarType, TensorBuffer, TorchError, tensor_from_bytes, tensor_to_host};
use torchmodel_core::{
    binding::ParameterKind,
    engine::{EngineError, EngineInput},
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

/// The argument for `input`. With `must_copy` its memory is the engine's own.
pub fn argument(
    input: &EngineInput,
    kind: ParameterKind,
    device: tch::Device,
    must_copy: bool,
) -> Result<Argument, EngineError> {
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

fn tensor(input: &EngineInput, device: tch::Device, must_copy: bool) -> Result<tch::Tensor, EngineError> {
    let (_, scalar_type) = SCALAR_TYPES
        .into_iter()
        .find(|(datatype, _)| *datatype == input.datatype)
        .ok_or_else(|| EngineError::Refused("a Tensor argument cannot take BYTES".into()))?;
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
    };
    let placed =
        host.and_then(|host| if device.is_cuda() { torch_shim::tensor_to_device(&host, device) } else { Ok(host) });
    placed.map_err(input_error)
}

/// The parts as the host reads them. The scheduler lets no others pass.
fn host_parts(input: &EngineInput) -> Result<Vec<&Bytes>, EngineError> {
    let parts: Option<Vec<&Bytes>> = input.parts.iter().map(|part| part.host()).collect();
    parts.ok_or_else(|| EngineError::Failed(format!("input {} is not in the host's memory", input.index)))
}

fn input_error(error: TorchError) -> EngineError {
    match error.kind {
        torch_shim::TorchErrorKind::OutOfMemory => EngineError::OutOfMemory(error.message),
        torch_shim::TorchErrorKind::Device => EngineError::DeviceLost(error.message),
        _ => EngineError::Failed(error.message),
    }
}

fn single<T>(values: &[T]) -> Result<&T, EngineError> {
    match values {
        [only] => Ok(only),
        _ => Err(EngineError::Refused(format!("expected one element, got {}", values.len()))),
    }
}

/// Elements of `N` bytes each, over all parts.
fn elements<const N: usize>(input: &EngineInput) -> impl Iterator<Item = [u8; N]> + '_ {
    input.parts.iter().filter_map(|part| part.host()).flat_map(|part| part.as_chunks::<N>().0.iter().copied())
}

fn integers(input: &EngineInput) -> Result<Vec<i64>, EngineError> {
    Ok(match input.datatype {
        DataType::Bool | DataType::Uint8 => elements(input).map(u8::from_le_bytes).map(i64::from).collect(),
        DataType::Int8 => elements(input).map(i8::from_le_bytes).map(i64::from).collect(),
        DataType::Int16 => elements(input).map(i16::from_le_bytes).map(i64::from).collect(),
        DataType::Int32 => elements(input).map(i32::from_le_bytes).map(i64::from).collect(),
        DataType::Int64 => elements(input).map(i64::from_le_bytes).collect(),
        DataType::Uint16 => elements(input).map(u16::from_le_bytes).map(i64::from).collect(),
        DataType::Uint32 => elements(input).map(u32::from_le_bytes).map(i64::from).collect(),
        other => return Err(EngineError::Refused(format!("{} is not a whole number", other.as_str()))),
    })
}

fn numbers(input: &EngineInput) -> Result<Vec<f64>, EngineError> {
    Ok(match input.datatype {
        DataType::Fp32 => elements(input).map(f32::from_le_bytes).map(f64::from).collect(),
        DataType::Fp64 => elements(input).map(f64::from_le_bytes).collect(),
        other => return Err(EngineError::Refused(format!("{} is not FP64 or FP32", other.as_str()))),
    })
}

fn texts(input: &EngineInput) -> Result<Vec<Vec<u8>>, EngineError> {
    input
        .parts
        .iter()
        .filter_map(|part| part.host())
        .flat_map(|part| BytesElements::new(part))
        .map(|element| element.map(<[u8]>::to_vec).map_err(|error| EngineError::Refused(error.to_string())))
        .collect()
}

/// The protocol's form of a leaf; with `copy` in memory of its own.
pub fn output(value: OutputValue, copy: bool) -> Result<Tensor, String> {
    match value {
        OutputValue::Tensor(tensor) => {
            let host = tensor_to_host(&tensor, copy).map_err(|error| error.to_string())?;
            let (datatype, _) = SCALAR_TYPES
                .into_iter()
                .find(|(_, scalar_type)| *scalar_type == host.scalar_type())
                .ok_or_else(|| format!("element type {:?} has no word in the inference protocol", tensor.f_kind()))?;
            let shape = host.shape().to_vec();
            Tensor::new(datatype, shape, Bytes::from_owner(host)).map_err(|error| error.to_string())
        }
        OutputValue::Strings(texts) => {
            let mut data = Vec::with_capacity(texts.iter().map(|text| text.len() + 4).sum());
            if !texts.iter().all(|text| push_bytes_element(&mut data, text)) {
                return Err("a string is longer than 4 GiB".into());
            }
            let shape = vec![i64::try_from(texts.len()).unwrap_or(i64::MAX)];
            Tensor::new(DataType::Bytes, shape, data.into()).map_err(|error| error.to_string())
        }
    }
}
