//! The program itself: what a person or kubelet sees of it from outside.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;
use torchmodel_crds::{Failure, FailureReason};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchmodel-runtime"));
    command.env_remove("TORCHMODEL_CACHE_DIR").env_remove("TORCHMODEL_LOG").stdin(Stdio::null());
    command
}

fn model(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("twice.pt");
    torch_shim::define_module("def forward(self, x):\n  return x * 2\n", &[], &path).unwrap();
    path
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `serve` on a file that cannot be served; the failure that it reports and everything it printed.
fn refused(folder: &TempDir, file: &Path, more: &[&str]) -> (Failure, Output) {
    let message = folder.path().join("termination-log");
    fs::write(&message, "").unwrap();
    let mut command = program();
    command.args([
        "serve",
        "--http-address=127.0.0.1:0",
        "--grpc-address=127.0.0.1:0",
        "--metrics-address=127.0.0.1:0",
    ]);
    command.arg("--file").arg(file).arg("--termination-message").arg(&message).arg("--cache-dir").arg(folder.path());
    let output = command.args(more).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let line = fs::read_to_string(&message).unwrap();
    (Failure::from_line(&line).unwrap_or_else(|| panic!("no failure in '{line}'")), output)
}

#[test]
fn what_cannot_be_served_ends_the_program_with_one_line_for_the_operator() {
    let folder = TempDir::new().unwrap();
    let path = model(&folder);
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let digest = format!("source: {{uri: 'file://{}', sha256: {}}}\n", path.display(), "0".repeat(64));
    for (file, reason, part) in [
        (write("garbage.pt", "PK\x03\x04 garbage"), FailureReason::NotTorchScript, "archive"),
        (write("digest.yaml", &digest), FailureReason::DigestMismatch, "0000"),
        (
            write("absent.yaml", "source: {uri: 'file:///does/not/exist.pt'}\n"),
            FailureReason::NotFound,
            "/does/not/exist.pt",
        ),
        (write("field.yaml", "source: {url: x}\n"), FailureReason::SpecInvalid, "source.url: is not a field here"),
        (
            write("queue.yaml", "source: {uri: 's3://b/k.pt'}\nmodel: {limits: {maxQueue: 0}}\n"),
            FailureReason::SpecInvalid,
            "queue.yaml: model.limits.maxQueue: is 0; it must be at least 1",
        ),
        (write("scheme.yaml", "source: {uri: 'ftp://host/file'}\n"), FailureReason::SchemeUnsupported, "ftp"),
        (folder.path().join("nowhere.yaml"), FailureReason::SpecInvalid, "nowhere.yaml"),
    ] {
        let (failure, output) = refused(&folder, &file, &[]);
        assert_eq!(failure.reason, reason, "{}", failure.message);
        assert!(failure.message.contains(part), "{}: {}", file.display(), failure.message);
        assert!(text(&output.stderr).contains(part), "the log says it too: {}", text(&output.stderr));
    }
}

#[test]
fn openmps_threads_look_for_work_as_long_as_was_measured_or_as_the_user_says() {
    let folder = TempDir::new().unwrap();
    let file = model(&folder);
    let spin_count = |serving: &Serving| {
        let environment = fs::read(format!("/proc/{}/environ", serving.child.id())).unwrap();
        let values = environment.split(|byte| *byte == 0).map(text);
        values.filter_map(|line| line.strip_prefix("GOMP_SPINCOUNT=").map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(spin_count(&Serving::start(&file, &[])), ["10000"], "under the same process id");
    let mut command = program();
    command.env("GOMP_SPINCOUNT", "7");
    assert_eq!(spin_count(&Serving::spawn(command, &file, &[])), ["7"]);
}

#[test]
fn a_port_that_is_taken_is_named_with_the_flag_that_changes_it() {
    let folder = TempDir::new().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("--http-address={}", taken.local_addr().unwrap());
    let output = program().args(["serve", "--file"]).arg(model(&folder)).arg(&address).output().unwrap();
    let log = text(&output.stderr);
    assert!(!output.status.success() && log.contains("choose another address with --http-address"), "{log}");
}

/// A program that serves, and the lines of its log.
struct Serving {
    child: Child,
    log: BufReader<ChildStderr>,
    http: String,
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Serving {
    fn start(file: &Path, more: &[&str]) -> Self {
        Self::start_in(Path::new("."), file, more)
    }

    fn start_in(folder: &Path, file: &Path, more: &[&str]) -> Self {
        let mut command = program();
        command.current_dir(folder);
        Self::spawn(command, file, more)
    }

    fn spawn(mut command: Command, file: &Path, more: &[&str]) -> Self {
        command
            .args(["serve", "--log-format=json", "--http-address=127.0.0.1:0"])
            .env("TORCHMODEL_SHUTDOWN_DELAY", "0s");
        command.args(["--grpc-address=127.0.0.1:0", "--metrics-address=127.0.0.1:0", "--file"]).arg(file).args(more);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut serving = Self { child, log, http: String::new() };
        let listening = serving.wait_for("listening");
        listening["http"].as_str().unwrap().clone_into(&mut serving.http);
        serving
    }

    /// The next log line with that message.
    fn wait_for(&mut self, message: &str) -> Value {
        let mut line = String::new();
        while self.log.read_line(&mut line).unwrap() > 0 {
            let value: Value = serde_json::from_str(&line).unwrap();
            if value["message"].as_str().is_some_and(|text| text.starts_with(message)) {
                return value;
            }
            line.clear();
        }
        panic!("the log ended before '{message}'")
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// POSTs a request in JSON for an inference; the answer's status.
    fn infer(&self, model: &str, body: &str) -> u16 {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        let head = format!("POST /v2/models/{model}/infer HTTP/1.1\r\nHost: m\r\nConnection: close");
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

#[test]
fn a_bare_archive_serves_under_its_files_name_and_sigterm_ends_it_cleanly() {
    let folder = TempDir::new().unwrap();
    let mut serving = Serving::start(&model(&folder), &[]);
    serving.wait_for("ready");
    assert!(serving.get("/v2/health/ready").starts_with("HTTP/1.1 200"));
    assert!(serving.get("/v2/models/twice").contains("\"name\":\"twice\""));
    serving.signal("TERM");
    serving.wait_for("shutting down");
    serving.wait_for("stopped; every request was answered");
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_a_model_prints_reaches_the_log_line_by_line_with_its_name() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("talker.pt");
    torch_shim::define_module("def forward(self, x):\n  print('one\\ntwo', x.size())\n  return x\n", &[], &path)
        .unwrap();
    let file = folder.path().join("talker.yaml");
    let inputs = "inputs: [{name: x, datatype: FP32, shape: [3]}]";
    let manifest = format!("source: {{uri: 'file://{}'}}\nmodel: {{name: talker, {inputs}}}\n", path.display());
    fs::write(&file, manifest).unwrap();
    let mut serving = Serving::start(&file, &[]);
    for line in ["print: one", "print: two [3]"] {
        assert_eq!(serving.wait_for("print: ")["message"], line);
    }
    assert_eq!(serving.wait_for("print: one")["model"], "talker");
    serving.wait_for("ready");
}

#[test]
fn several_models_are_served_at_once_and_a_request_to_each_is_answered() {
    let folder = TempDir::new().unwrap();
    let other = folder.path().join("thrice.pt");
    torch_shim::define_module("def forward(self, x):\n  return x * 3\n", &[], &other).unwrap();
    let mut serving = Serving::start(&model(&folder), &["--file", other.to_str().unwrap()]);
    serving.wait_for("every model is ready");
    assert!(serving.get("/v2/health/ready").starts_with("HTTP/1.1 200"));
    for (name, value) in [("twice", "10"), ("thrice", "15")] {
        let body = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"INT64","data":[5]}]}"#;
        let mut stream = TcpStream::connect(&serving.http).unwrap();
        let head = format!("POST /v2/models/{name}/infer HTTP/1.1\r\nHost: m\r\nConnection: close");
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(&format!("\"data\":[{value}]")), "{answer}");
    }
    serving.signal("TERM");
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
}

#[test]
fn it_is_live_but_not_ready_while_it_waits_for_the_artifact() {
    let folder = TempDir::new().unwrap();
    // A source that accepts connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = folder.path().join("slow.yaml");
    let uri = format!("http://{}/m.pt", silent.local_addr().unwrap());
    fs::write(&config, format!("source: {{uri: '{uri}', sha256: {}}}\n", "0".repeat(64))).unwrap();
    let cache = format!("--cache-dir={}", folder.path().display());
    let mut serving = Serving::start(&config, &[&cache]);
    assert!(serving.get("/v2/health/live").starts_with("HTTP/1.1 200"));
    let ready = serving.get("/v2/health/ready");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("model 'slow' is loading"), "{ready}");
    assert!(serving.get("/v2/models/slow").starts_with("HTTP/1.1 503"));
    serving.signal("INT");
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
}

#[test]
fn inspect_prints_facts_and_a_manifest_and_pull_prints_a_path() {
    let folder = TempDir::new().unwrap();
    let path = model(&folder);
    let output = program().arg("inspect").arg(&path).output().unwrap();
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(printed.contains("forward(x: Tensor) -> Tensor") && printed.contains("kind: TorchModel"), "{printed}");
    let sha256 = printed.lines().find_map(|line| line.strip_prefix("sha256:")).unwrap().trim().to_owned();
    let config = folder.path().join("config.yaml");
    fs::write(&config, format!("source: {{uri: 'file://{}', sha256: {sha256}}}\n", path.display())).unwrap();
    let output =
        program().args(["pull", "--file"]).arg(&config).arg("--cache-dir").arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).trim(), path.display().to_string());
    let output = program().arg("inspect").arg("/does/not/exist.pt").output().unwrap();
    assert!(!output.status.success() && text(&output.stderr).contains("/does/not/exist.pt"));
}

