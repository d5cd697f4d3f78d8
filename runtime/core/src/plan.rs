//! How a program is run: the one place that decides it, before anything is measured.
//!
//! [`ExecutionPlan::of`] is pure: from the interface, the configuration and the machine. Engines, binding, warm-up and scheduler
//! follow it and decide none of this again; what can only be measured is decided by `ExecutionPlan::threads_from`. Invariants: a
//! stateful program has one instance, is never batched or frozen, warms up on a copy, and shares no memory with requests; on the
//! CPU, instances times chosen threads are no more than the processors.

use std::{collections::BTreeSet, time::Duration};

use torchmodel_crds::{Failure, FailurePhase, FailureReason};

use crate::{batcher::BatcherConfig, config::ModelConfig, interface::Interface};

/// How long an instance's thread looks for the next request before it sleeps.
const SPIN: Duration = Duration::from_micros(100);
/// With fewer processors there is one thread for connections, which needs no handle but the instance's.
const SPARE_HANDLES_CPUS: usize = 4;
/// More threads for connections than this are not to be expected.
const MAX_SPARE_HANDLES: usize = 8;
/// A run on one thread that takes less is done on the thread that submits it.
const INLINE_BELOW: Duration = Duration::from_micros(200);
/// All threads are used only where they make a batch this much faster than one does: in percent. Less than that is worth more to
/// the threads that read and write requests.
const SPEED_UP_PERCENT: u128 = 130;
/// A run that is over sooner is too short to be shared among threads.
const SHORTEST_SHARED_RUN: Duration = Duration::from_micros(100);
/// Most warm-up runs of one batch size.
const MAX_WARMUP_RUNS: u32 = 16;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The host's processors.
    Cpu,
    /// An accelerator with memory of its own.
    Accelerator,
}

/// What there is to run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Processors that this process may use.
    pub cpus: usize,
    /// Devices, in the order in which they are used.
    pub devices: Vec<DeviceKind>,
}

impl Machine {
    /// The processors that this process may use, and `devices`.
    #[must_use]
    pub fn with_devices(devices: Vec<DeviceKind>) -> Self {
        Self { cpus: std::thread::available_parallelism().map_or(1, usize::from), devices }
    }
}

/// Threads inside one operator, for each instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// So many.
    Fixed(usize),
    /// One, or so many, whichever serves more: measured at load.
    Measured {
        /// The alternative to one.
        maximum: usize,
    },
}

/// Inferences before the model is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmupPlan {
    /// Rows of each run, rising; without a batch dimension 1 alone.
    pub batch_sizes: Vec<u32>,
    /// Fewest runs of each; 0 for no warm-up.
    pub minimum_runs: u32,
    /// Most runs of each, if no two after each other take about the same time.
    pub maximum_runs: u32,
    /// Whether a copy is run, so that the first client finds the state as it was saved.
    pub is_on_a_copy: bool,
}

/// Which memory a program may not share with requests and responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copies {
    /// Inputs are copied: the program may write to them or keep them.
    pub inputs: bool,
    /// Outputs are copied: a later call may write to them.
    pub outputs: bool,
}

/// Where waiting costs more than working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOff {
    /// How long an instance's thread that has just finished looks for more before it sleeps. Zero for not at all.
    pub spin: Duration,
    /// A run that takes less may be done on the thread that submits it. Zero for never.
    pub inline_below: Duration,
}

/// How a program is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionPlan {
    /// Whether an answer may depend on earlier requests.
    pub is_stateful: bool,
    /// The device of each instance: a position in [`Machine::devices`].
    pub placements: Vec<usize>,
    /// Further handles on the program, on the first device and without a thread of their own: for threads of connections that run
    /// quick requests themselves, several at one time. They share the weights.
    pub spare_handles: usize,
    /// Threads inside one operator.
    pub threads: Threads,
    /// Most rows of a request; `None` when the first dimension is not a batch.
    pub max_batch_size: Option<u64>,
    /// Limits of the queue.
    pub queue: BatcherConfig,
    /// Whether weights are folded into the program.
    pub is_frozen: bool,
    /// What is copied.
    pub copies: Copies,
    /// Inferences before the model is ready.
    pub warmup: WarmupPlan,
    /// Spinning and running inline.
    pub hand_off: HandOff,
}

