//! The table: a row for each case and server, and one for the ratio of the last server to the first.
//!
//! `load` and `wire` print it. Invariant: pure; what failed is in the table in words, not left out.

use std::fmt::Write as _;

use crate::{
    case::ANNOUNCING,
    figures::{Figure, Figures, median, median_ratios, medians},
    profile::Shares,
};

/// What a case gave, for each server in the order of the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseReport {
    /// Name of the case.
    pub name: String,
    /// Name of the server, and its figures of each round or what went wrong.
    pub servers: Vec<(String, Result<Vec<Figures>, String>)>,
}

/// The table in Markdown, with a column for each of `counters`.
#[must_use]
pub fn table(cases: &[CaseReport], counters: &[String]) -> String {
    let titles = ["case", "server"].into_iter().chain(Figure::ALL.map(Figure::title)).map(str::to_owned);
    let titles: Vec<String> = titles.chain(counters.iter().map(|counter| format!("{counter}/req"))).collect();
    let rule = titles.iter().enumerate().map(|(column, _)| if column < 2 { "---" } else { "---:" });
    let mut lines = vec![row(titles.iter().map(String::as_str)), row(rule)];
    for case in cases {
        for (server, figures) in &case.servers {
            lines.push(match figures {
                Ok(rounds) => {
                    let is_compressed = rounds.iter().any(|round| round.is_compressed);
                    let note = if is_compressed { " (compressed)" } else { "" };
                    let server = format!("{server}{note}");
                    let values: Vec<String> = medians(rounds).into_iter().map(number).collect();
                    row([case.name.as_str(), &server].into_iter().chain(values.iter().map(String::as_str)))
                }
                Err(error) => row([case.name.as_str(), server, &failure(error)]),
            });
        }
        lines.extend(ratios(case));
    }
    lines.join("\n") + "\n"
}

/// How many times longer each server takes for a client that announces compression; empty without such a pair of cases.
#[must_use]
pub fn announcing(cases: &[CaseReport]) -> String {
    let mut text = String::new();
    for case in cases {
        let Some(plain) = case.name.strip_suffix(ANNOUNCING) else { continue };
        let Some(plain) = cases.iter().find(|other| other.name == plain) else { continue };
        let times = case.servers.iter().zip(&plain.servers).filter_map(|((server, announcing), (_, plain))| {
            let p50 = |rounds: &Result<Vec<Figures>, String>| {
                let rounds = rounds.as_ref().ok()?;
                Some(median(rounds.iter().map(|round| round.get(Figure::P50Us)).collect()))
            };
            Some(format!("{server} {}", ratio(p50(announcing)? / p50(plain)?)))
        });
        let times: Vec<String> = times.collect();
        // A String takes every text.
        let _ = writeln!(
            text,
            "p50 of a client that announces deflate over that of one that does not: {}.",
            times.join(", ")
        );
    }
    text
}

/// What a profile gave, for one case and server.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileReport {
    /// Name of the case.
    pub case: String,
    /// Name of the server.
    pub server: String,
    /// Its shares, or what went wrong.
    pub shares: Result<Option<Shares>, String>,
    /// Blocks of memory that a request asks for, or why they were not counted.
    pub allocations: Result<f64, String>,
}

/// The table of profiles in Markdown; empty when none was taken.
#[must_use]
pub fn profile_table(profiles: &[ProfileReport]) -> String {
    if profiles.is_empty() {
        return String::new();
    }
    let titles = ["case", "server", "memcpy, memmove", "page faults", "socket copies", "samples", "allocations/req"];
    let mut lines = vec![row(titles), row(["---", "---", "---:", "---:", "---:", "---:", "---:"])];
    for ProfileReport { case, server, shares, allocations } in profiles {
        let allocations = allocations.as_ref().map_or_else(|error| failure(error), |count| number(*count));
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        lines.push(match shares {
            Ok(Some(Shares { copies, page_faults, socket_copies, samples })) => {
                let [copies, faults, socket] = [copies, page_faults, socket_copies].map(|share| percent(*share));
                row([case.as_str(), server, &copies, &faults, &socket, &samples.to_string(), &allocations])
            }
            Ok(None) => row([case.as_str(), server, "no samples", "", "", "", &allocations]),
            Err(error) => row([case.as_str(), server, &failure(error), "", "", "", &allocations]),
        });
    }
    lines.join("\n") + "\n"
}

/// An error in a cell.
fn failure(error: &str) -> String {
    format!("failed: {}", error.replace('|', "/").replace('\n', " "))
}

