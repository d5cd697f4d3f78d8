//! How long OpenMP's threads look for work before they sleep: settled before `main`, so by starting the program again.
//!
//! Called by `serve` before anything else. libgomp reads `GOMP_SPINCOUNT` when it is loaded. Its default keeps processors busy for
//! milliseconds after each operator; none at all makes small transformers three times slower. Invariants: what the user set is
//! left alone; the program replaces itself at most once, under the same process id and with the same arguments.

use std::{env, ffi::OsStr, io, os::unix::process::CommandExt as _, process::Command};

/// Rounds that a thread looks for work: about 100 µs. Measured on two cores, see docs/performance.md.
const SPIN_COUNT: &str = "10000";
/// The variables by which a user says something about it.
const CHOICES: [&str; 2] = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"];
/// Set in the program that was started again, so that it never is twice.
const GUARD: &str = "TORCHMODEL_OPENMP_IS_SET";

/// Starts the program again with the variable set, where nobody set it. Returns when there is nothing to do, or when that failed.
pub fn settle_spinning() {
    if let Some(mut command) = restart(|name| env::var_os(name).is_some()) {
        let error = command.exec();
        tracing::warn!(%error, "OpenMP's threads keep their default of looking for work: set GOMP_SPINCOUNT={SPIN_COUNT}");
    }
}

/// The command that does it, unless `is_set` knows a variable that rules it out or the program cannot name itself.
fn restart(is_set: impl Fn(&str) -> bool) -> Option<Command> {
    if CHOICES.into_iter().chain([GUARD]).any(is_set) {
        return None;
    }
    let program = env::current_exe().inspect_err(cannot_find_itself).ok()?;
    let mut arguments = env::args_os();
    let name = arguments.next();
    let mut command = Command::new(program);
    command.arg0(name.as_deref().unwrap_or(OsStr::new(env!("CARGO_PKG_NAME")))).args(arguments);
    command.env("GOMP_SPINCOUNT", SPIN_COUNT).env(GUARD, "1");
    Some(command)
}

fn cannot_find_itself(error: &io::Error) {
    tracing::warn!(%error, "the program cannot find its own file: OpenMP's threads keep their default of looking for work");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_said_is_left_alone_and_nothing_is_started_twice() {
        for name in ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "TORCHMODEL_OPENMP_IS_SET"] {
            assert!(restart(|asked| asked == name).is_none(), "{name}");
        }
        let command = restart(|_| false).unwrap();
        let set: Vec<_> =
            command.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?))).collect();
        assert_eq!(set, [("GOMP_SPINCOUNT", "10000"), ("TORCHMODEL_OPENMP_IS_SET", "1")]);
        assert!(command.get_args().eq(env::args_os().skip(1).collect::<Vec<_>>().iter()));
    }
}
