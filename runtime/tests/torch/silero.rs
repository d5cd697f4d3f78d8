//! Silero VAD, a model that nobody here made: what is served equals, bit for bit, what libtorch answers when called directly.

use std::path::{Path, PathBuf};

use tch::{CModule, IValue, Tensor as TchTensor};
use torchmodel_testing::fp32_values as values;

use crate::support::{floats, integer, load, serve};

const RATE: i64 = 16_000;
const WINDOW: usize = 512;

fn demo_file(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/demo").join(name);
    assert!(path.exists(), "{} is missing: run `make demo-files`", path.display());
    path
}

/// Samples of a 48 kHz mono recording at 16 kHz, cut to whole windows.
fn recording(name: &str) -> Vec<f32> {
    let wav = std::fs::read(demo_file(name)).unwrap();
    let position = wav.windows(4).position(|tag| tag == b"data").unwrap();
    let samples: Vec<f32> =
        wav[position + 8..].as_chunks::<2>().0.iter().map(|bytes| f32::from(i16::from_le_bytes(*bytes))).collect();
    let thirds = samples.as_chunks::<3>().0.iter().map(|third| third.iter().sum::<f32>() / 3.0 / 32768.0);
    let mut thirds: Vec<f32> = thirds.collect();
    thirds.truncate(thirds.len() / WINDOW * WINDOW);
    thirds
}

fn direct(module: &CModule, method: &str, audio: &[f32]) -> Vec<f32> {
    let x = TchTensor::from_slice(audio).unsqueeze(0);
    let IValue::Tensor(answer) = module.method_is(method, &[IValue::Tensor(x), IValue::Int(RATE)]).unwrap() else {
        panic!("not a tensor")
    };
    Vec::<f32>::try_from(answer.flatten(0, -1)).unwrap()
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value)).sum::<f64>() / f64::from(u32::try_from(values.len()).unwrap())
}

fn max(values: &[f32]) -> f64 {
    values.iter().copied().map(f64::from).fold(0.0, f64::max)
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_recordings_are_answered_as_by_a_direct_call_over_both_protocols() {
    let spec = "{method: audio_forward, inputs: [{name: x, datatype: FP32, shape: [1, -1]}], outputs: [{name: speech}], \
                warmup: {inputs: [{name: x, shape: [1, 1024]}, {name: sr, fill: '16000'}]}}";
    let served = serve(load(&demo_file("silero_vad.jit"), spec).unwrap()).await;
    let module = CModule::load(demo_file("silero_vad.jit")).unwrap();
    for (name, windows, highest, average) in [("Front_Center.wav", 44, 0.99999, 0.720), ("Noise.wav", 43, 0.032, 0.013)]
    {
        let audio = recording(name);
        let expected = direct(&module, "audio_forward", &audio);
        let shape = [1, i64::try_from(audio.len()).unwrap()];
        let raw = served.ask_grpc(&[floats("x", &shape, &audio), integer("sr", RATE)]).await.unwrap();
        assert_eq!(values(&raw[0]), expected, "{name} over gRPC");
        let body = serde_json::json!({"inputs": [
            {"name": "x", "shape": shape, "datatype": "FP32", "data": audio},
            {"name": "sr", "shape": [1], "datatype": "INT64", "data": [RATE]},
        ]});
        let (status, answer) = served.post(body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        let output = &answer["outputs"][0];
        assert_eq!(output["name"], "speech");
        let data: Vec<f32> = serde_json::from_value(output["data"].clone()).unwrap();
        assert_eq!(data, expected, "{name} over REST");
        assert_eq!(data.len(), windows);
        assert!((max(&data) - highest).abs() < 5e-4 && (mean(&data) - average).abs() < 5e-4, "{name}: {data:?}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_method_keeps_its_state_between_requests_and_starts_as_saved() {
    let spec = "{inputs: [{name: x, datatype: FP32, shape: [1, 512]}], batching: {maxBatchSize: 8}, instances: 4, \
                warmup: {inputs: [{name: sr, fill: '16000'}]}}";
    let served = serve(load(&demo_file("silero_vad.jit"), spec).unwrap()).await;
    let metadata = served.service.model_metadata(&"m".parse().unwrap(), None).unwrap();
    assert_eq!(metadata.properties["stateful"], "true");
    assert!(!metadata.properties.contains_key("max_batch_size"), "a stateful model is never batched");
    let module = CModule::load(demo_file("silero_vad.jit")).unwrap();
    let mut speech = Vec::new();
    for window in recording("Front_Center.wav").as_chunks::<WINDOW>().0 {
        let expected = direct(&module, "forward", window);
        let raw = served.ask_grpc(&[floats("x", &[1, 512], window), integer("sr", RATE)]).await.unwrap();
        assert_eq!(values(&raw[0]), expected);
        speech.extend(expected);
    }
    assert_eq!(speech.len(), 44);
    assert!((max(&speech) - 0.99999).abs() < 5e-6 && (mean(&speech) - 0.720).abs() < 5e-4);
    let metrics = served.metrics.encode();
    assert!(metrics.contains("torchmodel_instances{model=\"m\",version=\"1\"} 1"), "one instance whatever was asked");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_model_itself_refuses_is_the_clients_fault() {
    let served = serve(load(&demo_file("silero_vad.jit"), "{warmup: {iterations: 0}}").unwrap()).await;
    let body = serde_json::json!({"inputs": [
        {"name": "x", "shape": [1, 600], "datatype": "FP32", "data": vec![0.0; 600]},
        {"name": "sr", "shape": [1], "datatype": "INT64", "data": [RATE]},
    ]});
    let (status, answer) = served.post(body.to_string()).await;
    let error = answer["error"].as_str().unwrap();
    assert_eq!(status, 400, "{error}");
    assert!(error.contains("Provided number of samples is 600"), "{error}");
    served.stop().await;
}
