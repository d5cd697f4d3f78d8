//! Cuts a batch's outputs back into the requests' parts, without copying them.
//!
//! Called by the scheduler after each execution. Invariant: the parts of an output have as many rows as their requests, and
//! together they are the whole.

use bytes::Bytes;

use crate::{
    inference::NamedTensor,
    tensor::{BytesElements, DataTypeExt as _, Tensor, TensorError, element_count},
};

/// For each request its outputs. `rows` are the requests' rows; with one request everything is its own, whatever its shape.
///
/// Errors, as a sentence for the client: an output whose first dimension is not the batch's.
pub fn split_outputs(outputs: Vec<NamedTensor>, rows: &[u64]) -> Result<Vec<Vec<NamedTensor>>, String> {
    if rows.len() <= 1 {
        return Ok(vec![outputs]);
    }
    let mut parts: Vec<Vec<NamedTensor>> = rows.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for NamedTensor { name, tensor } in outputs {
        let total: u64 = rows.iter().sum();
        let first = tensor.shape().first().and_then(|first| u64::try_from(*first).ok());
        if first != Some(total) {
            return Err(format!(
                "output '{name}' has shape {:?}, whose first dimension is not the batch of {total} rows: the model cannot be \
                 batched; remove model.batching or set maxBatchSize to 1",
                tensor.shape()
            ));
        }
        let split = split_tensor(&tensor, rows).map_err(|error| format!("output '{name}' cannot be split: {error}"))?;
        for (part, tensor) in parts.iter_mut().zip(split) {
            part.push(NamedTensor { name: name.clone(), tensor });
        }
    }
    Ok(parts)
}

fn split_tensor(tensor: &Tensor, rows: &[u64]) -> Result<Vec<Tensor>, TensorError> {
    let row_shape = tensor.shape().get(1..).unwrap_or_default();
    let row_elements = element_count(row_shape)?;
    let mut elements = BytesElements::new(tensor.data());
    let mut start = 0;
    let mut parts = Vec::with_capacity(rows.len());
    for count in rows {
        let part_elements = usize::try_from(*count).unwrap_or(usize::MAX).saturating_mul(row_elements);
        let size = if let Some(size) = tensor.datatype().size_bytes() {
            part_elements.saturating_mul(size)
        } else {
            let mut size = 0;
            for element in elements.by_ref().take(part_elements) {
                size += 4 + element?.len();
            }
            size
        };
        let end = size.saturating_add(start);
        let data: Bytes = if end <= tensor.data().len() {
            tensor.data().slice(start..end)
        } else {
            return Err(TensorError::SizeMismatch { expected: end, actual: tensor.data().len() });
        };
        start = end;
        let mut shape = vec![i64::try_from(*count).unwrap_or(i64::MAX)];
        shape.extend_from_slice(row_shape);
        parts.push(Tensor::new(tensor.datatype(), shape, data)?);
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DataType, push_bytes_element};

    fn named(datatype: DataType, shape: Vec<i64>, data: Vec<u8>) -> Vec<NamedTensor> {
        vec![NamedTensor { name: "y".into(), tensor: Tensor::new(datatype, shape, data.into()).unwrap() }]
    }

    #[test]
    fn each_request_gets_its_own_rows() {
        let parts = split_outputs(named(DataType::Int16, vec![3, 2], (0..12).collect()), &[1, 2]).unwrap();
        assert_eq!(parts[0][0].tensor.shape(), [1, 2]);
        assert_eq!(parts[0][0].tensor.data()[..], [0, 1, 2, 3]);
        assert_eq!(parts[1][0].tensor.data()[..], [4, 5, 6, 7, 8, 9, 10, 11]);
    }

    #[test]
    fn strings_are_cut_between_elements() {
        let mut data = Vec::new();
        for text in ["a", "", "longer"] {
            assert!(push_bytes_element(&mut data, text.as_bytes()));
        }
        let parts = split_outputs(named(DataType::Bytes, vec![3], data), &[2, 1]).unwrap();
        let last: Vec<_> = parts[1][0].tensor.bytes_elements().map(Result::unwrap).collect();
        assert_eq!(last, [b"longer"]);
    }

    #[test]
    fn an_output_without_the_batchs_rows_is_an_error_that_says_what_to_do() {
        let error = split_outputs(named(DataType::Uint8, vec![1], vec![0]), &[1, 2]).unwrap_err();
        assert!(error.contains("remove model.batching"), "{error}");
        assert!(split_outputs(named(DataType::Uint8, vec![1], vec![0]), &[3]).is_ok(), "a single request keeps all");
    }
}
