//! How the process ends, all of it.
//!
//! `serve` asks [`Ending::wait`] when to end, `run` calls [`report`] and [`exit`]. It ends
//!
//! 1. when a model that was asked for at the start cannot be loaded, or a version that served can never answer again (its device is lost,
//!    a thread of its panicked): not live from then on, exit status 1, and one [`Failure`] line in the termination message;
//! 2. at a signal while models still load: at once, exit status 0;
//! 3. at a signal afterwards: not ready from then on, after SIGTERM for the shutdown delay, which a second signal cuts short; exit status 0.
//!
//! In each case `server` then takes nothing more and answers what is in flight for at most the drain timeout. Nothing else is waited for:
//! a load, an inference or a version's end may have a thread that never returns, so the process leaves by `_exit`, which runs no
//! destructors and joins no threads. What must be on disk or in the log is written before.

use std::{fs, io::Write as _, path::Path, process::ExitCode, time::Duration};

use tokio::{signal::unix::SignalKind, sync::mpsc::UnboundedReceiver, task::JoinSet, time::sleep};
use torchmodel_core::{
    repository::{LoadError, PendingLoad},
    service::InferenceService,
};
use torchmodel_crds::Failure;
use torchmodel_process::Signals;

/// What the process may end for.
pub struct Ending {
    /// The signals.
    pub signals: Signals,
    /// Failures that a version does not survive.
    pub fatal: UnboundedReceiver<Failure>,
    /// The loads of the models that were asked for at the start.
    pub loads: Vec<PendingLoad>,
    /// How long to go on after SIGTERM.
    pub shutdown_delay: Duration,
}

impl Ending {
    /// Waits for the end, and makes `service` not ready or not live by then. Errors: the failure to end with.
    pub async fn wait(mut self, service: &InferenceService) -> Result<(), Failure> {
        let loads = std::mem::take(&mut self.loads);
        let early = tokio::select! {
            loaded = all(loads) => {
                loaded?;
                tracing::info!("every model is ready");
                None
            }
            signal = self.signals.next() => Some(signal),
        };
        // A signal may come just as the last model is ready: whoever was told so may be served already.
        if early.is_some() && service.readiness().is_err() {
            service.start_draining();
            tracing::info!("shutting down before every model was ready");
            return Ok(());
        }
        tokio::select! {
            () = shutdown(early, &mut self.signals, self.shutdown_delay, service) => Ok(()),
            Some(failure) = self.fatal.recv() => {
                service.set_dead();
                Err(failure)
            }
        }
    }
}

/// Waits until every load is done, or the first has failed. One that was unloaded is not asked for any more.
async fn all(loads: Vec<PendingLoad>) -> Result<(), Failure> {
    let mut loads: JoinSet<_> = loads.into_iter().map(PendingLoad::wait).collect();
    while let Some(loaded) = loads.join_next().await {
        if let Ok(Err(LoadError::Failed(failure))) = loaded {
            return Err(failure);
        }
    }
    Ok(())
}

/// Waits for a signal, unless one has come. After SIGTERM the server stays up, not ready, for the delay, since load balancers go on sending for a moment.
async fn shutdown(early: Option<SignalKind>, signals: &mut Signals, delay: Duration, service: &InferenceService) {
    let signal = match early {
        Some(signal) => signal,
        None => signals.next().await,
    };
    let delay = if signal == SignalKind::terminate() { delay } else { Duration::ZERO };
    service.start_draining();
    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(delay_ms, "shutting down: not ready from now on");
    tokio::select! {
        () = sleep(delay) => {}
        _ = signals.next() => {}
    }
}

/// Says in the log how the servers ended.
pub fn log_drained(is_drained: bool) {
    if is_drained {
        tracing::info!("stopped; every request was answered");
    } else {
        tracing::warn!("stopped; the drain timeout ended requests that were in flight");
    }
}

/// Ends the program. A command that serves leaves at once, whatever its threads do; the others return their exit status.
#[must_use]
pub fn exit(result: &Result<(), Failure>, serves: bool) -> ExitCode {
    if serves {
        torch_shim::exit_now(i32::from(result.is_err()));
    }
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says why the model cannot be served: in the log for people, in the termination message for the operator.
pub fn report(result: &Result<(), Failure>, termination_message: Option<&Path>) {
    let Err(failure) = result else { return };
    tracing::error!(
        phase = failure.phase.as_str(),
        reason = failure.reason.as_str(),
        hint = failure.hint,
        "{}",
        failure.message
    );
    let Some(path) = termination_message.filter(|path| path.exists()) else { return };
    let written = fs::OpenOptions::new().write(true).truncate(true).open(path);
    if let Err(error) = written.and_then(|mut file| file.write_all(failure.to_line().as_bytes())) {
        tracing::warn!(path = %path.display(), %error, "the termination message could not be written");
    }
}
