//! The tensors that are sent and expected, and the models that answer them.
//!
//! `request` encodes [`Inference::inputs`], `answer` compares with [`Inference::outputs`]. Invariant: the same model, size and
//! variant give the same bytes on every machine, and two variants differ in every element that an answer shows.

use bytes::{BufMut as _, Bytes, BytesMut};

/// Bytes of an element: all datatypes here have four.
pub const ELEMENT_BYTES: usize = 4;
/// Elements of each input of [`Model::AddSub`].
const ADD_SUB_ELEMENTS: usize = 16;

/// Element type, in the protocol's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// 32-bit float.
    Fp32,
    /// 32-bit signed integer.
    Int32,
}

impl DataType {
    /// The protocol's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "FP32",
            Self::Int32 => "INT32",
        }
    }
}

/// A named tensor of one dimension; `data` is little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name of the input or output.
    pub name: &'static str,
    /// Element type.
    pub datatype: DataType,
    /// The elements.
    pub data: Bytes,
}

impl Tensor {
    /// Its one dimension.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.data.len() / ELEMENT_BYTES
    }
}

/// A model whose answers are known beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Model {
    /// Answers its FP32 input: INPUT0 → OUTPUT0.
    Echo,
    /// Answers the first element of its FP32 input: INPUT0 → OUTPUT0 of one element.
    FirstElement,
    /// Sum and difference of two INT32 tensors of 16 elements, like Triton's `simple`: INPUT0, INPUT1 → OUTPUT0, OUTPUT1.
    AddSub,
}

impl Model {
    /// Every model.
    pub const ALL: [Self; 3] = [Self::Echo, Self::FirstElement, Self::AddSub];

    /// Name in the protocol's paths.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::FirstElement => "first_element",
            Self::AddSub => "add_sub",
        }
    }
}

/// What is sent and what must come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inference {
    /// The inputs, in the model's order.
    pub inputs: Vec<Tensor>,
    /// The outputs, in the model's order.
    pub outputs: Vec<Tensor>,
}

impl Inference {
    /// An inference of `model` of about `size_bytes` of tensor data (for [`Model::AddSub`] the size is fixed).
    #[must_use]
    pub fn new(model: Model, size_bytes: usize, variant: usize) -> Self {
        let tensor = |name, datatype, data| Tensor { name, datatype, data };
        match model {
            Model::Echo | Model::FirstElement => {
                let data = floats(size_bytes / ELEMENT_BYTES, variant);
                let answer = if model == Model::Echo { data.clone() } else { data.slice(..ELEMENT_BYTES) };
                Self {
                    inputs: vec![tensor("INPUT0", DataType::Fp32, data)],
                    outputs: vec![tensor("OUTPUT0", DataType::Fp32, answer)],
                }
            }
            Model::AddSub => {
                let variant = i32::try_from(variant).unwrap_or_default();
                let numbers = || (0..ADD_SUB_ELEMENTS).filter_map(|number| i32::try_from(number).ok());
                let made =
                    |make: fn(i32, i32) -> i32| numbers().map(|number| make(number, variant)).collect::<Vec<_>>();
                let left = made(|number, variant| number + 100 * variant);
                let right = made(|number, variant| 1 + 7 * variant - number);
                let paired = |combine: fn(i32, i32) -> i32| {
                    integers(left.iter().zip(&right).map(|(left, right)| combine(*left, *right)))
                };
                Self {
                    inputs: vec![
                        tensor("INPUT0", DataType::Int32, integers(left.iter().copied())),
                        tensor("INPUT1", DataType::Int32, integers(right.iter().copied())),
                    ],
                    outputs: vec![
                        tensor("OUTPUT0", DataType::Int32, paired(|left, right| left + right)),
                        tensor("OUTPUT1", DataType::Int32, paired(|left, right| left - right)),
                    ],
                }
            }
        }
    }
}

fn integers(numbers: impl Iterator<Item = i32>) -> Bytes {
    let mut data = BytesMut::new();
    numbers.for_each(|number| data.put_i32_le(number));
    data.freeze()
}

/// Numbers between -1 and 1 that look random: their texts are as long as those of real tensors, and they do not compress well.
fn floats(count: usize, variant: usize) -> Bytes {
    let mut data = BytesMut::with_capacity(count * ELEMENT_BYTES);
    let mut state = (variant as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    for _ in 0..count {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // The 23 bits of a mantissa give [1, 2), and so [-1, 1).
        let mantissa = u32::try_from(bits >> 41).unwrap_or_default();
        data.put_f32_le(f32::from_bits(0x3f80_0000 | mantissa).mul_add(2.0, -3.0));
    }
    data.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(tensor: &Tensor) -> Vec<i32> {
        tensor.data.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
    }

    #[test]
    fn sums_and_differences_are_those_of_the_inputs() {
        for variant in 0..2 {
            let inference = Inference::new(Model::AddSub, 0, variant);
            let [left, right] = [0, 1].map(|index| numbers(&inference.inputs[index]));
            let [sums, differences] = [0, 1].map(|index| numbers(&inference.outputs[index]));
            assert_eq!(left.len(), 16);
            for index in 0..16 {
                assert_eq!(sums[index], left[index] + right[index]);
                assert_eq!(differences[index], left[index] - right[index]);
            }
        }
    }

    #[test]
    fn variants_differ_in_every_element_of_the_answer() {
        for model in Model::ALL {
            let [one, other] = [0, 1].map(|variant| Inference::new(model, 4096, variant).outputs);
            for (one, other) in one.iter().zip(&other) {
                assert_eq!(one.data.len(), other.data.len());
                let pairs = one.data.as_chunks::<4>().0.iter().zip(other.data.as_chunks::<4>().0);
                assert!(pairs.clone().all(|(one, other)| one != other), "{model:?}");
            }
        }
    }

    #[test]
    fn floats_lie_between_minus_one_and_one_on_both_sides_of_zero() {
        let data = floats(10_000, 0);
        let values: Vec<f32> = data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert!(values.iter().all(|value| (-1.0..1.0).contains(value)));
        let negative = values.iter().filter(|value| value.is_sign_negative()).count();
        assert!((4_500..5_500).contains(&negative), "{negative}");
    }
}
