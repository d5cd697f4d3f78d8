//! The log: readable lines for people, JSON for collectors, on standard error.
//!
//! Set up once by `run`. Standard output is left to what a command was asked to print.

use tracing_subscriber::{EnvFilter, fmt};

use crate::args::LogFormat;

/// Sets up the log. Errors: a filter that does not parse.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("--log '{filter}': {error}"))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let result = match format {
        LogFormat::Text => {
            let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(is_terminal).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    result.map_err(|error| format!("setting up the log: {error}"))
}
