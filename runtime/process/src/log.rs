//! The log of a program: a readable sentence with fields, as text for a terminal or JSON for a collector, on standard error.
//!
//! `main` takes [`LogArguments`] into its command line and calls [`init`] once. Invariants: what the user writes cannot silence
//! errors by mistake; a line that repeats is limited, and what is left out is counted.

mod filter;
mod limit;
mod repeats;

use std::{
    io::{self, IsTerminal as _},
    sync::Arc,
};

use clap::{Args, ValueEnum};
use tracing::Subscriber;
use tracing_subscriber::{Layer, fmt, layer::SubscriberExt as _, registry, util::SubscriberInitExt as _};

pub use self::filter::{LogFilter, LogFilterError};
use self::limit::{Limit, Limiter};

/// The flags of the log, the same in both programs.
#[derive(Clone, Debug, Args)]
pub struct LogArguments {
    /// Form of the log
    #[arg(long, global = true, value_enum, env = "TORCHMODEL_LOG_FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged: a level (off, error, warn, info, debug, trace), or a filter such as `info,torchmodel=debug`
    #[arg(long, global = true, value_name = "FILTER", env = "TORCHMODEL_LOG", default_value = filter::DEFAULT)]
    pub log: LogFilter,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A readable line for each event
    Text,
    /// A JSON object for each event
    Json,
}

/// A log that is set up. When it is dropped, what the limit has counted since it last told is told: keep it until the program ends.
#[derive(Debug)]
#[must_use]
pub struct Log(Arc<Limiter>);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.tell_all();
    }
}

/// Sets up the log of the process. `quiet` holds directives for libraries whose lines the program says itself; those of the user come
/// after them. A second call in one process changes nothing.
pub fn init(arguments: &LogArguments, quiet: &str) -> Log {
    let limiter = Arc::new(Limiter::default());
    let subscriber = subscriber(arguments, quiet, &limiter, io::stderr().is_terminal(), io::stderr);
    if subscriber.try_init().is_ok() {
        Limiter::tell_in_time(&limiter);
    }
    Log(limiter)
}

fn subscriber<W>(
    arguments: &LogArguments,
    quiet: &str,
    limiter: &Arc<Limiter>,
    has_colours: bool,
    writer: W,
) -> impl Subscriber + Send + Sync
where
    W: for<'w> fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = fmt::layer().with_writer(writer).with_target(false).with_ansi(has_colours);
    let lines = match arguments.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    registry().with(arguments.log.after(quiet)).with(lines).with(Limit::new(limiter))
}

#[cfg(test)]
mod tests;
