//! What a server's process has used, as /proc tells it.
//!
//! `load` and `wire` take a [`Snapshot`] before and one after; [`Snapshot::since`] is what lies between. Invariant: parsing is pure; a
//! field that the kernel does not give is an error, not a zero.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Why a process cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A file below /proc cannot be read or written.
    #[error("reading {path}: has the server ended, or does another user own it?")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file below /proc is not as proc(5) describes it.
    #[error("{path} does not have the expected form")]
    Form {
        /// The file.
        path: PathBuf,
    },
}

/// A process, by its number.
#[derive(Clone, Debug)]
pub struct Process {
    folder: PathBuf,
}

/// What a process had used at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    cpu_ticks: u64,
    minor_faults: u64,
    peak_rss_bytes: u64,
    threads: BTreeMap<u32, ThreadUsage>,
}

/// What a thread had used at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ThreadUsage {
    voluntary_switches: u64,
    run_ns: u64,
}

/// What a process used between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time of all its threads, also of those that have ended; in ticks of 10 ms.
    pub cpu_seconds: f64,
    /// The same to the nanosecond, of the threads that are there at the end.
    pub run_seconds: f64,
    /// Page faults that needed no disk.
    pub minor_faults: f64,
    /// How often a thread went to sleep by itself, which is how often one was woken: of the threads that are there at the end.
    pub wake_ups: f64,
    /// The most memory it held at one time since [`Process::reset_peak`], in bytes.
    pub peak_rss_bytes: f64,
}

/// Fields of /proc/PID/stat that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    minor_faults: u64,
    cpu_ticks: u64,
}

impl Process {
    /// The process `pid`.
    #[must_use]
    pub fn new(pid: u32) -> Self {
        Self { folder: Path::new("/proc").join(pid.to_string()) }
    }

    /// Makes the peak of its memory what it holds now.
    pub fn reset_peak(&self) -> Result<(), ProcessError> {
        let path = self.folder.join("clear_refs");
        // proc_pid_clear_refs(5): 5 resets the peak resident set size.
        fs::write(&path, "5").map_err(|source| ProcessError::File { path, source })
    }

    /// What it has used up to now.
    pub fn snapshot(&self) -> Result<Snapshot, ProcessError> {
        let stat = parsed(&self.folder.join("stat"), parse_stat)?;
        let peak_kilobytes = parsed(&self.folder.join("status"), |text| parse_status(text, "VmHWM"))?;
        Ok(Snapshot {
            cpu_ticks: stat.cpu_ticks,
            minor_faults: stat.minor_faults,
            peak_rss_bytes: peak_kilobytes << 10,
            threads: self.threads()?,
        })
    }

    fn threads(&self) -> Result<BTreeMap<u32, ThreadUsage>, ProcessError> {
        let folder = self.folder.join("task");
        let mut threads = BTreeMap::new();
        for entry in
            fs::read_dir(&folder).map_err(|source| ProcessError::File { path: folder.clone(), source })?.flatten()
        {
            let Ok(thread) = entry.file_name().to_string_lossy().parse() else { continue };
            let usage = || {
                let switches = |text: &str| parse_status(text, "voluntary_ctxt_switches");
                let voluntary_switches = parsed(&entry.path().join("status"), switches)?;
                let run_ns = parsed(&entry.path().join("schedstat"), |text| text.split(' ').next()?.parse().ok())?;
                Ok::<_, ProcessError>(ThreadUsage { voluntary_switches, run_ns })
            };
            // A thread may end while it is looked at.
            if let Ok(usage) = usage() {
                threads.insert(thread, usage);
            }
        }
        Ok(threads)
    }
}

impl Snapshot {
    /// What was used since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Usage {
        let between = |field: fn(&ThreadUsage) -> u64| {
            let used = |(thread, usage): (&u32, &ThreadUsage)| {
                field(usage).saturating_sub(before.threads.get(thread).map_or(0, field))
            };
            real(self.threads.iter().map(used).sum())
        };
        let ticks_per_second = real(rustix::param::clock_ticks_per_second());
        Usage {
            cpu_seconds: real(self.cpu_ticks.saturating_sub(before.cpu_ticks)) / ticks_per_second,
            run_seconds: between(|usage| usage.run_ns) / 1e9,
            minor_faults: real(self.minor_faults.saturating_sub(before.minor_faults)),
            wake_ups: between(|usage| usage.voluntary_switches),
            peak_rss_bytes: real(self.peak_rss_bytes),
        }
    }
}

