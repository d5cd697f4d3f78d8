//! Tensors as they travel: a datatype, a shape and bytes.
//!
//! The words that the protocols, the batcher and the engine share. Knows no protocol, no async runtime and no libtorch.
//! Invariant: a [`Tensor`] built by [`Tensor::new`] has exactly the bytes that its shape and datatype say, and every product of
//! dimensions was checked before anything was allocated.

mod data;

use bytes::Bytes;
pub use torchmodel_crds::DataType;

pub use self::data::{DataLocation, DeviceData, SharedData, TensorData};

/// Facts about a [`DataType`] that the wire fixes.
pub trait DataTypeExt {
    /// Bytes of one element; `None` for `BYTES`, whose elements have lengths of their own.
    fn size_bytes(self) -> Option<usize>;
    /// The name in the Open Inference Protocol.
    #[expect(clippy::wrong_self_convention, reason = "a DataType is one byte and `Copy`")]
    fn as_str(self) -> &'static str;
    /// Reads that name. Case matters, as in the protocol.
    fn parse(text: &str) -> Option<Self>
    where
        Self: Sized;
}

const NAMES: [(DataType, &str, Option<usize>); 14] = [
    (DataType::Bool, "BOOL", Some(1)),
    (DataType::Uint8, "UINT8", Some(1)),
    (DataType::Uint16, "UINT16", Some(2)),
    (DataType::Uint32, "UINT32", Some(4)),
    (DataType::Uint64, "UINT64", Some(8)),
    (DataType::Int8, "INT8", Some(1)),
    (DataType::Int16, "INT16", Some(2)),
    (DataType::Int32, "INT32", Some(4)),
    (DataType::Int64, "INT64", Some(8)),
    (DataType::Fp16, "FP16", Some(2)),
    (DataType::Bf16, "BF16", Some(2)),
    (DataType::Fp32, "FP32", Some(4)),
    (DataType::Fp64, "FP64", Some(8)),
    (DataType::Bytes, "BYTES", None),
];

impl DataTypeExt for DataType {
    fn size_bytes(self) -> Option<usize> {
        NAMES.iter().find(|(datatype, ..)| *datatype == self).and_then(|(_, _, size)| *size)
    }

    fn as_str(self) -> &'static str {
        NAMES.iter().find(|(datatype, ..)| *datatype == self).map_or("", |(_, name, _)| name)
    }

    fn parse(text: &str) -> Option<Self> {
        NAMES.iter().find(|(_, name, _)| *name == text).map(|(datatype, ..)| *datatype)
    }
}

/// Why bytes, datatype and shape do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// A dimension below zero.
    #[error("shape {0:?} has a negative dimension")]
    NegativeDimension(Vec<i64>),
    /// The number of elements, or of their bytes, does not fit 63 bits.
    #[error("shape {0:?} has too many elements")]
    TooLarge(Vec<i64>),
    /// The data is not as long as shape and datatype say.
    #[error("expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// Bytes that shape and datatype ask for.
        expected: usize,
        /// Bytes that are there.
        actual: usize,
    },
    /// `BYTES` data with another number of elements than the shape says.
    #[error("expected {expected} string elements, got {actual}")]
    CountMismatch {
        /// Elements that the shape asks for.
        expected: usize,
        /// Elements that are there.
        actual: usize,
    },
    /// `BYTES` data whose last length prefix or element is cut.
    #[error("incomplete string element at byte {0}")]
    TruncatedElement(usize),
    /// A `BOOL` byte other than 0 and 1.
    #[error("byte {0} is neither 0 nor 1")]
    NotBool(usize),
}

