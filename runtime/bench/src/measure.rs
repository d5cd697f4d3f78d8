//! One load on one server, measured: connect, warm up, measure, look once more at every connection's answers.
//!
//! Called by the `load` command once and by `wire` for each case, server and round. Invariant: figures are given only for a run all of
//! whose answers were checked and right.

use std::{io, sync::Arc};

use crate::{
    counters,
    figures::{Cost, Figures},
    generator::{Generator, GeneratorError},
    load::{Bound, EncodedLoad, RunOptions, Target},
    process::{Process, ProcessError, machine_cpu_seconds},
};

/// Why a run has no figures.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A request failed, or an answer was wrong.
    #[error(transparent)]
    Generator(#[from] GeneratorError),
    /// The server's process cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The server's counters cannot be read.
    #[error("reading the server's counters")]
    Counters(#[source] io::Error),
}

/// Runs `load` against `target`.
pub fn run(load: &Arc<EncodedLoad>, target: Target, options: &RunOptions) -> Result<Figures, RunError> {
    let mut generator = Generator::open(load, target, options)?;
    generator.run(Bound::Time(options.warmup))?;
    let process = target.pid.map(Process::new);
    let read_counters = || match target.metrics {
        Some(address) => counters::read(address, &options.counters).map_err(RunError::Counters),
        None => Ok(vec![None; options.counters.len()]),
    };
    let own = Process::new(std::process::id());
    let counters_before = read_counters()?;
    process.as_ref().map(Process::reset_peak).transpose()?;
    let machine_before = machine_cpu_seconds()?;
    let own_before = own.snapshot()?;
    let before = process.as_ref().map(Process::snapshot).transpose()?;
    let measured = generator.run(options.bound)?;
    let after = process.as_ref().map(Process::snapshot).transpose()?;
    let own_after = own.snapshot()?;
    let machine_seconds = machine_cpu_seconds()? - machine_before;
    let counters_after = read_counters()?;
    // The first request of a phase has its answer looked at, so this looks at the last of every connection, unless that was done.
    if measured.latencies_ns.len() > load.load.connections {
        generator.run(Bound::Requests(1))?;
    }
    let is_compressed = generator.is_compressed();
    generator.close();
    let cost = Cost {
        server: after.zip(before).map(|(after, before)| after.since(&before)),
        generator: own_after.since(&own_before),
        machine_seconds,
        counters: counters_after
            .iter()
            .zip(&counters_before)
            .map(|(after, before)| Some((*after)? - (*before)?))
            .collect(),
    };
    Ok(Figures::new(&measured, &cost, is_compressed))
}

#[cfg(test)]
mod tests;
