//! Files of the documentation that are made from the code: the operator's flags and metrics.
//!
//! `make generate` writes them (`TORCHMODEL_GENERATE=1`); otherwise a file that differs fails the test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    time::Duration,
};

use clap::CommandFactory as _;
use torchmodel_operator::{
    Args,
    metrics::{Metrics, Write},
};

fn check(name: &str, content: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference").join(name);
    if std::env::var_os("TORCHMODEL_GENERATE").is_some() {
        fs::write(&path, content).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == content, "docs/reference/{name} is not what the code says: run `make generate`");
}

#[test]
fn generated_list_of_the_operators_flags_is_current() {
    let title = "# `torchmodel-operator`: flags\n\nGenerated from operator/src/args.rs by `make generate`. The chart sets them.\n";
    // What is set in this shell is not part of the documentation.
    let command = Args::command().term_width(110).mut_args(|argument| argument.hide_env_values(true));
    let help = command.clone().render_long_help();
    check("operator-flags.md", &format!("{title}\n```\n{help}```\n"));
}

#[test]
fn generated_list_of_the_operators_metrics_is_current() {
    let metrics = Metrics::new();
    metrics.record_reconcile(Duration::ZERO, true);
    metrics.record_reconcile(Duration::ZERO, false);
    metrics.record_write("Deployment", Write::Create);
    metrics.record_failure("NotFound");
    metrics.record_watch_error();
    let mut text = String::from(
        "# Metrics of the operator\n\nGenerated from operator/src/metrics.rs by `make generate`. Served at `/metrics` on port 8080. Those \
         that begin with `controller_runtime_` and\n`leader_election_` are named as in other operators, for their dashboards.\n\n\
         | Name | Kind | Labels | Meaning |\n|---|---|---|---|\n",
    );
    for (name, row) in rows(&metrics.encode()) {
        let labels: Vec<_> = row.labels.into_iter().filter(|label| label != "le").collect();
        writeln!(text, "| `{name}` | {} | {} | {} |", row.kind, labels.join(", "), row.help).unwrap();
    }
    check("operator-metrics.md", &text);
}

#[derive(Default)]
struct Row {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

/// The table that an exposition shows, by metric.
fn rows(exposition: &str) -> BTreeMap<String, Row> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut current = String::new();
    for line in exposition.lines() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "HELP", name, help] => {
                current = String::from(*name);
                rows.entry(current.clone()).or_default().help = String::from(help.trim_end_matches('.'));
            }
            ["#", "TYPE", name, kind] => rows.entry((*name).to_owned()).or_default().kind = String::from(*kind),
            _ => {
                let labels =
                    line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
                let names = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
                rows.entry(current.clone()).or_default().labels.extend(names);
            }
        }
    }
    // A counter's samples have a suffix that its declaration lacks.
    let named =
        |(name, row): (String, Row)| if row.kind == "counter" { (format!("{name}_total"), row) } else { (name, row) };
    rows.into_iter().filter(|(name, _)| !name.is_empty()).map(named).collect()
}
