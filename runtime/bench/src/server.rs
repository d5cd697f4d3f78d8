//! A server that runs as long as it is measured.
//!
//! `wire` starts one for each program and model, on free ports of loopback. Invariant: a server that was started has ended when
//! its [`RunningServer`] is dropped, whatever happens.

use std::{
    collections::{BTreeSet, VecDeque},
    io::{self, BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::{archive::ModelFiles, counters, cpus::CpuSet, load::Target};

/// How long a server may take from its start to ready.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How often it is asked whether it is ready.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Lines of the log that are told when it does not start.
const TOLD_LINES: usize = 12;
/// Bytes of one request, and of all together, that the server may hold: more than any load here has in flight.
const MAX_REQUEST_BYTES: &str = "536870912";
const MAX_INFLIGHT_BYTES: &str = "8589934592";

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The program cannot be started.
    #[error("starting {path}")]
    Start {
        /// The program.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It ended, or was not ready in time.
    #[error("{path} was not ready within {START_TIMEOUT:?}; the end of its log:\n{log}")]
    NotReady {
        /// The program.
        path: PathBuf,
        /// The last lines of its log.
        log: String,
    },
}

/// A program to measure, written `NAME=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerProgram {
    /// What the table calls it.
    pub name: String,
    /// The program.
    pub path: PathBuf,
}

impl FromStr for ServerProgram {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), path: path.into() })
            }
            _ => Err("write it as NAME=PATH, such as today=target/release/torchmodel-runtime".into()),
        }
    }
}

/// Where and with what servers run.
#[derive(Clone, Debug)]
pub struct ServerSetup {
    /// Folders with libtorch's libraries, separated by colons.
    pub libtorch: Option<String>,
    /// Folder for models and caches.
    pub models: PathBuf,
    /// CPUs of the server.
    pub cpus: Option<CpuSet>,
    /// Who ends the servers when the program is told to end.
    pub running: Arc<RunningServers>,
}

/// The processes of the servers that run: a program that ends by a signal drops nothing, so it ends these by their numbers.
#[derive(Debug, Default)]
pub struct RunningServers(Mutex<BTreeSet<u32>>);

