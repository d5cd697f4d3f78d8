//! REST: requests that are JSON, and requests whose tensors follow their JSON.
//!
//! Flags of an input: 0 the length is not announced, 1 memory is short, 2 the body is gzip, 3 the body is zlib, 4 what comes is
//! compressed first.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::Value;
use torchmodel_core::{
    inference::{InferRequest, NamedTensor},
    metadata::ModelMetadata,
    model_key::{ModelName, ModelVersion},
    signature::InputSignature,
    tensor::{DataType, DataTypeExt as _},
};
use torchmodel_server::{
    admission::Admission,
    rest::offline::{RequestBody, decode},
};

use crate::{
    input::{Choices, LIMITS, part, with_memory},
    round_trip, stored,
};

/// What a decompressor holds.
const DECODER_BYTES: usize = 96 << 10;

type Decoded = Result<InferRequest, (u16, String)>;

/// A request but for its body.
#[derive(Clone, Default)]
struct Head {
    header_length: Option<usize>,
    metadata: Option<ModelMetadata>,
}

/// A request whose body is JSON: what is read is what `serde_json` reads, what is no JSON is refused, and what was read can be said
/// again in every form of both protocols.
pub fn check_rest_json(input: &[u8]) {
    let Some((choices, text)) = Choices::split(input) else { return };
    with_memory(|memory| {
        if let Ok(request) = decode_in_every_way(choices, &Head::default(), text, memory) {
            check_grammar(text);
            check_members(&request, text);
            round_trip::check(&request, memory);
        }
    });
}

/// A request whose binary tensors follow its JSON: they lie where their sizes say, and sum up to the body. The variant chooses where the
/// JSON ends: behind the first line, anywhere, behind the body; or that the whole body is the one input of a model.
pub fn check_rest_binary(input: &[u8]) {
    let Some((choices, body)) = Choices::split(input) else { return };
    let detail = choices.variant >> 2;
    let line_end = || body.iter().position(|byte| *byte == b'\n').map_or(body.len(), |at| at + 1);
    let header_length = match choices.variant & 3 {
        0 => line_end(),
        1 => 0,
        2 => part(detail << 2, body.len()),
        _ => body.len() + usize::from(detail),
    };
    let metadata = (header_length == 0).then(|| model(detail));
    let head = Head { header_length: Some(header_length), metadata };
    with_memory(|memory| {
        if let Ok(request) = decode_in_every_way(choices, &head, body, memory) {
            match header_length {
                0 => check_raw(&request, body),
                length => check_binary(&request, &body[..length], &body[length..]),
            }
            round_trip::check(&request, memory);
        }
    });
}

/// Decodes a body whole and announced, and as the choices say, which must come to the same.
fn decode_in_every_way(choices: Choices, head: &Head, body: &[u8], memory: &Admission) -> Decoded {
    let is_compressed = choices.has(2) || choices.has(3);
    let content_encoding = if choices.has(2) { "gzip" } else { "deflate" };
    let body = Bytes::copy_from_slice(body);
    let request = |content_encoding, pieces, is_announced| RequestBody {
        model: name(),
        header_length: head.header_length,
        content_encoding,
        pieces,
        is_announced,
        metadata: head.metadata.clone(),
    };
    let pieces = [body];
    let whole = decode_client(&request(None, &pieces, true), memory);
    let [body] = &pieces;
    let is_announced = !choices.has(0);
    if is_compressed {
        let is_raw = !choices.has(4);
        let compressed = match content_encoding {
            _ if is_raw => body.clone(),
            "gzip" => stored::gzip(body).into(),
            _ => stored::zlib(body).into(),
        };
        let pieces = choices.pieces(&compressed);
        let request = request(Some(content_encoding), &pieces, is_announced);
        if choices.has(1) {
            decode_short(&request, &choices.tight_memory(DECODER_BYTES));
        }
        let inflated = decode_client(&request, memory);
        assert!(is_raw || is_same(&whole, &inflated), "compressed: {inflated:?}, but plain: {whole:?}");
        return whole;
    }
    let pieces = choices.pieces(body);
    let request = request(None, &pieces, is_announced);
    if choices.has(1) {
        decode_short(&request, &choices.tight_memory(0));
    }
    let cut = decode_client(&request, memory);
    let is_equal = if is_announced { is_equal(&whole, &cut) } else { is_same(&whole, &cut) };
    assert!(is_equal, "in pieces: {cut:?}, but whole: {whole:?}");
    whole
}