/// Number of elements of `shape`, checked: the product of its dimensions, 1 for a scalar.
pub fn element_count(shape: &[i64]) -> Result<usize, TensorError> {
    if shape.iter().any(|dim| *dim < 0) {
        return Err(TensorError::NegativeDimension(shape.to_vec()));
    }
    // A zero dimension makes the product zero, but the rest must still not overflow: libtorch multiplies in its own order.
    let checked = shape
        .iter()
        .filter(|dim| **dim != 0)
        .try_fold(1i64, |product, dim| product.checked_mul(*dim))
        .and_then(|product| usize::try_from(product).ok())
        .ok_or_else(|| TensorError::TooLarge(shape.to_vec()))?;
    Ok(if shape.contains(&0) { 0 } else { checked })
}

/// A tensor without a name: row-major, little-endian, without padding; `BYTES` as length-prefixed elements (u32 LE).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    datatype: DataType,
    shape: Vec<i64>,
    data: TensorData,
}

impl Tensor {
    /// A tensor of bytes in host memory; see [`Self::of`].
    pub fn new(datatype: DataType, shape: Vec<i64>, data: Bytes) -> Result<Self, TensorError> {
        Self::of(datatype, shape, TensorData::Host(data))
    }

    /// Checks that `data` is what `datatype` and `shape` say (wire rule: OIP binary tensor data extension). Of data that the host
    /// cannot read, only the size is looked at.
    pub fn of(datatype: DataType, shape: Vec<i64>, data: TensorData) -> Result<Self, TensorError> {
        let count = element_count(&shape)?;
        if let Some(size) = datatype.size_bytes() {
            let expected = count.checked_mul(size).filter(|bytes| i64::try_from(*bytes).is_ok());
            let expected = expected.ok_or_else(|| TensorError::TooLarge(shape.clone()))?;
            if expected != data.size_bytes() {
                return Err(TensorError::SizeMismatch { expected, actual: data.size_bytes() });
            }
            if datatype == DataType::Bool
                && let Some(position) = data.host().and_then(|data| data.iter().position(|byte| *byte > 1))
            {
                return Err(TensorError::NotBool(position));
            }
        } else if let Some(data) = data.host() {
            let mut actual = 0;
            for element in BytesElements::new(data) {
                element?;
                actual += 1;
            }
            if actual != count {
                return Err(TensorError::CountMismatch { expected: count, actual });
            }
        }
        Ok(Self { datatype, shape, data })
    }

    /// Element type.
    #[must_use]
    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    /// Dimensions, the batch dimension included; empty for a scalar.
    #[must_use]
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The bytes that travel in a message: none for data on a device or in a shared region, whose reference travels instead.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        static NOTHING: Bytes = Bytes::new();
        self.data.host().unwrap_or(&NOTHING)
    }

    /// The bytes, wherever they lie.
    #[must_use]
    pub fn content(&self) -> &TensorData {
        &self.data
    }

    /// Elements of a `BYTES` tensor, each without its length prefix.
    #[must_use]
    pub fn bytes_elements(&self) -> BytesElements<'_> {
        BytesElements::new(self.data())
    }

    /// Takes the tensor apart; the bytes are those of [`Self::data`].
    #[must_use]
    pub fn into_parts(self) -> (DataType, Vec<i64>, Bytes) {
        let data = match self.data {
            TensorData::Host(data) | TensorData::Pinned(data) => data,
            TensorData::Device(_) | TensorData::Shared(_) => Bytes::new(),
        };
        (self.datatype, self.shape, data)
    }
}

/// Walks the length-prefixed elements of `BYTES` data.
#[derive(Clone, Debug)]
pub struct BytesElements<'a> {
    data: &'a [u8],
    position: usize,
}

impl<'a> BytesElements<'a> {
    /// Elements of `data`: u32 little-endian length, then that many bytes, again and again.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, position: 0 }
    }
}

