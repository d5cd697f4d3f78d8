//! How fast REST's JSON is read and written, on one core: `cargo run --release -p torchmodel-server --example json_speed`.
//!
//! Prints megabytes of text per second for the server's decoder and encoder, beside what they replaced: a validating pass of serde's
//! and a second pass that cuts the text and parses each number with the standard library.

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use torchmodel_core::{
    inference::{InferResponse, NamedTensor, Parameters},
    model_key::ModelVersion,
    tensor::{DataType, Tensor},
};
use torchmodel_server::{
    admission::Admission,
    protocol::Limits,
    rest::offline::{RequestBody, decode, encode},
};

const COUNT: usize = 1 << 15;
const RUNS: usize = 200;

/// The best of some runs, in megabytes per second.
fn speed(bytes: usize, mut work: impl FnMut()) -> f64 {
    let times = (0..RUNS).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let bytes = bytes as f64;
    bytes / times.fold(f64::MAX, f64::min) / 1e6
}

/// What reading was before: validate, then cut and parse.
fn two_passes(array: &str) -> Vec<u8> {
    serde_json::from_str::<serde::de::IgnoredAny>(array).expect("it is JSON");
    let mut out = Vec::with_capacity(4 * COUNT);
    let mut rest = array.get(1..).unwrap_or_default();
    while let Some(end) = rest.bytes().position(|byte| matches!(byte, b',' | b']' | b' ' | b'\n')) {
        let value: f32 = rest.get(..end).and_then(|text| text.parse().ok()).expect("it is a number");
        out.extend_from_slice(&value.to_le_bytes());
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    out
}

fn measure(what: &str, values: &[f32], text: impl Fn(f32) -> String) {
    let array = format!("[{}]", values.iter().map(|value| text(*value)).collect::<Vec<_>>().join(","));
    let json =
        Bytes::from(format!(r#"{{"inputs":[{{"name":"x","shape":[{COUNT}],"datatype":"FP32","data":{array}}}]}}"#));
    let admission = Admission::new(1 << 30);
    let pieces: Vec<Bytes> =
        (0..json.len()).step_by(64 << 10).map(|at| json.slice(at..json.len().min(at + (64 << 10)))).collect();
    let body = |pieces| RequestBody {
        model: "m".parse().expect("a name"),
        header_length: None,
        content_encoding: None,
        pieces,
        is_announced: true,
        metadata: None,
    };
    let whole = [json.clone()];
    let read = |pieces| drop(black_box(decode(&body(pieces), Limits::default(), &admission).expect("it is right")));
    let old = speed(array.len(), || drop(black_box(two_passes(&array))));
    let new = speed(json.len(), || read(&whole));
    let cut = speed(json.len(), || read(&pieces));
    println!("in  {what:24} {new:6.0} MB/s, in pieces of 64 KiB {cut:6.0}; two passes {old:6.0}");
}

fn main() {
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u16::try_from(state >> 48).map_or(0.0, f32::from) / 32768.0 - 1.0
            + f32::from(state.to_le_bytes()[5]) / 8_388_608.0
    };
    let values: Vec<f32> = (0..COUNT).map(|_| random()).collect();
    measure("shortest FP32", &values, |value| format!("{value:?}"));
    measure("Python's (FP64 of FP32)", &values, |value| format!("{:?}", f64::from(value)));
    measure("four decimals", &values, |value| format!("{value:.4}"));
    measure("whole numbers", &values, |value| format!("{:.0}", value * 1000.0));

    let admission = Admission::new(1 << 30);
    let data: Bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into();
    let response = || InferResponse {
        model: "m".parse().expect("a name"),
        version: ModelVersion::FIRST,
        id: String::new(),
        outputs: vec![NamedTensor {
            name: "y".into(),
            tensor: Tensor::new(DataType::Fp32, vec![1 << 15], data.clone()).expect("it fits"),
        }],
        parameters: Parameters::new(),
    };
    let bytes: usize = encode(response(), &admission).expect("it is right").iter().map(Bytes::len).sum();
    let new = speed(bytes, || drop(black_box(encode(response(), &admission))));
    let old = speed(bytes, || {
        let mut out = Vec::with_capacity(COUNT * 10);
        for value in &values {
            serde_json::to_writer(&mut out, value).expect("a Vec takes every text");
            out.push(b',');
        }
        black_box(out);
    });
    println!("out {:24} {new:6.0} MB/s; serde_json {old:6.0}", "shortest FP32");
}