/// CPU time that all of the machine has used since it started, in seconds; differences tell how busy it was.
pub fn machine_cpu_seconds() -> Result<f64, ProcessError> {
    let ticks = parsed(Path::new("/proc/stat"), parse_machine)?;
    Ok(real(ticks) / real(rustix::param::clock_ticks_per_second()))
}

/// A count as a real number; exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "figures are told with three digits")]
pub(crate) fn real(count: u64) -> f64 {
    count as f64
}

fn parsed<T>(path: &Path, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, ProcessError> {
    let text = fs::read_to_string(path).map_err(|source| ProcessError::File { path: path.into(), source })?;
    parse(&text).ok_or_else(|| ProcessError::Form { path: path.into() })
}

/// Reads /proc/PID/stat. The second field, the program's name in parentheses, may hold anything, parentheses included.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    // The first of these is field 3 of proc_pid_stat(5).
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat { minor_faults: field(10)?, cpu_ticks: field(14)? + field(15)? })
}

/// Reads the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, and guests, which user holds already.
fn parse_machine(text: &str) -> Option<u64> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = fields.map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks.as_slice() else { return None };
    Some(user + nice + system + irq + softirq + steal)
}

/// Reads a number of /proc/PID/status.
fn parse_status(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().trim_end_matches(" kB").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_and_ticks_are_found_behind_any_name() {
        let rest = "S 1 2 2 0 -1 4194304 1234 5 6 7 300 21 8 9 20 0 17 0 100 200 300";
        for name in ["(a)", "(tokio rt (1) x)", "()) S 9)"] {
            assert_eq!(parse_stat(&format!("17 {name} {rest}")), Some(Stat { minor_faults: 1234, cpu_ticks: 321 }));
        }
        assert_eq!(parse_stat("17 (a) S 1 2"), None);
    }

    #[test]
    fn numbers_of_the_status_are_found_by_their_whole_name() {
        let text = "Name:\ta\nVmHWM:\t    2048 kB\nnonvoluntary_ctxt_switches:\t3\nvoluntary_ctxt_switches:\t12\n";
        assert_eq!(parse_status(text, "VmHWM"), Some(2048));
        assert_eq!(parse_status(text, "voluntary_ctxt_switches"), Some(12));
        assert_eq!(parse_status(text, "Vm"), None);
    }

    #[test]
    fn a_machine_is_busy_with_all_but_idle_time_and_waiting() {
        assert_eq!(parse_machine("cpu  1 20 300 4000 50000 6 70 800 9 9\ncpu0 1 2 3\n"), Some(1197));
        assert_eq!(parse_machine("cpu0 1 2 3 4 5 6 7 8\n"), None);
        assert!(machine_cpu_seconds().unwrap() > 0.0);
    }

    #[test]
    fn new_threads_count_whole_and_ended_ones_not_at_all() {
        let usage = |voluntary_switches| ThreadUsage { voluntary_switches, run_ns: voluntary_switches * 1_000_000_000 };
        let before =
            Snapshot { threads: [(1, usage(10)), (2, usage(5))].into(), cpu_ticks: 100, ..Snapshot::default() };
        let after = Snapshot { threads: [(1, usage(13)), (3, usage(4))].into(), cpu_ticks: 350, ..Snapshot::default() };
        let usage = after.since(&before);
        assert!((usage.wake_ups - 7.0).abs() < f64::EPSILON);
        assert!((usage.run_seconds - 7.0).abs() < f64::EPSILON);
        let ticks = real(rustix::param::clock_ticks_per_second());
        assert!((usage.cpu_seconds - 250.0 / ticks).abs() < 1e-9);
    }

    #[test]
    fn this_process_uses_cpu_faults_and_memory() {
        let process = Process::new(std::process::id());
        let before = process.snapshot().unwrap();
        let filled = vec![1_u8; 64 << 20];
        let sum: u64 = filled.iter().map(|byte| u64::from(*byte)).sum();
        let after = process.snapshot().unwrap();
        assert_eq!(sum, 64 << 20);
        let usage = after.since(&before);
        assert!(usage.minor_faults >= 32.0 && usage.run_seconds > 0.0, "{usage:?}");
        assert!(usage.peak_rss_bytes >= real(64 << 20), "{usage:?}");
        drop(filled);
        process.reset_peak().unwrap();
        assert!(process.snapshot().unwrap().peak_rss_bytes < after.peak_rss_bytes);
    }
}