impl<'a> Iterator for BytesElements<'a> {
    type Item = Result<&'a [u8], TensorError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.data.get(self.position..).filter(|rest| !rest.is_empty())?;
        let element = rest.split_first_chunk::<4>().and_then(|(prefix, tail)| {
            let length = usize::try_from(u32::from_le_bytes(*prefix)).ok()?;
            tail.get(..length)
        });
        if let Some(element) = element {
            self.position += 4 + element.len();
            Some(Ok(element))
        } else {
            let at = self.position;
            self.position = self.data.len();
            Some(Err(TensorError::TruncatedElement(at)))
        }
    }
}

/// Appends one `BYTES` element with its length prefix. Returns `false`, without writing, when it is longer than u32 can say.
#[must_use]
pub fn push_bytes_element(out: &mut Vec<u8>, element: &[u8]) -> bool {
    let Ok(length) = u32::try_from(element.len()) else { return false };
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(element);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datatype_reads_its_own_name_back() {
        for (datatype, name, _) in NAMES {
            assert_eq!(DataType::parse(name), Some(datatype));
            assert_eq!(datatype.as_str(), name);
            assert_eq!(serde_json::to_value(datatype).unwrap(), name, "the manifest uses the same word");
        }
        assert_eq!(DataType::parse("fp32"), None);
    }

    #[test]
    fn counts_elements_and_refuses_overflow_before_allocating() {
        assert_eq!(element_count(&[]), Ok(1));
        assert_eq!(element_count(&[2, 3]), Ok(6));
        assert_eq!(element_count(&[0, 3]), Ok(0));
        assert!(matches!(element_count(&[-1]), Err(TensorError::NegativeDimension(_))));
        assert!(matches!(element_count(&[i64::MAX, 2]), Err(TensorError::TooLarge(_))));
        assert!(matches!(element_count(&[0, i64::MAX, 2]), Err(TensorError::TooLarge(_))));
        assert!(matches!(Tensor::new(DataType::Fp64, vec![i64::MAX / 4], Bytes::new()), Err(TensorError::TooLarge(_))));
    }

    #[test]
    fn bytes_must_be_as_many_as_shape_and_datatype_say() {
        assert!(Tensor::new(DataType::Fp32, vec![2], Bytes::from_static(&[0; 8])).is_ok());
        assert_eq!(
            Tensor::new(DataType::Fp32, vec![2], Bytes::from_static(&[0; 7])),
            Err(TensorError::SizeMismatch { expected: 8, actual: 7 })
        );
        assert_eq!(Tensor::new(DataType::Bool, vec![2], Bytes::from_static(&[1, 2])), Err(TensorError::NotBool(1)));
    }

    #[test]
    fn data_that_the_host_cannot_read_is_checked_by_its_size() {
        let region = SharedData { region: "input".into(), offset: 64, size_bytes: 8, mapping: std::sync::Arc::new(()) };
        let shared = TensorData::Shared(region);
        let tensor = Tensor::of(DataType::Fp32, vec![2], shared.clone()).unwrap();
        assert_eq!(tensor.content().location(), DataLocation::Shared);
        assert!(tensor.data().is_empty(), "nothing of it travels in a message");
        assert!(Tensor::of(DataType::Fp32, vec![3], shared).is_err());
    }

    #[test]
    fn string_elements_are_counted_and_may_hold_nul() {
        let mut data = Vec::new();
        assert!(push_bytes_element(&mut data, b"a\0b"));
        assert!(push_bytes_element(&mut data, b""));
        let tensor = Tensor::new(DataType::Bytes, vec![2], data.clone().into()).unwrap();
        let elements: Result<Vec<_>, _> = tensor.bytes_elements().collect();
        assert_eq!(elements.unwrap(), [&b"a\0b"[..], b""]);
        assert_eq!(
            Tensor::new(DataType::Bytes, vec![3], data.clone().into()),
            Err(TensorError::CountMismatch { expected: 3, actual: 2 })
        );
        data.pop();
        data.pop();
        assert!(matches!(Tensor::new(DataType::Bytes, vec![2], data.into()), Err(TensorError::TruncatedElement(7))));
    }
}
