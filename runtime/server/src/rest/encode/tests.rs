//! Tests of the encoder: the exact text, the forms of an output, and what JSON cannot say.

use proptest::prelude::*;
use torchmodel_core::{model_key::ModelVersion, tensor::push_bytes_element};

use super::*;
use crate::rest::{data, decode::OutputForm};

fn response(datatype: DataType, shape: Vec<i64>, data: Vec<u8>) -> InferResponse {
    let tensor = Tensor::new(datatype, shape, data.into()).unwrap();
    InferResponse {
        model: "m".parse().unwrap(),
        version: ModelVersion::FIRST,
        id: String::new(),
        outputs: vec![NamedTensor { name: "y".into(), tensor }],
        parameters: Parameters::new(),
    }
}

fn text(response: InferResponse, form: &OutputForm) -> String {
    String::from_utf8(encode(response, form).unwrap().json.to_vec()).unwrap()
}

fn strings(elements: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    assert!(elements.iter().all(|element| push_bytes_element(&mut data, element)));
    data
}

#[test]
fn keys_stand_in_tritons_order_and_an_empty_id_is_left_out() {
    let mut answer = response(DataType::Int8, vec![2, 1], vec![0xff, 7]);
    assert_eq!(
        text(answer.clone(), &OutputForm::default()),
        r#"{"model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"INT8","shape":[2,1],"data":[-1,7]}]}"#
    );
    answer.id = "a\"b".into();
    answer.parameters.insert("p".into(), Parameter::Uint64(u64::MAX));
    assert!(text(answer, &OutputForm::default()).starts_with(
        r#"{"id":"a\"b","model_name":"m","model_version":"1","parameters":{"p":18446744073709551615},"outputs""#
    ));
}

#[test]
fn a_binary_output_is_handed_on_without_a_copy() {
    let answer = response(DataType::Fp32, vec![2], vec![1; 8]);
    let data = answer.outputs[0].tensor.data().clone();
    let encoded = encode(answer, &OutputForm { binary_by_default: true, ..OutputForm::default() }).unwrap();
    assert_eq!(encoded.blobs[0].as_ptr(), data.as_ptr());
    let json = std::str::from_utf8(&encoded.json).unwrap();
    assert!(json.ends_with(r#""shape":[2],"parameters":{"binary_data_size":8}}]}"#), "{json}");
}

#[test]
fn what_an_output_says_itself_wins_over_the_request() {
    let answer = || response(DataType::Fp16, vec![1], vec![0; 2]);
    let with = |binary_by_default: bool, own: bool| OutputForm {
        binary_by_default,
        binary_by_name: [("y".to_owned(), own)].into(),
        ..OutputForm::default()
    };
    assert_eq!(encode(answer(), &with(false, true)).unwrap().blobs.len(), 1);
    let error = encode(answer(), &with(true, false)).unwrap_err().to_string();
    assert_eq!(error, "sending FP16 data via JSON is not supported. Please use the binary data format for output y");
}

#[test]
fn an_empty_binary_output_has_a_size_and_no_bytes() {
    let encoded = encode(
        response(DataType::Fp32, vec![0], vec![]),
        &OutputForm { binary_by_default: true, ..OutputForm::default() },
    );
    let encoded = encoded.unwrap();
    assert!(encoded.blobs.is_empty());
    assert!(encoded.json.ends_with(br#""parameters":{"binary_data_size":0}}]}"#));
}

#[test]
fn non_finite_numbers_are_tokens_or_null() {
    let data: Vec<u8> = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
    let answer = || response(DataType::Fp32, vec![3], data.clone());
    assert!(text(answer(), &OutputForm::default()).ends_with(r#""data":[NaN,Infinity,-Infinity]}]}"#));
    let strict = OutputForm { is_strict_json: true, ..OutputForm::default() };
    assert!(text(answer(), &strict).ends_with(r#""data":[null,null,null]}]}"#));
}

#[test]
fn strings_are_escaped_and_other_bytes_are_refused() {
    let answer = response(DataType::Bytes, vec![2], strings(&[b"a\0\"", "ü".as_bytes()]));
    assert!(text(answer, &OutputForm::default()).ends_with(r#""data":["a\u0000\"","ü"]}]}"#));
    let answer = response(DataType::Bytes, vec![1], strings(&[b"\xff"]));
    let error = encode(answer, &OutputForm::default()).unwrap_err();
    assert!(matches!(&error, InferError::InvalidRequest(text) if text.contains("element 0 of output 'y'")), "{error}");
}

/// What is encoded as JSON is decoded to the same bytes.
fn round_trip(datatype: DataType, data: Vec<u8>, count: usize) {
    let answer = response(datatype, vec![i64::try_from(count).unwrap()], data.clone());
    let json = text(answer, &OutputForm::default());
    let start = json.find("\"data\":").unwrap() + 7;
    let array = &json[start..json.len() - 3];
    assert_eq!(data::parse(array, datatype, count), Ok(data), "{array}");
}

proptest! {
    #[test]
    fn integers_come_back_as_they_were(elements in prop::collection::vec(any::<[u8; 8]>(), 0..20)) {
        let datatypes = [
            DataType::Uint8, DataType::Uint16, DataType::Uint32, DataType::Uint64,
            DataType::Int8, DataType::Int16, DataType::Int32, DataType::Int64,
        ];
        for datatype in datatypes {
            let size = datatype.size_bytes().unwrap();
            let data = elements.iter().flat_map(|element| element[..size].to_vec()).collect();
            round_trip(datatype, data, elements.len());
        }
    }

    #[test]
    fn floats_come_back_bit_for_bit(
        single in prop::collection::vec(any::<f32>().prop_filter("finite", |x| x.is_finite()), 0..50),
        double in prop::collection::vec(any::<f64>().prop_filter("finite", |x| x.is_finite()), 0..50),
    ) {
        round_trip(DataType::Fp32, single.iter().flat_map(|x| x.to_le_bytes()).collect(), single.len());
        round_trip(DataType::Fp64, double.iter().flat_map(|x| x.to_le_bytes()).collect(), double.len());
    }

    #[test]
    fn truth_values_and_strings_come_back(bools in prop::collection::vec(0u8..2, 0..20), texts in prop::collection::vec(".*", 0..10)) {
        round_trip(DataType::Bool, bools.clone(), bools.len());
        let elements: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        round_trip(DataType::Bytes, strings(&elements), elements.len());
    }
}