/// Decodes with memory enough: what is wrong is the client's fault.
fn decode_client(request: &RequestBody<'_>, memory: &Admission) -> Decoded {
    let decoded = decode(request, LIMITS, memory).map(|request| round_trip::without_time(&request));
    assert!(memory.held() <= memory.maximum());
    if let Err((status, text)) = &decoded {
        assert!(matches!(status, 400 | 413 | 501), "{status} {text}");
        assert!(text.starts_with("{\"error\":\"") && text.ends_with("\"}"), "{text}");
    }
    decoded
}

/// Decodes with memory that may not do: the server may also be full.
fn decode_short(request: &RequestBody<'_>, memory: &Admission) {
    if let Err((status, text)) = decode(request, LIMITS, memory) {
        assert!(matches!(status, 400 | 413 | 501 | 503), "{status} {text}");
    }
    assert_eq!(memory.held(), 0);
}

/// Whether two results are one request, or one error with the same words.
fn is_equal(one: &Decoded, other: &Decoded) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => round_trip::is_same(one, other),
        (Err(one), Err(other)) => one == other,
        _ => false,
    }
}

/// Whether two results are one request, or errors of one kind: what is known of the length decides what is found first.
fn is_same(one: &Decoded, other: &Decoded) -> bool {
    match (one, other) {
        (Err((one, _)), Err((other, _))) => one == other,
        _ => is_equal(one, other),
    }
}

fn name() -> ModelName {
    "m".parse().expect("it is a name")
}

/// Models that a body can be the one input of, and others.
fn model(number: u8) -> ModelMetadata {
    let inputs: &[(Option<DataType>, Option<&[i64]>)] = match number % 8 {
        0 => &[(Some(DataType::Fp32), Some(&[-1]))],
        1 => &[(Some(DataType::Bytes), Some(&[-1]))],
        2 => &[(Some(DataType::Int16), Some(&[2, -1]))],
        3 => &[(Some(DataType::Bool), Some(&[-1, 3]))],
        4 => &[(None, Some(&[-1]))],
        5 => &[(Some(DataType::Fp64), None)],
        6 => &[(Some(DataType::Uint8), Some(&[i64::MAX, i64::MAX]))],
        _ => &[(Some(DataType::Fp32), Some(&[1])), (Some(DataType::Fp32), Some(&[1]))],
    };
    let inputs = inputs.iter().map(|(datatype, shape)| InputSignature {
        name: "x".into(),
        datatype: *datatype,
        shape: shape.map(<[i64]>::to_vec),
        is_optional: false,
        is_batched: false,
        is_flattened: false,
    });
    ModelMetadata {
        name: name(),
        versions: vec![ModelVersion::FIRST],
        platform: "pytorch_torchscript".into(),
        inputs: inputs.collect(),
        outputs: Vec::new(),
        properties: BTreeMap::new(),
    }
}

/// What was taken follows JSON's grammar, but for the tokens that Python's writers add.
fn check_grammar(text: &[u8]) {
    let has = |word: &[u8]| text.windows(word.len()).any(|window| window == word);
    if !has(b"NaN") && !has(b"Infinity") {
        let result = serde_json::from_slice::<IgnoredAny>(text);
        assert!(result.is_ok() && std::str::from_utf8(text).is_ok(), "taken, but no JSON: {result:?}");
    }
}

/// What was read is what `serde_json` reads, where it reads the text: it knows no NaN and less depth.
fn check_members(request: &InferRequest, text: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return };
    assert_eq!(value["id"].as_str().unwrap_or_default(), request.id);
    let outputs = value["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
    assert!(outputs.iter().map(|output| output["name"].as_str()).eq(request.outputs.iter().map(|name| Some(&**name))));
    let inputs = value["inputs"].as_array().map(Vec::as_slice).unwrap_or_default();
    assert_eq!(inputs.len(), request.inputs.len());
    for (input, read) in inputs.iter().zip(&request.inputs) {
        check_declared(input, read);
        let mut leaves = Vec::new();
        flatten(&input["data"], &mut leaves);
        check_elements(&leaves, read);
    }
}