#[test]
fn a_relative_path_is_enough_and_an_inference_that_never_ends_does_not_keep_the_program() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("endless.pt");
    let source = "def forward(self, x):\n  while bool(x.sum() < 1):\n    x = x * 0\n  return x\n";
    torch_shim::define_module(source, &[], &path).unwrap();
    let mut serving = Serving::start_in(folder.path(), Path::new("endless.pt"), &["--drain-timeout=100ms"]);
    serving.wait_for("ready");
    let body = r#"{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}]}"#;
    let mut stream = TcpStream::connect(&serving.http).unwrap();
    let length = body.len();
    write!(stream, "POST /v2/models/endless/infer HTTP/1.1\r\nHost: m\r\nContent-Length: {length}\r\n\r\n{body}")
        .unwrap();
    while !serving.get("/v2/health/ready").starts_with("HTTP/1.1 200") {}
    serving.signal("TERM");
    serving.wait_for("shutting down");
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_program_that_is_told_to_stop_while_it_loads_stops_at_once_and_is_never_ready() {
    let folder = TempDir::new().unwrap();
    let archive = folder.path().join("endless.pt");
    // Its warm-up never ends.
    let source = "def forward(self, x):\n  while bool(x.sum() < 1):\n    x = x * 0\n  return x\n";
    torch_shim::define_module(source, &[], &archive).unwrap();
    let file = folder.path().join("model.yaml");
    let model = "{inputs: [{name: x, datatype: FP32, shape: [1]}], warmup: {inputs: [{name: x, fill: '0'}]}}";
    fs::write(&file, format!("source: {{uri: 'file://{}'}}\nmodel: {model}\n", archive.display())).unwrap();
    for step in ["listening", "loading"] {
        let mut serving = Serving::start(&file, &["--shutdown-delay=1h"]);
        if step != "listening" {
            serving.wait_for(step);
        }
        serving.signal("TERM");
        serving.wait_for("shutting down before every model was ready");
        assert_eq!(serving.child.wait().unwrap().code(), Some(0), "{step}");
    }
}

