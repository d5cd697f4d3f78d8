//! gRPC: the frames of a call, and the contents of its message.
//!
//! Flags of an input: 1 memory is short, 2 `grpc-encoding` is gzip, 3 it is deflate, 4 the message comes as the input's bytes, with
//! prefix and compression made for it.

use bytes::Bytes;
use prost::Message as _;
use tonic::{Code, Status};
use torchmodel_core::inference::InferRequest;
use torchmodel_server::{
    admission::Admission,
    grpc::{
        offline::{CallBody, decode, read},
        proto::{InferParameter, ModelInferRequest, model_infer_request::InferInputTensor},
    },
    protocol::MAX_TENSORS,
};
use torchmodel_testing::{TestTensor, to_contents};

use crate::{
    input::{Choices, LIMITS, with_memory},
    round_trip, stored,
};

/// The flag and the length before each message.
const PREFIX_BYTES: usize = 5;

/// A call's bytes, from its message's prefix to its end: what is read is what prost decodes from the whole message, however it is cut
/// and compressed.
pub fn check_grpc_frames(input: &[u8]) {
    let Some((choices, bytes)) = Choices::split(input) else { return };
    let encoding = match (choices.has(2), choices.has(3)) {
        (false, false) => None,
        (true, false) => Some("gzip"),
        (false, true) => Some("deflate"),
        (true, true) => Some("snappy"),
    };
    let frame = if choices.has(4) { frame_of(bytes, encoding) } else { Bytes::copy_from_slice(bytes) };
    with_memory(|memory| {
        let message = read_in_every_way(choices, encoding, &frame, memory);
        match plain_message(bytes, &frame, choices) {
            Some(plain) if encoding != Some("snappy") => check_read(message.as_ref(), plain),
            _ => {}
        }
    });
}

/// A message of a call: what is decoded is what stands in it, and it can be said again in every form of both protocols.
pub fn check_grpc_contents(input: &[u8]) {
    let Some((choices, bytes)) = Choices::split(input) else { return };
    let frame = frame_of(bytes, None);
    with_memory(|memory| {
        let message = read_in_every_way(choices, None, &frame, memory);
        check_read(message.as_ref(), bytes);
        let call = CallBody { encoding: None, pieces: &choices.pieces(&frame) };
        match (decode(&call, LIMITS, memory), message) {
            (Ok(request), Ok(message)) => {
                check_request(&request, &message);
                round_trip::check(&request, memory);
            }
            (Ok(request), Err(status)) => panic!("{request:?} was made of no message: {status}"),
            (Err(status), _) => assert_client(&status),
        }
        if choices.has(1) {
            let short = choices.tight_memory(0);
            if let Err(status) = decode(&call, LIMITS, &short) {
                assert_client_or_full(&status);
            }
            assert_eq!(short.held(), 0);
        }
    });
}

/// A message behind its prefix, compressed if the call says how.
fn frame_of(message: &[u8], encoding: Option<&str>) -> Bytes {
    let (flag, message) = match encoding {
        Some("gzip") => (1, stored::gzip(message)),
        Some("deflate") => (1, stored::zlib(message)),
        _ => (0, message.to_vec()),
    };
    let length = u32::try_from(message.len()).expect("an input is short").to_be_bytes();
    [&[flag][..], &length, &message].concat().into()
}

/// The message in a call's bytes, where it can be told without reading it.
fn plain_message<'a>(bytes: &'a [u8], frame: &'a Bytes, choices: Choices) -> Option<&'a [u8]> {
    if choices.has(4) {
        return Some(bytes);
    }
    let (prefix, message) = frame.split_first_chunk::<PREFIX_BYTES>()?;
    let [flag, length @ ..] = *prefix;
    (flag == 0 && usize::try_from(u32::from_be_bytes(length)) == Ok(message.len())).then_some(message)
}

