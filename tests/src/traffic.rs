//! Requests that go on, one after another, while something else happens; every failure is kept.

use std::{
    fmt::Display,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

/// Time between the beginnings of two requests, where an answer is quicker.
const PACE: Duration = Duration::from_millis(10);
/// Failures that are kept; more are counted only.
const KEPT: usize = 5;

/// A client that asks until it is told to stop.
#[derive(Debug)]
pub struct Traffic {
    answers: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Vec<String>>,
    failed: Arc<AtomicU64>,
}

impl Traffic {
    /// Starts asking.
    pub fn start<F, E>(ask: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), E>> + Send,
        E: Display + Send,
    {
        let (answered, answers) = watch::channel(0);
        let (stop, stopped) = watch::channel(false);
        let failed = Arc::new(AtomicU64::new(0));
        let failures = Arc::clone(&failed);
        let started = Instant::now();
        let task = tokio::spawn(async move {
            let mut kept = Vec::new();
            let mut pace = interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !*stopped.borrow() {
                pace.tick().await;
                match ask().await {
                    Ok(()) => answered.send_modify(|count| *count += 1),
                    Err(error) => {
                        failures.fetch_add(1, Relaxed);
                        if kept.len() < KEPT {
                            kept.push(format!("after {:?}: {error:#}", started.elapsed()));
                        }
                    }
                }
            }
            kept
        });
        Self { answers, stop, task, failed }
    }

    /// Resolves after so many more answers.
    pub async fn answered(&self, more: u64) -> Result<()> {
        let mut answers = self.answers.clone();
        let goal = *answers.borrow_and_update() + more;
        crate::in_time("requests are answered", crate::PATIENCE, answers.wait_for(|count| *count >= goal)).await??;
        Ok(())
    }

    /// Stops; fails when a request did. The number of answers.
    pub async fn finish(self) -> Result<u64> {
        self.stop.send_replace(true);
        let kept = self.task.await?;
        let (answers, failed) = (*self.answers.borrow(), self.failed.load(Relaxed));
        ensure!(failed == 0, "{failed} requests failed, {answers} were answered:\n{}", kept.join("\n"));
        Ok(answers)
    }
}
