//! Few threads that keep many connections busy, each with one request in flight.
//!
//! `measure` opens a generator and runs it in phases. Each thread has an executor of its own and its share of the connections, so that
//! no answer is handed from thread to thread. Invariant: a request that fails or an answer that is wrong ends the run.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::timeout,
};

use crate::{
    answer::{AnswerError, Checker},
    cpus::CpuSet,
    exchange::{AnswerHead, Body, ExchangeError},
    grpc::GrpcConnection,
    http::HttpConnection,
    load::{Bound, EncodedLoad, RunOptions, Target, VARIANTS},
};

/// Of the answers that are too large to be looked at each, one in so many is.
const SAMPLE: usize = 64;
/// Answers up to this size are all looked at.
const SMALL_BYTES: usize = 4 << 10;
/// How long a phase may take beyond its bound.
const PHASE_GRACE: Duration = Duration::from_secs(180);

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum GeneratorError {
    /// A request has no answer.
    #[error("connection {connection}: request {request} failed")]
    Exchange {
        /// Number of the connection.
        connection: usize,
        /// Number of the request on it.
        request: usize,
        /// What happened.
        source: ExchangeError,
    },
    /// An answer is wrong.
    #[error("connection {connection}: the answer to request {request} is wrong")]
    Answer {
        /// Number of the connection.
        connection: usize,
        /// Number of the request on it.
        request: usize,
        /// What is wrong.
        source: AnswerError,
    },
    /// Answers did not come.
    #[error("the server did not answer everything within {0:?}")]
    Timeout(Duration),
    /// The system refused threads or CPUs.
    #[error("starting the generator's threads")]
    Start(#[from] io::Error),
    /// A thread is gone, which is a bug.
    #[error("a thread of the generator has ended")]
    Gone,
}

/// What a phase gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Time of each request, from its first byte written to its answer's last byte read.
    pub latencies_ns: Vec<u64>,
    /// From the first request sent to the last answer read.
    pub elapsed: Duration,
    /// Bytes of bodies sent.
    pub sent_bytes: u64,
    /// Bytes of bodies received.
    pub received_bytes: u64,
}

/// The threads and their connections.
pub struct Generator {
    threads: Vec<GeneratorThread>,
    checker: Arc<Checker>,
}

struct GeneratorThread {
    commands: SyncSender<Command>,
    replies: Receiver<Result<PhaseReport, GeneratorError>>,
    handle: JoinHandle<()>,
}

#[derive(Clone, Copy)]
struct Command {
    bound: Bound,
    end: Option<Instant>,
}

/// What a thread's connections did in a phase.
struct PhaseReport {
    measured: Measured,
    started: Instant,
    ended: Instant,
}

/// What a thread needs.
struct ThreadSetup {
    load: Arc<EncodedLoad>,
    checker: Arc<Checker>,
    target: Target,
    cpus: Option<CpuSet>,
    /// Numbers of its connections.
    connections: Vec<usize>,
}

impl Generator {
    /// Opens the connections of `load` to `target`.
    pub fn open(load: &Arc<EncodedLoad>, target: Target, options: &RunOptions) -> Result<Self, GeneratorError> {
        let checker = Arc::new(load.checker());
        let count = options.threads.clamp(1, load.load.connections.max(1));
        let mut threads = Vec::new();
        for number in 0..count {
            let setup = ThreadSetup {
                load: Arc::clone(load),
                checker: Arc::clone(&checker),
                target,
                cpus: options.cpus.clone(),
                connections: (number..load.load.connections).step_by(count).collect(),
            };
            let (commands, inbox) = sync_channel(1);
            let (outbox, replies) = sync_channel(1);
            let run = move || setup.run(&inbox, &outbox);
            let handle = thread::Builder::new().name(format!("generator-{number}")).spawn(run)?;
            threads.push(GeneratorThread { commands, replies, handle });
        }
        let generator = Self { threads, checker };
        // Each thread's first reply says that its connections are open.
        generator.collect()?;
        Ok(generator)
    }

    /// Runs a phase on every connection.
    pub fn run(&mut self, bound: Bound) -> Result<Measured, GeneratorError> {
        let end = match bound {
            Bound::Time(duration) => Instant::now().checked_add(duration),
            Bound::Requests(_) => None,
        };
        for thread in &self.threads {
            thread.commands.send(Command { bound, end }).map_err(|_| GeneratorError::Gone)?;
        }
        self.collect()
    }

    /// Whether answers were compressed.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.checker.is_compressed()
    }

    /// Closes the connections.
    pub fn close(self) {
        for GeneratorThread { commands, handle, .. } in self.threads {
            drop(commands);
            // A thread that panicked has told its panic on standard error.
            drop(handle.join());
        }
    }

    fn collect(&self) -> Result<Measured, GeneratorError> {
        let replies: Vec<_> = self.threads.iter().map(|thread| thread.replies.recv()).collect();
        let mut all = Measured::default();
        let mut times: Option<(Instant, Instant)> = None;
        for reply in replies {
            let report = reply.map_err(|_| GeneratorError::Gone)??;
            all.latencies_ns.extend(report.measured.latencies_ns);
            all.sent_bytes += report.measured.sent_bytes;
            all.received_bytes += report.measured.received_bytes;
            let (first, last) = times.unwrap_or((report.started, report.ended));
            times = Some((first.min(report.started), last.max(report.ended)));
        }
        all.elapsed = times.map_or(Duration::ZERO, |(first, last)| last - first);
        Ok(all)
    }
}

