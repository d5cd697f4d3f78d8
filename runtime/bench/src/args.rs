//! The command line.
//!
//! Read by `main` alone.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    cpus::CpuSet,
    load::{Bound, Load, Target},
    request::Wire,
    server::ServerProgram,
    tensor::Model,
};

/// Loads an inference server over gRPC and REST, checks its answers, and measures what each request costs it.
#[derive(Debug, Parser)]
#[command(name = "torchmodel-bench", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put one load on a running server.
    Load(Box<LoadArguments>),
    /// Start servers, put every load on each in turn, and compare them.
    Wire(Box<WireArguments>),
    /// Write the models that are measured into a folder: TorchScript archives and their configurations.
    Models(ModelsArguments),
}

/// Arguments that both loads take.
#[derive(Clone, Debug, Args)]
pub struct GeneratorArguments {
    /// Threads that send and receive. [default: the CPUs of --cpus-generator, else half of the machine's]
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<usize>,
    /// CPUs of those threads, such as 8-15.
    #[arg(long, value_name = "CPUS")]
    pub cpus_generator: Option<CpuSet>,
    /// Counter of the server's metrics to show for each request. May be given several times.
    #[arg(long = "counter", value_name = "NAME")]
    pub counters: Vec<String>,
}

/// Arguments of `load`.
#[derive(Debug, Args)]
pub struct LoadArguments {
    /// REST address of the server.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub http: SocketAddr,
    /// gRPC address of the server.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    pub grpc: SocketAddr,
    /// Address where the server exports its metrics; needed for --counter.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// Process of the server, for CPU, memory and wake-ups.
    #[arg(long)]
    pub pid: Option<u32>,
    /// Model that answers; it must be one of those that the command models writes.
    #[arg(long, default_value = "echo")]
    pub model: Model,
    /// Protocol and form.
    #[arg(long, default_value = "grpc-raw")]
    pub wire: Wire,
    /// Bytes of tensor data in a request, a multiple of 4; that of add-sub is fixed.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 10)]
    pub size: usize,
    /// Connections, each with one request in flight.
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    pub connections: usize,
    /// Whether gRPC requests announce that the client reads deflate and gzip, as grpcio's do.
    #[arg(long)]
    pub announce_compression: bool,
    /// How long to measure.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Requests on each connection, in place of --seconds.
    #[arg(long, value_name = "COUNT")]
    pub requests: Option<usize>,
    /// The generator.
    #[command(flatten)]
    pub generator: GeneratorArguments,
}

impl LoadArguments {
    /// What to send.
    #[must_use]
    pub fn load(&self) -> Load {
        Load {
            model: self.model,
            wire: self.wire,
            size_bytes: self.size.max(4),
            connections: self.connections.max(1),
            is_announcing_compression: self.announce_compression,
        }
    }

    /// Where to.
    #[must_use]
    pub fn target(&self) -> Target {
        Target { http: self.http, grpc: self.grpc, metrics: self.metrics, pid: self.pid }
    }

    /// How long.
    #[must_use]
    pub fn bound(&self) -> Bound {
        let time = Duration::try_from_secs_f64(self.seconds).unwrap_or(Duration::from_secs(2));
        self.requests.map_or(Bound::Time(time), Bound::Requests)
    }
}

/// Arguments of `wire`.
#[derive(Debug, Args)]
pub struct WireArguments {
    /// A server to measure. Given several times, each case runs on each in turn, and the last is compared with the first.
    #[arg(long = "server", value_name = "NAME=PATH", required = true)]
    pub servers: Vec<ServerProgram>,
    /// Folders with libtorch's libraries for the servers, separated by colons. [default: where the programs look themselves]
    #[arg(long, value_name = "DIRS")]
    pub libtorch: Option<String>,
    /// Folder that takes the models.
    #[arg(long, value_name = "DIR", default_value = "target/bench/models")]
    pub models: PathBuf,
    /// CPUs of the server. [default: the first half of at least 4, else all]
    #[arg(long, value_name = "CPUS")]
    pub cpus_server: Option<CpuSet>,
    /// Rounds over the servers for each case; the table has medians.
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    pub rounds: usize,
    /// How long to measure in each round.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Only cases whose name has this text. May be given several times; `rest` is the measurement at rest.
    #[arg(long = "case", value_name = "TEXT")]
    pub cases: Vec<String>,
    /// Profile each case besides, in runs of their own: the share of copies and page faults in the server's CPU time, and the
    /// allocations of a request. Needs perf, and the right to place probes (root).
    #[arg(long)]
    pub profile: bool,
    /// One round of half a second, without the largest sizes.
    #[arg(long)]
    pub quick: bool,
    /// The generator.
    #[command(flatten)]
    pub generator: GeneratorArguments,
}

/// Arguments of `models`.
#[derive(Debug, Args)]
pub struct ModelsArguments {
    /// The folder.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}
