//! What the process may take of its machine or container: open files, memory and threads.
//!
//! Read once at the start. Invariant: whatever cannot be read counts as no limit; serving goes on.

use std::{fs, num::NonZeroUsize};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Where a container finds its memory limit: cgroup v2, then v1.
const MEMORY_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
/// A limit above this is none: v1 writes a number near 2^63.
const NO_LIMIT: usize = 1 << 60;
/// More threads than this only wait for each other's memory: each moves more than 1 GB/s.
const MAX_IO_THREADS: usize = 8;

/// Raises the soft limit of open files to the hard one, since each connection takes one and many systems begin with 1024. Gives the
/// number that may be open.
pub fn raise_open_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let limit = if setrlimit(Resource::Nofile, raised).is_ok() { maximum } else { current };
    limit.unwrap_or(u64::MAX)
}

/// Bytes of memory that the container may take.
pub fn memory_limit() -> Option<usize> {
    MEMORY_LIMITS.iter().find_map(|file| parse_limit(&fs::read_to_string(file).ok()?))
}

/// Threads for connections where nobody says how many: the other half of the CPUs computes.
pub fn io_threads() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (cpus / 2).clamp(1, MAX_IO_THREADS)
}

fn parse_limit(text: &str) -> Option<usize> {
    text.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_cgroups_are_read() {
        for (text, limit) in
            [("1073741824\n", Some(1 << 30)), ("max\n", None), ("9223372036854771712\n", None), ("", None)]
        {
            assert_eq!(parse_limit(text), limit, "{text}");
        }
    }

    #[test]
    fn the_limit_of_open_files_is_the_hard_one() {
        let limit = raise_open_files();
        assert_eq!(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), limit);
        assert_eq!(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX), limit);
    }
}
