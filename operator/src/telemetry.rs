//! Logs: a readable sentence with fields, as text for a terminal or JSON for a collector.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

use crate::{Args, LogFormat};

/// What the libraries below say of their own accord: the operator says it itself, once, where it acts on it.
const QUIET: &str = "kube_runtime=warn,kube_client=off";

/// Sets up the process's log as the command line asks. A second call in one process does nothing.
pub fn init(args: &Args) {
    let filter = |log: &str| EnvFilter::try_new(format!("{QUIET},{log}"));
    let filter = filter(&args.log).or_else(|_| filter("info")).unwrap_or_default();
    let is_terminal = std::io::stderr().is_terminal();
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).with_ansi(is_terminal);
    let _ = match args.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
}
