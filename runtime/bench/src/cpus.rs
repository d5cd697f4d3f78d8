//! Which CPUs the server and the generator run on.
//!
//! `server` and `generator` call [`CpuSet::apply`] on the thread that starts a server, and on each generator thread. Invariant: without a
//! set nothing is pinned.

use std::{fmt, io, str::FromStr};

use rustix::thread::{CpuSet as SystemSet, sched_getaffinity, sched_setaffinity};

/// Below this number of CPUs nothing is pinned: halves of so few would leave the server one.
const MIN_CPUS_TO_SPLIT: usize = 4;

/// Numbers of CPUs, written like `0-3,8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSet(Vec<usize>);

/// A text that names no CPUs.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no list of CPUs such as 0-7 or 0,2,4-7 (below {max})", max = SystemSet::MAX_CPU)]
pub struct CpuSetError(String);

impl FromStr for CpuSet {
    type Err = CpuSetError;

    fn from_str(text: &str) -> Result<Self, CpuSetError> {
        let error = || CpuSetError(text.to_owned());
        let number = |text: &str| text.parse::<usize>().ok().filter(|number| *number < SystemSet::MAX_CPU);
        let mut numbers = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = number(first).zip(number(last)).ok_or_else(error)?;
            if first > last {
                return Err(error());
            }
            numbers.extend(first..=last);
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(Self(numbers))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|one, next| one + 1 == *next).filter_map(|run| run.first().zip(run.last()));
        let texts = runs.map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
        formatter.write_str(&texts.collect::<Vec<_>>().join(","))
    }
}

impl CpuSet {
    /// The CPUs that this process may use.
    pub fn available() -> io::Result<Self> {
        let system = sched_getaffinity(None)?;
        Ok(Self((0..SystemSet::MAX_CPU).filter(|number| system.is_set(*number)).collect()))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The first half, for the server, and the second, for the generator; nothing when there are too few to share.
    #[must_use]
    pub fn halves(&self) -> Option<(Self, Self)> {
        if self.count() < MIN_CPUS_TO_SPLIT {
            return None;
        }
        let (server, generator) = self.0.split_at(self.count() / 2);
        Some((Self(server.to_vec()), Self(generator.to_vec())))
    }

    /// Keeps the calling thread, and the threads and processes that it starts, on these CPUs.
    pub fn apply(&self) -> io::Result<()> {
        let mut system = SystemSet::new();
        self.0.iter().for_each(|number| system.set(*number));
        Ok(sched_setaffinity(None, &system)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_alike() {
        for (text, count, shown) in
            [("0-7", 8, "0-7"), ("3", 1, "3"), ("0,2,4-6", 5, "0,2,4-6"), ("4-5,5-6,0", 4, "0,4-6")]
        {
            let set: CpuSet = text.parse().unwrap();
            assert_eq!((set.count(), set.to_string().as_str()), (count, shown));
        }
        for text in ["", "a", "3-1", "1-", "0-99999", "-1"] {
            assert!(text.parse::<CpuSet>().is_err(), "{text}");
        }
    }

    #[test]
    fn few_cpus_are_not_split() {
        let halves = |text: &str| text.parse::<CpuSet>().unwrap().halves().map(|(a, b)| (a.to_string(), b.to_string()));
        assert_eq!(halves("0-1"), None);
        assert_eq!(halves("0-15"), Some(("0-7".into(), "8-15".into())));
    }

    #[test]
    fn a_thread_stays_on_the_cpus_that_were_applied() {
        let available = CpuSet::available().unwrap();
        let one = CpuSet(available.0[..1].to_vec());
        let seen = std::thread::spawn(move || {
            one.apply().unwrap();
            (CpuSet::available().unwrap(), one)
        });
        let (seen, one) = seen.join().unwrap();
        assert_eq!(seen, one);
        assert_eq!(CpuSet::available().unwrap(), available);
    }
}
