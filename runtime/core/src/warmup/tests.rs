//! How long a warm-up goes on and what it measures, with an engine whose times are literal.

use std::sync::{Arc, Mutex};

use torchmodel_crds::ModelSpec;

use super::*;
use crate::{
    engine::{BoxedInstance, Execution, Instance, boxed},
    inference::NamedTensor,
    interface::{ArgumentInterface, Interface, MethodInterface, ValueType},
    plan::{DeviceKind, Machine},
    tensor::Tensor,
};

/// A run, as the engine saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    rows: i64,
    threads: usize,
    /// How many runs of as many rows came before it.
    earlier: usize,
}

/// An engine that gives its input back and says how long that took.
#[derive(Clone)]
struct Timed {
    runs: Arc<Mutex<Vec<Run>>>,
    threads: usize,
    takes_us: fn(Run) -> u64,
}

impl Timed {
    fn new(takes_us: fn(Run) -> u64) -> Self {
        Self { runs: Arc::default(), threads: 0, takes_us }
    }

    fn runs_of(&self, rows: i64) -> usize {
        self.runs.lock().unwrap().iter().filter(|run| run.rows == rows).count()
    }
}

impl Instance for Timed {
    type Staged = Vec<EngineInput>;
    type Ticket = Vec<EngineInput>;

    fn set_threads(&mut self, count: usize) {
        self.threads = count;
    }

    fn copy(&self) -> Result<Option<BoxedInstance>, Failure> {
        Ok(Some(boxed(self.clone())))
    }

    fn stage(&mut self, inputs: Vec<EngineInput>) -> Result<Self::Staged, EngineError> {
        Ok(inputs)
    }

    fn launch(&mut self, staged: Self::Staged) -> Result<Self::Ticket, EngineError> {
        Ok(staged)
    }

    fn finish(&mut self, inputs: Self::Ticket) -> Result<Execution, EngineError> {
        let input = &inputs[0];
        let run = Run { rows: input.shape[0], threads: self.threads, earlier: self.runs_of(input.shape[0]) };
        self.runs.lock().unwrap().push(run);
        let data = input.parts[0].host().unwrap().clone();
        let tensor = Tensor::new(input.datatype, input.shape.clone(), data).unwrap();
        let compute_infer = Duration::from_micros((self.takes_us)(run));
        let timings = ExecutionTimings { compute_infer, ..ExecutionTimings::default() };
        Ok(Execution { outputs: vec![NamedTensor { name: String::new(), tensor }], timings })
    }
}

/// Warms `engine` up for a method `forward(x)` on four processors.
fn warm(engine: &Timed, is_stateful: bool, spec: &str) -> Result<Warmed, Failure> {
    let method = MethodInterface {
        name: "forward".into(),
        arguments: vec![ArgumentInterface { name: "x".into(), value_type: ValueType::Tensor, has_default: false }],
        returns: ValueType::Tensor,
        is_stateful,
        mutates_inputs: false,
        duration_depends_on_values: false,
    };
    let interface = Interface { methods: vec![method] };
    let spec: ModelSpec = serde_json::from_str(spec).unwrap();
    let config = ModelConfig::check(&spec, Some("m".into())).unwrap();
    let plan = ExecutionPlan::of(&interface, &config, &Machine { cpus: 4, devices: vec![DeviceKind::Cpu] })?;
    let mut binding = Binding::new(&interface, &config, &plan)?;
    let warmup = Warmup::of(&config, binding.signature(), &plan)?;
    let mut instance = boxed(engine.clone());
    warmup.run(instance.as_mut(), &plan, &mut binding)
}

const BATCHED: &str = r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}], "batching": {"maxBatchSize": 8}, "optimize": {"intraOpThreads": 2}}"#;

#[test]
fn every_size_is_run_until_two_runs_take_about_the_same_time() {
    // A compiler is at work in the first five runs of each size.
    let engine = Timed::new(|run| if run.earlier < 5 { 400_000 >> run.earlier } else { 1000 });
    warm(&engine, false, BATCHED).unwrap();
    assert_eq!([1, 2, 8].map(|rows| engine.runs_of(rows)), [7, 7, 7]);
    let steady = Timed::new(|_| 1000);
    warm(&steady, false, BATCHED).unwrap();
    assert_eq!([1, 2, 8].map(|rows| steady.runs_of(rows)), [3, 3, 3], "the fewest that the configuration asks for");
}

#[test]
fn a_model_whose_times_never_settle_is_ready_after_a_bounded_number_of_runs() {
    let engine = Timed::new(|run| if run.earlier % 2 == 0 { 1000 } else { 9000 });
    warm(&engine, false, BATCHED).unwrap();
    assert_eq!([1, 2, 8].map(|rows| engine.runs_of(rows)), [16, 16, 16]);
}

#[test]
fn one_thread_is_measured_against_all_with_the_largest_batch() {
    let spec = BATCHED.replace("\"intraOpThreads\": 2", "");
    let shared = Timed::new(|run| 40_000 / u64::try_from(run.threads).unwrap());
    assert_eq!(warm(&shared, false, &spec).unwrap().threads, 4);
    let alone = Timed::new(|run| if run.rows == 8 { 1000 - 50 * u64::try_from(run.threads).unwrap() } else { 100 });
    let warmed = warm(&alone, false, &spec).unwrap();
    assert_eq!(warmed.threads, 1);
    let runs = alone.runs.lock().unwrap();
    assert!(runs.iter().any(|run| (run.rows, run.threads) == (8, 4)) && runs.iter().any(|run| run.threads == 1));
    drop(runs);
    let chosen = warm(&shared, false, BATCHED).unwrap();
    assert_eq!(chosen.threads, 2, "what the configuration says is not measured");
}

#[test]
fn what_may_run_on_the_submitting_thread_is_the_largest_size_that_is_over_soon() {
    let spec = BATCHED.replace("\"intraOpThreads\": 2", "\"intraOpThreads\": 1");
    let engine = Timed::new(|run| 60 * u64::try_from(run.rows).unwrap());
    assert_eq!(
        warm(&engine, false, &spec).unwrap().inline_bytes,
        2 * 2 * 4,
        "two rows of two floats; eight take 480 us"
    );
    assert_eq!(warm(&engine, false, BATCHED).unwrap().inline_bytes, 0, "not with two threads");
}

#[test]
fn a_stateful_model_warms_a_copy_and_serves_with_the_threads_that_were_measured() {
    let engine = Timed::new(|run| 40_000 / u64::try_from(run.threads).unwrap());
    let spec = r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [2]}]}"#;
    assert_eq!(warm(&engine, true, spec).unwrap().threads, 4);
    assert!(engine.runs_of(2) >= 3, "the copy shares what is compiled");
}

#[test]
fn a_model_without_declared_inputs_is_not_warmed_up() {
    let engine = Timed::new(|_| 0);
    assert_eq!(warm(&engine, false, "{}").unwrap(), Warmed { threads: 4, inline_bytes: 0 });
    assert!(engine.runs.lock().unwrap().is_empty());
    let values = r#"{"warmup": {"inputs": [{"name": "x", "fill": "1"}]}}"#;
    assert!(warm(&engine, false, values).unwrap_err().message.contains("has no declared datatype"));
}
