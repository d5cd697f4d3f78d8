//! What the form of a request leaves open: where an operator that refuses its input can be the client's fault.
//!
//! Pure: from the signature, against which each request is checked before it runs. Asked by engines. Invariant: where nothing is
//! open, a refusal of a form is the model's own.

use crate::{
    signature::{InputSignature, Signature},
    tensor::DataType,
};

/// What clients may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four answers to four questions")]
pub struct InputFreedom {
    /// A datatype: one is not declared.
    pub datatypes: bool,
    /// A shape: one is not declared, or has an open dimension that is no batch.
    pub shapes: bool,
    /// Values that can be out of range: whole numbers, which count and select, and texts, which are looked up.
    pub values: bool,
    /// Whether declarations in the configuration would leave less open.
    pub is_undeclared: bool,
}

impl InputFreedom {
    /// What `signature` leaves open.
    #[must_use]
    pub fn of(signature: &Signature) -> Self {
        let inputs = &signature.inputs;
        let datatypes = inputs.iter().any(|input| input.datatype.is_none());
        Self {
            datatypes,
            shapes: inputs.iter().any(is_shape_open),
            values: inputs.iter().any(|input| !input.datatype.is_some_and(is_float)),
            is_undeclared: datatypes || inputs.iter().any(|input| input.shape.is_none()),
        }
    }
}

/// The first of several dimensions counts rows, which operators take any number of.
fn is_shape_open(input: &InputSignature) -> bool {
    input.shape.as_ref().is_none_or(|shape| {
        let rows = usize::from(input.is_batched || shape.len() > 1);
        shape.iter().skip(rows).any(|dim| *dim == -1)
    })
}

const fn is_float(datatype: DataType) -> bool {
    matches!(datatype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freedom(datatype: Option<DataType>, shape: Option<&[i64]>, is_batched: bool) -> InputFreedom {
        let shape = shape.map(<[i64]>::to_vec);
        let input =
            InputSignature { name: "x".into(), datatype, shape, is_optional: false, is_batched, is_flattened: false };
        InputFreedom::of(&Signature { inputs: vec![input], ..Signature::default() })
    }

    #[test]
    fn what_is_not_declared_is_open_and_so_is_a_dimension_that_is_no_batch() {
        let float = Some(DataType::Fp32);
        let none = InputFreedom { datatypes: false, shapes: false, values: false, is_undeclared: false };
        let shapes = InputFreedom { shapes: true, ..none };
        for (datatype, shape, is_batched, expected) in [
            (float, Some(&[1, 2][..]), false, none),
            (float, Some(&[-1, 2][..]), false, none),
            (float, Some(&[-1][..]), true, none),
            (float, Some(&[-1][..]), false, shapes),
            (float, Some(&[1, -1][..]), false, shapes),
            (float, Some(&[-1, -1][..]), true, shapes),
            (float, Some(&[][..]), false, none),
            (float, None, true, InputFreedom { is_undeclared: true, ..shapes }),
            (Some(DataType::Int64), Some(&[1][..]), false, InputFreedom { values: true, ..none }),
            (Some(DataType::Bytes), Some(&[1][..]), false, InputFreedom { values: true, ..none }),
            (
                None,
                Some(&[1][..]),
                false,
                InputFreedom { datatypes: true, shapes: false, values: true, is_undeclared: true },
            ),
        ] {
            assert_eq!(freedom(datatype, shape, is_batched), expected, "{datatype:?} {shape:?} {is_batched}");
        }
    }
}
