//! Tensors of tests, and the forms in which each protocol can say them.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::{Value, json};
use torchmodel_core::{
    inference::NamedTensor,
    tensor::{BytesElements, DataType, DataTypeExt, push_bytes_element},
};
use torchmodel_server::grpc::proto::{InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor};

use crate::Answer;

/// A tensor of a test: name, datatype, shape, bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct TestTensor {
    /// Name.
    pub name: String,
    /// Datatype.
    pub datatype: DataType,
    /// Shape.
    pub shape: Vec<i64>,
    /// Elements, row-major and little-endian.
    pub data: Vec<u8>,
}

impl TestTensor {
    /// A tensor of FP32.
    #[must_use]
    pub fn fp32(name: &str, shape: &[i64], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name: name.into(), datatype: DataType::Fp32, shape: shape.to_vec(), data }
    }

    /// A tensor of INT64.
    #[must_use]
    pub fn int64(name: &str, shape: &[i64], values: &[i64]) -> Self {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name: name.into(), datatype: DataType::Int64, shape: shape.to_vec(), data }
    }
}

impl From<&NamedTensor> for TestTensor {
    fn from(NamedTensor { name, tensor }: &NamedTensor) -> Self {
        Self {
            name: name.clone(),
            datatype: tensor.datatype(),
            shape: tensor.shape().to_vec(),
            data: tensor.data().to_vec(),
        }
    }
}

/// FP32 values of raw bytes.
#[must_use]
pub fn fp32_values(data: &[u8]) -> Vec<f32> {
    chunks(data).map(f32::from_le_bytes).collect()
}

fn chunks<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> {
    data.as_chunks::<N>().0.iter().copied()
}

fn elements(data: &[u8]) -> Vec<&[u8]> {
    BytesElements::new(data).map(Result::unwrap).collect()
}

/// The elements as JSON, for the datatypes that have a JSON form.
#[must_use]
pub fn to_json(tensor: &TestTensor) -> Option<Value> {
    let data = tensor.data.as_slice();
    Some(match tensor.datatype {
        DataType::Bool => data.iter().map(|byte| *byte != 0).collect(),
        DataType::Uint8 => data.iter().copied().collect(),
        DataType::Uint16 => chunks(data).map(u16::from_le_bytes).collect(),
        DataType::Uint32 => chunks(data).map(u32::from_le_bytes).collect(),
        DataType::Uint64 => chunks(data).map(u64::from_le_bytes).collect(),
        DataType::Int8 => chunks(data).map(i8::from_le_bytes).collect(),
        DataType::Int16 => chunks(data).map(i16::from_le_bytes).collect(),
        DataType::Int32 => chunks(data).map(i32::from_le_bytes).collect(),
        DataType::Int64 => chunks(data).map(i64::from_le_bytes).collect(),
        DataType::Fp32 => chunks(data).map(f32::from_le_bytes).collect(),
        DataType::Fp64 => chunks(data).map(f64::from_le_bytes).collect(),
        DataType::Bytes => {
            let texts: Result<Vec<&str>, _> = elements(data).into_iter().map(std::str::from_utf8).collect();
            texts.ok()?.into_iter().collect()
        }
        DataType::Fp16 | DataType::Bf16 => return None,
    })
}

/// The typed contents, for the datatypes that have them.
#[must_use]
pub fn to_contents(tensor: &TestTensor) -> Option<InferTensorContents> {
    let data = tensor.data.as_slice();
    let mut contents = InferTensorContents::default();
    match tensor.datatype {
        DataType::Bool => contents.bool_contents = data.iter().map(|byte| *byte != 0).collect(),
        DataType::Uint8 => contents.uint_contents = data.iter().map(|byte| u32::from(*byte)).collect(),
        DataType::Uint16 => {
            contents.uint_contents = chunks(data).map(|bytes| u16::from_le_bytes(bytes).into()).collect();
        }
        DataType::Uint32 => contents.uint_contents = chunks(data).map(u32::from_le_bytes).collect(),
        DataType::Uint64 => contents.uint64_contents = chunks(data).map(u64::from_le_bytes).collect(),
        DataType::Int8 => contents.int_contents = chunks(data).map(|bytes| i8::from_le_bytes(bytes).into()).collect(),
        DataType::Int16 => contents.int_contents = chunks(data).map(|bytes| i16::from_le_bytes(bytes).into()).collect(),
        DataType::Int32 => contents.int_contents = chunks(data).map(i32::from_le_bytes).collect(),
        DataType::Int64 => contents.int64_contents = chunks(data).map(i64::from_le_bytes).collect(),
        DataType::Fp32 => contents.fp32_contents = chunks(data).map(f32::from_le_bytes).collect(),
        DataType::Fp64 => contents.fp64_contents = chunks(data).map(f64::from_le_bytes).collect(),
        DataType::Bytes => contents.bytes_contents = elements(data).into_iter().map(Bytes::copy_from_slice).collect(),
        DataType::Fp16 | DataType::Bf16 => return None,
    }
    Some(contents)
}

