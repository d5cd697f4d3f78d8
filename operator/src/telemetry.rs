//! Logs: a readable sentence with fields, as text for a terminal or JSON for a collector.

use tracing_subscriber::{EnvFilter, fmt};

use crate::{Args, LogFormat};

/// Sets up the process's log as the command line asks. A second call in one process does nothing.
pub fn init(args: &Args) {
    let filter = EnvFilter::try_new(&args.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let _ = match args.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
}
