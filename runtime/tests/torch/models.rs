//! Small models made here: batching, arguments and results of every kind, and each way to fail.

use std::time::Duration;

use futures::future::join_all;
use torchmodel_core::{
    inference::InferError,
    tensor::{DataType, push_bytes_element},
};
use torchmodel_crds::FailureReason;
use torchmodel_testing::fp32_values as values;

use crate::support::{ask, floats, integer, load, load_source, named, request};

const SCALE: &str = "def forward(self, x):\n  return x * self.w\n";

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_together_run_as_one_batch_and_each_gets_its_rows() {
    let spec = "{inputs: [{name: x, datatype: FP32, shape: [-1, 2]}], batching: {maxBatchSize: 8, maxDelay: 200ms}}";
    let (model, metrics) = load_source(SCALE, &[("w", 3.0)], spec).unwrap();
    let before = executions(&metrics.encode());
    let answers = join_all((0..8u8).map(|index| {
        let value = f32::from(index);
        let model = &model;
        async move { ask(model, vec![floats("x", &[1, 2], &[value, -value])]).await.unwrap() }
    }))
    .await;
    for (index, answer) in (0u8..).zip(answers) {
        let value = f32::from(index);
        assert_eq!(answer.outputs[0].tensor.shape(), [1, 2]);
        assert_eq!(values(answer.outputs[0].tensor.data()), [3.0 * value, -3.0 * value]);
    }
    assert_eq!(executions(&metrics.encode()) - before, 1, "eight rows fill the batch");
}

