//! Tests of the decoder: JSON, binary, mixed and raw requests, and the words for what is wrong with them.

use proptest::prelude::*;
use torchmodel_core::{signature::InputSignature, tensor::DataTypeExt};

use super::*;
use crate::{
    admission::Admission,
    rest::{
        assembly::tests::request,
        error::RestError,
        offline::{RequestBody, assemble},
    },
};

const LIMITS: Limits = Limits { max_request_bytes: 1 << 20, are_tensors_compressed: false };

fn decode(header_length: Option<usize>, body: impl Into<Bytes>) -> Result<Decoded, InferError> {
    of(header_length, body, None)
}

fn of(
    header_length: Option<usize>,
    body: impl Into<Bytes>,
    metadata: Option<ModelMetadata>,
) -> Result<Decoded, InferError> {
    let pieces = [body.into()];
    let parts = RequestBody { metadata, ..request(header_length, &pieces, true) };
    assemble(&parts, LIMITS, &Admission::new(16 << 20)).map_err(|error| match error {
        RestError::Infer(error) => error,
        other => panic!("{other:?}"),
    })
}

fn decode_json(json: &str) -> Result<Decoded, InferError> {
    decode(None, Bytes::copy_from_slice(json.as_bytes()))
}

fn decode_binary(json: &str, blobs: &[u8]) -> Result<Decoded, InferError> {
    decode(Some(json.len()), [json.as_bytes(), blobs].concat())
}

fn error(result: Result<Decoded, InferError>) -> String {
    match result.unwrap_err() {
        InferError::InvalidRequest(message) => message,
        other => panic!("not the client's fault: {other:?}"),
    }
}

#[test]
fn a_json_request_is_decoded() {
    let decoded = decode_json(
        r#"{"id":"7","parameters":{"mine":1.5,"strict_json":true},
            "inputs":[{"name":"a","shape":[2,1],"datatype":"INT32","data":[[1],[-2]]}],
            "outputs":[{"name":"y","parameters":{"binary_data":true}},{"name":"x"}]}"#,
    )
    .unwrap();
    let request = decoded.request;
    assert_eq!(request.id, "7");
    assert_eq!(request.inputs[0].tensor.data().as_ref(), [1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
    assert_eq!(request.outputs, ["y", "x"], "in the order asked for");
    assert_eq!(request.parameters, Parameters::from([("mine".into(), Parameter::Double(1.5))]));
    let binary_by_name = [("y".to_owned(), true)].into();
    assert_eq!(decoded.form, OutputForm { binary_by_default: false, binary_by_name, is_strict_json: true });
}

#[test]
fn json_and_binary_inputs_may_be_mixed() {
    let json = r#"{"inputs":[
        {"name":"a","shape":[2],"datatype":"UINT8","parameters":{"binary_data_size":2}},
        {"name":"b","shape":[1],"datatype":"UINT8","data":[5]},
        {"name":"c","shape":[1],"datatype":"FP16","parameters":{"binary_data_size":2}},
        {"name":"d","shape":[0],"datatype":"FP32","parameters":{"binary_data_size":0}}],
        "parameters":{"binary_data_output":true}}"#;
    let decoded = decode_binary(json, &[1, 2, 3, 4]).unwrap();
    let data: Vec<_> = decoded.request.inputs.iter().map(|input| input.tensor.data().clone()).collect();
    assert_eq!(data, [&[1, 2][..], &[5], &[3, 4], &[]]);
    assert!(decoded.form.binary_by_default);
}

