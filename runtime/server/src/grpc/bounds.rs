//! Counts what a `ModelInferRequest` would make its decoder allocate, before it is decoded.
//!
//! Called by `infer` with what was received. An entry of two bytes on the wire becomes a structure of hundreds of bytes in
//! memory, so the counts are bounded first. Invariant: nothing here allocates but the words of a refusal, and the wire format is
//! read by prost's own functions, so that what is counted is what prost decodes.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::protocol::{MAX_BYTES_CONTENTS, MAX_CONTENTS_BYTES, MAX_DIMENSIONS, MAX_PARAMETERS, MAX_TENSORS, too_many};

/// What the memory of an element of `bytes_contents` takes beside its bytes.
const ELEMENT_BYTES: usize = 32;

/// Bytes that the typed contents of a frame take when they are decoded. Refuses a frame with more of anything than `protocol`
/// allows, or that is no protobuf message, in words for the client.
pub(super) fn measure(frame: &[u8]) -> Result<usize, String> {
    let (mut inputs, mut outputs, mut raw, mut parameters) = (0, 0, 0, 0);
    let (mut of_inputs, mut of_outputs) = (0, 0);
    let mut contents = Contents { values_bytes: 0, bytes_elements: 0, most_bytes: MAX_CONTENTS_BYTES.max(frame.len()) };
    fields(frame, |tag, value| match tag {
        4 => count(&mut parameters, 1, MAX_PARAMETERS, "parameters"),
        5 => {
            count(&mut inputs, 1, MAX_TENSORS, "inputs")?;
            check_input(value.unwrap_or_default(), &mut of_inputs, &mut contents)
        }
        6 => {
            count(&mut outputs, 1, MAX_TENSORS, "outputs")?;
            fields(value.unwrap_or_default(), |tag, _| match tag {
                2 => count(&mut of_outputs, 1, MAX_PARAMETERS, "parameters of outputs"),
                _ => Ok(()),
            })
        }
        7 => count(&mut raw, 1, MAX_TENSORS, "raw_input_contents"),
        _ => Ok(()),
    })?;
    Ok(contents.values_bytes.saturating_add(contents.bytes_elements.saturating_mul(ELEMENT_BYTES)))
}

fn check_input(input: &[u8], parameters: &mut usize, contents: &mut Contents) -> Result<(), String> {
    let mut dimensions = 0;
    fields(input, |tag, value| match tag {
        3 => count(&mut dimensions, value.map_or(1, varints), MAX_DIMENSIONS, "dimensions in a shape"),
        4 => count(parameters, 1, MAX_PARAMETERS, "parameters of inputs"),
        5 => contents.add(value.unwrap_or_default()),
        _ => Ok(()),
    })
}

/// What the typed contents of all inputs hold, decoded.
struct Contents {
    values_bytes: usize,
    bytes_elements: usize,
    /// The most that `values_bytes` may be.
    most_bytes: usize,
}

impl Contents {
    fn add(&mut self, contents: &[u8]) -> Result<(), String> {
        fields(contents, |tag, value| {
            let bytes = match tag {
                1 => value.map_or(1, varints),
                2 | 4 => value.map_or(1, varints).saturating_mul(4),
                3 | 5 => value.map_or(1, varints).saturating_mul(8),
                6 => value.map_or(4, <[u8]>::len),
                7 => value.map_or(8, <[u8]>::len),
                8 => {
                    let what = "entries of bytes_contents (use raw_input_contents for more)";
                    return count(&mut self.bytes_elements, 1, MAX_BYTES_CONTENTS, what);
                }
                _ => 0,
            };
            let what = "bytes of typed contents, decoded (use raw_input_contents for more)";
            count(&mut self.values_bytes, bytes, self.most_bytes, what)
        })
    }
}

/// Adds to a count that may be `most`.
fn count(counted: &mut usize, more: usize, most: usize, what: &str) -> Result<(), String> {
    *counted = counted.saturating_add(more);
    if *counted > most { Err(too_many(what, most)) } else { Ok(()) }
}

/// Varints in a packed field: each ends with the one byte of it that has no top bit.
fn varints(packed: &[u8]) -> usize {
    packed.iter().filter(|byte| **byte < 0x80).count()
}

