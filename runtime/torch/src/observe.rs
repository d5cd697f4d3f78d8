//! The net for state that no analysis of the code sees: two equal calls, and a look at what they left behind.
//!
//! Called when a model whose code keeps nothing is loaded. Invariant: what differs by the order of additions alone, as between a
//! device's runs, or by random numbers is no state.

use half::{bf16, f16};
use torch_shim::{Module, TorchError};
use torchmodel_core::{
    binding::Binding,
    engine::EngineInput,
    inference::NamedTensor,
    tensor::{DataType, Tensor},
};

use crate::convert::{self, ConvertError};

/// How far two answers may lie apart, measured by the larger.
const TOLERANCE: f64 = 1e-3;

/// Whether calls with `inputs` change the module's memory, or give different answers although the method is not `random`. What
/// the model refuses shows nothing: the warm-up tells of it.
pub fn shows_state(
    module: &mut Module,
    device: tch::Device,
    binding: &Binding,
    (inputs, is_random): (&[EngineInput], bool),
) -> Result<bool, TorchError> {
    let before = module.fingerprint()?;
    let first = call(module, device, binding, inputs);
    let second = first.as_ref().ok().and_then(|_| call(module, device, binding, inputs).ok());
    if module.fingerprint()? != before {
        return Ok(true);
    }
    Ok(match (first, second) {
        (Ok(first), Some(second)) => !is_random && !are_same(&first, &second),
        _ => false,
    })
}

fn call(
    module: &mut Module,
    device: tch::Device,
    binding: &Binding,
    inputs: &[EngineInput],
) -> Result<Vec<NamedTensor>, ConvertError> {
    let arguments = convert::arguments(binding, inputs, device, true)?;
    convert::outputs(module.run(&binding.method().name, &arguments)?, true)
}

fn are_same(first: &[NamedTensor], second: &[NamedTensor]) -> bool {
    first.len() == second.len()
        && first.iter().zip(second).all(|(one, other)| one.name == other.name && is_same(&one.tensor, &other.tensor))
}

fn is_same(one: &Tensor, other: &Tensor) -> bool {
    if (one.datatype(), one.shape()) != (other.datatype(), other.shape()) {
        return false;
    }
    if one.data() == other.data() {
        return true;
    }
    let (Some(ones), Some(others)) = (numbers(one), numbers(other)) else { return false };
    let finite = ones.iter().chain(&others).copied().filter(|number| number.is_finite());
    let largest = finite.map(f64::abs).fold(0.0, f64::max);
    let is_close = |(one, other): (&f64, &f64)| {
        one.to_bits() == other.to_bits()
            || (one.is_nan() && other.is_nan())
            || (one - other).abs() <= TOLERANCE * largest
    };
    ones.iter().zip(&others).all(is_close)
}

/// The elements of a tensor of floating-point numbers.
fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    let data = tensor.data();
    let halves = || data.as_chunks::<2>().0.iter().copied();
    Some(match tensor.datatype() {
        DataType::Fp16 => halves().map(|bytes| f16::from_le_bytes(bytes).to_f64()).collect(),
        DataType::Bf16 => halves().map(|bytes| bf16::from_le_bytes(bytes).to_f64()).collect(),
        DataType::Fp32 => data.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
        DataType::Fp64 => data.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = vec![i64::try_from(values.len()).unwrap()];
        Tensor::new(DataType::Fp32, shape, data.into()).unwrap()
    }

    #[test]
    fn answers_that_differ_by_rounding_are_the_same() {
        for (one, other, expected) in [
            (&[1.0, 2.0][..], &[1.0, 2.0][..], true),
            (&[1000.0, 0.1], &[1000.1, 0.2], true),
            (&[1.0, 2.0], &[1.0, 2.1], false),
            (&[0.0], &[-0.0], true),
            (&[f32::NAN, 1.0], &[f32::NAN, 1.0], true),
            (&[f32::NAN], &[1.0], false),
            (&[f32::INFINITY], &[1.0], false),
            (&[1.0], &[1.0, 1.0], false),
        ] {
            assert_eq!(is_same(&floats(one), &floats(other)), expected, "{one:?} {other:?}");
        }
        let whole = |value: u8| Tensor::new(DataType::Uint8, vec![1], vec![value].into()).unwrap();
        assert!(is_same(&whole(1), &whole(1)) && !is_same(&whole(1), &whole(2)));
    }
}
