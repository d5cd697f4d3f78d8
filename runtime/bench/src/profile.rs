//! Where a server's CPU time goes: the share of copies and of page faults, as perf samples it.
//!
//! `wire` takes a profile of each case when it is asked to, in a run of its own, since sampling costs time. It shows what no counter
//! of the server's own code can: copies inside h2, hyper and libtorch. Invariant: a case without samples has no shares.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::process::real;

/// Samples a second on each CPU; a prime, so that nothing periodic is always met.
const FREQUENCY: &str = "997";
/// Functions of libc that copy, as their names begin.
const COPIES: [&str; 3] = ["__memmove", "__memcpy", "__mempcpy"];
/// Functions of the kernel that copy between a socket and the program.
const SOCKET_COPIES: [&str; 4] = ["_copy_to_iter", "_copy_from_iter", "copy_user_generic", "rep_movs_alternative"];
/// Where the kernel begins to handle a page fault.
const PAGE_FAULT: &str = "asm_exc_page_fault";

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// perf cannot be started.
    #[error("starting perf: install it, or leave out --profile")]
    Start(#[source] io::Error),
    /// perf failed.
    #[error("perf failed: {0}")]
    Failed(String),
}

/// Parts of a server's CPU time, between 0 and 1. They do not overlap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// memcpy and memmove in the program, without the page faults within.
    pub copies: f64,
    /// Page faults: memory that is touched for the first time.
    pub page_faults: f64,
    /// Copies between the program and its sockets, in the kernel.
    pub socket_copies: f64,
    /// How many samples they are of.
    pub samples: u64,
}

/// A profile that is being taken.
#[derive(Debug)]
pub struct Recording {
    perf: Child,
    file: PathBuf,
}

impl Recording {
    /// Samples the process `pid` for `time`; `folder` takes the samples.
    pub fn start(pid: u32, time: Duration, folder: &Path) -> Result<Self, ProfileError> {
        let file = folder.join("perf.data");
        let perf = Command::new("perf")
            .args(["record", "--quiet", "--event", "cpu-clock", "--freq", FREQUENCY, "-g", "--pid", &pid.to_string()])
            .arg("--output")
            .arg(&file)
            .args(["--", "sleep", &time.as_secs_f64().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(ProfileError::Start)?;
        Ok(Self { perf, file })
    }

    /// Waits for its end and counts; `None` without samples.
    pub fn finish(self) -> Result<Option<Shares>, ProfileError> {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
        let ended = self.perf.wait_with_output().map_err(ProfileError::Start)?;
        if !ended.status.success() {
            return Err(ProfileError::Failed(text(ended.stderr)));
        }
        let mut script = Command::new("perf");
        script.args(["script", "--no-inline", "--fields", "ip,sym", "--input"]).arg(&self.file);
        let told = script.stdin(Stdio::null()).output().map_err(ProfileError::Start)?;
        if !told.status.success() {
            return Err(ProfileError::Failed(text(told.stderr)));
        }
        Ok(shares(&text(told.stdout)))
    }
}

/// Counts samples: paragraphs of lines with an address and a function, the innermost first.
fn shares(script: &str) -> Option<Shares> {
    let (mut samples, mut copies, mut page_faults, mut socket_copies) = (0, 0, 0, 0);
    let mut stack: Vec<&str> = Vec::new();
    for line in script.lines().map(str::trim).chain([""]) {
        if !line.is_empty() {
            stack.push(line.split_once(' ').map_or("", |(_, function)| function.trim()));
            continue;
        }
        let Some(innermost) = stack.first() else { continue };
        samples += 1;
        if stack.contains(&PAGE_FAULT) {
            page_faults += 1;
        } else if COPIES.iter().any(|name| innermost.starts_with(name)) {
            copies += 1;
        } else if stack.iter().any(|function| SOCKET_COPIES.contains(function)) {
            socket_copies += 1;
        }
        stack.clear();
    }
    let share = |count: u64| real(count) / real(samples);
    (samples > 0).then(|| Shares {
        copies: share(copies),
        page_faults: share(page_faults),
        socket_copies: share(socket_copies),
        samples,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_fault_before_it_is_a_copy() {
        let script = "\n\
            ffffffff8160 do_anonymous_page\n ffffffff8100 asm_exc_page_fault\n 16db75 __memmove_avx512_unaligned_erms\n\n\n\
            \t 16db75 __memmove_avx512_unaligned_erms\n\t 7fee [unknown]\n\n\n\
            ffffffff8100 rep_movs_alternative\n ffffffff8101 _copy_to_iter\n ffffffff8102 tcp_recvmsg\n\n\n\
            55aa00 serde_json::de::parse\n 16db75 __memmove_avx512_unaligned_erms\n";
        let shares = shares(script).unwrap();
        assert_eq!(shares, Shares { copies: 0.25, page_faults: 0.25, socket_copies: 0.25, samples: 4 });
    }

    #[test]
    fn nothing_sampled_is_nothing_told() {
        assert_eq!(shares("\n\n"), None);
    }
}