#[test]
fn errors_of_a_request_name_what_is_wrong() {
    let input = |rest: &str| format!(r#"{{"inputs":[{{"name":"a",{rest}}}]}}"#);
    let cases = [
        (r#""shape":[1],"datatype":"FP99","data":[1]"#, "input 'a' for model 'm' has unknown datatype 'FP99'"),
        (r#""shape":[2],"datatype":"FP32","data":[1]"#, "asks for 2 elements, but 1 are given"),
        (
            r#""shape":[1],"datatype":"BYTES","data":[]"#,
            "expected 1 string elements for inference input 'a' for model 'm', got 0",
        ),
        (
            r#""shape":[-1],"datatype":"FP32","data":[1]"#,
            "input 'a' for model 'm': shape [-1] has a negative dimension",
        ),
        (r#""shape":[0],"datatype":"FP32","data":[1]"#, "asks for 0 elements"),
        (r#""shape":[1048577],"datatype":"UINT8","data":[1]"#, "more than the limit of 1048576 bytes"),
        (r#""shape":[4294967296,4294967296],"datatype":"UINT8","data":[1]"#, "too many elements"),
        (r#""shape":[1],"datatype":"UINT8","data":[300]"#, "element 0 of 'data' is 300, which is not a value of UINT8"),
        (r#""shape":[1],"datatype":"FP32","data":[[1],[]]"#, "ragged"),
        (r#""shape":[1],"datatype":"FP32""#, "Input must set only one of the following fields"),
        (
            r#""shape":[1],"datatype":"FP32","data":[1],"parameters":{"binary_data_size":4}"#,
            "Input 'a' sets more than one",
        ),
        (r#""shape":[1],"datatype":"FP32","parameters":{"binary_data_size":-4}"#, "must be a number of bytes"),
        (r#""shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}"#, "expecting 4 additional bytes"),
        (
            r#""shape":[1],"datatype":"FP16","data":[65520]"#,
            "element 0 of 'data' is 65520, which is not a value of FP16",
        ),
    ];
    for (rest, expected) in cases {
        let error = error(decode_json(&input(rest)));
        assert!(error.contains(expected), "{rest}: {error}");
    }
    let twice = r#"{"inputs":[{"name":"a","shape":[0],"datatype":"FP32","data":[]},{"name":"a","shape":[0],"datatype":"FP32","data":[]}]}"#;
    assert_eq!(error(decode_json(twice)), "input 'a' is given more than once");
    let shared = input(r#""shape":[1],"datatype":"FP32","parameters":{"shared_memory_region":"r"}"#);
    assert!(matches!(decode_json(&shared), Err(InferError::Unsupported(_))));
}

#[test]
fn every_byte_of_a_binary_request_must_belong_to_an_input() {
    let json = r#"{"inputs":[{"name":"a","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}"#;
    assert!(decode_binary(json, &[0; 4]).is_ok());
    assert_eq!(error(decode_binary(json, &[0; 5])), "unexpected additional input data for model 'm': 1 bytes");
    assert!(
        error(decode_binary(json, &[0; 3])).contains("unexpected size for input 'a', expecting 1 additional bytes")
    );
    let longer = json.replace(":4", ":5");
    let message = error(decode_binary(&longer, &[0; 5]));
    assert_eq!(message, "input byte size mismatch for input 'a' for model 'm'. Expected 4, got 5");
    let bool_tensor = json.replace("FP32", "BOOL").replace(":4", ":1");
    assert!(error(decode_binary(&bool_tensor, &[2])).contains("byte 0 is neither 0 nor 1"));
}

#[test]
fn the_json_length_must_be_within_the_body_and_plain_digits() {
    let outside = decode(Some(9), Bytes::from_static(b"{}"));
    assert_eq!(error(outside), "inference header size should be in range (0, 2), got: 9");
    let parsed = |text: &str| {
        let headers = HeaderMap::from_iter([(HEADER_LENGTH.parse().unwrap(), text.parse().unwrap())]);
        Head::new("m".parse().unwrap(), None, &headers).map(|head| head.header_length)
    };
    assert_eq!(parsed("187"), Ok(Some(187)));
    for wrong in ["+187", "-1", "", " ", "1x", "99999999999999999999999"] {
        assert!(parsed(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_timeout_header_is_seconds_or_has_a_unit() {
    let table = [
        ("2", Some(2_000_000)),
        ("1.5", Some(1_500_000)),
        ("250ms", Some(250_000)),
        ("10us", Some(10)),
        ("3s", Some(3_000_000)),
        ("0", None),
        ("-1", None),
        ("1e3", None),
        ("inf", None),
        ("s", None),
        ("1.2.3", None),
        ("", None),
    ];
    for (text, micros) in table {
        assert_eq!(parse_timeout(text), micros.map(Duration::from_micros), "{text}");
    }
    assert_eq!(parse_timeout(&"9".repeat(300)), Some(Duration::MAX));
}

fn metadata(inputs: &[(&str, DataType, &[i64])]) -> ModelMetadata {
    let inputs = inputs.iter().map(|(name, datatype, shape)| InputSignature {
        name: (*name).into(),
        datatype: Some(*datatype),
        shape: Some(shape.to_vec()),
        is_optional: false,
        is_batched: false,
        is_flattened: false,
    });
    ModelMetadata {
        name: "m".parse().unwrap(),
        versions: vec![ModelVersion::FIRST],
        platform: "pytorch_torchscript".into(),
        inputs: inputs.collect(),
        outputs: vec![],
        properties: BTreeMap::new(),
    }
}

#[test]
fn a_raw_request_takes_its_shape_from_the_model() {
    let decode = |inputs: &[(&str, DataType, &[i64])], size: usize| of(Some(0), vec![1; size], Some(metadata(inputs)));
    let shape = |inputs: &[(&str, DataType, &[i64])], size| {
        let decoded = decode(inputs, size).unwrap();
        assert!(decoded.form.binary_by_default);
        decoded.request.inputs[0].tensor.shape().to_vec()
    };
    assert_eq!(shape(&[("x", DataType::Fp32, &[-1, 2])], 16), [2, 2]);
    assert_eq!(shape(&[("x", DataType::Fp32, &[-1, -1])], 16), [1, 4]);
    assert_eq!(shape(&[("x", DataType::Fp32, &[4])], 16), [4]);
    assert_eq!(shape(&[("x", DataType::Bytes, &[-1])], 16), [1]);
    assert!(error(decode(&[("x", DataType::Fp32, &[3])], 16)).contains("Expected 12, got 16"));
    assert!(error(decode(&[("x", DataType::Fp32, &[-1, 3])], 16)).contains("byte size mismatch"));
    assert!(error(decode(&[("x", DataType::Bytes, &[2])], 1)).contains("expected 2 string elements"));
    assert!(error(decode(&[], 16)).contains("Raw request must only have 1 input (found 0)"));
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused_as_the_clients_fault(body in prop::collection::vec(any::<u8>(), 0..200), length in prop::option::of(0usize..250)) {
        if let Err(error) = decode(length.map(|n| n.max(1)), body) {
            prop_assert!(matches!(error, InferError::InvalidRequest(_) | InferError::Unsupported(_)));
        }
    }

    #[test]
    fn a_request_with_one_byte_changed_is_decoded_or_refused(position in 0usize..300, byte in any::<u8>()) {
        let json = r#"{"id":"x","inputs":[{"name":"a","shape":[2,2],"datatype":"FP32","data":[[1,2.5],[-3e4,NaN]]},{"name":"s","shape":[1],"datatype":"BYTES","data":["\u00fc"]},{"name":"b","shape":[2],"datatype":"INT64","parameters":{"binary_data_size":16}}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}"#;
        let mut body = [json.as_bytes(), &[0; 16]].concat();
        prop_assert!(decode(Some(json.len()), body.clone()).is_ok());
        let position = position % body.len();
        body[position] = byte;
        let _ = decode(Some(json.len()), body);
    }

    #[test]
    fn binary_tensors_of_every_datatype_come_through(elements in prop::collection::vec(any::<[u8; 8]>(), 0..20)) {
        for datatype in [DataType::Fp16, DataType::Bf16, DataType::Fp32, DataType::Fp64, DataType::Int64, DataType::Uint8] {
            let size = datatype.size_bytes().unwrap();
            let blob: Vec<u8> = elements.iter().flat_map(|element| element[..size].to_vec()).collect();
            let json = format!(
                r#"{{"inputs":[{{"name":"a","shape":[{}],"datatype":"{}","parameters":{{"binary_data_size":{}}}}}]}}"#,
                elements.len(), datatype.as_str(), blob.len()
            );
            let decoded = decode_binary(&json, &blob).unwrap();
            prop_assert_eq!(decoded.request.inputs[0].tensor.data().as_ref(), blob);
        }
    }
}
