//! Right answers pass, and every kind of wrong one is told.

use std::io::Write as _;

use flate2::{Compression as Level, write::ZlibEncoder};

use super::*;
use crate::{
    fake::{framed, grpc_answer, rest_answer},
    tensor::{Inference, Model},
};

fn kept(bytes: &[u8]) -> Body {
    let mut body = Body::default();
    body.begin(true);
    body.push(bytes);
    body
}

fn counted(bytes: &[u8]) -> Body {
    let mut body = Body::default();
    body.begin(false);
    body.push(bytes);
    body
}

fn checker(wire: Wire, model: Model) -> Checker {
    Checker::new(wire, (0..2).map(|variant| Inference::new(model, 64, variant).outputs))
}

const PLAIN: AnswerHead = AnswerHead { json_length: None, compression: None };

#[test]
fn a_right_grpc_answer_passes_and_then_stands_for_its_variant() {
    let checker = checker(Wire::GrpcRaw, Model::AddSub);
    let bytes = grpc_answer(&Inference::new(Model::AddSub, 0, 1).outputs);
    assert_eq!(checker.check(1, PLAIN, &counted(&bytes)), Err(AnswerError::Unchecked));
    assert_eq!(checker.check(1, PLAIN, &kept(&bytes)), Ok(()));
    assert_eq!(checker.check(1, PLAIN, &kept(&bytes)), Ok(()));
    assert_eq!(checker.check(1, PLAIN, &counted(&bytes)), Ok(()));
    assert_eq!(
        checker.check(1, PLAIN, &counted(&bytes[1..])),
        Err(AnswerError::Length { expected: bytes.len(), actual: bytes.len() - 1 })
    );
    assert!(!checker.is_compressed());
}

#[test]
fn one_wrong_byte_is_told_over_both_protocols() {
    for model in Model::ALL {
        let outputs = Inference::new(model, 64, 0).outputs;
        let (head, rest) = rest_answer(&outputs);
        for (wire, head, right) in [(Wire::GrpcRaw, PLAIN, grpc_answer(&outputs)), (Wire::RestBinary, head, rest)] {
            let checker = checker(wire, model);
            assert_eq!(checker.check(0, head, &kept(&right)), Ok(()));
            let mut wrong = right.clone();
            *wrong.last_mut().unwrap() ^= 1;
            let error = checker.check(0, head, &kept(&wrong)).unwrap_err();
            assert!(matches!(error, AnswerError::Data { .. }), "{error}");
        }
    }
}

#[test]
fn the_answer_to_another_request_is_told() {
    for model in Model::ALL {
        let checker = checker(Wire::GrpcRaw, model);
        let other = grpc_answer(&Inference::new(model, 64, 1).outputs);
        let error = checker.check(0, PLAIN, &kept(&other)).unwrap_err();
        assert!(matches!(error, AnswerError::Data { position: 0..4, .. }), "{error}");
    }
}

#[test]
fn other_names_datatypes_shapes_and_numbers_of_outputs_are_told() {
    let right = Inference::new(Model::AddSub, 0, 0).outputs;
    let mut renamed = right.clone();
    renamed[1].name = "OUTPUT2";
    let mut retyped = right.clone();
    retyped[0].datatype = DataType::Fp32;
    let mut shorter = right.clone();
    shorter[0].data = shorter[0].data.slice(4..);
    for wrong in [renamed, retyped, shorter, right[..1].to_vec(), vec![]] {
        let error = checker(Wire::GrpcRaw, Model::AddSub).check(0, PLAIN, &kept(&grpc_answer(&wrong))).unwrap_err();
        assert!(matches!(error, AnswerError::Outputs { .. }), "{error}");
        let (head, bytes) = rest_answer(&wrong);
        let error = checker(Wire::RestBinary, Model::AddSub).check(0, head, &kept(&bytes)).unwrap_err();
        assert!(matches!(error, AnswerError::Outputs { .. }), "{error}");
    }
}

#[test]
fn numbers_in_json_are_compared_bit_by_bit() {
    let checker = Checker::new(Wire::RestJson, [Inference::new(Model::Echo, 4096, 0).outputs]);
    let expected = &Inference::new(Model::Echo, 4096, 0).outputs[0];
    let numbers: Vec<f32> = expected.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let answer = |numbers: &[f32]| {
        let data = serde_json::to_string(numbers).unwrap();
        format!(r#"{{"outputs":[{{"name":"OUTPUT0","datatype":"FP32","shape":[1024],"data":{data}}}]}}"#).into_bytes()
    };
    assert_eq!(checker.check(0, PLAIN, &kept(&answer(&numbers))), Ok(()));
    let mut wrong = numbers;
    wrong[1000] = f32::from_bits(wrong[1000].to_bits() ^ 1);
    let error = checker.check(0, PLAIN, &kept(&answer(&wrong))).unwrap_err();
    assert_eq!(error, AnswerError::Data { name: "OUTPUT0".into(), position: 4000, bytes: 4096 });
}

#[test]
fn an_answer_in_a_form_that_was_not_asked_for_is_told() {
    let (head, bytes) = rest_answer(&Inference::new(Model::Echo, 64, 0).outputs);
    for wire in [Wire::RestJson, Wire::RestBinaryToJson] {
        let error = checker(wire, Model::Echo).check(0, head, &kept(&bytes)).unwrap_err();
        assert!(matches!(error, AnswerError::Unreadable(_)), "{error}");
    }
}

#[test]
fn cut_and_lengthened_answers_are_told() {
    let outputs = Inference::new(Model::Echo, 64, 0).outputs;
    let (head, rest) = rest_answer(&outputs);
    for (wire, head, right) in [(Wire::GrpcRaw, PLAIN, grpc_answer(&outputs)), (Wire::RestBinary, head, rest)] {
        let long = [right.clone(), vec![0]].concat();
        for wrong in [&right[..right.len() - 1], &right[..3], &right[..0], &long] {
            let error = checker(wire, Model::Echo).check(0, head, &kept(wrong)).unwrap_err();
            assert!(matches!(error, AnswerError::Unreadable(_)), "{error}");
        }
    }
}

#[test]
fn a_compressed_message_is_inflated_before_it_is_compared() {
    let plain = grpc_answer(&Inference::new(Model::Echo, 64, 0).outputs);
    let mut encoder = ZlibEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(&plain[PREFIX_BYTES..]).unwrap();
    let bytes = framed(1, &encoder.finish().unwrap());
    let checker = checker(Wire::GrpcRaw, Model::Echo);
    let head = |compression| AnswerHead { json_length: None, compression };
    for wrong in [None, Some(Compression::Gzip)] {
        let error = checker.check(0, head(wrong), &kept(&bytes)).unwrap_err();
        assert!(matches!(error, AnswerError::Unreadable(_)), "{error}");
    }
    assert_eq!(checker.check(0, head(Some(Compression::Deflate)), &kept(&bytes)), Ok(()));
    assert!(checker.is_compressed());
}
