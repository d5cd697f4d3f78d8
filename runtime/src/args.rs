//! The command line. Every flag of `serve` can be set by the environment variable that its help names.
//!
//! Read by `main` alone; the rest of the program gets typed values. The list of flags in docs/reference/ is generated from here.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use torchmodel_crds::Duration;
use torchmodel_process::log::LogArguments;

/// Serves PyTorch (TorchScript) models over the Open Inference Protocol (KServe v2), REST and gRPC.
#[derive(Debug, Parser)]
#[command(name = "torchmodel-runtime", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// The log.
    #[command(flatten)]
    pub log: LogArguments,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch, load, warm up and serve models.
    Serve(Box<ServeArguments>),
    /// Print what is in a TorchScript archive, and a TorchModel manifest to start from.
    Inspect(InspectArguments),
    /// Fetch and verify each model's artifact into the cache, and print its path.
    Pull(PullArguments),
}

/// How a model's artifact is found and kept.
#[derive(Clone, Debug, Args)]
pub struct ArtifactArguments {
    /// Local file to use in place of the manifest's source. The source's sha256 is still checked. For one model only.
    #[arg(long, value_name = "FILE")]
    pub artifact: Option<PathBuf>,
    /// Folder that keeps fetched artifacts by their digest. [default: torchmodel in the user's cache folder]
    #[arg(long, value_name = "DIR", env = "TORCHMODEL_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Folder with credentials, one file for each of `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, …, or one called credentials.
    #[arg(long, value_name = "DIR", env = "TORCHMODEL_CREDENTIALS_DIR")]
    pub credentials_dir: Option<PathBuf>,
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// A TorchModel manifest (each TorchModel in it is a model), a folder whose *.yaml and *.yml files are manifests, a model
    /// configuration (`source:` and `model:`), or a TorchScript archive (.pt). May be repeated.
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Where the artifact is.
    #[command(flatten)]
    pub artifact: ArtifactArguments,
    /// Device: auto (every GPU, or the CPU where there is none), cpu, cuda (every GPU), or cuda:N.
    #[arg(long, env = "TORCHMODEL_DEVICE", default_value = "auto")]
    pub device: String,
    /// Address of the REST endpoint. Port 0 takes a free one; the log says which. `[::]` is every address, of IPv4 too.
    #[arg(long, value_name = "ADDRESS", env = "TORCHMODEL_HTTP_ADDRESS", default_value = "[::]:8080")]
    pub http_address: SocketAddr,
    /// Address of the gRPC endpoint.
    #[arg(long, value_name = "ADDRESS", env = "TORCHMODEL_GRPC_ADDRESS", default_value = "[::]:8081")]
    pub grpc_address: SocketAddr,
    /// Address of the metrics endpoint.
    #[arg(long, value_name = "ADDRESS", env = "TORCHMODEL_METRICS_ADDRESS", default_value = "[::]:8082")]
    pub metrics_address: SocketAddr,
    /// Largest request in bytes, after decompression.
    #[arg(long, value_name = "BYTES", env = "TORCHMODEL_MAX_REQUEST_BYTES", default_value_t = 256 << 20)]
    pub max_request_bytes: usize,
    /// Most bytes of all requests that are being received, waiting or computed; more are refused until some are answered.
    /// [default: 4 times --max-request-bytes, but at most a quarter of the container's memory]
    #[arg(long, value_name = "BYTES", env = "TORCHMODEL_MAX_INFLIGHT_BYTES")]
    pub max_inflight_bytes: Option<usize>,
    /// Threads that serve connections, each its own. They copy and compute nothing large: as many as the load needs and no more.
    /// [default: half of the CPUs, at most 8]
    #[arg(long, value_name = "COUNT", env = "TORCHMODEL_IO_THREADS")]
    pub io_threads: Option<NonZeroUsize>,
    /// After SIGTERM: how long to go on taking requests while not ready, so that load balancers notice.
    #[arg(long, value_name = "DURATION", env = "TORCHMODEL_SHUTDOWN_DELAY", default_value = "3s")]
    pub shutdown_delay: Duration,
    /// After that: how long requests in flight may take to finish.
    #[arg(long, value_name = "DURATION", env = "TORCHMODEL_DRAIN_TIMEOUT", default_value = "30s")]
    pub drain_timeout: Duration,
    /// File that gets one JSON line when the model cannot be served. Written only if it exists.
    #[arg(long, value_name = "FILE", env = "TORCHMODEL_TERMINATION_MESSAGE", default_value = "/dev/termination-log")]
    pub termination_message: PathBuf,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The TorchScript archive.
    #[arg(value_name = "FILE")]
    pub path: PathBuf,
}

/// Arguments of `pull`.
#[derive(Debug, Args)]
pub struct PullArguments {
    /// A TorchModel manifest, a folder of them, or a model configuration. May be repeated.
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Where the artifact is.
    #[command(flatten)]
    pub artifact: ArtifactArguments,
}