impl ThreadSetup {
    fn run(self, commands: &Receiver<Command>, replies: &SyncSender<Result<PhaseReport, GeneratorError>>) {
        let opened = self.open();
        let (runtime, mut connections) = match opened {
            Ok(opened) => opened,
            // Nobody waits for the reply if the generator is gone.
            Err(error) => return drop(replies.send(Err(error))),
        };
        let now = Instant::now();
        let mut reply = Ok(PhaseReport { measured: Measured::default(), started: now, ended: now });
        loop {
            let is_over = reply.is_err();
            if replies.send(reply).is_err() || is_over {
                return;
            }
            let Ok(command) = commands.recv() else { break };
            reply = runtime.block_on(phase(&mut connections, command));
        }
        runtime.block_on(async {
            for connection in connections {
                connection.line.close().await;
            }
        });
    }

    fn open(&self) -> Result<(Runtime, Vec<Connection>), GeneratorError> {
        self.cpus.as_ref().map(CpuSet::apply).transpose()?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let connections = runtime.block_on(async {
            let mut connections = Vec::new();
            for number in &self.connections {
                let opened = timeout(PHASE_GRACE, Line::open(&self.load, self.target)).await;
                let line = opened
                    .map_err(|_| GeneratorError::Timeout(PHASE_GRACE))?
                    .map_err(|source| GeneratorError::Exchange { connection: *number, request: 0, source })?;
                connections.push(Connection {
                    line,
                    load: Arc::clone(&self.load),
                    checker: Arc::clone(&self.checker),
                    number: *number,
                    requests: 0,
                    body: Body::default(),
                });
            }
            Ok::<_, GeneratorError>(connections)
        })?;
        Ok((runtime, connections))
    }
}

/// Runs every connection to the end of the phase.
async fn phase(connections: &mut Vec<Connection>, command: Command) -> Result<PhaseReport, GeneratorError> {
    let limit = match command.bound {
        Bound::Time(duration) => duration.saturating_add(PHASE_GRACE),
        Bound::Requests(_) => PHASE_GRACE,
    };
    let started = Instant::now();
    let mut tasks: JoinSet<_> = connections.drain(..).map(|connection| connection.run(command)).collect();
    let mut all = Measured::default();
    let finish = async {
        while let Some(ended) = tasks.join_next().await {
            let (connection, measured) = ended.map_err(|_| GeneratorError::Gone)??;
            all.latencies_ns.extend(measured.latencies_ns);
            all.sent_bytes += measured.sent_bytes;
            all.received_bytes += measured.received_bytes;
            connections.push(connection);
        }
        Ok(())
    };
    timeout(limit, finish).await.unwrap_or(Err(GeneratorError::Timeout(limit)))?;
    Ok(PhaseReport { measured: all, started, ended: Instant::now() })
}

/// A connection of either protocol.
enum Line {
    Grpc(Box<GrpcConnection>),
    Http(HttpConnection),
}

impl Line {
    async fn open(load: &EncodedLoad, target: Target) -> Result<Self, ExchangeError> {
        let address = |is_grpc| -> SocketAddr { if is_grpc { target.grpc } else { target.http } };
        let is_grpc = load.load.wire.is_grpc();
        if is_grpc {
            let connection = GrpcConnection::open(address(is_grpc), load.load.is_announcing_compression).await?;
            return Ok(Self::Grpc(Box::new(connection)));
        }
        Ok(Self::Http(HttpConnection::open(address(is_grpc)).await?))
    }

    async fn close(self) {
        match self {
            Self::Grpc(connection) => connection.close().await,
            Self::Http(connection) => drop(connection),
        }
    }
}

/// A connection and what it has done.
struct Connection {
    line: Line,
    load: Arc<EncodedLoad>,
    checker: Arc<Checker>,
    number: usize,
    requests: usize,
    body: Body,
}

impl Connection {
    async fn run(mut self, command: Command) -> Result<(Self, Measured), GeneratorError> {
        let mut measured = Measured::default();
        loop {
            let in_phase = measured.latencies_ns.len();
            self.request(in_phase, &mut measured).await?;
            let is_over = match command.bound {
                Bound::Time(_) => command.end.is_none_or(|last| Instant::now() >= last),
                Bound::Requests(count) => in_phase + 1 >= count,
            };
            if is_over {
                return Ok((self, measured));
            }
        }
    }

    /// One request and its answer; looking at the answer is not part of its time.
    async fn request(&mut self, in_phase: usize, measured: &mut Measured) -> Result<(), GeneratorError> {
        let (connection, request) = (self.number, self.requests);
        let variant = (connection + request) % VARIANTS;
        let is_small = self.checker.reference_length(variant).is_none_or(|length| length <= SMALL_BYTES);
        self.body.begin(is_small || in_phase.is_multiple_of(SAMPLE));
        self.requests += 1;
        let Some(encoded) = self.load.requests.get(variant) else { return Err(GeneratorError::Gone) };
        let start = Instant::now();
        let answered = match &mut self.line {
            Line::Grpc(line) => line.exchange(&encoded.body, &mut self.body).await,
            Line::Http(line) => line.exchange(encoded, &mut self.body).await,
        };
        measured.latencies_ns.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let head: AnswerHead = answered.map_err(|source| GeneratorError::Exchange { connection, request, source })?;
        self.checker.check(variant, head, &self.body).map_err(|source| GeneratorError::Answer {
            connection,
            request,
            source,
        })?;
        measured.sent_bytes += encoded.body.len() as u64;
        measured.received_bytes += self.body.length() as u64;
        Ok(())
    }
}
