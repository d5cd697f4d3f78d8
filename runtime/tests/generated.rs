//! Files of the documentation that are made from the code: lists of flags and metrics, and of failure reasons.
//!
//! `make generate` writes them (`TORCHMODEL_GENERATE=1`); otherwise a file that differs fails the test.

use std::{fmt::Write as _, fs, path::Path};

use clap::CommandFactory as _;
use torchmodel_core::metrics;
use torchmodel_crds::FailureReason;
use torchmodel_runtime::args::Arguments;

fn check(name: &str, content: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    if std::env::var_os("TORCHMODEL_GENERATE").is_some() {
        fs::write(&path, content).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == content, "docs/{name} is not what the code says: run `make generate`");
}

#[test]
fn generated_list_of_the_runtimes_flags_is_current() {
    let mut text = String::from(
        "# `torchmodel-runtime`: commands and flags\n\nGenerated from runtime/src/args.rs by `make generate`.\n",
    );
    let mut root = Arguments::command().term_width(110);
    root.build();
    // What is set in this shell is not part of the documentation.
    for command in root.get_subcommands().filter(|command| command.get_name() != "help") {
        let help = command.clone().mut_args(|argument| argument.hide_env_values(true)).render_long_help();
        write!(text, "\n## {}\n\n```\n{help}```\n", command.get_name()).unwrap();
    }
    check("reference/runtime-flags.md", &text);
}

#[test]
fn generated_list_of_the_runtimes_metrics_is_current() {
    let mut text = String::from(
        "# Metrics of the runtime\n\nGenerated from runtime/core/src/metrics/table.rs by `make generate`. Served at `/metrics` on port 8082.\n\n\
         | Name | Kind | Labels | Meaning |\n|---|---|---|---|\n",
    );
    for metric in metrics::TABLE {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        writeln!(text, "| `{}` | {kind} | {} | {} |", metric.name, metric.labels.join(", "), metric.help).unwrap();
    }
    check("reference/runtime-metrics.md", &text);
}

#[test]
fn generated_list_of_failure_reasons_is_current() {
    let mut text = String::from(
        "# Troubleshooting\n\n`kubectl get torchmodels` shows one word in the column REASON; `kubectl describe torchmodel NAME` adds the message, the hint \
         and events. The same word is the `reason` of the condition Ready, of `status.lastFailure`, of the event, and of the runtime's log \
         line. The list is closed. Generated from crds/src/failure.rs by `make generate`.\n\n| Reason | What to do |\n|---|---|\n",
    );
    for reason in FailureReason::ALL {
        writeln!(text, "| `{reason}` | {} |", reason.hint()).unwrap();
    }
    check("troubleshooting.md", &text);
}
