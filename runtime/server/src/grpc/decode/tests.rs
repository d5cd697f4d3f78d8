//! Tests of the decoder: raw and typed contents, and the words for what is wrong with them.

use std::time::Duration;

use proptest::prelude::*;
use prost::Message;
use torchmodel_core::slab::ALIGNMENT;

use super::*;
use crate::{admission::Admission, grpc::proto::model_infer_request::InferRequestedOutputTensor};

const LIMITS: Limits = Limits { max_request_bytes: 1 << 20, are_tensors_compressed: false };

fn input(name: &str, datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        parameters: HashMap::new(),
        contents,
    }
}

fn request(inputs: Vec<InferInputTensor>, raw: &[&'static [u8]]) -> ModelInferRequest {
    let raw_input_contents = raw.iter().map(|raw| Bytes::from_static(raw)).collect();
    ModelInferRequest { model_name: "m".into(), inputs, raw_input_contents, ..Default::default() }
}

fn decode_now(message: ModelInferRequest) -> Result<InferRequest, InferError> {
    decode_by(message, Instant::now(), None)
}

fn decode_by(
    message: ModelInferRequest,
    arrival: Instant,
    deadline: Option<Instant>,
) -> Result<InferRequest, InferError> {
    let admission = Admission::new(1 << 20);
    decode(message, &Decoding { arrival, deadline, limits: LIMITS }, &mut admission.reserve(1 << 20).unwrap())
}

fn error(message: ModelInferRequest) -> String {
    match decode_now(message).unwrap_err() {
        InferError::InvalidRequest(message) => message,
        other => panic!("not the client's fault: {other:?}"),
    }
}

fn ints(values: &[i32]) -> InferTensorContents {
    InferTensorContents { int_contents: values.to_vec(), ..Default::default() }
}

#[test]
fn raw_tensors_are_slices_of_the_received_frame() {
    let message = request(vec![input("a", "UINT8", &[2000], None)], &[&[7; 2000]]);
    let frame = Bytes::from(message.encode_to_vec());
    let decoded = decode_now(ModelInferRequest::decode(frame.clone()).unwrap()).unwrap();
    let data = decoded.inputs[0].tensor.data();
    assert!(frame.as_ptr_range().contains(&data.as_ptr()), "no copy was made");
}

#[test]
fn typed_contents_become_the_bytes_of_their_datatype() {
    let contents = InferTensorContents::default;
    let cases: [(&str, InferTensorContents, Vec<u8>); 12] = [
        ("BOOL", InferTensorContents { bool_contents: vec![true, false], ..contents() }, vec![1, 0]),
        ("INT8", ints(&[-128, 127]), vec![0x80, 0x7f]),
        ("INT16", ints(&[-2, 1]), vec![0xfe, 0xff, 1, 0]),
        ("INT32", ints(&[-2, 1]), vec![0xfe, 0xff, 0xff, 0xff, 1, 0, 0, 0]),
        (
            "INT64",
            InferTensorContents { int64_contents: vec![-1, 1], ..contents() },
            [[0xff; 8], 1u64.to_le_bytes()].concat(),
        ),
        ("UINT8", InferTensorContents { uint_contents: vec![255, 0], ..contents() }, vec![255, 0]),
        ("UINT16", InferTensorContents { uint_contents: vec![65535, 1], ..contents() }, vec![255, 255, 1, 0]),
        (
            "UINT32",
            InferTensorContents { uint_contents: vec![u32::MAX, 1], ..contents() },
            vec![255, 255, 255, 255, 1, 0, 0, 0],
        ),
        (
            "UINT64",
            InferTensorContents { uint64_contents: vec![u64::MAX, 0], ..contents() },
            [[0xff; 8], [0; 8]].concat(),
        ),
        (
            "FP32",
            InferTensorContents { fp32_contents: vec![1.0, f32::INFINITY], ..contents() },
            vec![0, 0, 0x80, 0x3f, 0, 0, 0x80, 0x7f],
        ),
        (
            "FP64",
            InferTensorContents { fp64_contents: vec![1.0, 2.0], ..contents() },
            [1f64.to_le_bytes(), 2f64.to_le_bytes()].concat(),
        ),
        (
            "BYTES",
            InferTensorContents { bytes_contents: vec![Bytes::from_static(b"a\0"), Bytes::new()], ..contents() },
            vec![2, 0, 0, 0, b'a', 0, 0, 0, 0, 0],
        ),
    ];
    for (datatype, contents, expected) in cases {
        let decoded = decode_now(request(vec![input("a", datatype, &[2], Some(contents))], &[])).unwrap();
        assert_eq!(decoded.inputs[0].tensor.data().as_ref(), expected, "{datatype}");
    }
}

#[test]
fn errors_name_the_input_in_tritons_words() {
    let fp32 = || input("x", "FP32", &[1], None);
    let cases = [
        (
            request(vec![input("x", "FP32", &[1], Some(InferTensorContents::default()))], &[&[0; 4]]),
            "contents field must not be specified when using raw_input_contents for 'x' for model 'm'",
        ),
        (request(vec![fp32()], &[]), "unable to find data for input tensor 'x' for model 'm' in request."),
        (
            request(vec![fp32(), input("y", "FP32", &[1], None)], &[&[0; 4]]),
            "unable to find data for input tensor 'y' for model 'm' in request.",
        ),
        (
            request(vec![fp32()], &[&[0; 4], &[0; 4]]),
            "unexpected raw_input_contents: 2 entries for 1 inputs for model 'm'",
        ),
        (
            request(vec![input("x", "FP32", &[1], Some(ints(&[1])))], &[]),
            "unexpected explicit tensor data for input tensor 'x' for model 'm' of type 'INT32', expected datatype 'FP32'",
        ),
        (
            request(vec![input("x", "INT8", &[1], Some(ints(&[300])))], &[]),
            "input 'x' for model 'm': element 0 is 300, which is not a value of INT8",
        ),
        (request(vec![input("x", "INT8", &[3], Some(ints(&[1])))], &[]), "asks for 3 elements, but 1 are given"),
        (request(vec![fp32()], &[&[0; 3]]), "input byte size mismatch for input 'x' for model 'm'. Expected 4, got 3"),
        (request(vec![input("x", "FP99", &[1], None)], &[&[0; 3]]), "unknown datatype 'FP99'"),
        (request(vec![input("x", "FP32", &[-1], None)], &[&[0; 4]]), "negative dimension"),
        (request(vec![input("x", "FP32", &[i64::MAX, 4], None)], &[&[0; 4]]), "too many elements"),
        (request(vec![input("x", "BYTES", &[1], None)], &[&[9, 0, 0, 0, 1]]), "incomplete string element"),
        (request(vec![input("x", "FP16", &[1], Some(ints(&[])))], &[]), "asks for 1 elements, but 0 are given"),
        (request(vec![fp32(), fp32()], &[&[0; 4], &[0; 4]]), "input 'x' is given more than once"),
    ];
    for (message, expected) in cases {
        let error = error(message);
        assert!(error.contains(expected), "{error}");
    }
    let version = ModelInferRequest { model_version: "abc".into(), ..request(vec![], &[]) };
    assert!(error(version).contains("failed to get model version from specified version string 'abc'"));
}

#[test]
fn an_empty_tensor_needs_no_contents() {
    for datatype in ["FP32", "FP16", "BYTES"] {
        assert!(decode_now(request(vec![input("x", datatype, &[0, 3], None)], &[])).is_ok(), "{datatype}");
    }
}

#[test]
fn outputs_keep_their_order_and_classification_is_not_offered() {
    let output = |name: &str| InferRequestedOutputTensor { name: name.into(), ..Default::default() };
    let message = ModelInferRequest { outputs: vec![output("b"), output("a")], ..request(vec![], &[]) };
    assert_eq!(decode_now(message).unwrap().outputs, ["b", "a"]);
    let parameter = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(3)) };
    let parameters = HashMap::from([("classification".to_owned(), parameter)]);
    let output = InferRequestedOutputTensor { name: "y".into(), parameters };
    let message = ModelInferRequest { outputs: vec![output], ..request(vec![], &[]) };
    assert!(matches!(decode_now(message), Err(InferError::Unsupported(_))));
}