fn check_declared(input: &Value, NamedTensor { name, tensor }: &NamedTensor) {
    assert_eq!(input["name"], **name);
    assert_eq!(input["datatype"], tensor.datatype().as_str());
    assert_eq!(input["shape"], Value::from(tensor.shape()));
}

fn flatten<'v>(value: &'v Value, leaves: &mut Vec<&'v Value>) {
    match value {
        Value::Array(members) => members.iter().for_each(|member| flatten(member, leaves)),
        Value::Null => {}
        leaf => leaves.push(leaf),
    }
}

fn check_elements(leaves: &[&Value], NamedTensor { name, tensor }: &NamedTensor) {
    if tensor.datatype() == DataType::Bytes {
        let elements = tensor.bytes_elements().map(|element| element.ok().and_then(|it| std::str::from_utf8(it).ok()));
        assert!(elements.eq(leaves.iter().map(|leaf| leaf.as_str())), "{name}: {leaves:?} became {tensor:?}");
        return;
    }
    let size = tensor.datatype().size_bytes().unwrap_or(1);
    assert_eq!(tensor.data().len(), leaves.len() * size, "{name}");
    for (leaf, bytes) in leaves.iter().zip(tensor.data().chunks(size)) {
        assert!(is_element(leaf, tensor.datatype(), bytes), "{name}: {leaf} became {bytes:?}");
    }
}

/// Whether an element is what `serde_json` reads in its place; its own numbers with a fraction may be off by the last bit.
fn is_element(leaf: &Value, datatype: DataType, bytes: &[u8]) -> bool {
    let mut wide = [0; 8];
    wide.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    let unsigned = u64::from_le_bytes(wide);
    let shift = 64 - 8 * bytes.len();
    let signed = (unsigned << shift).cast_signed() >> shift;
    match datatype {
        DataType::Bool => leaf.as_bool() == Some(unsigned == 1),
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 | DataType::Uint64 => {
            leaf.as_u64().is_none_or(|leaf| leaf == unsigned)
        }
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            leaf.as_i64().is_none_or(|leaf| leaf == signed)
        }
        #[expect(clippy::cast_possible_truncation, reason = "that is what FP32 does to a number")]
        DataType::Fp32 => leaf.as_f64().is_none_or(|leaf| {
            (leaf as f32).to_bits().abs_diff(u32::from_le_bytes([wide[0], wide[1], wide[2], wide[3]])) <= 1
        }),
        DataType::Fp64 => leaf.as_f64().is_none_or(|leaf| leaf.to_bits().abs_diff(unsigned) <= 2),
        DataType::Fp16 | DataType::Bf16 | DataType::Bytes => true,
    }
}

/// The parts of a body are its JSON and its binary tensors, in their order, and nothing else.
fn check_binary(request: &InferRequest, json: &[u8], mut rest: &[u8]) {
    check_grammar(json);
    let Ok(value) = serde_json::from_slice::<Value>(json) else { return };
    let inputs = value["inputs"].as_array().map(Vec::as_slice).unwrap_or_default();
    assert_eq!(inputs.len(), request.inputs.len());
    for (input, read) in inputs.iter().zip(&request.inputs) {
        check_declared(input, read);
        if let Some(size) = input["parameters"]["binary_data_size"].as_u64() {
            let (data, after) = rest.split_at(usize::try_from(size).expect("it lay in the body"));
            assert_eq!(data, read.tensor.data(), "{}", read.name);
            rest = after;
        }
    }
    assert!(rest.is_empty(), "{} bytes belong to nothing", rest.len());
}

/// A body without JSON is its model's one input.
fn check_raw(request: &InferRequest, body: &[u8]) {
    let [NamedTensor { tensor, .. }] = &*request.inputs else { panic!("{} inputs", request.inputs.len()) };
    if tensor.datatype() == DataType::Bytes {
        assert!(tensor.bytes_elements().eq([Ok(body)]));
    } else {
        assert_eq!(tensor.data(), body);
    }
}