impl ExecutionPlan {
    /// Decides. Errors: the program has no such method, or there is no device.
    pub fn of(interface: &Interface, config: &ModelConfig, machine: &Machine) -> Result<Self, Failure> {
        let method = interface.method(&config.method)?;
        let Some(first) = machine.devices.first() else {
            let message = "no device to load the model onto";
            return Err(Failure::new(FailurePhase::Load, FailureReason::SpecInvalid, message));
        };
        let is_stateful = config.is_stateful.unwrap_or(method.is_stateful);
        // What the method writes to is as unsafe to share when the configuration says that it does not matter.
        let writes = is_stateful || method.is_stateful;
        let batching = config.batching.filter(|_| !is_stateful);
        let max_batch_size = batching.map(|batching| batching.max_batch_size);
        let max_delay = batching.map_or(Duration::ZERO, |batching| batching.max_delay);
        let placements = if is_stateful {
            vec![0]
        } else {
            (0..machine.devices.len())
                .flat_map(|device| std::iter::repeat_n(device, config.instances.unwrap_or(1).max(1)))
                .collect()
        };
        let is_on_cpu = *first == DeviceKind::Cpu;
        // Elsewhere a request's size says nothing about how long it would hold up the thread that submits it.
        let may_run_inline = is_on_cpu && max_delay.is_zero() && !method.duration_depends_on_values;
        // Whoever says how many instances there are means how much runs at one time; and requests that could share a batch gain more
        // by that.
        let is_shared =
            may_run_inline && !writes && config.instances.is_none() && max_batch_size.is_none_or(|size| size <= 1);
        let spare_handles = if is_shared && machine.cpus >= SPARE_HANDLES_CPUS { machine.cpus / 2 } else { 0 };
        Ok(Self {
            is_stateful,
            threads: threads(config, machine, placements.len(), is_on_cpu),
            placements,
            spare_handles: spare_handles.min(MAX_SPARE_HANDLES),
            max_batch_size,
            queue: BatcherConfig { max_rows: max_batch_size.unwrap_or(1), max_delay, max_queue: config.max_queue },
            is_frozen: config.freeze && !writes,
            copies: Copies { inputs: method.mutates_inputs || writes, outputs: writes },
            warmup: WarmupPlan {
                batch_sizes: warmup_sizes(config, max_batch_size),
                minimum_runs: config.warmup.iterations,
                maximum_runs: config.warmup.iterations.max(MAX_WARMUP_RUNS),
                is_on_a_copy: writes,
            },
            hand_off: HandOff {
                spin: if machine.cpus > 1 { SPIN } else { Duration::ZERO },
                inline_below: if may_run_inline { INLINE_BELOW } else { Duration::ZERO },
            },
        })
    }

    /// The device of each handle on the program: of the instances, then of the spare ones.
    pub fn handles(&self) -> impl Iterator<Item = usize> {
        self.placements.iter().copied().chain(std::iter::repeat_n(0, self.spare_handles))
    }

    /// The number of threads to serve with, from how long a batch took with one and with the `maximum`.
    #[must_use]
    pub(crate) fn threads_from(maximum: usize, with_one: Duration, with_all: Duration) -> usize {
        let is_worth_it = with_one.as_nanos() * 100 >= with_all.as_nanos() * SPEED_UP_PERCENT;
        if with_one >= SHORTEST_SHARED_RUN && is_worth_it { maximum } else { 1 }
    }
}

fn threads(config: &ModelConfig, machine: &Machine, instances: usize, is_on_cpu: bool) -> Threads {
    let share = (machine.cpus / instances.max(1)).max(1);
    match config.intra_op_threads {
        Some(count) => Threads::Fixed(usize::try_from(count).unwrap_or(usize::MAX).max(1)),
        None if is_on_cpu && share > 1 && config.warmup.iterations > 0 => Threads::Measured { maximum: share },
        None => Threads::Fixed(share),
    }
}

/// One row, two (a compiler that took the one for a constant compiles again), the maximum, and what the configuration names.
fn warmup_sizes(config: &ModelConfig, max_batch_size: Option<u64>) -> Vec<u32> {
    let maximum = max_batch_size.map_or(1, |maximum| u32::try_from(maximum).unwrap_or(u32::MAX));
    let sizes: BTreeSet<u32> = [1, 2, maximum].into_iter().chain(config.warmup.batch_sizes.iter().copied()).collect();
    sizes.into_iter().filter(|size| *size <= maximum).collect()
}

#[cfg(test)]
mod tests {
    use torchmodel_crds::ModelSpec;

    use super::*;
    use crate::interface::{MethodInterface, ValueType};