fn executions(metrics: &str) -> u64 {
    let line = metrics.lines().find(|line| line.starts_with("nv_inference_exec_count{")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_spoils_none_of_its_batch_mates() {
    let source = "def forward(self, x):\n  assert bool((x >= 0).all()), 'x must not be negative'\n  return x + 1\n";
    let spec = "{inputs: [{name: x, datatype: FP32, shape: [-1, 1]}], batching: {maxBatchSize: 4, maxDelay: 200ms}}";
    let (model, _) = load_source(source, &[], spec).unwrap();
    let results = join_all([1.0, -1.0, 2.0, 3.0].map(|value| {
        let model = &model;
        async move { ask(model, vec![floats("x", &[1, 1], &[value])]).await }
    }))
    .await;
    let good: Vec<f32> = results.iter().flatten().flat_map(|answer| values(answer.outputs[0].tensor.data())).collect();
    assert_eq!(good, [2.0, 3.0, 4.0]);
    assert!(matches!(&results[1], Err(InferError::InvalidRequest(text)) if text.contains("x must not be negative")));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_argument_and_result_has_a_form_in_the_protocol() {
    let source = "def forward(self, x: Tensor, n: int, f: float, on: bool, s: str, names: List[str], extra: Optional[Tensor] = None) -> Tuple[Tensor, Dict[str, Tensor], List[str], int, float, bool]:\n  y = x * n\n  if extra is not None:\n    y = y + extra\n  return (y, {'b': x + f, 'a': x}, [s, names[0]], n + len(names), f, not on)\n";
    let (model, _) = load_source(source, &[], "{}").unwrap();
    assert_eq!(model.metadata().outputs, [], "a dict's keys are known only once it ran");
    let mut texts = Vec::new();
    for text in [&b"a\0b"[..], b"", b"\xff"] {
        assert!(push_bytes_element(&mut texts, text));
    }
    let one_text = [&3u32.to_le_bytes()[..], b"\xc3\x28\0"].concat();
    let answer = ask(
        &model,
        vec![
            floats("x", &[2], &[1.0, 2.0]),
            integer("n", 5),
            named("f", DataType::Fp64, &[1], 0.5f64.to_le_bytes().to_vec()),
            named("on", DataType::Bool, &[1], vec![1]),
            named("s", DataType::Bytes, &[1], one_text.clone()),
            named("names", DataType::Bytes, &[3], texts),
        ],
    )
    .await
    .unwrap();
    let named: Vec<_> = answer.outputs.iter().map(|output| (output.name.as_str(), output.tensor.datatype())).collect();
    assert_eq!(
        named,
        [
            ("output_0", DataType::Fp32),
            ("output_1.b", DataType::Fp32),
            ("output_1.a", DataType::Fp32),
            ("output_2", DataType::Bytes),
            ("output_3", DataType::Int64),
            ("output_4", DataType::Fp64),
            ("output_5", DataType::Bool),
        ]
    );
    assert_eq!(values(answer.outputs[0].tensor.data()), [5.0, 10.0]);
    assert_eq!(values(answer.outputs[1].tensor.data()), [1.5, 2.5]);
    let strings: Vec<_> = answer.outputs[3].tensor.bytes_elements().map(Result::unwrap).collect();
    assert_eq!(strings, [&one_text[4..], b"a\0b"]);
    assert_eq!(answer.outputs[4].tensor.data()[..], 8i64.to_le_bytes());
    assert_eq!(answer.outputs[6].tensor.data()[..], [0]);
    assert_eq!(model.metadata().outputs.len(), 7, "learned from the first answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_numeric_datatype_goes_in_and_comes_out_unchanged() {
    let (model, _) = load_source("def forward(self, x):\n  return x\n", &[], "{}").unwrap();
    for (datatype, size) in [
        (DataType::Bool, 1),
        (DataType::Uint8, 1),
        (DataType::Uint16, 2),
        (DataType::Uint32, 4),
        (DataType::Uint64, 8),
        (DataType::Int8, 1),
        (DataType::Int16, 2),
        (DataType::Int32, 4),
        (DataType::Int64, 8),
        (DataType::Fp16, 2),
        (DataType::Bf16, 2),
        (DataType::Fp32, 4),
        (DataType::Fp64, 8),
    ] {
        let data: Vec<u8> =
            (0..3 * size).map(|index| if datatype == DataType::Bool { index % 2 } else { index * 7 }).collect();
        let answer = ask(&model, vec![named("x", datatype, &[3, 1], data.clone())]).await.unwrap();
        let tensor = &answer.outputs[0].tensor;
        assert_eq!((tensor.datatype(), tensor.shape(), &tensor.data()[..]), (datatype, &[3, 1][..], &data[..]));
        let empty = ask(&model, vec![named("x", datatype, &[0, 5], vec![])]).await.unwrap();
        assert_eq!(empty.outputs[0].tensor.shape(), [0, 5]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_a_request_is_never_written_to() {
    let source = "def forward(self, x):\n  x.add_(1)\n  return x\n";
    let (model, _) = load_source(source, &[], "{}").unwrap();
    let input = floats("x", &[2], &[1.0, 2.0]);
    let answer = ask(&model, vec![input.clone()]).await.unwrap();
    assert_eq!(values(answer.outputs[0].tensor.data()), [2.0, 3.0]);
    assert_eq!(values(input.tensor.data()), [1.0, 2.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_request_does_not_change_an_earlier_answer_of_a_stateful_model() {
    let source = "def forward(self, x):\n  self.w.add_(x)\n  return self.w\n";
    let spec = "{inputs: [{name: x, datatype: FP32, shape: [1]}]}";
    let (model, _) = load_source(source, &[("w", 0.0)], spec).unwrap();
    let first = ask(&model, vec![floats("x", &[1], &[1.0])]).await.unwrap();
    let second = ask(&model, vec![floats("x", &[1], &[1.0])]).await.unwrap();
    assert_eq!(values(first.outputs[0].tensor.data()), [1.0], "warm-up left no trace either");
    assert_eq!(values(second.outputs[0].tensor.data()), [2.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn freezing_and_instances_change_no_answer() {
    let spec = "{inputs: [{name: x, datatype: FP32, shape: [-1]}], optimize: {freeze: true}, instances: 3}";
    let (model, metrics) = load_source(SCALE, &[("w", 2.0)], spec).unwrap();
    for value in [1.0f32, 2.0, 3.0, 4.0] {
        let answer = ask(&model, vec![floats("x", &[1], &[value])]).await.unwrap();
        assert_eq!(values(answer.outputs[0].tensor.data()), [2.0 * value]);
    }
    assert!(metrics.encode().contains("torchmodel_instances{model=\"m\",version=\"1\"} 3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_fault_a_failing_operator_is_depends_on_what_was_declared() {
    let source = "def forward(self, x):\n  return torch.mm(x, torch.ones([3, 3]))\n";
    let (model, _) = load_source(source, &[], "{warmup: {iterations: 0}}").unwrap();
    let error = ask(&model, vec![floats("x", &[1, 2], &[1.0, 2.0])]).await.unwrap_err();
    assert!(matches!(&error, InferError::InvalidRequest(text) if text.contains("mat1 and mat2")), "{error}");
    let spec = "{inputs: [{name: x, datatype: FP32, shape: [-1, 2]}], warmup: {iterations: 0}}";
    let (model, _) = load_source(source, &[], spec).unwrap();
    let error = ask(&model, vec![floats("x", &[1, 2], &[1.0, 2.0])]).await.unwrap_err();
    assert!(matches!(&error, InferError::Internal(text) if text.contains("mat1 and mat2")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_no_form_explains_is_not_the_clients_however_little_is_declared() {
    for (source, value, text) in [
        ("def forward(self, x):\n  return 1 // int(x.sum())\n", 0.0, "division by 0"),
        ("def forward(self, x):\n  return torch.linalg_inv(x.view([1, 1]))\n", 0.0, "singular"),
    ] {
        let (model, _) = load_source(source, &[], "{}").unwrap();
        let error = ask(&model, vec![floats("x", &[1], &[value])]).await.unwrap_err();
        assert!(matches!(&error, InferError::Internal(why) if why.contains(text)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_chose_wrongly_is_told_to_the_client() {
    let source = "def forward(self, x, i: int):\n  return x[i]\n";
    let spec = "{inputs: [{name: x, datatype: FP32, shape: [2]}]}";
    let (model, _) = load_source(source, &[], spec).unwrap();
    let error = ask(&model, vec![floats("x", &[2], &[1.0, 2.0]), integer("i", 7)]).await.unwrap_err();
    assert!(matches!(&error, InferError::InvalidRequest(why) if why.contains("index 7 out of range")), "{error}");
    let source = "def forward(self, x):\n  return torch.softmax(x, 0)\n";
    let (model, _) = load_source(source, &[], "{}").unwrap();
    let error = ask(&model, vec![integer("x", 1)]).await.unwrap_err();
    let text = "\"softmax_lastdim_kernel_impl\" not implemented for 'Long'; declare datatype";
    assert!(matches!(&error, InferError::InvalidRequest(why) if why.contains(text)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_waits_for_any_more_is_answered_in_time() {
    let source = "def forward(self, x):\n  y = x\n  for i in range(60000):\n    y = y + 1\n  return y\n";
    let spec =
        "{inputs: [{name: x, datatype: FP32, shape: [1]}], warmup: {iterations: 0}, limits: {requestTimeout: 20ms}}";
    let (model, _) = load_source(source, &[], spec).unwrap();
    let error = ask(&model, vec![floats("x", &[1], &[1.0])]).await.unwrap_err();
    assert!(matches!(error, InferError::DeadlineExceeded(_)), "{error}");
    let mut hopeless = request(vec![floats("x", &[1], &[1.0])]);
    hopeless.deadline = Some(std::time::Instant::now());
    assert!(matches!(model.infer(hopeless).await, Err(InferError::DeadlineExceeded(_))));
}

#[test]
fn what_cannot_be_loaded_says_why() {
    for (source, spec, reason, text) in [
        (SCALE, "{method: nope}", FailureReason::SignatureShapeMismatch, "no method 'nope'; it has forward"),
        (
            SCALE,
            "{inputs: [{name: y}]}",
            FailureReason::SignatureShapeMismatch,
            "names 'y', but method 'forward' takes x",
        ),
        (
            SCALE,
            "{outputs: [{name: a}, {name: b}]}",
            FailureReason::SignatureShapeMismatch,
            "declares 2 outputs, but method 'forward' returns 1",
        ),
        (
            SCALE,
            "{inputs: [{name: x, datatype: BYTES}]}",
            FailureReason::SignatureShapeMismatch,
            "which an argument of its type does not take",
        ),
        (
            SCALE,
            "{inputs: [{name: x, datatype: FP32, shape: [1]}], outputs: [{name: y, datatype: INT8}]}",
            FailureReason::SignatureShapeMismatch,
            "declares 'y' as INT8, but the model gives FP32",
        ),
        (
            SCALE,
            "{inputs: [{name: x, datatype: FP32, shape: [-1, 3]}], outputs: [{name: y, shape: [-1, 4]}]}",
            FailureReason::SignatureShapeMismatch,
            "but the model gives [1, 3]",
        ),
        (
            "def forward(self, x: Dict[str, Tensor]):\n  return x['a']\n",
            "{}",
            FailureReason::SignatureShapeMismatch,
            "argument 'x' has type Dict[str, Tensor]",
        ),
        (
            "def forward(self, x):\n  return torch.mm(x, x)\n",
            "{inputs: [{name: x, datatype: FP32, shape: [3]}]}",
            FailureReason::WarmupFailed,
            "self must be a matrix",
        ),
        (
            SCALE,
            "{warmup: {inputs: [{name: x, fill: abc}]}, inputs: [{name: x, datatype: FP32, shape: [1]}]}",
            FailureReason::WarmupFailed,
            "fill 'abc' is not a FP32",
        ),
        (
            SCALE,
            "{warmup: {inputs: [{name: z}]}}",
            FailureReason::WarmupFailed,
            "names 'z', which the model does not take",
        ),
    ] {
        let failure = load_source(source, &[("w", 1.0)], spec).err().unwrap_or_else(|| panic!("{spec} loaded"));
        assert_eq!(failure.reason, reason, "{spec}: {}", failure.message);
        assert!(failure.message.contains(text), "{spec}: {}", failure.message);
    }
}

#[test]
fn a_file_that_is_not_torchscript_is_told_so() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("weights.pt");
    std::fs::write(&path, b"PK\x03\x04 but not an archive").unwrap();
    let failure = load(&path, "{}").err().unwrap();
    assert_eq!(failure.reason, FailureReason::NotTorchScript, "{}", failure.message);
    assert!(failure.hint.contains("torch.jit.save"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once() {
    let source = "def forward(self, x):\n  y = x\n  for i in range(40000):\n    y = y + 1\n  return y\n";
    let spec = "{inputs: [{name: x, datatype: FP32, shape: [1]}], warmup: {iterations: 0}, limits: {maxQueue: 1, requestTimeout: 30s}}";
    let (model, _) = load_source(source, &[], spec).unwrap();
    let asked = join_all(
        (0..4).map(|_| tokio::time::timeout(Duration::from_secs(60), ask(&model, vec![floats("x", &[1], &[1.0])]))),
    );
    let results = asked.await;
    let refused = results.iter().filter(|result| matches!(result, Ok(Err(InferError::Overloaded(_))))).count();
    assert!((2..=3).contains(&refused), "one runs, one waits, the others are refused: {results:?}");
}

/// One text as a BYTES input.
fn text(name: &str, value: &str) -> torchmodel_core::inference::NamedTensor {
    let mut data = Vec::new();
    assert!(push_bytes_element(&mut data, value.as_bytes()));
    named(name, DataType::Bytes, &[1], data)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_in_a_request_cannot_make_a_device_look_lost_or_show_the_models_source() {
    let source = "def forward(self, s: str) -> int:\n  d = {'known': 7}\n  return d[s]\n";
    let (model, _) = load_source(source, &[], "{}").unwrap();
    for word in ["zz", "CUDA error: x", "a\nRuntimeError: CUDA error: x", "CUDA out of memory"] {
        let error = ask(&model, vec![text("s", word)]).await.unwrap_err();
        assert!(!matches!(&error, InferError::Internal(_)), "{word}: {error}");
        assert!(!error.to_string().contains("return d[s]"), "{error}");
    }
    let answer = ask(&model, vec![text("s", "known")]).await.unwrap();
    assert_eq!(answer.outputs[0].tensor.data()[..], 7i64.to_le_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dict_with_other_keys_than_at_warm_up_is_named_by_its_own() {
    let source = "def forward(self, x):\n  out: Dict[str, Tensor] = {}\n  if bool(x.sum() > 0):\n    out['dog'] = x\n  else:\n    out['cat'] = x\n  return out\n";
    let (model, _) = load_source(source, &[], "{inputs: [{name: x, datatype: FP32, shape: [1]}]}").unwrap();
    for (value, key) in [(1.0, "dog"), (-1.0, "cat")] {
        let answer = ask(&model, vec![floats("x", &[1], &[value])]).await.unwrap();
        assert_eq!(answer.outputs[0].name, key);
    }
}

#[test]
fn a_model_that_cannot_be_batched_is_told_so_at_load() {
    let spec = "{inputs: [{name: x, datatype: FP32, shape: [-1, 2]}], batching: {maxBatchSize: 4}}";
    let failure = load_source("def forward(self, x):\n  return x.sum().unsqueeze(0)\n", &[], spec).err().unwrap();
    assert_eq!(failure.reason, FailureReason::SignatureShapeMismatch);
    assert!(failure.message.contains("cannot be batched"), "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_model_that_keeps_its_input_does_not_write_to_the_requests_memory() {
    let source = "def forward(self, x):\n  self.w.add_(1)\n  self.w = x\n  return x.clone()\n";
    let (model, _) = load_source(source, &[("w", 0.0)], "{warmup: {iterations: 0}}").unwrap();
    let input = floats("x", &[1], &[5.0]);
    for _ in 0..3 {
        ask(&model, vec![input.clone()]).await.unwrap();
    }
    assert_eq!(values(input.tensor.data()), [5.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_texts_takes_bytes_of_any_shape() {
    let source = "def forward(self, names: List[str]) -> Tuple[int, List[str]]:\n  return len(names), names\n";
    let (model, _) = load_source(source, &[], "{}").unwrap();
    let mut texts = Vec::new();
    for text in [&b"a"[..], b"", b"bc", b"d"] {
        assert!(push_bytes_element(&mut texts, text));
    }
    for shape in [&[4][..], &[1, 4], &[2, 2], &[4, 1, 1]] {
        let answer = ask(&model, vec![named("names", DataType::Bytes, shape, texts.clone())]).await.unwrap();
        assert_eq!(answer.outputs[0].tensor.data()[..], 4i64.to_le_bytes(), "{shape:?}");
        assert_eq!(answer.outputs[1].tensor.data()[..], texts[..]);
    }
}