#[test]
fn the_call_timeout_and_the_parameter_give_the_earlier_deadline() {
    let arrival = Instant::now();
    let timeout = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(1000)) };
    let plain = ModelInferRequest { model_name: "m".into(), ..Default::default() };
    let message = ModelInferRequest { parameters: HashMap::from([("timeout".to_owned(), timeout)]), ..plain.clone() };
    let call = Some(arrival + Duration::from_secs(2));
    let deadline = |message| decode_by(message, arrival, call).unwrap().deadline;
    assert_eq!(deadline(plain), call);
    assert_eq!(deadline(message), Some(arrival + Duration::from_millis(1)));
}

#[test]
fn typed_contents_are_aligned_and_hold_their_part_of_what_was_reserved() {
    let admission = Admission::new(1 << 20);
    let mut reservation = admission.reserve(1000).unwrap();
    let message = request(vec![input("a", "INT32", &[100], Some(ints(&[7; 100])))], &[]);
    let decoding = Decoding { arrival: Instant::now(), deadline: None, limits: LIMITS };
    let decoded = decode(message, &decoding, &mut reservation).unwrap();
    drop(reservation);
    let data = decoded.inputs[0].tensor.data();
    assert_eq!((data.len(), data.as_ptr().align_offset(ALIGNMENT), admission.held()), (400, 0, 400));
    drop(decoded);
    assert_eq!(admission.held(), 0);
}

proptest! {
    #[test]
    fn any_message_is_decoded_or_refused_as_the_clients_fault(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = ModelInferRequest::decode(Bytes::from(bytes))
            && let Err(error) = decode_now(message)
        {
            prop_assert!(matches!(error, InferError::InvalidRequest(_) | InferError::Unsupported(_) | InferError::NotFound(_)));
        }
    }

    #[test]
    fn a_message_with_one_byte_changed_is_decoded_or_refused(position in 0usize..200, byte in any::<u8>()) {
        let message = request(vec![input("a", "INT16", &[2], None), input("s", "BYTES", &[1], None)], &[&[1, 2, 3, 4], &[1, 0, 0, 0, 9]]);
        let mut bytes = message.encode_to_vec();
        let position = position % bytes.len();
        bytes[position] = byte;
        if let Ok(message) = ModelInferRequest::decode(Bytes::from(bytes)) {
            let _ = decode_now(message);
        }
    }
}
