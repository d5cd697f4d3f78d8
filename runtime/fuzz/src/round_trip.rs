//! A request that was read, said again: JSON, JSON with binary tensors, gRPC with raw and with typed contents all mean the same.
//!
//! Used by `rest` and `grpc` for every request that they find right. What one form cannot say is left out there.

use bytes::Bytes;
use prost::Message as _;
use serde_json::{Value, json};
use torchmodel_core::{
    inference::{InferRequest, InferResponse, NamedTensor, Parameter},
    model_key::ModelVersion,
    tensor::{DataType, Tensor},
};
use torchmodel_server::{
    admission::Admission,
    grpc::{
        offline::{self as grpc, CallBody},
        proto::{
            InferParameter, ModelInferRequest, infer_parameter::ParameterChoice,
            model_infer_request::InferRequestedOutputTensor,
        },
    },
    protocol::Limits,
    rest::offline::{self as rest, RequestBody},
};
use torchmodel_testing::{TestTensor, grpc_request, json_input, to_contents};

/// Text is longer than what it says.
const LIMITS: Limits = Limits { max_request_bytes: 4 << 20, are_tensors_compressed: false };
/// Parameters that are REST's own.
const REST_PARAMETERS: [&str; 2] = ["binary_data_output", "strict_json"];

/// Whether two requests are one, also where a number in them is not itself.
pub(crate) fn is_same(one: &InferRequest, other: &InferRequest) -> bool {
    one == other || format!("{one:?}") == format!("{other:?}")
}

/// The request without the time until which it is to be answered, which no two readings share.
pub(crate) fn without_time(request: &InferRequest) -> InferRequest {
    InferRequest { deadline: None, ..request.clone() }
}

/// Says `request` in every form, and reads it again.
pub(crate) fn check(request: &InferRequest, memory: &Admission) {
    let request = without_time(request);
    check_grpc(&request, memory);
    let has_number = |value: &Parameter| !matches!(value, Parameter::Double(value) if !value.is_finite());
    if request.parameters.values().all(has_number) {
        let request = as_rest_says(request);
        check_binary(&request, memory);
        check_json(&request, memory);
    }
}

fn check_grpc(request: &InferRequest, memory: &Admission) {
    let tensors: Vec<TestTensor> = request.inputs.iter().map(TestTensor::from).collect();
    let raw = ModelInferRequest {
        model_version: request.version.map(|version| version.to_string()).unwrap_or_default(),
        id: request.id.clone(),
        parameters: request.parameters.iter().map(|(name, value)| (name.clone(), grpc_parameter(value))).collect(),
        outputs: request.outputs.iter().map(|name| grpc_output(name)).collect(),
        ..grpc_request(request.model.as_str(), &tensors)
    };
    let mut typed = raw.clone();
    assert_same(request, &decode_grpc(&raw, memory), "gRPC with raw contents");
    typed.raw_input_contents.clear();
    for (input, tensor) in typed.inputs.iter_mut().zip(&tensors) {
        let Some(contents) = to_contents(tensor) else { return };
        input.contents = Some(contents);
    }
    assert_same(request, &decode_grpc(&typed, memory), "gRPC with typed contents");
}

fn grpc_output(name: &str) -> InferRequestedOutputTensor {
    InferRequestedOutputTensor { name: name.to_owned(), ..InferRequestedOutputTensor::default() }
}

fn grpc_parameter(value: &Parameter) -> InferParameter {
    let choice = match value.clone() {
        Parameter::Bool(value) => ParameterChoice::BoolParam(value),
        Parameter::Int64(value) => ParameterChoice::Int64Param(value),
        Parameter::Uint64(value) => ParameterChoice::Uint64Param(value),
        Parameter::Double(value) => ParameterChoice::DoubleParam(value),
        Parameter::String(value) => ParameterChoice::StringParam(value),
    };
    InferParameter { parameter_choice: Some(choice) }
}

fn decode_grpc(message: &ModelInferRequest, memory: &Admission) -> InferRequest {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("it came in a few KiB").to_be_bytes();
    let frame = Bytes::from([&[0][..], &length, &message].concat());
    let decoded = grpc::decode(&CallBody { encoding: None, pieces: &[frame] }, LIMITS, memory);
    decoded.unwrap_or_else(|status| panic!("gRPC refuses what it was made of: {status}"))
}

/// The request as REST can say it: its path names the version, and one kind of whole number serves for what fits it.
fn as_rest_says(mut request: InferRequest) -> InferRequest {
    request.version = None;
    request.parameters.retain(|name, _| !REST_PARAMETERS.contains(&&**name));
    for value in request.parameters.values_mut() {
        if let Parameter::Uint64(number) = *value {
            *value = i64::try_from(number).map_or(Parameter::Uint64(number), Parameter::Int64);
        }
    }
    request
}