/// Reads a call whole and in pieces, which must come to the same.
fn read_in_every_way(
    choices: Choices,
    encoding: Option<&str>,
    frame: &Bytes,
    memory: &Admission,
) -> Result<ModelInferRequest, Status> {
    let whole = read(&CallBody { encoding, pieces: std::slice::from_ref(frame) }, LIMITS, memory);
    let pieces = choices.pieces(frame);
    let call = CallBody { encoding, pieces: &pieces };
    let cut = read(&call, LIMITS, memory);
    assert!(memory.held() <= memory.maximum());
    match (&whole, &cut) {
        (Ok(whole), Ok(cut)) => assert!(is_same(whole, cut), "in pieces: {cut:?}, but whole: {whole:?}"),
        (Err(whole), Err(cut)) => {
            assert_client(whole);
            assert_eq!((whole.code(), whole.message()), (cut.code(), cut.message()));
        }
        _ => panic!("in pieces: {cut:?}, but whole: {whole:?}"),
    }
    if choices.has(1) {
        let short = choices.tight_memory(0);
        if let Err(status) = read(&call, LIMITS, &short) {
            assert_client_or_full(&status);
        }
        assert_eq!(short.held(), 0);
    }
    whole
}

/// What was read of a message is what prost decodes from it, or both refuse it.
fn check_read(read: Result<&ModelInferRequest, &Status>, message: &[u8]) {
    match (read, ModelInferRequest::decode(message)) {
        (Ok(read), Ok(expected)) => assert!(is_same(read, &expected), "{expected:?} was read as {read:?}"),
        (Ok(read), Err(error)) => panic!("prost refuses what was read as {read:?}: {error}"),
        (Err(status), Ok(expected)) => {
            let is_too_much =
                expected.raw_input_contents.len() > MAX_TENSORS || message.len() > LIMITS.max_request_bytes;
            assert!(is_too_much, "{expected:?} was refused: {status}");
        }
        (Err(_), Err(_)) => {}
    }
}

/// Whether two messages are one, also where a number in them is not itself.
fn is_same(one: &ModelInferRequest, other: &ModelInferRequest) -> bool {
    one == other || canonical(one.clone()) == canonical(other.clone())
}

/// A message's bytes, its maps in the order of their keys.
fn canonical(mut message: ModelInferRequest) -> Vec<u8> {
    let mut maps = vec![std::mem::take(&mut message.parameters)];
    maps.extend(message.inputs.iter_mut().map(|input| std::mem::take(&mut input.parameters)));
    maps.extend(message.outputs.iter_mut().map(|output| std::mem::take(&mut output.parameters)));
    let mut bytes = message.encode_to_vec();
    for map in maps {
        let mut entries: Vec<(String, InferParameter)> = map.into_iter().collect();
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (name, value) in entries {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&value.encode_to_vec());
        }
    }
    bytes
}

/// What was decoded is what stands in the message.
fn check_request(request: &InferRequest, message: &ModelInferRequest) {
    assert_eq!(request.model.as_str(), message.model_name);
    assert_eq!(request.id, message.id);
    assert!(request.outputs.iter().eq(message.outputs.iter().map(|output| &output.name)));
    assert_eq!(request.inputs.len(), message.inputs.len());
    for (index, (read, input)) in request.inputs.iter().zip(&message.inputs).enumerate() {
        let tensor = TestTensor::from(read);
        assert_eq!((&tensor.name, &tensor.shape), (&input.name, &input.shape));
        if message.raw_input_contents.is_empty() {
            check_contents(&tensor, input);
        } else {
            assert_eq!(Some(read.tensor.data()), message.raw_input_contents.get(index), "{}", input.name);
        }
    }
}

fn check_contents(tensor: &TestTensor, input: &InferInputTensor) {
    // A tensor without elements needs no contents.
    let Some(contents) = to_contents(tensor) else { return assert!(tensor.data.is_empty()) };
    let given = input.contents.clone().unwrap_or_default();
    assert_eq!(contents.encode_to_vec(), given.encode_to_vec(), "{}", input.name);
}

/// What is wrong with a call is its client's fault.
fn assert_client(status: &Status) {
    let is_client =
        matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted | Code::Unimplemented | Code::NotFound);
    assert!(is_client && !status.message().is_empty(), "{status:?}");
}

fn assert_client_or_full(status: &Status) {
    if status.code() != Code::Unavailable {
        assert_client(status);
    }
}
