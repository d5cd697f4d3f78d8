//! A request's bytes on the wire, encoded once and shared by every connection that sends it.
//!
//! `generator` makes two for a load and sends them in turn. Invariant: `body` is what a stock client sends (tritonclient's fields, in
//! its order), in one piece, so that sending copies nothing.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;

use crate::tensor::{DataType, Inference, Model, Tensor};

/// How a load is put on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Wire {
    /// `ModelInfer` with `raw_input_contents`.
    GrpcRaw,
    /// REST with the binary tensor extension, in and out.
    RestBinary,
    /// REST, JSON in and out.
    RestJson,
    /// REST, binary in and JSON out.
    RestBinaryToJson,
}

impl Wire {
    /// Whether it goes to the gRPC port.
    #[must_use]
    pub const fn is_grpc(self) -> bool {
        matches!(self, Self::GrpcRaw)
    }

    /// Name in the table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GrpcRaw => "gRPC raw",
            Self::RestBinary => "REST binary",
            Self::RestJson => "REST JSON",
            Self::RestBinaryToJson => "REST binary in, JSON out",
        }
    }
}

/// A request, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedRequest {
    /// The HTTP/1.1 head; empty for gRPC, whose head HTTP/2 compresses for each request.
    pub head: Bytes,
    /// The body: for gRPC one length-prefixed message.
    pub body: Bytes,
}

impl EncodedRequest {
    /// Encodes the inputs of `inference` for `model`.
    #[must_use]
    pub fn new(wire: Wire, model: Model, inference: &Inference) -> Self {
        if wire.is_grpc() {
            return Self { head: Bytes::new(), body: grpc_frame(model, inference) };
        }
        let (body, json_length) = rest_body(wire, inference);
        let head = rest_head(model, body.len(), json_length);
        Self { head, body }
    }
}

/// `inference.ModelInferRequest`, as far as it is used here. `raw_input_contents` is not a field: see [`grpc_frame`].
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ModelInferRequest {
    #[prost(string, tag = "1")]
    pub(crate) model_name: String,
    #[prost(message, repeated, tag = "5")]
    pub(crate) inputs: Vec<InferTensor>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub(crate) raw_input_contents: Vec<Bytes>,
}

/// `InferInputTensor` and `InferOutputTensor`, which are alike in these fields.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct InferTensor {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) datatype: String,
    #[prost(int64, repeated, tag = "3")]
    pub(crate) shape: Vec<i64>,
}

impl InferTensor {
    pub(crate) fn of(tensor: &Tensor) -> Self {
        Self {
            name: tensor.name.to_owned(),
            datatype: tensor.datatype.as_str().to_owned(),
            shape: vec![i64::try_from(tensor.elements()).unwrap_or(i64::MAX)],
        }
    }
}

/// The message behind its five bytes of prefix (not compressed, length in big-endian).
fn grpc_frame(model: Model, inference: &Inference) -> Bytes {
    let message = ModelInferRequest {
        model_name: model.name().to_owned(),
        inputs: inference.inputs.iter().map(InferTensor::of).collect(),
        raw_input_contents: inference.inputs.iter().map(|input| input.data.clone()).collect(),
    };
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(length + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("loads are below 4 GiB"));
    message.encode(&mut frame).expect("BytesMut grows");
    frame.freeze()
}

