//! Tests of assembling: the same request from any pieces, each payload byte copied once, nothing kept that is not reserved.

use proptest::prelude::*;
use torchmodel_core::{outcome::Outcome, signature::InputSignature, tensor::DataType};

use super::*;
use crate::{
    admission::Admission,
    rest::{
        offline::{RequestBody, assemble},
        text::JOINED_BYTES,
    },
};

const LIMITS: Limits = Limits { max_request_bytes: 1 << 20, are_tensors_compressed: false };

pub(in crate::rest) fn request(header_length: Option<usize>, pieces: &[Bytes], is_announced: bool) -> RequestBody<'_> {
    let model = "m".parse().unwrap();
    RequestBody { model, header_length, content_encoding: None, pieces, is_announced, metadata: None }
}

/// `body`, cut at some places.
fn cut(body: &Bytes, cuts: &[usize]) -> Vec<Bytes> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (body.len() + 1)).collect();
    cuts.sort_unstable();
    let ends = cuts.iter().copied().chain([body.len()]);
    let starts = [0].into_iter().chain(cuts.iter().copied());
    starts.zip(ends).map(|(start, end)| Bytes::copy_from_slice(&body[start..end])).collect()
}

fn mixed() -> (usize, Bytes) {
    let json = r#"{"id":"x\u00fc","inputs":[
        {"name":"a","shape":[3],"datatype":"FP32","data":[1.5,-2e-3,NaN]},
        {"name":"b","shape":[5],"datatype":"UINT8","parameters":{"binary_data_size":5}},
        {"name":"none","shape":[0],"datatype":"FP32","parameters":{"binary_data_size":0}},
        {"data":["x\n","\u00fc",""],"name":"s","shape":[3],"datatype":"BYTES"},
        {"name":"c","shape":[2],"datatype":"INT64","parameters":{"binary_data_size":16}},
        {"name":"end","shape":[0],"datatype":"FP32","parameters":{"binary_data_size":0}}],
        "skipped":{"deep":[1,{"x":"y\"]"},null]},"outputs":[{"name":"y","parameters":{"binary_data":true}}]}"#;
    let blob: Vec<u8> = (0..21).collect();
    (json.len(), [json.as_bytes(), &blob].concat().into())
}

proptest! {
    #[test]
    fn any_pieces_give_the_same_request(cuts in prop::collection::vec(any::<usize>(), 0..40), is_announced in any::<bool>()) {
        let admission = Admission::new(1 << 20);
        let (json_length, body) = mixed();
        let read = |pieces: &[Bytes]| {
            let parts = request(Some(json_length), pieces, is_announced);
            assemble(&parts, LIMITS, &admission).unwrap()
        };
        let whole = read(std::slice::from_ref(&body));
        let decoded = read(&cut(&body, &cuts));
        let bits = |decoded: &Decoded| format!("{:?}", (&decoded.form, &decoded.request.id, &decoded.request.inputs));
        prop_assert_eq!(bits(&decoded), bits(&whole));
        drop((decoded, whole));
        prop_assert_eq!(admission.held(), 0);
    }

    #[test]
    fn any_pieces_of_a_wrong_request_give_the_same_words(
        cuts in prop::collection::vec(any::<usize>(), 0..10),
        position in any::<usize>(),
        byte in any::<u8>(),
        length in 0usize..900,
    ) {
        let admission = Admission::new(1 << 20);
        let (json_length, body) = mixed();
        let mut body = body.to_vec();
        let position = position % body.len();
        body[position] = byte;
        body.truncate(length);
        let body = Bytes::from(body);
        let outcome = |pieces: &[Bytes]| {
            let parts = request(Some(json_length), pieces, true);
            let decoded = assemble(&parts, LIMITS, &admission);
            decoded.map(|decoded| format!("{:?}", decoded.request.inputs))
        };
        let whole = outcome(std::slice::from_ref(&body));
        prop_assert_eq!(outcome(&cut(&body, &cuts)), whole.clone());
        if let Err(error) = whole {
            prop_assert_eq!(error.outcome(), Outcome::InvalidRequest);
        }
        prop_assert_eq!(admission.held(), 0);
    }

    #[test]
    fn raw_bodies_come_through_in_any_pieces(
        elements in prop::collection::vec(any::<[u8; 4]>(), 0..50),
        cuts in prop::collection::vec(any::<usize>(), 0..5),
        is_announced in any::<bool>(),
    ) {
        let admission = Admission::new(1 << 20);
        let body = Bytes::from(elements.concat());
        let pieces = cut(&body, &cuts);
        for datatype in [DataType::Fp32, DataType::Bytes] {
            let input = InputSignature { name: "x".into(), datatype: Some(datatype), shape: Some(vec![-1]), is_optional: false, is_batched: false, is_flattened: false };
            let metadata = ModelMetadata {
                name: "m".parse().unwrap(), versions: vec![], platform: String::new(), inputs: vec![input], outputs: vec![],
                properties: std::collections::BTreeMap::new(),
            };
            let parts = RequestBody { metadata: Some(metadata), ..request(Some(0), &pieces, is_announced) };
            let decoded = assemble(&parts, LIMITS, &admission).unwrap();
            let tensor = &decoded.request.inputs[0].tensor;
            if datatype == DataType::Bytes {
                prop_assert_eq!(tensor.bytes_elements().map(Result::unwrap).collect::<Vec<_>>(), [body.as_ref()]);
            } else {
                prop_assert_eq!(tensor.data(), &body);
            }
        }
        prop_assert_eq!(admission.held(), 0);
    }
}

