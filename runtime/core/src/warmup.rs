//! The inferences that run before a model is ready.
//!
//! [`Warmup::of`] is pure: from the configuration, the signature and the plan to the inputs of each run. [`Warmup::run`] drives any
//! engine through them on the instance's own thread: each batch size until two runs after each other take about the same time, then
//! one thread against all where the plan says to measure. Invariant: an input whose form is not known makes the warm-up empty, with
//! a log line, unless the configuration asked for values, which is then an error.

use std::time::{Duration, Instant};

use bytes::Bytes;
use half::{bf16, f16};
use torchmodel_crds::{Failure, FailurePhase, FailureReason};

use crate::{
    binding::Binding,
    config::ModelConfig,
    engine::{DynInstance, EngineError, EngineInput, ExecutionTimings},
    plan::{ExecutionPlan, Threads},
    signature::{InputSignature, Signature},
    tensor::{DataType, DataTypeExt as _, TensorData, element_count, push_bytes_element},
};

/// Largest warm-up input, so that a wrong shape is an error and not an allocation.
const MAX_INPUT_BYTES: usize = 1 << 32;
/// Two runs take about the same time when they differ by no more than one part in so many, or than [`NOISE`].
const STEADY_PART: u32 = 4;
/// What a machine that does other things too adds to any run.
const NOISE: Duration = Duration::from_micros(50);
/// Runs of which the fastest tells how long a batch takes.
const MEASURED_RUNS: usize = 3;

/// The runs of one model's warm-up.
#[derive(Clone, Debug, Default)]
pub struct Warmup {
    model: String,
    runs: Vec<Vec<EngineInput>>,
    /// Whether the configuration gave values, so that the model has no right to refuse them.
    has_values: bool,
}

/// What a warm-up taught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warmed {
    /// Threads to serve with.
    pub threads: usize,
    /// The most input bytes of a run that was short enough to be done on the submitting thread; 0 for none.
    pub inline_bytes: usize,
}

fn failure(message: String) -> Failure {
    Failure::new(FailurePhase::Warmup, FailureReason::WarmupFailed, message)
}

impl Warmup {
    /// The inputs of one run for each of the plan's batch sizes; none when there is nothing to run.
    pub fn of(config: &ModelConfig, signature: &Signature, plan: &ExecutionPlan) -> Result<Self, Failure> {
        let warmup = &config.warmup;
        if let Some(unknown) =
            warmup.inputs.iter().find(|input| !signature.inputs.iter().any(|known| known.name == input.name))
        {
            return Err(failure(format!(
                "model.warmup.inputs names '{}', which the model does not take",
                unknown.name
            )));
        }
        let mut planned =
            Self { model: config.name.to_string(), runs: Vec::new(), has_values: !warmup.inputs.is_empty() };
        if plan.warmup.minimum_runs == 0 {
            return Ok(planned);
        }
        for batch_size in &plan.warmup.batch_sizes {
            let Some(inputs) = inputs(config, signature, *batch_size)? else {
                planned.runs.clear();
                return Ok(planned);
            };
            planned.runs.push(inputs);
        }
        Ok(planned)
    }

    /// The inputs of each run, those of the smallest batch first.
    #[must_use]
    pub fn runs(&self) -> &[Vec<EngineInput>] {
        &self.runs
    }

    /// Runs them, teaches `binding` what came out, and leaves the instance with the threads that it is to serve with.
    pub fn run(
        &self,
        instance: &mut dyn DynInstance,
        plan: &ExecutionPlan,
        binding: &mut Binding,
    ) -> Result<Warmed, Failure> {
        let (Threads::Fixed(initial) | Threads::Measured { maximum: initial }) = plan.threads;
        instance.set_threads(initial);
        let mut warmed = Warmed { threads: initial, inline_bytes: 0 };
        if self.runs.is_empty() {
            return Ok(warmed);
        }
        let started = Instant::now();
        let mut copy = if plan.warmup.is_on_a_copy { instance.copy()? } else { None };
        let subject: &mut dyn DynInstance = match &mut copy {
            Some(copy) => copy.as_mut(),
            None => &mut *instance,
        };
        subject.set_threads(initial);
        let mut count = 0;
        for inputs in &self.runs {
            match steady(subject, plan, binding, inputs) {
                Ok(runs) => count += runs,
                Err(Unwarmed::Run(EngineError::Refused(why))) if !self.has_values => {
                    tracing::warn!(
                        model = self.model,
                        "warm-up skipped: the model refuses zeros ({why}); give model.warmup.inputs values that it takes, or the \
                         first requests will be slow"
                    );
                    return Ok(warmed);
                }
                Err(Unwarmed::Run(error)) => return Err(run_failure(&error)),
                Err(Unwarmed::Output(failure)) => return Err(failure),
            }
        }
        warmed.threads = self.measured_threads(subject, plan.threads)?;
        warmed.inline_bytes = self.inline_bytes(subject, plan, warmed.threads)?;
        instance.set_threads(warmed.threads);
        tracing::info!(
            model = self.model,
            runs = count,
            threads = warmed.threads,
            elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "warmed up"
        );
        Ok(warmed)
    }

