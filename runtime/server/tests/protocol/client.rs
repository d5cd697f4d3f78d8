//! Clients of both protocols, and the forms in which each can say the same tensors.

use std::{fmt::Write as _, net::SocketAddr};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::transport::Channel;
use torchmodel_core::tensor::{BytesElements, DataType, DataTypeExt};
use torchmodel_server::grpc::proto::{
    InferTensorContents, grpc_inference_service_client::GrpcInferenceServiceClient,
    model_infer_request::InferInputTensor,
};

/// A tensor of a test: name, datatype, shape, bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct TestTensor {
    pub name: String,
    pub datatype: DataType,
    pub shape: Vec<i64>,
    pub data: Vec<u8>,
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Parses one answer, or nothing when `bytes` hold none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head, body: bytes[end + 4..].to_vec() })
    }
}

/// Sends one HTTP/1.1 request and reads the whole answer.
pub async fn http(address: SocketAddr, request_line: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut head = format!("{request_line} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    write!(head, "content-length: {}\r\n\r\n", body.len()).unwrap();
    let bytes = exchange(address, &[head.as_bytes(), body].concat()).await;
    Answer::parse(&bytes).unwrap_or_else(|| panic!("no answer to {request_line}: {}", String::from_utf8_lossy(&bytes)))
}

/// Sends bytes and reads what comes until the server closes.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may close before it took everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

/// Sends bytes, ends the sending side and reads what comes until the server closes.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may close before it took everything.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

pub async fn grpc(address: SocketAddr) -> GrpcInferenceServiceClient<Channel> {
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    GrpcInferenceServiceClient::new(channel).max_decoding_message_size(usize::MAX)
}

fn chunks<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> {
    data.as_chunks::<N>().0.iter().copied()
}

fn elements(data: &[u8]) -> Vec<&[u8]> {
    BytesElements::new(data).map(Result::unwrap).collect()
}

/// The elements as JSON, for the datatypes that have a JSON form.
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

pub fn grpc_input(tensor: &TestTensor, contents: Option<InferTensorContents>) -> InferInputTensor {
    InferInputTensor {
        name: tensor.name.clone(),
        datatype: tensor.datatype.as_str().into(),
        shape: tensor.shape.clone(),
        parameters: std::collections::HashMap::new(),
        contents,
    }
}

/// The input as a member of a JSON request: with its data, or with the size of its data elsewhere.
pub fn json_input(tensor: &TestTensor, data: Option<Value>) -> Value {
    let mut input = json!({ "name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype.as_str() });
    match data {
        Some(data) => input["data"] = data,
        None => input["parameters"] = json!({ "binary_data_size": tensor.data.len() }),
    }
    input
}

/// Reads the outputs of a REST answer, JSON or binary.
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

pub fn bytes_element(element: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(torchmodel_core::tensor::push_bytes_element(&mut out, element));
    out
}