#[test]
fn binary_tensors_are_aligned_copied_once_and_hold_their_reservation() {
    let admission = Admission::new(1 << 20);
    let (json_length, body) = mixed();
    let pieces = cut(&body, &[json_length, json_length + 3]);
    let parts = request(Some(json_length), &pieces, true);
    let mut decoded = assemble(&parts, LIMITS, &admission).unwrap();
    assert_eq!(admission.copied_bytes(Protocol::Rest, Direction::In), 21);
    let inputs = std::mem::take(&mut decoded.request.inputs);
    let data: Vec<_> = inputs.into_iter().map(|input| input.tensor.into_parts().2).collect();
    assert_eq!((data[1].as_ref(), data[4].len()), (&[0, 1, 2, 3, 4][..], 16));
    for data in [&data[0], &data[1], &data[4]] {
        assert_eq!(data.as_ptr().align_offset(ALIGNMENT), 0);
    }
    assert!(admission.held() >= 21 + 12, "{}", admission.held());
    drop(data);
    assert_eq!(admission.held(), 0);
}

#[test]
fn json_that_comes_in_large_pieces_is_not_copied() {
    let admission = Admission::new(8 << 20);
    let elements = vec!["0.12345"; 40_000].join(",");
    let json = format!(r#"{{"inputs":[{{"name":"a","shape":[40000],"datatype":"FP32","data":[{elements}]}}]}}"#);
    let body = Bytes::from(json);
    let pieces: Vec<Bytes> = (0..body.len())
        .step_by(JOINED_BYTES)
        .map(|start| body.slice(start..body.len().min(start + JOINED_BYTES)))
        .collect();
    let last = pieces.last().unwrap().len() as u64;
    let parts = request(None, &pieces, false);
    let decoded = assemble(&parts, LIMITS, &admission).unwrap();
    let data = decoded.request.inputs[0].tensor.data();
    assert!(data.as_chunks::<4>().0.iter().all(|bytes| *bytes == 0.12345f32.to_le_bytes()));
    assert_eq!(admission.copied_bytes(Protocol::Rest, Direction::In), last, "only what is too small to be kept");
    assert_eq!(admission.held(), 160_000, "the text is given back");
}

#[test]
fn a_number_that_is_cut_is_the_same_number_and_has_the_same_faults() {
    let space = " ".repeat(JOINED_BYTES);
    for number in ["12", "1.5e3", "12-3", "1e5e", "1.2.3", "-", "1."] {
        let head = format!(r#"{space}{{"inputs":[{{"name":"a","datatype":"FP32","shape":[1],"data":["#);
        let body = Bytes::from(format!("{head}{number}]}}]}}{space}"));
        let decode = |pieces: &[Bytes]| assemble(&request(None, pieces, true), LIMITS, &Admission::new(8 << 20));
        let whole = decode(std::slice::from_ref(&body));
        for at in head.len()..=head.len() + number.len() {
            assert_eq!(decode(&[body.slice(..at), body.slice(at..)]), whole, "{number} cut at {}", at - head.len());
        }
    }
}

#[test]
fn small_pieces_of_json_take_no_more_memory_than_their_bytes() {
    let body = Bytes::from_static(br#"{"inputs":[]}"#);
    let mut text = Text::default();
    for at in 0..body.len() {
        text.push(body.slice(at..=at));
    }
    assert_eq!(text.pieces().filter(|piece| !piece.is_empty()).count(), 1);
    assert_eq!(text.pieces().collect::<Vec<_>>().concat(), body);
}

#[test]
fn what_a_client_only_claims_takes_no_memory() {
    let admission = Admission::new(100_000);
    let json =
        r#"{"inputs":[{"name":"a","shape":[250000],"datatype":"FP32","parameters":{"binary_data_size":1000000}}]}"#;
    let body = Bytes::copy_from_slice(json.as_bytes());
    let parts = request(Some(json.len()), std::slice::from_ref(&body), true);
    let error = assemble(&parts, LIMITS, &admission).unwrap_err();
    assert!(
        matches!(&error, RestError::Infer(error) if error.to_string().contains("expecting 1000000 additional bytes"))
    );
    let json = r#"{"inputs":[{"name":"a","shape":[250000],"datatype":"FP32","data":[1]}]}"#;
    let pieces = [Bytes::copy_from_slice(json.as_bytes())];
    let parts = request(None, &pieces, true);
    let error = assemble(&parts, LIMITS, &admission).unwrap_err();
    assert!(matches!(&error, RestError::Infer(error) if error.to_string().contains("but 1 are given")), "{error:?}");
    assert_eq!(admission.held(), 0);
}

#[test]
fn binary_parts_that_cannot_fit_the_limit_are_refused_before_they_come() {
    let admission = Admission::new(100_000);
    let input = |name: &str| {
        format!(r#"{{"name":"{name}","shape":[1],"datatype":"BYTES","parameters":{{"binary_data_size":600000}}}}"#)
    };
    let json = format!(r#"{{"inputs":[{},{}]}}"#, input("a"), input("b"));
    let pieces = [Bytes::from(json.clone())];
    let parts = request(Some(json.len()), &pieces, false);
    assert_eq!(assemble(&parts, LIMITS, &admission).unwrap_err(), RestError::TooLarge(1 << 20));
}
