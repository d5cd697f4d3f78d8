//! The comparison of servers: every case on each in turn, in one run, on one machine.
//!
//! Called by `main` for `wire`. Servers of one model run side by side, and a case goes A B A B, so that whatever else the machine does
//! meets both. Invariant: a failure is in the table and makes the whole a failure, but ends nothing else.

use std::{error::Error, fmt::Write as _, io, sync::Arc, thread, time::Duration};

use crate::{
    allocations::AllocationProbes,
    archive::ModelFiles,
    args::WireArguments,
    case::{self, Case},
    cpus::CpuSet,
    figures::Figures,
    generator::Generator,
    load::{Bound, EncodedLoad, RunOptions, Target},
    measure::{self, RunError},
    process::{Process, real},
    profile::{Recording, Shares},
    report::{CaseReport, ProfileReport, announcing, profile_table, table},
    server::{RunningServer, RunningServers, ServerError, ServerProgram, ServerSetup},
    tensor::Model,
};

/// Sizes above this are left out of a quick run.
const QUICK_BYTES: usize = 4 << 20;
/// How long to send before measuring.
const WARMUP: Duration = Duration::from_millis(300);
/// How long a server's rest is measured, and how long it has to come to rest.
const REST: Duration = Duration::from_secs(3);
const SETTLE: Duration = Duration::from_secs(1);
/// Requests on each connection while allocations are counted.
const COUNTED_REQUESTS: usize = 20;
/// How long a profile takes samples.
const SAMPLED: Duration = Duration::from_secs(3);
/// What selects the measurement at rest.
const REST_NAME: &str = "rest";

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Models cannot be written.
    #[error("writing the models")]
    Models(#[source] io::Error),
    /// The CPUs cannot be read.
    #[error("reading which CPUs may be used")]
    Cpus(#[source] io::Error),
    /// A server does not run.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Nothing is selected.
    #[error("no case has a name with {0:?}; the names are:\n{1}")]
    NoCase(Vec<String>, String),
}

/// What a comparison gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// How it was measured, the table, and what stands below it, in Markdown.
    pub text: String,
    /// Whether every answer of every case was right.
    pub is_whole: bool,
}

/// A comparison that is under way.
struct Suite {
    programs: Vec<ServerProgram>,
    setup: ServerSetup,
    run: RunOptions,
    rounds: usize,
    time: Duration,
    cases: Vec<Case>,
    is_rest_measured: bool,
    is_profiled: bool,
}

type Running<'a> = Vec<(&'a str, RunningServer)>;

/// Measures what `arguments` ask for.
/// `running` learns of every server that is started.
pub fn compare(arguments: WireArguments, running: &Arc<RunningServers>) -> Result<Comparison, WireError> {
    let suite = Suite::new(arguments, running)?;
    let (mut reports, mut profiles) = (Vec::new(), Vec::new());
    let mut notes = String::new();
    for model in Model::ALL {
        let cases: Vec<&Case> = suite.cases.iter().filter(|case| case.load.model == model).collect();
        let is_rest_measured = suite.is_rest_measured && model == Model::Echo;
        if cases.is_empty() && !is_rest_measured {
            continue;
        }
        let servers = suite.start(model)?;
        if is_rest_measured {
            notes.push_str(&suite.rest(&servers));
        }
        for case in cases {
            eprintln!("torchmodel-bench: {}", case.name);
            let encoded = Arc::new(EncodedLoad::new(case.load));
            reports.push(suite.case(case, &encoded, &servers));
            if suite.is_profiled {
                profiles.extend(servers.iter().map(|server| suite.profile(case, &encoded, server)));
            }
        }
    }
    let is_whole = !notes.contains(FAILED)
        && profiles.iter().all(|profile| profile.shares.is_ok() && profile.allocations.is_ok())
        && reports.iter().flat_map(|report| &report.servers).all(|(_, figures)| figures.is_ok());
    let (conditions, table) = (suite.conditions(), table(&reports, &suite.run.counters));
    let parts = [conditions, table, profile_table(&profiles), announcing(&reports) + &notes];
    let text =
        parts.iter().filter(|part| !part.is_empty()).map(|part| part.trim_end()).collect::<Vec<_>>().join("\n\n");
    Ok(Comparison { text: text + "\n", is_whole })
}