    /// One thread or all, by what the largest batch takes; leaves the instance with that many.
    fn measured_threads(&self, instance: &mut dyn DynInstance, threads: Threads) -> Result<usize, Failure> {
        let maximum = match threads {
            Threads::Fixed(count) => return Ok(count),
            Threads::Measured { maximum } => maximum,
        };
        let Some(batch) = self.runs.last() else { return Ok(maximum) };
        let with_all = fastest(instance, batch)?;
        instance.set_threads(1);
        let with_one = fastest(instance, batch)?;
        let chosen = ExecutionPlan::threads_from(maximum, with_one, with_all);
        instance.set_threads(chosen);
        tracing::info!(
            model = self.model,
            threads = chosen,
            one_us = u64::try_from(with_one.as_micros()).unwrap_or(u64::MAX),
            all_us = u64::try_from(with_all.as_micros()).unwrap_or(u64::MAX),
            "measured a batch with one thread and with {maximum}"
        );
        Ok(chosen)
    }

    /// The bytes of the largest run that is over so soon that waking a thread for it would take longer.
    fn inline_bytes(
        &self,
        instance: &mut dyn DynInstance,
        plan: &ExecutionPlan,
        threads: usize,
    ) -> Result<usize, Failure> {
        let mut bytes = 0;
        if threads != 1 || plan.hand_off.inline_below.is_zero() {
            return Ok(bytes);
        }
        for inputs in &self.runs {
            if fastest(instance, inputs)? >= plan.hand_off.inline_below {
                break;
            }
            bytes = inputs.iter().flat_map(|input| &input.parts).map(TensorData::size_bytes).sum();
        }
        Ok(bytes)
    }
}

/// Why a warm-up run did not count.
enum Unwarmed {
    /// It gave nothing.
    Run(EngineError),
    /// It gave what the configuration rules out.
    Output(Failure),
}

/// Runs `inputs` until two runs after each other take about the same time: as often as the plan says at least, and at most. Gives
/// the number of runs.
fn steady(
    instance: &mut dyn DynInstance,
    plan: &ExecutionPlan,
    binding: &mut Binding,
    inputs: &[EngineInput],
) -> Result<u32, Unwarmed> {
    let mut last: Option<Duration> = None;
    for count in 1..=plan.warmup.maximum_runs {
        let execution = instance.execute(inputs.to_vec()).map_err(Unwarmed::Run)?;
        let elapsed = total(&execution.timings);
        let outputs = binding.named(execution.outputs).map_err(Unwarmed::Run)?;
        binding.learn(&outputs, inputs).map_err(Unwarmed::Output)?;
        if count >= plan.warmup.minimum_runs && last.is_some_and(|last| is_about(last, elapsed)) {
            return Ok(count);
        }
        last = Some(elapsed);
    }
    Ok(plan.warmup.maximum_runs)
}

/// How long a run took by the engine's own clock.
fn total(timings: &ExecutionTimings) -> Duration {
    timings.compute_input + timings.compute_infer + timings.compute_output
}

fn is_about(one: Duration, other: Duration) -> bool {
    one.abs_diff(other) <= (one.min(other) / STEADY_PART).max(NOISE)
}

fn fastest(instance: &mut dyn DynInstance, inputs: &[EngineInput]) -> Result<Duration, Failure> {
    let mut fastest = Duration::MAX;
    for _ in 0..MEASURED_RUNS {
        let execution = instance.execute(inputs.to_vec()).map_err(|error| run_failure(&error))?;
        fastest = fastest.min(total(&execution.timings));
    }
    Ok(fastest)
}

