//! What is sent, to whom and for how long: the words between whoever asks for a run, what carries it out, and the servers.
//!
//! Made by the commands and by `wire`; `measure` and `generator` read them. Invariant: a load is encoded once, before anything is
//! measured.

use std::{net::SocketAddr, time::Duration};

use crate::{
    answer::Checker,
    cpus::CpuSet,
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

/// How long a phase lasts. Every connection sends at least one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Until then, and until what is in flight is answered.
    Time(Duration),
    /// So many requests on each connection.
    Requests(usize),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_of_a_load_differ_and_are_equally_long() {
        for wire in [Wire::GrpcRaw, Wire::RestBinary, Wire::RestBinaryToJson] {
            let load =
                Load { model: Model::Echo, wire, size_bytes: 4096, connections: 5, is_announcing_compression: false };
            let encoded = EncodedLoad::new(load);
            let [one, other] = encoded.requests.as_slice() else { panic!("two variants") };
            assert_eq!((one.body.len(), &one.head), (other.body.len(), &other.head));
            assert_ne!(one.body, other.body);
        }
    }
}
