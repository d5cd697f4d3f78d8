//! Tests of the encoder: the exact text, the forms of an output, and what JSON cannot say.

use proptest::prelude::*;
use torchmodel_core::{model_key::ModelVersion, tensor::push_bytes_element};

use super::*;
use crate::{
    admission::Admission,
    rest::{data, decode::OutputForm, text::Text},
};

fn encode(response: InferResponse, form: &OutputForm) -> Result<Encoded, InferError> {
    let admission = Admission::new(64 << 20);
    super::encode(response, form, &mut admission.reserve(0).unwrap())
}

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
    String::from_utf8(encode(response, form).unwrap().pieces.concat()).unwrap()
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
    assert_eq!(encoded.pieces[1].as_ptr(), data.as_ptr());
    let json = std::str::from_utf8(&encoded.pieces[0]).unwrap();
    assert_eq!((encoded.json_bytes, encoded.is_binary), (json.len(), true));
    assert!(json.ends_with(r#""shape":[2],"parameters":{"binary_data_size":8}}]}"#), "{json}");
}

#[test]
fn what_an_output_says_itself_wins_over_the_request() {
    let answer = || response(DataType::Fp16, vec![1], vec![0, 0x3c]);
    let with = |binary_by_default: bool, own: bool| OutputForm {
        binary_by_default,
        binary_by_name: [("y".to_owned(), own)].into(),
        ..OutputForm::default()
    };
    assert_eq!(encode(answer(), &with(false, true)).unwrap().pieces.len(), 2);
    assert!(text(answer(), &with(true, false)).ends_with(r#""data":[1.0]}]}"#));
}

#[test]
fn an_empty_binary_output_has_a_size_and_no_bytes() {
    let encoded = encode(
        response(DataType::Fp32, vec![0], vec![]),
        &OutputForm { binary_by_default: true, ..OutputForm::default() },
    );
    let encoded = encoded.unwrap();
    assert!(!encoded.is_binary);
    assert!(encoded.pieces[0].ends_with(br#""parameters":{"binary_data_size":0}}]}"#));
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
    let admission = Admission::new(1 << 20);
    let read = Text::from(Bytes::copy_from_slice(array.as_bytes()));
    let read = data::parse(&mut read.cursor(), datatype, count, &mut admission.reserve(0).unwrap());
    assert_eq!(read, Ok(data.into()), "{array}");
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
    fn halves_come_back_bit_for_bit(elements in prop::collection::vec(any::<u16>(), 0..50)) {
        let finite = |is_finite: fn(u16) -> bool| -> Vec<u8> {
            elements.iter().filter(|bits| is_finite(**bits)).flat_map(|bits| bits.to_le_bytes()).collect()
        };
        let (fp16, bf16) = (finite(|bits| f16::from_bits(bits).is_finite()), finite(|bits| bf16::from_bits(bits).is_finite()));
        round_trip(DataType::Fp16, fp16.clone(), fp16.len() / 2);
        round_trip(DataType::Bf16, bf16.clone(), bf16.len() / 2);
    }

    #[test]
    fn truth_values_and_strings_come_back(bools in prop::collection::vec(0u8..2, 0..20), texts in prop::collection::vec(".*", 0..10)) {
        round_trip(DataType::Bool, bools.clone(), bools.len());
        let elements: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        round_trip(DataType::Bytes, strings(&elements), elements.len());
    }
}

#[test]
fn a_long_text_comes_in_pieces_that_hold_their_memory() {
    let count = 300_000;
    let data = (0..count).flat_map(|index| f64::from(index).mul_add(1e-3, 1.0).to_le_bytes()).collect();
    let admission = Admission::new(64 << 20);
    let mut reservation = admission.reserve(0).unwrap();
    let encoded =
        super::encode(response(DataType::Fp64, vec![count.into()], data), &OutputForm::default(), &mut reservation)
            .unwrap();
    assert!(encoded.pieces.len() > 2, "{}", encoded.pieces.len());
    assert_eq!(reservation.bytes(), 0);
    assert!(admission.held() >= encoded.json_bytes);
    let text = encoded.pieces.concat();
    assert_eq!(text.len(), encoded.json_bytes);
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(json["outputs"][0]["data"].as_array().unwrap().len(), 300_000);
    drop(encoded);
    assert_eq!(admission.held(), 0);
}

#[test]
fn the_longest_element_of_each_datatype_fits_its_bound() {
    let longest: [(DataType, Vec<u8>); 9] = [
        (DataType::Uint8, vec![255]),
        (DataType::Int8, (-128i8).to_le_bytes().to_vec()),
        (DataType::Int16, i16::MIN.to_le_bytes().to_vec()),
        (DataType::Int32, i32::MIN.to_le_bytes().to_vec()),
        (DataType::Int64, i64::MIN.to_le_bytes().to_vec()),
        (DataType::Uint64, u64::MAX.to_le_bytes().to_vec()),
        (DataType::Fp32, (-1.175_494_4e-38f32).to_le_bytes().to_vec()),
        (DataType::Fp64, (-2.225_073_858_507_201_4e-308f64).to_le_bytes().to_vec()),
        (DataType::Bool, vec![0]),
    ];
    for (datatype, element) in longest {
        let json = text(response(datatype, vec![1], element), &OutputForm::default());
        let array = json.split_once("\"data\":[").unwrap().1.trim_end_matches("]}]}");
        assert!(array.len() < element_bound(datatype), "{datatype:?}: {array}");
    }
}