/// The input as a member of a gRPC request, with or without typed contents.
#[must_use]
pub fn grpc_input(tensor: &TestTensor, contents: Option<InferTensorContents>) -> InferInputTensor {
    InferInputTensor {
        name: tensor.name.clone(),
        datatype: tensor.datatype.as_str().into(),
        shape: tensor.shape.clone(),
        parameters: HashMap::new(),
        contents,
    }
}

/// A gRPC request with raw contents.
#[must_use]
pub fn grpc_request(model: &str, inputs: &[TestTensor]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.into(),
        inputs: inputs.iter().map(|input| grpc_input(input, None)).collect(),
        raw_input_contents: inputs.iter().map(|input| Bytes::copy_from_slice(&input.data)).collect(),
        ..ModelInferRequest::default()
    }
}

/// The input as a member of a JSON request: with its data, or with the size of its data elsewhere.
#[must_use]
pub fn json_input(tensor: &TestTensor, data: Option<Value>) -> Value {
    let mut input = json!({ "name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype.as_str() });
    match data {
        Some(data) => input["data"] = data,
        None => input["parameters"] = json!({ "binary_data_size": tensor.data.len() }),
    }
    input
}

/// Reads the outputs of a REST answer, JSON or binary.
#[must_use]
pub fn rest_outputs(answer: &Answer) -> Vec<TestTensor> {
    let json_length =
        answer.header("inference-header-content-length").map_or(answer.body.len(), |n| n.parse().unwrap());
    let (json, mut blobs) = answer.body.split_at(json_length);
    let json: Value = serde_json::from_slice(json).unwrap();
    let outputs = json["outputs"].as_array().unwrap().iter().map(|output| {
        let mut tensor = TestTensor {
            name: output["name"].as_str().unwrap().into(),
            datatype: DataType::parse(output["datatype"].as_str().unwrap()).unwrap(),
            shape: serde_json::from_value(output["shape"].clone()).unwrap(),
            data: Vec::new(),
        };
        if let Some(size) = output["parameters"]["binary_data_size"].as_u64() {
            let (data, rest) = blobs.split_at(usize::try_from(size).unwrap());
            tensor.data = data.to_vec();
            blobs = rest;
        } else {
            tensor.data = from_json(tensor.datatype, output["data"].as_array().unwrap());
        }
        tensor
    });
    outputs.collect()
}

fn from_json(datatype: DataType, values: &[Value]) -> Vec<u8> {
    let element = |value: &Value| -> Vec<u8> {
        let (int, unsigned, float) =
            (|| value.as_i64().unwrap(), || value.as_u64().unwrap(), || value.as_f64().unwrap());
        match datatype {
            DataType::Bool => vec![value.as_bool().unwrap().into()],
            DataType::Uint8 | DataType::Uint16 | DataType::Uint32 | DataType::Uint64 => {
                unsigned().to_le_bytes()[..datatype.size_bytes().unwrap()].to_vec()
            }
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
                int().to_le_bytes()[..datatype.size_bytes().unwrap()].to_vec()
            }
            #[expect(clippy::cast_possible_truncation, reason = "the shortest text of an FP32 is read back exactly")]
            DataType::Fp32 => (float() as f32).to_le_bytes().to_vec(),
            DataType::Fp64 => float().to_le_bytes().to_vec(),
            DataType::Bytes => bytes_element(value.as_str().unwrap().as_bytes()),
            DataType::Fp16 | DataType::Bf16 => panic!("{datatype:?} has no JSON form"),
        }
    };
    values.iter().flat_map(element).collect()
}

/// An element of BYTES behind its length.
#[must_use]
pub fn bytes_element(element: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(push_bytes_element(&mut out, element));
    out
}
