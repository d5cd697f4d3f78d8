//! One load on one server, measured: connect, warm up, measure, look once more at every connection's answers.
//!
//! Called by the `load` command once and by `wire` for each case, server and round. Invariant: figures are given only for a run all of
//! whose answers were checked and right.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use crate::{
    answer::Checker,
    counters,
    cpus::CpuSet,
    figures::{Cost, Figures},
    generator::{Bound, Generator, GeneratorError},
    process::{Process, ProcessError, machine_cpu_seconds},
    request::{EncodedRequest, Wire},
    tensor::{Inference, Model, Tensor},
};

/// Different requests of a load, sent in turn: an answer to another's request is noticed.
pub const VARIANTS: usize = 2;

/// What is sent, and by how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The model that answers.
    pub model: Model,
    /// The protocol and form.
    pub wire: Wire,
    /// Bytes of tensor data in a request.
    pub size_bytes: usize,
    /// Connections, each with one request in flight.
    pub connections: usize,
    /// Whether gRPC requests announce that the client reads deflate and gzip.
    pub is_announcing_compression: bool,
}

/// A load whose requests are encoded.
#[derive(Debug)]
pub struct EncodedLoad {
    /// The load.
    pub load: Load,
    /// Its requests.
    pub requests: Vec<EncodedRequest>,
    outputs: Vec<Vec<Tensor>>,
}

impl EncodedLoad {
    /// Encodes the requests of `load`.
    #[must_use]
    pub fn new(load: Load) -> Self {
        let (mut requests, mut outputs) = (Vec::new(), Vec::new());
        for variant in 0..VARIANTS {
            let inference = Inference::new(load.model, load.size_bytes, variant);
            requests.push(EncodedRequest::new(load.wire, load.model, &inference));
            outputs.push(inference.outputs);
        }
        Self { load, requests, outputs }
    }

    /// A checker that has seen no answer yet.
    #[must_use]
    pub fn checker(&self) -> Checker {
        Checker::new(self.load.wire, self.outputs.iter().cloned())
    }
}

/// A server to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its REST port.
    pub http: SocketAddr,
    /// Its gRPC port.
    pub grpc: SocketAddr,
    /// Where it exports counters, if they are asked for.
    pub metrics: Option<SocketAddr>,
    /// Its process, if it runs on this machine.
    pub pid: Option<u32>,
}

/// How a load is run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOptions {
    /// Threads that send and receive.
    pub threads: usize,
    /// CPUs of those threads.
    pub cpus: Option<CpuSet>,
    /// How long to measure, or how many requests.
    pub bound: Bound,
    /// How long to send before measuring.
    pub warmup: Duration,
    /// Counters of the server to read before and after.
    pub counters: Vec<String>,
}

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
