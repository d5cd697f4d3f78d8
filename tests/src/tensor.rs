//! Inputs of a request, before either protocol has encoded them.

use bytes::Bytes;
use serde_json::{Value, json};

/// One input.
#[derive(Clone, Debug)]
pub struct Input {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
    values: Values,
}

#[derive(Clone, Debug)]
enum Values {
    Fp32(Vec<f32>),
    Int64(Vec<i64>),
}

/// An FP32 input.
#[must_use]
pub fn floats(name: &str, shape: &[i64], values: &[f32]) -> Input {
    Input { name: name.to_owned(), shape: shape.to_vec(), values: Values::Fp32(values.to_vec()) }
}

/// An INT64 input.
#[must_use]
pub fn integers(name: &str, shape: &[i64], values: &[i64]) -> Input {
    Input { name: name.to_owned(), shape: shape.to_vec(), values: Values::Int64(values.to_vec()) }
}

impl Input {
    pub(crate) fn datatype(&self) -> &'static str {
        match self.values {
            Values::Fp32(_) => "FP32",
            Values::Int64(_) => "INT64",
        }
    }

    /// As in a JSON request.
    pub(crate) fn json(&self) -> Value {
        let data = match &self.values {
            Values::Fp32(values) => json!(values),
            Values::Int64(values) => json!(values),
        };
        json!({"name": self.name, "shape": self.shape, "datatype": self.datatype(), "data": data})
    }

    /// Row-major and little-endian, as the binary extension and gRPC's raw contents have it.
    pub(crate) fn raw(&self) -> Bytes {
        match &self.values {
            Values::Fp32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::Int64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }
}

/// FP32 values of raw bytes.
pub(crate) fn values(raw: &[u8]) -> Vec<f32> {
    raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
