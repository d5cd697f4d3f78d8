//! The walker gives what prost gives, however the message is cut; it copies once and takes no more than was reserved.

use proptest::prelude::*;
use prost::Message;
use torchmodel_core::slab::ALIGNMENT;

use super::*;
use crate::grpc::proto::{
    InferParameter, InferTensorContents, ModelInferRequest,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};

fn admission() -> Admission {
    Admission::new(1 << 20)
}

fn known(admission: &Admission, length: usize) -> Walker {
    Walker::of_known_length(admission.reserve(length).unwrap())
}

/// Feeds `frame` in pieces that end at `cuts`.
fn walk(mut walker: Walker, frame: &[u8], cuts: &[usize]) -> Result<Walked, WalkError> {
    let mut from = 0;
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (frame.len() + 1)).chain([frame.len()]).collect();
    cuts.sort_unstable();
    for cut in cuts {
        walker.push(&frame[from..cut])?;
        from = cut;
    }
    walker.finish()
}

fn whole(walked: Walked) -> Result<ModelInferRequest, prost::DecodeError> {
    let message = ModelInferRequest::decode(walked.rest.as_slice())?;
    assert!(message.raw_input_contents.is_empty(), "raw tensors never pass through prost");
    Ok(ModelInferRequest { raw_input_contents: walked.raw, ..message })
}

fn message() -> impl Strategy<Value = ModelInferRequest> {
    let text = "[a-z]{0,5}";
    let bytes = || prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    let parameter = prop_oneof![
        any::<bool>().prop_map(ParameterChoice::BoolParam),
        any::<i64>().prop_map(ParameterChoice::Int64Param),
        text.prop_map(ParameterChoice::StringParam),
    ];
    let parameter = parameter.prop_map(|choice| InferParameter { parameter_choice: Some(choice) });
    let parameters = prop::collection::hash_map(text, parameter, 0..3);
    let contents =
        (prop::collection::vec(any::<i32>(), 0..9), prop::collection::vec(prop::num::f32::NORMAL, 0..9)).prop_map(
            |(int_contents, fp32_contents)| InferTensorContents { int_contents, fp32_contents, ..Default::default() },
        );
    let input = (text, text, prop::collection::vec(any::<i64>(), 0..4), prop::option::of(contents)).prop_map(
        |(name, datatype, shape, contents)| InferInputTensor { name, datatype, shape, contents, ..Default::default() },
    );
    let output = text.prop_map(|name| InferRequestedOutputTensor { name, ..Default::default() });
    let lists =
        (prop::collection::vec(input, 0..4), prop::collection::vec(output, 0..3), prop::collection::vec(bytes(), 0..5));
    (text, text, parameters, lists).prop_map(|(model_name, id, parameters, (inputs, outputs, raw_input_contents))| {
        ModelInferRequest { model_name, id, parameters, inputs, outputs, raw_input_contents, ..Default::default() }
    })
}

/// The fields of an encoded message, each with its key, in the order of `order`.
fn shuffled(frame: &[u8], order: &[u8]) -> Vec<u8> {
    let mut fields = Vec::new();
    let mut rest = frame;
    while !rest.is_empty() {
        let before = rest;
        let (tag, wire_type) = prost::encoding::decode_key(&mut rest).unwrap();
        prost::encoding::skip_field(wire_type, tag, &mut rest, prost::encoding::DecodeContext::default()).unwrap();
        fields.push(&before[..before.len() - rest.len()]);
    }
    let mut keyed: Vec<_> = fields.into_iter().enumerate().collect();
    keyed.sort_by_key(|(index, _)| order.get(*index).copied().unwrap_or_default());
    keyed.into_iter().flat_map(|(_, field)| field).copied().collect()
}

/// NaN is not itself, but has one text.
fn shown(message: Option<&ModelInferRequest>) -> String {
    format!("{message:?}")
}