    fn interface(is_stateful: bool, mutates_inputs: bool) -> Interface {
        let method = MethodInterface {
            name: "forward".into(),
            arguments: Vec::new(),
            returns: ValueType::Tensor,
            is_stateful,
            mutates_inputs,
            duration_depends_on_values: false,
        };
        Interface { methods: vec![method] }
    }

    fn plan(interface: &Interface, spec: &str, cpus: usize, devices: &[DeviceKind]) -> ExecutionPlan {
        let spec: ModelSpec = serde_json::from_str(spec).unwrap();
        let config = ModelConfig::check(&spec, Some("m".into())).unwrap();
        ExecutionPlan::of(interface, &config, &Machine { cpus, devices: devices.to_vec() }).unwrap()
    }

    const CPU: &[DeviceKind] = &[DeviceKind::Cpu];
    const GPUS: &[DeviceKind] = &[DeviceKind::Accelerator, DeviceKind::Accelerator];

    #[test]
    fn instances_are_on_every_device_but_a_stateful_program_has_one() {
        for (is_stateful, spec, devices, expected) in [
            (false, "{}", CPU, vec![0]),
            (false, r#"{"instances": 3}"#, CPU, vec![0, 0, 0]),
            (false, r#"{"instances": 2}"#, GPUS, vec![0, 0, 1, 1]),
            (true, r#"{"instances": 2}"#, GPUS, vec![0]),
        ] {
            assert_eq!(plan(&interface(is_stateful, false), spec, 4, devices).placements, expected, "{spec}");
        }
    }

    #[test]
    fn threads_are_measured_where_nobody_set_them_and_it_can_matter() {
        for (spec, cpus, devices, expected) in [
            ("{}", 16, CPU, Threads::Measured { maximum: 16 }),
            (r#"{"instances": 4}"#, 16, CPU, Threads::Measured { maximum: 4 }),
            (r#"{"instances": 3}"#, 4, CPU, Threads::Fixed(1)),
            ("{}", 1, CPU, Threads::Fixed(1)),
            (r#"{"optimize": {"intraOpThreads": 2}}"#, 16, CPU, Threads::Fixed(2)),
            (r#"{"warmup": {"iterations": 0}}"#, 16, CPU, Threads::Fixed(16)),
            ("{}", 16, GPUS, Threads::Fixed(8)),
        ] {
            let plan = plan(&interface(false, false), spec, cpus, devices);
            assert_eq!(plan.threads, expected, "{spec} on {cpus}");
            if let Threads::Measured { maximum } = plan.threads {
                assert!(maximum * plan.placements.len() <= cpus);
            }
        }
    }

    #[test]
    fn all_threads_are_taken_only_where_they_are_much_faster_than_one() {
        let us = Duration::from_micros;
        for (with_one, with_all, expected) in
            [(us(40_000), us(21_000), 2), (us(1000), us(800), 1), (us(90), us(40), 1), (us(1000), us(1500), 1)]
        {
            assert_eq!(ExecutionPlan::threads_from(2, with_one, with_all), expected, "{with_one:?} {with_all:?}");
        }
    }

    #[test]
    fn one_two_the_maximum_and_every_configured_size_are_warmed() {
        for (is_stateful, spec, expected) in [
            (false, "{}", vec![1]),
            (false, r#"{"batching": {"maxBatchSize": 1}}"#, vec![1]),
            (false, r#"{"batching": {"maxBatchSize": 2}}"#, vec![1, 2]),
            (false, r#"{"batching": {"maxBatchSize": 8}}"#, vec![1, 2, 8]),
            (false, r#"{"batching": {"maxBatchSize": 8}, "warmup": {"batchSizes": [4, 8]}}"#, vec![1, 2, 4, 8]),
            (true, r#"{"batching": {"maxBatchSize": 8}, "warmup": {"batchSizes": [4]}}"#, vec![1]),
        ] {
            assert_eq!(plan(&interface(is_stateful, false), spec, 4, CPU).warmup.batch_sizes, expected, "{spec}");
        }
    }

    #[test]
    fn a_stateful_program_is_not_batched_not_frozen_and_shares_no_memory() {
        let spec = r#"{"batching": {"maxBatchSize": 8, "maxDelay": "5ms"}, "optimize": {"freeze": true}}"#;
        let stateful = plan(&interface(true, false), spec, 4, CPU);
        assert_eq!(
            (stateful.max_batch_size, stateful.queue.max_rows, stateful.queue.max_delay),
            (None, 1, Duration::ZERO)
        );
        assert!(!stateful.is_frozen && stateful.warmup.is_on_a_copy);
        assert_eq!(stateful.copies, Copies { inputs: true, outputs: true });
        let pure = plan(&interface(false, false), spec, 4, CPU);
        assert_eq!((pure.max_batch_size, pure.queue.max_rows), (Some(8), 8));
        assert!(pure.is_frozen && !pure.warmup.is_on_a_copy);
        assert_eq!(pure.copies, Copies { inputs: false, outputs: false });
        assert_eq!(plan(&interface(false, true), spec, 4, CPU).copies, Copies { inputs: true, outputs: false });
    }

    #[test]
    fn the_configuration_has_the_last_word_on_state_but_not_on_memory() {
        let spec =
            r#"{"stateful": false, "instances": 2, "batching": {"maxBatchSize": 8}, "optimize": {"freeze": true}}"#;
        let overruled = plan(&interface(true, false), spec, 4, CPU);
        assert!(!overruled.is_stateful && !overruled.is_frozen && overruled.warmup.is_on_a_copy);
        assert_eq!((overruled.placements.len(), overruled.max_batch_size), (2, Some(8)));
        assert_eq!(overruled.copies, Copies { inputs: true, outputs: true });
        let stateful = plan(&interface(false, false), &spec.replace("false", "true"), 4, CPU);
        assert!(stateful.is_stateful && !stateful.is_frozen && stateful.warmup.is_on_a_copy);
        assert_eq!((stateful.placements.len(), stateful.max_batch_size), (1, None));
    }

    #[test]
    fn nothing_spins_on_one_processor_and_nothing_runs_inline_where_a_batch_waits_for_company() {
        let of = |spec, cpus, devices| plan(&interface(false, false), spec, cpus, devices).hand_off;
        assert_eq!(of("{}", 2, CPU), HandOff { spin: SPIN, inline_below: INLINE_BELOW });
        assert_eq!(of("{}", 1, CPU), HandOff { spin: Duration::ZERO, inline_below: INLINE_BELOW });
        assert_eq!(of("{}", 2, GPUS).inline_below, Duration::ZERO);
        let delayed = r#"{"batching": {"maxBatchSize": 8, "maxDelay": "5ms"}}"#;
        assert_eq!(of(delayed, 2, CPU).inline_below, Duration::ZERO);
    }

    #[test]
    fn threads_of_connections_get_handles_where_quick_requests_may_run_at_one_time() {
        let of = |spec, cpus, devices| plan(&interface(false, false), spec, cpus, devices);
        assert_eq!((of("{}", 3, CPU).spare_handles, of("{}", 4, CPU).spare_handles), (0, 2));
        assert_eq!(of("{}", 64, CPU).spare_handles, MAX_SPARE_HANDLES);
        assert_eq!(of("{}", 16, GPUS).spare_handles, 0);
        assert_eq!(of(r#"{"instances": 1}"#, 16, CPU).spare_handles, 0, "as it was said");
        assert_eq!(of(r#"{"batching": {"maxBatchSize": 8}}"#, 16, CPU).spare_handles, 0);
        assert_eq!(plan(&interface(true, false), "{}", 16, CPU).spare_handles, 0);
        let two = of("{}", 4, CPU);
        assert_eq!(two.handles().collect::<Vec<_>>(), [0, 0, 0]);
    }

    #[test]
    fn nothing_runs_inline_where_values_may_decide_how_long_it_takes() {
        for (duration_depends_on_values, spec, inline_below, spare_handles) in [
            (false, "{}", INLINE_BELOW, 8),
            (true, "{}", Duration::ZERO, 0),
            (true, r#"{"instances": 2}"#, Duration::ZERO, 0),
            (true, r#"{"batching": {"maxBatchSize": 8}}"#, Duration::ZERO, 0),
        ] {
            let mut interface = interface(false, false);
            interface.methods[0].duration_depends_on_values = duration_depends_on_values;
            let plan = plan(&interface, spec, 16, CPU);
            assert_eq!((plan.hand_off.inline_below, plan.spare_handles), (inline_below, spare_handles), "{spec}");
            assert_eq!(plan.hand_off.spin, SPIN, "what waits is looked for as before");
        }
    }

    #[test]
    fn a_method_that_is_not_there_is_told_with_those_that_are() {
        let spec = ModelSpec { method: Some("encode".into()), ..ModelSpec::default() };
        let config = ModelConfig::check(&spec, Some("m".into())).unwrap();
        let machine = Machine { cpus: 1, devices: CPU.to_vec() };
        let failure = ExecutionPlan::of(&interface(false, false), &config, &machine).unwrap_err();
        assert_eq!(failure.message, "the model has no method 'encode'; it has forward");
    }
}
