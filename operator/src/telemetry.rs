//! Logs: a readable sentence with fields, as text for a terminal or JSON for a collector.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

use crate::{Args, LogFormat};

/// What the libraries below say of their own accord: the operator says it itself, once, where it acts on it.
const QUIET: &str = "kube_runtime=warn,kube_client=off";

/// Sets up the process's log as the command line asks. A second call in one process does nothing. Errors: a filter that does not
/// parse.
pub fn init(args: &Args) -> Result<(), String> {
    let filter = filter(&args.log)?;
    let is_terminal = std::io::stderr().is_terminal();
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).with_ansi(is_terminal);
    let _ = match args.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
    Ok(())
}

fn filter(log: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(format!("{QUIET},{log}"))
        .map_err(|error| format!("--log '{log}': {error}; write a level, or a filter such as info,kube=debug"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_does_not_parse_is_refused_with_the_flags_name() {
        for log in ["info", "debug,kube=warn", "torchmodel_operator=trace"] {
            assert!(filter(log).is_ok(), "{log}");
        }
        for log in ["info,kube=loud", "=info"] {
            let error = filter(log).unwrap_err();
            assert!(error.starts_with(&format!("--log '{log}': ")), "{error}");
        }
    }
}