fn check_binary(request: &InferRequest, memory: &Admission) {
    let tensors: Vec<TestTensor> = request.inputs.iter().map(TestTensor::from).collect();
    let inputs: Vec<Value> = tensors.iter().map(|tensor| json_input(tensor, None)).collect();
    let outputs: Vec<Value> = request.outputs.iter().map(|name| json!({ "name": name })).collect();
    let parameters: serde_json::Map<String, Value> =
        request.parameters.iter().map(|(name, value)| (name.clone(), json_parameter(value))).collect();
    let json = json!({ "id": request.id, "inputs": inputs, "outputs": outputs, "parameters": parameters }).to_string();
    let data = tensors.iter().flat_map(|tensor| tensor.data.iter().copied());
    let body = json.bytes().chain(data).collect::<Vec<u8>>();
    assert_same(request, &decode_rest(request, Some(json.len()), body.into(), memory), "REST with binary tensors");
}

fn json_parameter(value: &Parameter) -> Value {
    match value {
        Parameter::Bool(value) => (*value).into(),
        Parameter::Int64(value) => (*value).into(),
        Parameter::Uint64(value) => (*value).into(),
        Parameter::Double(value) => (*value).into(),
        Parameter::String(value) => value.as_str().into(),
    }
}

/// The answer of a model that gives its inputs back is a request but for one word.
fn check_json(request: &InferRequest, memory: &Admission) {
    let response = InferResponse {
        model: request.model.clone(),
        version: ModelVersion::FIRST,
        id: request.id.clone(),
        outputs: request.inputs.clone(),
        parameters: request.parameters.clone(),
    };
    let pieces = match rest::encode(response, memory) {
        Ok(pieces) => pieces,
        Err(error) => {
            assert!(request.inputs.iter().any(|input| !is_text(&input.tensor)), "not written: {error}");
            return;
        }
    };
    let text = String::from_utf8(pieces.concat()).expect("JSON is text");
    let body = text.replacen("\"outputs\":[", "\"inputs\":[", 1);
    let read = decode_rest(request, None, body.into(), memory);
    let expected = InferRequest { inputs: plain(&request.inputs), outputs: Vec::new(), ..request.clone() };
    assert_same(&expected, &InferRequest { inputs: plain(&read.inputs), ..read }, "JSON");
}

fn is_text(tensor: &Tensor) -> bool {
    tensor.datatype() != DataType::Bytes
        || tensor.bytes_elements().all(|element| element.is_ok_and(|it| std::str::from_utf8(it).is_ok()))
}

fn decode_rest(request: &InferRequest, header_length: Option<usize>, body: Bytes, memory: &Admission) -> InferRequest {
    let body = RequestBody {
        model: request.model.clone(),
        header_length,
        content_encoding: None,
        pieces: &[body],
        is_announced: true,
        metadata: None,
    };
    let decoded = rest::decode(&body, LIMITS, memory);
    decoded.unwrap_or_else(|(status, text)| panic!("REST refuses what it was made of: {status} {text}"))
}

/// The tensors with one form of what is not a number, as JSON has it.
fn plain(inputs: &[NamedTensor]) -> Vec<NamedTensor> {
    let plain = |NamedTensor { name, tensor }: &NamedTensor| {
        let data: Vec<u8> = match tensor.datatype() {
            DataType::Fp16 => replace_nan::<2>(tensor.data(), 0x7c00),
            DataType::Bf16 => replace_nan::<2>(tensor.data(), 0x7f80),
            DataType::Fp32 => replace_nan::<4>(tensor.data(), 0x7f80_0000),
            DataType::Fp64 => replace_nan::<8>(tensor.data(), 0x7ff0 << 48),
            _ => tensor.data().to_vec(),
        };
        let tensor = Tensor::new(tensor.datatype(), tensor.shape().to_vec(), data.into()).expect("as it was");
        NamedTensor { name: name.clone(), tensor }
    };
    inputs.iter().map(plain).collect()
}

/// Elements of `N` bytes, those beyond `infinity` with all bits set.
fn replace_nan<const N: usize>(data: &[u8], infinity: u64) -> Vec<u8> {
    let is_nan = |element: &[u8; N]| {
        let bits = element.iter().rev().fold(0, |bits: u64, byte| bits << 8 | u64::from(*byte));
        bits & !(1 << (8 * N - 1)) > infinity
    };
    data.as_chunks::<N>().0.iter().flat_map(|element| if is_nan(element) { [0xff; N] } else { *element }).collect()
}

fn assert_same(expected: &InferRequest, read: &InferRequest, form: &str) {
    assert!(is_same(expected, read), "{form}: {expected:?} became {read:?}");
}