fn run_failure(error: &EngineError) -> Failure {
    let reason = match error {
        EngineError::OutOfMemory(message) if message.contains("CUDA") => FailureReason::OutOfDeviceMemory,
        EngineError::OutOfMemory(_) => FailureReason::OutOfHostMemory,
        _ => FailureReason::WarmupFailed,
    };
    Failure::new(FailurePhase::Warmup, reason, error.to_string())
}

/// The inputs of a run of `batch_size` rows; `None` where the form of one is not known.
fn inputs(config: &ModelConfig, signature: &Signature, batch_size: u32) -> Result<Option<Vec<EngineInput>>, Failure> {
    let warmup = &config.warmup;
    let mut inputs = Vec::new();
    for (index, input) in signature.inputs.iter().enumerate() {
        let given = warmup.inputs.iter().find(|given| given.name == input.name);
        if given.is_none() && input.is_optional {
            continue;
        }
        let shape = given.and_then(|given| given.shape.clone()).or_else(|| input.shape.clone());
        match form(input, shape, i64::from(batch_size)) {
            Ok((datatype, shape)) => {
                let fill = given.and_then(|given| given.fill.as_deref());
                let data = filled(datatype, &shape, fill)
                    .map_err(|error| failure(format!("model.warmup.inputs: '{}': {error}", input.name)))?;
                inputs.push(EngineInput { index, datatype, shape, parts: vec![data.into()] });
            }
            Err(why) if warmup.inputs.is_empty() => {
                tracing::warn!(
                    model = config.name.as_str(),
                    "warm-up skipped: input '{}' {why}; declare it in model.inputs or give model.warmup.inputs a shape, or the \
                     first requests will be slow",
                    input.name
                );
                return Ok(None);
            }
            Err(why) => return Err(failure(format!("model.warmup.inputs: input '{}' {why}", input.name))),
        }
    }
    Ok(Some(inputs))
}

/// Datatype and whole shape of an input, or why they are not known.
fn form(input: &InputSignature, shape: Option<Vec<i64>>, batch_size: i64) -> Result<(DataType, Vec<i64>), String> {
    let datatype = input.datatype.ok_or("has no declared datatype")?;
    let mut shape = shape.ok_or("has no declared shape")?;
    if let Some(first) = shape.first_mut()
        && (input.is_batched || *first == -1)
    {
        *first = batch_size;
    }
    if shape.contains(&-1) {
        return Err(format!("has open dimensions in its shape {:?}", input.shape.as_deref().unwrap_or_default()));
    }
    Ok((datatype, shape))
}

fn filled(datatype: DataType, shape: &[i64], fill: Option<&str>) -> Result<Bytes, String> {
    let count = element_count(shape).map_err(|error| error.to_string())?;
    let element = element(datatype, fill)?;
    if count.checked_mul(element.len()).is_none_or(|size| size > MAX_INPUT_BYTES) {
        return Err(format!("shape {shape:?} is larger than {MAX_INPUT_BYTES} bytes"));
    }
    Ok(element.repeat(count).into())
}

/// One element with the value that `fill` says, as the wire has it.
fn element(datatype: DataType, fill: Option<&str>) -> Result<Vec<u8>, String> {
    fn parse<T: std::str::FromStr + Default>(fill: Option<&str>, datatype: DataType) -> Result<T, String> {
        fill.map_or_else(
            || Ok(T::default()),
            |text| text.parse().map_err(|_| format!("fill '{text}' is not a {}", datatype.as_str())),
        )
    }
    Ok(match datatype {
        DataType::Bool => vec![u8::from(parse::<bool>(fill, datatype)?)],
        DataType::Uint8 => parse::<u8>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Uint16 => parse::<u16>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Uint32 => parse::<u32>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Uint64 => parse::<u64>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Int8 => parse::<i8>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Int16 => parse::<i16>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Int32 => parse::<i32>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Int64 => parse::<i64>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Fp16 => f16::from_f32(parse(fill, datatype)?).to_le_bytes().to_vec(),
        DataType::Bf16 => bf16::from_f32(parse(fill, datatype)?).to_le_bytes().to_vec(),
        DataType::Fp32 => parse::<f32>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Fp64 => parse::<f64>(fill, datatype)?.to_le_bytes().to_vec(),
        DataType::Bytes => {
            let mut data = Vec::new();
            if !push_bytes_element(&mut data, fill.unwrap_or_default().as_bytes()) {
                return Err("fill is longer than 4 GiB".into());
            }
            data
        }
    })
}

#[cfg(test)]
mod tests;