impl RunningServers {
    /// Ends all of them at once.
    pub fn end(&self) {
        for pid in self.processes().iter() {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                // An error means that it has ended already.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    fn processes(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server, ready.
#[derive(Debug)]
pub struct RunningServer {
    child: Child,
    ports: Ports,
    running: Arc<RunningServers>,
}

/// The line of the log that tells the ports.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
struct Ports {
    http: SocketAddr,
    grpc: SocketAddr,
    metrics: SocketAddr,
}

impl RunningServer {
    /// Starts `program` with the model of `files` and waits until it is ready.
    pub fn start(program: &ServerProgram, files: &ModelFiles, setup: &ServerSetup) -> Result<Self, ServerError> {
        let start_error = |source| ServerError::Start { path: program.path.clone(), source };
        let mut command = command(&program.path, files, setup);
        let cpus = setup.cpus.clone();
        // A thread of its own, since a child inherits the CPUs of the thread that starts it.
        let spawned = thread::spawn(move || {
            cpus.as_ref().map(CpuSet::apply).transpose()?;
            command.spawn()
        });
        let spawned = spawned.join().unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")));
        let mut child = spawned.map_err(start_error)?;
        setup.running.processes().insert(child.id());
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, ports) = sync_channel(1);
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            thread::spawn(move || follow(stderr, &log, &sender));
        }
        // From here on the child ends with `server`.
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let ports_unknown = Ports { http: unknown, grpc: unknown, metrics: unknown };
        let mut server = Self { child, ports: ports_unknown, running: Arc::clone(&setup.running) };
        let end = Instant::now() + START_TIMEOUT;
        let is_ready = match ports.recv_timeout(START_TIMEOUT) {
            Ok(ports) => {
                server.ports = ports;
                server.await_ready(end)
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        };
        if is_ready {
            return Ok(server);
        }
        let log =
            log.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect::<Vec<String>>().join("\n");
        Err(ServerError::NotReady { path: program.path.clone(), log })
    }

    /// What to measure.
    #[must_use]
    pub fn target(&self) -> Target {
        let Ports { http, grpc, metrics } = self.ports;
        Target { http, grpc, metrics: Some(metrics), pid: Some(self.child.id()) }
    }

    fn await_ready(&mut self, end: Instant) -> bool {
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            if matches!(counters::get(self.ports.http, "/v2/health/ready"), Ok((200, _))) {
                return true;
            }
            thread::sleep(POLL_INTERVAL);
        }
        false
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        self.running.processes().remove(&self.child.id());
    }
}

fn command(program: &Path, files: &ModelFiles, setup: &ServerSetup) -> Command {
    let mut command = Command::new(program);
    command.arg("serve").arg("--file").arg(&files.config).arg("--artifact").arg(&files.archive);
    for address in ["--http-address", "--grpc-address", "--metrics-address"] {
        command.args([address, "127.0.0.1:0"]);
    }
    command.args(["--device", "cpu", "--log-format", "json", "--log", "info"]);
    command.args(["--max-request-bytes", MAX_REQUEST_BYTES, "--max-inflight-bytes", MAX_INFLIGHT_BYTES]);
    command.arg("--cache-dir").arg(setup.models.join("cache"));
    if let Some(libtorch) = &setup.libtorch {
        command.env("LD_LIBRARY_PATH", libtorch);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Reads the log to its end, so that the server never waits for its reader; tells the ports once.
fn follow(stderr: ChildStderr, log: &Mutex<VecDeque<String>>, ports: &SyncSender<Ports>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if let Ok(found) = serde_json::from_str::<Ports>(&line) {
            // Only the first is waited for.
            let _ = ports.try_send(found);
        }
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_back(line);
        if log.len() > TOLD_LINES {
            log.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str, running: &Arc<RunningServers>) -> Result<RunningServer, ServerError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.sh");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        let mut permissions = std::fs::metadata(&path).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        std::fs::set_permissions(&path, permissions).unwrap();
        let program = ServerProgram { name: "a".into(), path };
        let files = ModelFiles { archive: "a.pt".into(), config: "a.yaml".into() };
        let running = Arc::clone(running);
        let setup = ServerSetup { libtorch: None, models: folder.path().into(), cpus: None, running };
        RunningServer::start(&program, &files, &setup)
    }

    #[test]
    fn a_program_that_ends_is_told_with_its_log() {
        let running = Arc::default();
        let error = start("echo 'no such model' >&2; exit 1", &running).unwrap_err();
        assert!(error.to_string().ends_with("the end of its log:\nno such model"), "{error}");
        assert!(running.processes().is_empty());
    }

    #[test]
    fn a_server_ends_when_all_are_ended() {
        let running = Arc::<RunningServers>::default();
        let starting = {
            let running = Arc::clone(&running);
            thread::spawn(move || start("exec sleep 1000", &running))
        };
        while running.processes().is_empty() {
            thread::yield_now();
        }
        running.end();
        assert!(matches!(starting.join().unwrap(), Err(ServerError::NotReady { .. })));
    }

    #[test]
    fn the_ports_are_read_from_the_line_that_tells_them() {
        let line =
            r#"{"level":"INFO","message":"listening","http":"127.0.0.1:1","grpc":"127.0.0.1:2","metrics":"[::1]:3"}"#;
        let ports: Ports = serde_json::from_str(line).unwrap();
        assert_eq!((ports.http.port(), ports.grpc.port(), ports.metrics.port()), (1, 2, 3));
        assert!(serde_json::from_str::<Ports>(r#"{"message":"ready","model":"echo"}"#).is_err());
    }

    #[test]
    fn a_server_is_written_with_its_name() {
        let program: ServerProgram = "today=target/a=b".parse().unwrap();
        assert_eq!(program, ServerProgram { name: "today".into(), path: "target/a=b".into() });
        for text in ["today", "=a", "today="] {
            assert!(text.parse::<ServerProgram>().is_err(), "{text}");
        }
    }
}