/// Gives each field of `message` to `visit`: its tag and, where it is length-delimited, its bytes.
fn fields<'a>(
    mut message: &'a [u8],
    mut visit: impl FnMut(u32, Option<&'a [u8]>) -> Result<(), String>,
) -> Result<(), String> {
    let malformed = |error: prost::DecodeError| format!("failed to parse the request: {error}");
    while !message.is_empty() {
        let (tag, wire_type) = decode_key(&mut message).map_err(malformed)?;
        let value = if wire_type == WireType::LengthDelimited {
            let length = decode_varint(&mut message).map_err(malformed)?;
            let parts = usize::try_from(length).ok().and_then(|length| message.split_at_checked(length));
            let (value, rest) = parts.ok_or("failed to parse the request: a field is longer than its message")?;
            message = rest;
            Some(value)
        } else {
            skip_field(wire_type, tag, &mut message, DecodeContext::default()).map_err(malformed)?;
            None
        };
        visit(tag, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;
    use crate::grpc::proto::{
        InferParameter, InferTensorContents, ModelInferRequest,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    };

    fn check(frame: &[u8]) -> Result<(), String> {
        measure(frame).map(drop)
    }

    fn check_message(message: &ModelInferRequest) -> Result<(), String> {
        check(&message.encode_to_vec())
    }

    fn contents(contents: InferTensorContents) -> ModelInferRequest {
        let input = InferInputTensor { contents: Some(contents), ..Default::default() };
        ModelInferRequest { inputs: vec![input], ..Default::default() }
    }

    fn parameters(count: usize) -> std::collections::HashMap<String, InferParameter> {
        (0..count).map(|number| (number.to_string(), InferParameter::default())).collect()
    }

    #[test]
    fn entries_of_two_bytes_are_counted() {
        for (tag, what) in [(4, "parameters"), (5, "inputs"), (6, "outputs"), (7, "raw_input_contents")]
            .map(|(tag, what)| (tag << 3 | 2, what))
        {
            let frame = |count: usize| [tag, 0].repeat(count);
            assert_eq!(check(&frame(1024)), Ok(()));
            assert_eq!(check(&frame(1025)).unwrap_err(), format!("too many {what}: at most 1024 are possible"));
        }
    }

    #[test]
    fn dimensions_are_counted_packed_and_not_packed() {
        let shape = |shape| {
            let input = InferInputTensor { shape, ..Default::default() };
            check_message(&ModelInferRequest { inputs: vec![input; 2], ..Default::default() })
        };
        assert_eq!(shape(vec![i64::MAX; 64]), Ok(()));
        let refused = Err("too many dimensions in a shape: at most 64 are possible".to_owned());
        assert_eq!(shape(vec![i64::MAX; 65]), refused);
        let unpacked = [3 << 3, 1].repeat(63);
        let mixed = [unpacked.as_slice(), &[3 << 3 | 2, 1, 1]].concat();
        let frame = |input: &[u8]| [&[5 << 3 | 2, u8::try_from(input.len()).unwrap(), 1][..2], input].concat();
        // Lengths of 128 and more take two bytes.
        let long =
            |input: &[u8]| [&[5 << 3 | 2, u8::try_from(input.len() - 128).unwrap() | 0x80, 1][..], input].concat();
        assert_eq!(check(&frame(&unpacked)), Ok(()));
        assert_eq!(check(&long(&mixed)), Ok(()));
        assert_eq!(check(&long(&[mixed.as_slice(), &[3 << 3, 1]].concat())), refused);
    }

    #[test]
    fn parameters_of_all_inputs_and_of_all_outputs_are_counted_together() {
        let input = |count| InferInputTensor { parameters: parameters(count), ..Default::default() };
        let output = |count| InferRequestedOutputTensor { parameters: parameters(count), ..Default::default() };
        let request = |inputs, outputs| ModelInferRequest { inputs, outputs, ..Default::default() };
        assert_eq!(check_message(&request(vec![input(512), input(512)], vec![output(1024)])), Ok(()));
        let error = check_message(&request(vec![input(512), input(513)], vec![])).unwrap_err();
        assert!(error.starts_with("too many parameters of inputs"), "{error}");
        let error = check_message(&request(vec![], vec![output(512), output(513)])).unwrap_err();
        assert!(error.starts_with("too many parameters of outputs"), "{error}");
    }

    #[test]
    fn typed_contents_are_bounded_by_what_they_decode_to() {
        let elements = |count| {
            let bytes_contents = vec![Bytes::new(); count];
            check_message(&contents(InferTensorContents { bytes_contents, ..Default::default() }))
        };
        assert_eq!(elements(MAX_BYTES_CONTENTS), Ok(()));
        let error = elements(MAX_BYTES_CONTENTS + 1).unwrap_err();
        assert!(error.contains("use raw_input_contents"), "{error}");
        let values = |bytes: &[u8], most_bytes| {
            let mut contents = Contents { values_bytes: 0, bytes_elements: 0, most_bytes };
            contents.add(bytes).map(|()| contents.values_bytes)
        };
        let all = InferTensorContents {
            bool_contents: vec![true; 3],
            int_contents: vec![-1; 3],
            int64_contents: vec![1; 3],
            uint_contents: vec![300; 3],
            uint64_contents: vec![u64::MAX; 3],
            fp32_contents: vec![1.0; 3],
            fp64_contents: vec![1.0; 3],
            bytes_contents: vec![],
        };
        let all = all.encode_to_vec();
        assert_eq!(values(&all, 111), Ok(3 * (1 + 4 + 8 + 4 + 8 + 4 + 8)));
        let error = values(&all, 110).unwrap_err();
        assert!(error.contains("bytes of typed contents"), "{error}");
        // The same, each value a field of its own.
        let unpacked = [&[1 << 3, 1, 3 << 3, 1, 6 << 3 | 5, 0, 0, 0, 0, 7 << 3 | 1][..], &[0; 8]].concat();
        assert_eq!(values(&unpacked, 21), Ok(21));
    }

    #[test]
    fn unknown_fields_are_passed_over_and_malformed_messages_are_refused() {
        // A group, which only old messages have.
        assert_eq!(check(&[9 << 3 | 3, 8, 1, 9 << 3 | 4, 10 << 3, 1]), Ok(()));
        for malformed in [&[0x2a, 5, 0][..], &[0x2a], &[0xff; 11], &[0], &[9 << 3 | 3], &[0x2a, 1, 0x80]] {
            assert!(ModelInferRequest::decode(malformed).is_err());
            let error = check(malformed).unwrap_err();
            assert!(error.starts_with("failed to parse the request: "), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_prost_decodes_is_passed(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            if ModelInferRequest::decode(bytes.as_slice()).is_ok() {
                assert_eq!(check(&bytes), Ok(()));
            }
        }
    }
}