#[test]
fn a_draining_server_still_answers_and_ends_kept_connections() {
    let folder = TempDir::new().unwrap();
    let mut serving = Serving::start(&model(&folder), &["--shutdown-delay=20s"]);
    serving.wait_for("ready");
    let mut kept = BufReader::new(TcpStream::connect(&serving.http).unwrap());
    let ask = |kept: &mut BufReader<TcpStream>| {
        write!(kept.get_mut(), "GET /v2/health/live HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(kept.read_line(&mut head).unwrap() > 0, "{head}");
        }
        let mut body = [0; "{\"live\":true}".len()];
        kept.read_exact(&mut body).unwrap();
        head.to_lowercase()
    };
    assert!(!ask(&mut kept).contains("connection: close"));
    serving.signal("TERM");
    serving.wait_for("shutting down");
    let head = ask(&mut kept);
    assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    serving.signal("TERM");
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_log_filter_that_names_no_level_is_refused_with_the_list_and_an_empty_one_shows_errors() {
    for filter in ["--log=warning", "--log=verbose"] {
        let output = program().args(["inspect", "/does/not/exist.pt", filter]).output().unwrap();
        let printed = text(&output.stderr);
        assert!(printed.contains("off, error, warn, info, debug or trace"), "{filter}: {printed}");
        assert_eq!(output.status.code(), Some(2));
    }
    let output = program().env("TORCHMODEL_LOG", "").args(["inspect", "/does/not/exist.pt"]).output().unwrap();
    assert!(text(&output.stderr).contains("/does/not/exist.pt"), "{}", text(&output.stderr));
}

#[test]
fn a_client_whose_requests_fail_in_a_loop_leaves_six_lines_in_the_log() {
    let folder = TempDir::new().unwrap();
    let archive = folder.path().join("inverse.pt");
    torch_shim::define_module("def forward(self, x):\n  return torch.inverse(x)\n", &[], &archive).unwrap();
    let file = folder.path().join("model.yaml");
    let model = "{inputs: [{name: x, datatype: FP32, shape: [1, 1]}], warmup: {inputs: [{name: x, fill: '1'}]}}";
    fs::write(&file, format!("source: {{uri: 'file://{}'}}\nmodel: {model}\n", archive.display())).unwrap();
    let mut serving = Serving::start(&file, &[]);
    serving.wait_for("ready");
    let zero = r#"{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0]}]}"#;
    for _ in 0..40 {
        assert_eq!(serving.infer("model", zero), 500);
    }
    serving.signal("TERM");
    let mut log = String::new();
    serving.log.read_to_string(&mut log).unwrap();
    let lines = |part: &str| log.lines().filter(|line| line.contains(part)).count();
    // The first five, and one that tells how many more there were; twice where ten seconds have passed meanwhile.
    assert!((2..=12).contains(&lines("the model failed")), "{log}");
    assert!(lines(" more like it in the last ") >= 1, "{log}");
}