/// The body, and the length of its JSON where binary tensors follow.
fn rest_body(wire: Wire, inference: &Inference) -> (Bytes, Option<usize>) {
    let is_json = wire == Wire::RestJson;
    let mut body = br#"{"inputs":["#.to_vec();
    for (position, input) in inference.inputs.iter().enumerate() {
        let separator = if position > 0 { "," } else { "" };
        let (name, datatype, elements) = (input.name, input.datatype.as_str(), input.elements());
        let head = format!(r#"{separator}{{"name":"{name}","datatype":"{datatype}","shape":[{elements}],"#);
        body.extend_from_slice(head.as_bytes());
        if is_json {
            body.extend_from_slice(br#""data":["#);
            write_elements(&mut body, input);
            body.extend_from_slice(b"]}");
        } else {
            let size = format!(r#""parameters":{{"binary_data_size":{}}}}}"#, input.data.len());
            body.extend_from_slice(size.as_bytes());
        }
    }
    body.push(b']');
    if wire == Wire::RestBinary {
        body.extend_from_slice(br#","parameters":{"binary_data_output":true}"#);
    }
    body.push(b'}');
    if is_json {
        return (body.into(), None);
    }
    let json_length = body.len();
    inference.inputs.iter().for_each(|input| body.extend_from_slice(&input.data));
    (body.into(), Some(json_length))
}

fn write_elements(out: &mut Vec<u8>, tensor: &Tensor) {
    for (position, bytes) in tensor.data.as_chunks().0.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        let written = match tensor.datatype {
            DataType::Fp32 => serde_json::to_writer(&mut *out, &f32::from_le_bytes(*bytes)),
            DataType::Int32 => serde_json::to_writer(&mut *out, &i32::from_le_bytes(*bytes)),
        };
        written.expect("a Vec takes every text");
    }
}

fn rest_head(model: Model, body_length: usize, json_length: Option<usize>) -> Bytes {
    let name = model.name();
    let form = json_length.map_or("content-type: application/json\r\n".to_owned(), |length| {
        format!("content-type: application/octet-stream\r\ninference-header-content-length: {length}\r\n")
    });
    let head = format!(
        "POST /v2/models/{name}/infer HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\ncontent-length: {body_length}\r\n\
         {form}\r\n"
    );
    head.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_frame_is_a_prefix_and_the_messages_bytes() {
        let inference = Inference::new(Model::AddSub, 0, 1);
        let request = EncodedRequest::new(Wire::GrpcRaw, Model::AddSub, &inference);
        assert!(request.head.is_empty());
        let (prefix, message) = request.body.split_at(5);
        assert_eq!(prefix[0], 0);
        assert_eq!(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize, message.len());
        // Field 1, 7 bytes: the name. Field 5, 21 bytes: name, datatype and packed shape of the first input.
        let begin = b"\x0a\x07add_sub\x2a\x12\x0a\x06INPUT0\x12\x05INT32\x1a\x01\x10\x2a\x12\x0a\x06INPUT1";
        assert_eq!(&message[..begin.len()], begin);
        // Field 7, 64 bytes, twice, at the end.
        let raw = &message[message.len() - 132..];
        assert_eq!(&raw[..2], b"\x3a\x40");
        assert_eq!(&raw[2..66], &inference.inputs[0].data[..]);
        assert_eq!(&raw[66..68], b"\x3a\x40");
        assert_eq!(&raw[68..], &inference.inputs[1].data[..]);
    }

    #[test]
    fn a_binary_request_tells_where_its_json_ends() {
        let inference = Inference::new(Model::Echo, 1024, 0);
        let request = EncodedRequest::new(Wire::RestBinary, Model::Echo, &inference);
        let json = concat!(
            r#"{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[256],"parameters":{"binary_data_size":1024}}],"#,
            r#""parameters":{"binary_data_output":true}}"#
        );
        assert_eq!(request.body, [json.as_bytes(), &inference.inputs[0].data].concat());
        let head = format!(
            "POST /v2/models/echo/infer HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\ncontent-length: {}\r\n\
             content-type: application/octet-stream\r\ninference-header-content-length: {}\r\n\r\n",
            json.len() + 1024,
            json.len()
        );
        assert_eq!(request.head, head);
    }

    #[test]
    fn a_json_request_is_json_whose_numbers_are_the_tensors() {
        let inference = Inference::new(Model::Echo, 4096, 1);
        let request = EncodedRequest::new(Wire::RestJson, Model::Echo, &inference);
        assert!(!String::from_utf8_lossy(&request.head).contains("inference-header"));
        let value: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let numbers: Vec<f32> = serde_json::from_value(value["inputs"][0]["data"].clone()).unwrap();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(bytes, inference.inputs[0].data);
        assert_eq!(value["inputs"][0]["shape"], serde_json::json!([1024]));
    }

    #[test]
    fn a_binary_request_for_json_asks_for_no_binary_output() {
        let inference = Inference::new(Model::Echo, 1024, 0);
        let request = EncodedRequest::new(Wire::RestBinaryToJson, Model::Echo, &inference);
        assert!(!String::from_utf8_lossy(&request.body).contains("binary_data_output"));
        let json_length = request.body.len() - 1024;
        let announced = format!("inference-header-content-length: {json_length}\r\n");
        assert!(String::from_utf8_lossy(&request.head).contains(&announced));
    }
}
