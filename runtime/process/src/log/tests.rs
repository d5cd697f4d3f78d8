//! The log as it is written, with what a person sets and what repeats.

use std::{
    io::Write,
    sync::{Mutex, PoisonError},
};

use clap::Parser;
use tracing::subscriber::with_default;

use super::*;

/// What a test's log wrote.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8(bytes.clone()).unwrap().lines().map(ToOwned::to_owned).collect()
    }
}

impl Write for Written {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(part)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    log: LogArguments,
}

/// The lines that `act` writes to a log that is set up so, and those that are told at its end.
fn written(flags: &[&str], act: impl FnOnce()) -> Vec<String> {
    let Program { log } = Program::try_parse_from([&["program"], flags].concat()).unwrap();
    let (limiter, written) = (Arc::new(Limiter::default()), Written::default());
    let lines = written.clone();
    let subscriber = subscriber(&log, "quiet_library=off", &limiter, false, move || written.clone());
    with_default(subscriber, || {
        act();
        drop(Log(limiter));
    });
    lines.lines()
}

#[test]
fn errors_are_written_whatever_is_accepted_but_off() {
    for flags in [&["--log="][..], &["--log=error"], &["--log=torchmodel_core=debug"], &["--log=some_library=off"], &[]]
    {
        let lines = written(flags, || tracing::error!("the model failed"));
        assert_eq!(lines.len(), 1, "{flags:?}: {lines:?}");
    }
    assert_eq!(written(&["--log=off"], || tracing::error!("the model failed")), [""; 0]);
}

#[test]
fn a_filter_without_a_level_is_refused_when_the_command_line_is_read() {
    for filter in ["--log=warning", "--log=verbose"] {
        let error = Program::try_parse_from(["program", filter]).err().unwrap().to_string();
        assert!(error.contains("off, error, warn, info, debug or trace"), "{error}");
        assert!(error.contains("--log"), "{error}");
    }
}

#[test]
fn a_library_that_the_program_keeps_quiet_speaks_when_the_user_asks_for_it() {
    let speak = || tracing::info!(target: "quiet_library", "a connection was made");
    assert_eq!(written(&["--log=info"], speak), [""; 0]);
    assert_eq!(written(&["--log=info,quiet_library=info"], speak).len(), 1);
}

#[test]
fn a_client_that_errs_in_a_loop_writes_five_lines_and_a_count() {
    for (flags, count) in [
        (&["--log-format=text"][..], "… and 1,234 more like it in the last"),
        (&["--log-format=json"], r#""suppressed":1234"#),
    ] {
        let lines = written(flags, || {
            for request in 0..1239 {
                tracing::warn!(model = "resnet", request, "the outputs cannot be split");
            }
        });
        assert_eq!(lines.len(), 6, "{lines:?}");
        assert!(lines[5].contains(count), "{}", lines[5]);
        assert!(
            lines[5].contains("the outputs cannot be split model=\"resnet\" request=0")
                || flags == ["--log-format=json"],
            "{}",
            lines[5]
        );
    }
}

#[test]
fn a_loop_over_one_model_leaves_lines_of_other_models_and_places_alone() {
    let lines = written(&["--log=debug"], || {
        for number in 0..100 {
            tracing::warn!(model = "a", "it failed");
            tracing::info!(number, "a level at which nothing repeats by a client's fault");
        }
        tracing::warn!(model = "b", "it failed");
        tracing::error!(model = "a", "it failed otherwise");
    });
    let count = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    assert_eq!(count("a level at which"), 100);
    assert_eq!(count("… and 95 more like it"), 1);
    assert_eq!(count("it failed model=\"b\""), 1);
    assert_eq!(count("it failed otherwise model=\"a\""), 1);
}

#[test]
fn a_summary_quotes_the_beginning_of_a_long_line_and_never_breaks_it() {
    let lines = written(&[], || {
        for _ in 0..6 {
            tracing::error!("one\ntwo {}", "x".repeat(10_000));
        }
    });
    let summary = lines.last().unwrap();
    assert!(summary.contains("… and 1 more like it in the last 1 s: one two xxx"), "{summary}");
    assert!(summary.contains("x… ") && summary.chars().count() < 300, "{summary}");
}