/// What a failure begins with.
const FAILED: &str = "failed: ";

/// An error with its causes in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        // A String takes every text.
        let _ = write!(text, ": {next}");
        cause = next.source();
    }
    text
}

/// Threads of a generator that is given none: as many as it has CPUs, or half of the machine's.
pub fn threads(asked: Option<usize>, cpus: Option<&CpuSet>) -> io::Result<usize> {
    let by_default = || match cpus {
        Some(cpus) => Ok(cpus.count()),
        None => CpuSet::available().map(|available| available.count() / 2),
    };
    asked.map_or_else(by_default, Ok).map(|threads| threads.max(1))
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

impl Suite {
    fn new(arguments: WireArguments, running: &Arc<RunningServers>) -> Result<Self, WireError> {
        let WireArguments { servers, libtorch, models, cpus_server, rounds, seconds, cases, profile, quick, generator } =
            arguments;
        let halves = CpuSet::available().map_err(WireError::Cpus)?.halves();
        let (server_half, generator_half) = halves.unzip();
        // Who names one set names both.
        let is_named = cpus_server.is_some() || generator.cpus_generator.is_some();
        let cpus_server = if is_named { cpus_server } else { server_half };
        let cpus_generator = if is_named { generator.cpus_generator } else { generator_half };
        let is_selected = |name: &str| cases.is_empty() || cases.iter().any(|text| name.contains(text.as_str()));
        let all = case::cases();
        let names = all.iter().map(|case| case.name.as_str()).chain([REST_NAME]).collect::<Vec<_>>().join("\n");
        let is_small = |case: &Case| !quick || case.load.size_bytes <= QUICK_BYTES;
        let selected: Vec<Case> = all.into_iter().filter(|case| is_small(case) && is_selected(&case.name)).collect();
        let is_rest_measured = is_selected(REST_NAME);
        if selected.is_empty() && !is_rest_measured {
            return Err(WireError::NoCase(cases, names));
        }
        let seconds = if quick { 0.5 } else { seconds };
        let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(2));
        Ok(Self {
            programs: servers,
            setup: ServerSetup { libtorch, models, cpus: cpus_server, running: Arc::clone(running) },
            run: RunOptions {
                threads: threads(generator.threads, cpus_generator.as_ref()).map_err(WireError::Cpus)?,
                cpus: cpus_generator,
                bound: Bound::Time(time),
                warmup: WARMUP.min(time),
                counters: generator.counters,
            },
            rounds: if quick { 1 } else { rounds.max(1) },
            time,
            cases: selected,
            is_rest_measured,
            is_profiled: profile,
        })
    }

    fn start(&self, model: Model) -> Result<Running<'_>, WireError> {
        let files = ModelFiles::write(model, &self.setup.models).map_err(WireError::Models)?;
        let start = |program| RunningServer::start(program, &files, &self.setup);
        self.programs.iter().map(|program| Ok((program.name.as_str(), start(program)?))).collect()
    }

    fn case(&self, case: &Case, encoded: &Arc<EncodedLoad>, servers: &Running<'_>) -> CaseReport {
        let mut rounds: Vec<Result<Vec<Figures>, String>> = servers.iter().map(|_| Ok(Vec::new())).collect();
        for _ in 0..self.rounds {
            for ((_, server), rounds) in servers.iter().zip(&mut rounds) {
                let Ok(done) = rounds else { continue };
                match measure::run(encoded, server.target(), &self.run) {
                    Ok(figures) => done.push(figures),
                    Err(error) => *rounds = Err(chain(&error)),
                }
            }
        }
        let servers = servers.iter().zip(rounds).map(|((name, _), rounds)| ((*name).to_owned(), rounds));
        CaseReport { name: case.name.clone(), servers: servers.collect() }
    }

    /// One more run, under perf.
    fn profile(&self, case: &Case, encoded: &Arc<EncodedLoad>, server: &(&str, RunningServer)) -> ProfileReport {
        let (name, server) = server;
        let target = server.target();
        // Longer than perf samples: it takes a moment to begin.
        let run = RunOptions { bound: Bound::Time(SAMPLED + SETTLE), ..self.run.clone() };
        let record = || -> Result<Option<Shares>, Box<dyn Error>> {
            let recording = Recording::start(target.pid.unwrap_or_default(), SAMPLED, &self.setup.models)?;
            measure::run(encoded, target, &run)?;
            Ok(recording.finish()?)
        };
        let shares = record().map_err(|error| chain(error.as_ref()));
        let allocations = self.allocations(encoded, target).map_err(|error| chain(error.as_ref()));
        ProfileReport { case: case.name.clone(), server: (*name).to_owned(), shares, allocations }
    }

    /// Blocks of memory that a request asks for, on connections that are open.
    fn allocations(&self, encoded: &Arc<EncodedLoad>, target: Target) -> Result<f64, Box<dyn Error>> {
        let pid = target.pid.unwrap_or_default();
        let probes = AllocationProbes::place(pid)?;
        let mut generator = Generator::open(encoded, target, &self.run)?;
        generator.run(Bound::Requests(2))?;
        let counting = probes.start(pid)?;
        // It takes a moment to begin.
        thread::sleep(SETTLE);
        let done = generator.run(Bound::Requests(COUNTED_REQUESTS))?;
        let count = counting.finish()?;
        generator.close();
        Ok(real(count) / real(done.latencies_ns.len() as u64))
    }

    /// What each server does while its clients do nothing.
    fn rest(&self, servers: &Running<'_>) -> String {
        eprintln!("torchmodel-bench: {REST_NAME}");
        let told = |(name, server): &(&str, RunningServer)| match self.rest_of(server) {
            Ok(text) => format!("{name} {text}"),
            Err(error) => format!("{name} {FAILED}{}", chain(&error)),
        };
        let told: Vec<String> = servers.iter().map(told).collect();
        format!("At rest, {REST:?} with 16 gRPC and 16 REST connections open: {}.\n", told.join("; "))
    }

    fn rest_of(&self, server: &RunningServer) -> Result<String, RunError> {
        let target = server.target();
        let mut open = Vec::new();
        for load in case::idle_loads() {
            let mut generator = Generator::open(&Arc::new(EncodedLoad::new(load)), target, &self.run)?;
            generator.run(Bound::Requests(2))?;
            open.push(generator);
        }
        thread::sleep(SETTLE);
        let process = Process::new(target.pid.unwrap_or_default());
        let before = process.snapshot()?;
        thread::sleep(REST);
        let usage = process.snapshot()?.since(&before);
        // They must still answer: a connection that was closed would rest too.
        for mut generator in open {
            generator.run(Bound::Requests(1))?;
            generator.close();
        }
        Ok(format!("{:.2} ms of CPU and {:.0} wake-ups", usage.run_seconds * 1e3, usage.wake_ups))
    }

    fn conditions(&self) -> String {
        let shown =
            |cpus: &Option<CpuSet>| cpus.as_ref().map_or("not pinned".to_owned(), |cpus| format!("on CPUs {cpus}"));
        let count = CpuSet::available().map_or(0, |available| available.count());
        format!(
            "{count} CPUs; servers {}; generator {}, {}; medians of {} of {:?}.",
            shown(&self.setup.cpus),
            shown(&self.run.cpus),
            plural(self.run.threads, "thread"),
            plural(self.rounds, "round"),
            self.time
        )
    }
}
