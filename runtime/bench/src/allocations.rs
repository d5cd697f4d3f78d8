//! How many blocks of memory a request costs: calls of the C library's allocator in the server, as perf counts them.
//!
//! `wire` asks with `--profile`, in a run of its own, since each call that is counted takes longer. Kernel probes on the allocator's
//! functions count for any program without its help, so that an older binary is measured like today's. Invariant: the probes are taken
//! away when their owner is dropped. Needs perf, and the right to place probes (root).

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

/// What gives memory.
const FUNCTIONS: [&str; 5] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"];

/// Why nothing was counted.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    /// perf cannot be started.
    #[error("starting perf: install it, or leave out --profile")]
    Start(#[source] io::Error),
    /// perf failed.
    #[error("perf failed: {0}")]
    Failed(String),
    /// The process has no C library that is known.
    #[error("the server has no libc.so.6 mapped")]
    NoLibrary,
    /// What perf printed has no counts.
    #[error("perf gave no counts: {0}")]
    NoCounts(String),
}

/// Probes on the allocator, one for each function.
#[derive(Debug)]
pub struct AllocationProbes {
    group: String,
}

/// A count that is under way.
#[derive(Debug)]
pub struct Counting {
    perf: Child,
}

impl AllocationProbes {
    /// Places them in the C library that the process `pid` uses.
    pub fn place(pid: u32) -> Result<Self, AllocationError> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let library = library_of(&maps).ok_or(AllocationError::NoLibrary)?;
        let probes = Self { group: format!("torchmodel_{}", std::process::id()) };
        let mut command = Command::new("perf");
        command.args(["probe", "--quiet", "--exec"]).arg(library);
        for function in FUNCTIONS {
            command.args(["--add", &format!("{}:{function}={function}", probes.group)]);
        }
        perf(&mut command)?;
        Ok(probes)
    }

    /// Begins to count in the process `pid`.
    pub fn start(&self, pid: u32) -> Result<Counting, AllocationError> {
        let events = FUNCTIONS.map(|function| format!("{}:{function}", self.group)).join(",");
        let mut perf = Command::new("perf");
        perf.args(["stat", "--field-separator", ",", "--event", &events, "--pid", &pid.to_string()]);
        let perf = perf.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        Ok(Counting { perf: perf.map_err(AllocationError::Start)? })
    }
}

impl Drop for AllocationProbes {
    fn drop(&mut self) {
        // Probes that are left count nothing and cost nothing until somebody asks for them.
        drop(perf(Command::new("perf").args(["probe", "--quiet", "--del", &format!("{}:*", self.group)])));
    }
}

impl Counting {
    /// Ends it and gives the calls of all functions.
    pub fn finish(self) -> Result<u64, AllocationError> {
        let pid = i32::try_from(self.perf.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Where it is gone already, its status tells why.
            let _ = kill_process(pid, Signal::INT);
        }
        let ended = self.perf.wait_with_output().map_err(AllocationError::Start)?;
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        sum(&text).ok_or(AllocationError::NoCounts(text))
    }
}

fn perf(command: &mut Command) -> Result<(), AllocationError> {
    let ended = command.stdin(Stdio::null()).output().map_err(AllocationError::Start)?;
    if ended.status.success() {
        return Ok(());
    }
    Err(AllocationError::Failed(String::from_utf8_lossy(&ended.stderr).trim().to_owned()))
}

/// The C library among the files that a process has mapped.
fn library_of(maps: &str) -> Option<PathBuf> {
    let mut files = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(Path::new);
    files.find(|file| file.file_name().is_some_and(|name| name == "libc.so.6")).map(Path::to_owned)
}

/// The counts of all lines: `COUNT,,EVENT,…`; `None` unless every function has one.
fn sum(text: &str) -> Option<u64> {
    let count =
        |line: &str| line.split_once(',').filter(|(_, rest)| rest.contains("torchmodel_"))?.0.parse::<u64>().ok();
    let counts: Vec<u64> = text.lines().filter_map(count).collect();
    (counts.len() == FUNCTIONS.len()).then(|| counts.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_among_what_is_mapped() {
        let maps = "55d0-55d1 r-xp 00000000 fe:00 123 /bin/cat\n\
            7f00-7f01 r--p 00000000 fe:00 456                        /usr/lib/x86_64-linux-gnu/libc.so.6\n7ffc-7ffd rw-p 00000000 00:00 0 [stack]\n";
        assert_eq!(library_of(maps), Some("/usr/lib/x86_64-linux-gnu/libc.so.6".into()));
        assert_eq!(library_of("55d0-55d1 r-xp 00000000 fe:00 123 /bin/static\n"), None);
    }

    #[test]
    fn counts_are_added_and_one_that_is_missing_is_no_nought() {
        let line = |count: &str, function: &str| format!("{count},,torchmodel_7:{function},1000,100.00,,\n");
        let four = FUNCTIONS[1..].iter().map(|function| line("2", function)).collect::<String>();
        assert_eq!(sum(&(line("100", "malloc") + &four)), Some(108));
        assert_eq!(sum(&four), None);
        assert_eq!(sum(&(line("<not counted>", "malloc") + &four)), None);
    }
}
