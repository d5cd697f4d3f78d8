//! State: found in the code or by running it, overruled by the configuration, and never shared by accident.

use std::path::PathBuf;

use futures::future::join_all;
use tempfile::TempDir;
use torchmodel_core::{metrics::Metrics, version::Version};
use torchmodel_crds::Failure;
use torchmodel_testing::fp32_values as values;

use crate::support::{Model, ask, floats, load, load_source};

/// A method with a list to keep things in, and a captured constant.
fn keeper(body: &str, spec: &str) -> Result<(Model, Metrics), Failure> {
    let source = format!(
        "class Model(Module):\n  __parameters__ = []\n  __buffers__ = [\"w\", ]\n  w : Tensor\n  cache : List[Tensor]\n  training : bool\n  \
         def forward(self: __torch__.Model, x: Tensor) -> Tensor:\n    {body}\n"
    );
    let folder = TempDir::new().unwrap();
    let path: PathBuf = folder.path().join("m.pt");
    torch_shim::define_classes(&source, &path).unwrap();
    load(&path, spec)
}

const BATCHED: &str =
    "inputs: [{name: x, datatype: FP32, shape: [-1, 1]}], batching: {maxBatchSize: 8, maxDelay: 200ms}, instances: 2";

fn property(model: &Version, name: &str) -> Option<String> {
    model.metadata().properties.get(name).cloned()
}

fn instances(metrics: &Metrics) -> String {
    let metrics = metrics.encode();
    metrics
        .lines()
        .find_map(|line| line.strip_prefix("torchmodel_instances{model=\"m\",version=\"1\"} "))
        .unwrap()
        .into()
}

/// The answers to so many requests of one row that holds 1.
async fn ask_ones(model: &Version, count: usize) -> Vec<f32> {
    let answers = join_all((0..count).map(|_| ask(model, vec![floats("x", &[1, 1], &[1.0])]))).await;
    answers.into_iter().flat_map(|answer| values(answer.unwrap().outputs[0].tensor.data())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_method_keeps_in_a_list_or_a_constant_is_state_that_starts_as_saved() {
    for body in [
        "return torch.clone(torch.add_(self.cache[0], torch.mean(x)))",
        "return torch.clone(torch.add_(CONSTANTS.c0, torch.mean(x)))",
    ] {
        let (model, metrics) = keeper(body, &format!("{{{BATCHED}}}")).unwrap();
        assert_eq!(property(&model, "stateful").as_deref(), Some("true"), "{body}");
        assert_eq!(property(&model, "max_batch_size"), None);
        assert_eq!(instances(&metrics), "1");
        let mut answers = ask_ones(&model, 4).await;
        answers.sort_by(f32::total_cmp);
        assert_eq!(
            answers,
            [2.0, 3.0, 4.0, 5.0],
            "{body}: four requests ran one by one, and the warm-up left no trace"
        );
    }
}

/// A cast to the type that the tensor has gives that very tensor, which this operator's schema keeps to itself.
const HIDDEN: &str = "return torch.clone(torch.add_(torch._cast_Float(self.w), torch.mean(x)))";

#[tokio::test(flavor = "multi_thread")]
async fn state_that_the_code_does_not_show_is_found_by_running_it() {
    let (model, metrics) =
        keeper(HIDDEN, &format!("{{{BATCHED}, warmup: {{inputs: [{{name: x, fill: '1'}}]}}}}")).unwrap();
    assert_eq!(property(&model, "stateful").as_deref(), Some("true"));
    assert_eq!(instances(&metrics), "1");
    assert_eq!(ask_ones(&model, 1).await, [2.0], "the first client finds the model as it was saved");
    assert_eq!(ask_ones(&model, 1).await, [3.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_overrules_what_was_found() {
    let writes = "w = torch.add_(self.w, 1)\n    return torch.mul(x, 2)";
    let (model, metrics) = keeper(writes, &format!("{{{BATCHED}, stateful: false}}")).unwrap();
    assert_eq!(property(&model, "stateful").as_deref(), Some("false"));
    assert_eq!((property(&model, "max_batch_size").as_deref(), &*instances(&metrics)), (Some("8"), "2"));
    assert_eq!(ask_ones(&model, 16).await, [2.0; 16]);
    let (model, metrics) = keeper("return torch.mul(x, 2)", &format!("{{{BATCHED}, stateful: true}}")).unwrap();
    assert_eq!(property(&model, "stateful").as_deref(), Some("true"));
    assert_eq!((property(&model, "max_batch_size"), &*instances(&metrics)), (None, "1"));
    assert_eq!(ask_ones(&model, 4).await, [2.0; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_methods_state_costs_the_served_one_no_instances() {
    let source = "def reset(self):\n  self.w.zero_()\n  return self.w\ndef forward(self, x):\n  return x * self.w\n";
    let (model, metrics) = load_source(source, &[("w", 3.0)], &format!("{{{BATCHED}}}")).unwrap();
    assert_eq!((property(&model, "stateful").as_deref(), &*instances(&metrics)), (Some("false"), "2"));
    assert_eq!(ask_ones(&model, 4).await, [3.0; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn random_numbers_are_no_state() {
    let source = "def forward(self, x):\n  return x + 0 * torch.rand_like(x)\n";
    let (model, metrics) = load_source(source, &[], &format!("{{{BATCHED}}}")).unwrap();
    assert_eq!((property(&model, "stateful").as_deref(), &*instances(&metrics)), (Some("false"), "2"));
    let source = "def forward(self, x):\n  return torch.rand_like(x)\n";
    let (model, _) = load_source(source, &[], &format!("{{{BATCHED}}}")).unwrap();
    assert_eq!(property(&model, "stateful").as_deref(), Some("false"));
}
