//! The server under attack: its process, its memory, its health.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use torchmodel_core::{
    fake::FakeModel,
    metrics::Metrics,
    repository::{ModelRepository, RepositoryOptions},
    tensor::DataType,
};
use torchmodel_server::{admission::Admission, protocol::Limits};
use torchmodel_testing::{Bounds, Served};

use crate::CHILD;

/// Largest request of the server under attack.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;
/// What all requests together may hold.
pub const MAX_INFLIGHT_BYTES: usize = 48 << 20;
/// Connections that each port takes.
pub const MAX_CONNECTIONS: usize = 256;
/// What the process may hold beyond the budget: heads, windows and buffers of [`MAX_CONNECTIONS`] connections, kept slabs, and what
/// the allocator does not give back.
const BEYOND_BUDGET_BYTES: usize = 64 << 20;
/// How long an answer of health may take, at the 99th percentile.
const HEALTH_P99: Duration = Duration::from_millis(100);
/// How often health is asked.
const HEALTH_PAUSE: Duration = Duration::from_millis(5);
/// How long anything here may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Serves until standard input ends.
pub fn run_child() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        ended.send(()).unwrap();
    });
    runtime.block_on(async {
        let metrics = Metrics::new();
        let repository = Arc::new(ModelRepository::new(RepositoryOptions::new(metrics.clone())));
        FakeModel::identity("echo", DataType::Uint8, &[-1]).serve(&repository).unwrap();
        let bounds = Bounds {
            limits: Limits { max_request_bytes: MAX_REQUEST_BYTES, ..Limits::default() },
            admission: Admission::new(MAX_INFLIGHT_BYTES),
            max_connections: MAX_CONNECTIONS,
            drain_timeout: Duration::ZERO,
        };
        let mut served = Served::start(repository, metrics, bounds).await;
        println!("\nports {} {} {}", served.rest.port(), served.grpc.port(), served.admin.port());
        end.await.unwrap();
        served.stop().await.unwrap();
    });
    std::process::exit(0);
}

/// A server in a process of its own.
pub struct Server {
    process: Child,
    _stdin: ChildStdin,
    pub rest: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    baseline_bytes: usize,
    /// One server at a time, so that none is measured while another takes the processors.
    _turn: MutexGuard<'static, ()>,
}

impl Server {
    pub fn start() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_process_that_serves", "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ports = lines.find_map(|line| Some(line.unwrap().strip_prefix("ports ")?.to_owned())).unwrap();
        let addresses: Vec<SocketAddr> =
            ports.split(' ').map(|port| SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()))).collect();
        let [rest, grpc, admin] = addresses[..] else { panic!("three ports: {ports}") };
        let stdin = process.stdin.take().unwrap();
        let mut server = Self { process, _stdin: stdin, rest, grpc, admin, baseline_bytes: 0, _turn: turn };
        server.serves_a_friendly_client();
        server.baseline_bytes = server.memory_bytes("VmRSS:");
        server
    }

    /// Does the hostile thing, then asserts what the module's comment says.
    pub fn withstands<T>(&self, attack: impl FnOnce() -> T) -> T {
        fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5").unwrap();
        let health = HealthWatch::start(self.admin);
        let held = attack();
        let times = health.stop();
        let grown = self.memory_bytes("VmHWM:").saturating_sub(self.baseline_bytes);
        let bound = MAX_INFLIGHT_BYTES + BEYOND_BUDGET_BYTES;
        let HealthTimes { answers, p99, maximum } = times;
        println!("grew by {} KiB at most; health {answers} times, p99 {p99:?}, at most {maximum:?}", grown >> 10);
        assert!(grown <= bound, "the server grew by {grown} bytes; the bound is {bound}");
        assert!(p99 <= HEALTH_P99, "health: {p99:?} at the 99th percentile");
        held
    }

    /// A figure of `/proc/PID/status`, in bytes.
    fn memory_bytes(&self, name: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    }

    /// One inference over REST, waited for until the server takes it.
    pub fn serves_a_friendly_client(&self) {
        let started = Instant::now();
        loop {
            match ask(self.rest) {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") && answer.contains("\"data\":[7,8]") => return,
                answer => assert!(started.elapsed() < PATIENCE, "a friendly client is not served: {answer:?}"),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let body = r#"{"inputs":[{"name":"input","datatype":"UINT8","shape":[2],"data":[7,8]}]}"#;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let length = body.len();
    write!(
        stream,
        "POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Times of health's answers.
#[derive(Debug)]
struct HealthTimes {
    answers: usize,
    p99: Duration,
    maximum: Duration,
}

/// Asks for health again and again, each time on a connection of its own, as kubelet does.
struct HealthWatch {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl HealthWatch {
    fn start(admin: SocketAddr) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, (first, asked)) = (Arc::clone(&is_over), mpsc::channel());
        let thread = std::thread::spawn(move || {
            let mut times = Vec::new();
            // At least so many that there is a 99th percentile.
            while !over.load(Relaxed) || times.len() < 100 {
                let started = Instant::now();
                is_live(admin);
                times.push(started.elapsed());
                first.send(()).unwrap_or_default();
                // Asks at a pace, so that the questions themselves are no load.
                std::thread::park_timeout(HEALTH_PAUSE);
            }
            times
        });
        asked.recv_timeout(PATIENCE).unwrap();
        Self { is_over, thread }
    }

    fn stop(self) -> HealthTimes {
        self.is_over.store(true, Relaxed);
        let mut times = self.thread.join().unwrap();
        times.sort_unstable();
        let (answers, maximum) = (times.len(), *times.last().unwrap());
        HealthTimes { answers, p99: times[(answers * 99).div_ceil(100) - 1], maximum }
    }
}

fn is_live(admin: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