proptest! {
    #[test]
    fn a_message_in_any_order_and_cut_anywhere_is_what_prost_decodes(
        message in message(),
        order in prop::collection::vec(any::<u8>(), 0..20),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let frame = shuffled(&message.encode_to_vec(), &order);
        let expected = ModelInferRequest::decode(frame.as_slice()).unwrap();
        let admission = admission();
        let reservation = admission.reserve(0).unwrap();
        for walker in [known(&admission, frame.len()), Walker::of_at_most(frame.len(), reservation)] {
            let walked = walk(walker, &frame, &cuts).unwrap();
            let payload: usize = expected.raw_input_contents.iter().map(Bytes::len).sum();
            prop_assert_eq!(walked.copied, payload);
            let actual = whole(walked).unwrap();
            prop_assert!(actual.raw_input_contents.iter().all(|raw| raw.as_ptr().align_offset(ALIGNMENT) == 0 || raw.is_empty()));
            prop_assert_eq!(&actual, &expected);
        }
        prop_assert_eq!(admission.held(), 0);
    }

    #[test]
    fn bytes_of_any_kind_are_taken_exactly_when_prost_takes_them(
        bytes in prop::collection::vec(prop_oneof![
            any::<u8>(), Just(7 << 3 | 2), Just(5 << 3 | 2), Just(0x80), Just(7 << 3), Just(1 << 3 | 3), Just(1 << 3 | 4), 0..4u8,
        ], 0..40),
        cuts in prop::collection::vec(any::<usize>(), 0..6),
    ) {
        let admission = admission();
        let expected = ModelInferRequest::decode(bytes.as_slice()).ok();
        let actual = walk(known(&admission, bytes.len()), &bytes, &cuts).ok().and_then(|walked| whole(walked).ok());
        prop_assert!(actual == expected || shown(actual.as_ref()) == shown(expected.as_ref()), "{actual:?} is not {expected:?}");
        let walker = Walker::of_at_most(bytes.len(), admission.reserve(0).unwrap());
        let actual = walk(walker, &bytes, &cuts).ok().and_then(|walked| whole(walked).ok());
        prop_assert!(actual == expected || shown(actual.as_ref()) == shown(expected.as_ref()), "{actual:?} is not {expected:?}");
    }
}

fn raw_entry(length: usize) -> Vec<u8> {
    let message = ModelInferRequest { raw_input_contents: vec![vec![1; length].into()], ..Default::default() };
    message.encode_to_vec()
}

#[test]
fn a_tensor_holds_its_own_part_of_what_was_reserved() {
    let admission = admission();
    let frame = [raw_entry(1000), raw_entry(50_000)].concat();
    let walked = walk(known(&admission, frame.len()), &frame, &[]).unwrap();
    assert_eq!(admission.held(), frame.len());
    let mut raw = walked.raw;
    drop(walked.reservation);
    assert_eq!(admission.held(), 51_000);
    drop(raw.remove(0));
    assert_eq!(admission.held(), 50_000);
    drop(raw);
    assert_eq!(admission.held(), 0);
}

#[test]
fn a_length_that_the_message_has_no_place_for_takes_nothing() {
    let admission = admission();
    let mut claims = raw_entry(100_000);
    claims.truncate(10);
    let mut walker = known(&admission, 10);
    assert!(matches!(walker.push(&claims), Err(WalkError::Invalid(_))));
    let mut walker = Walker::of_at_most(1000, admission.reserve(0).unwrap());
    assert!(matches!(walker.push(&claims), Err(WalkError::TooLarge(_))));
    let mut walker = Walker::of_at_most(10 << 20, admission.reserve(0).unwrap());
    assert!(matches!(walker.push(&raw_entry(2 << 20)), Err(WalkError::Admission(AdmissionError::Full { .. }))));
}

#[test]
fn a_message_that_is_not_whole_or_too_long_is_refused() {
    let admission = admission();
    let frame = raw_entry(10);
    for length in 1..frame.len() {
        let mut walker = known(&admission, frame.len());
        walker.push(&frame[..length]).unwrap();
        assert!(matches!(walker.finish(), Err(WalkError::Invalid(_))), "{length}");
    }
    assert!(walk(known(&admission, frame.len() - 1), &frame, &[]).is_err());
    assert!(walk(known(&admission, frame.len() + 1), &frame, &[]).is_err());
}

#[test]
fn more_entries_than_a_request_may_have_are_refused() {
    let admission = admission();
    let entries = |count: usize| [7 << 3 | 2, 0].repeat(count);
    assert_eq!(walk(known(&admission, 2048), &entries(1024), &[]).unwrap().raw.len(), 1024);
    let error = walk(known(&admission, 2050), &entries(1025), &[]).unwrap_err();
    assert_eq!(error.to_string(), "too many raw_input_contents: at most 1024 are possible");
}

#[test]
fn other_fields_of_a_decompressed_message_are_reserved_as_they_come() {
    let admission = Admission::new(100_000);
    let id = ModelInferRequest { id: "x".repeat(60_000), ..Default::default() }.encode_to_vec();
    let mut walker = Walker::of_at_most(1 << 20, admission.reserve(0).unwrap());
    walker.push(&id).unwrap();
    assert!(admission.held() >= 60_000);
    assert!(matches!(walker.push(&id), Err(WalkError::Admission(_))));
}