/// The last server's figures over the first's.
fn ratios(case: &CaseReport) -> Option<String> {
    let [(first, Ok(old)), .., (last, Ok(new))] = case.servers.as_slice() else { return None };
    let name = format!("{last} / {first}");
    let values: Vec<String> = median_ratios(new, old).into_iter().map(ratio).collect();
    Some(row([case.name.as_str(), &name].into_iter().chain(values.iter().map(String::as_str))))
}

fn row<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    format!("| {} |", cells.into_iter().collect::<Vec<_>>().join(" | "))
}

/// Three digits, or all that stand before the point.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        _ if !value.is_finite() => return "–".into(),
        size if size == 0.0 || size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

fn ratio(value: f64) -> String {
    if value.is_finite() { format!("{value:.2}") } else { "–".into() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{figures::Cost, generator::Measured, process::Usage};

    fn measured() -> Measured {
        Measured {
            latencies_ns: vec![1_500_000; 100],
            elapsed: Duration::from_secs(1),
            sent_bytes: 100_000_000,
            received_bytes: 0,
        }
    }

    fn cost(cpu_seconds: f64, counter: Option<f64>) -> Cost {
        let usage = Usage { cpu_seconds, ..Usage::default() };
        Cost { server: Some(usage), generator: usage, machine_seconds: 1.0, counters: vec![counter] }
    }

    fn figures(cpu_seconds: f64, counter: Option<f64>) -> Figures {
        Figures::new(&measured(), &cost(cpu_seconds, counter), false)
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in
            [(0.0, "0"), (0.01234, "0.0123"), (0.5, "0.50"), (12.34, "12.3"), (123.6, "124"), (f64::NAN, "–")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_case_has_a_row_for_each_server_and_one_for_their_ratio() {
        let case = CaseReport {
            name: "echo".into(),
            servers: vec![
                ("slice".into(), Ok(vec![figures(0.5, None)])),
                ("today".into(), Ok(vec![figures(0.25, Some(200.0))])),
            ],
        };
        let text = table(&[case], &["copies".into()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[0].starts_with("| case | server | req/s | in GB/s |") && lines[0].ends_with("| copies/req |"));
        assert!(lines[2].starts_with("| echo | slice | 100 | 0.10 | 0 | 1500 | 1500 | 1500 | 5000 | 0.20 | 0 | 0 |"));
        assert!(lines[2].ends_with("| – |") && lines[3].ends_with("| 2.00 |"));
        assert!(lines[4].starts_with("| echo | today / slice | 1.00 | 1.00 | – | 1.00 | 1.00 | 1.00 | 0.50 | 2.00 |"));
        let columns = |line: &str| line.matches('|').count();
        assert!(lines.iter().all(|line| columns(line) == columns(lines[0])), "{text}");
    }

    #[test]
    fn the_price_of_announcing_is_told_for_each_server() {
        let case = |name: &str, servers: [Result<Vec<Figures>, String>; 2]| CaseReport {
            name: name.into(),
            servers: ["slice", "today"].map(str::to_owned).into_iter().zip(servers).collect(),
        };
        let slow = || Figures::new(&Measured { latencies_ns: vec![4_500_000], ..measured() }, &cost(0.5, None), true);
        let plain = case("echo", [Ok(vec![figures(0.5, None)]), Ok(vec![figures(0.5, None)])]);
        let announced = case("echo, announcing deflate", [Ok(vec![slow()]), Ok(vec![figures(0.5, None)])]);
        assert_eq!(
            announcing(&[plain.clone(), announced]),
            "p50 of a client that announces deflate over that of one that does not: slice 3.00, today 1.00.\n"
        );
        assert_eq!(announcing(&[plain]), "");
    }

    #[test]
    fn profiles_are_told_in_percent() {
        let shares = Shares { copies: 0.25, page_faults: 0.0, socket_copies: 0.125, samples: 8 };
        let report = |shares| {
            let allocations = if shares == Ok(None) { Err("no probes".into()) } else { Ok(51.25) };
            ProfileReport { case: "echo".into(), server: "slice".into(), shares, allocations }
        };
        let text = profile_table(&[report(Ok(Some(shares))), report(Ok(None)), report(Err("no perf".into()))]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| echo | slice | 25.0 % | 0.0 % | 12.5 % | 8 | 51.2 |",
                "| echo | slice | no samples |  |  |  | failed: no probes |",
                "| echo | slice | failed: no perf |  |  |  | 51.2 |"
            ]
        );
        assert_eq!(profile_table(&[]), "");
    }

    #[test]
    fn a_failure_stands_in_the_table() {
        let servers = vec![("slice".into(), Ok(vec![figures(0.5, None)])), ("today".into(), Err("a | b\nc".into()))];
        let text = table(&[CaseReport { name: "echo".into(), servers }], &[]);
        assert!(text.ends_with("| echo | today | failed: a / b c |\n"), "{text}");
    }
}
