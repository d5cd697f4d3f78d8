//! What the log says while an artifact is fetched: one line at most every second, at least every five while bytes come.
//!
//! Pure but for the log: the caller passes `now`.

use std::time::{Duration, Instant};

use torchmodel_process::{format_bytes, format_rate};
use tracing::info;

const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(5);

/// The state of one download's progress lines.
pub(super) struct Progress {
    uri: String,
    started: Instant,
    first_byte: u64,
    last: Instant,
    last_received: u64,
}

impl Progress {
    /// Begins at `received` bytes, which an earlier attempt brought.
    pub(super) fn new(uri: String, received: u64, now: Instant) -> Self {
        Self { uri, started: now, first_byte: received, last: now, last_received: received }
    }

    /// Whether a line is due: five seconds after the last one, or a tenth of the whole and one second.
    fn is_due(&self, received: u64, total: Option<u64>, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.last);
        let is_tenth = total.is_some_and(|total| received.saturating_sub(self.last_received) >= (total / 10).max(1));
        waited >= MAX_INTERVAL || (is_tenth && waited >= MIN_INTERVAL)
    }

    /// Notes that `received` of `total` bytes are there, and logs when a line is due.
    pub(super) fn update(&mut self, received: u64, total: Option<u64>, now: Instant) {
        if !self.is_due(received, total, now) {
            return;
        }
        (self.last, self.last_received) = (now, received);
        let rate = format_rate(received.saturating_sub(self.first_byte), now.saturating_duration_since(self.started));
        let Some(total) = total else {
            let received_text = format_bytes(received);
            info!(phase = "Fetch", received_bytes = received, "fetched {received_text} of {} at {rate}", self.uri);
            return;
        };
        let percent = received.saturating_mul(100).checked_div(total).unwrap_or(100);
        info!(
            phase = "Fetch",
            received_bytes = received,
            total_bytes = total,
            "fetched {percent} % ({} of {}) of {} at {rate}",
            format_bytes(received),
            format_bytes(total),
            self.uri
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_every_five_seconds_or_tenth_but_not_more_often_than_every_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let progress = Progress::new("s3://models/a.pt".into(), 0, start);
        let table = [
            (500, Some(1000), 900, false),
            (1000, Some(1000), 99, false),
            (1000, Some(1000), 100, true),
            (4999, Some(1000), 99, false),
            (5000, Some(1000), 1, true),
            (4999, None, 1 << 40, false),
            (5000, None, 1, true),
        ];
        for (ms, total, received, expected) in table {
            assert_eq!(progress.is_due(received, total, at(ms)), expected, "{ms} ms, {received} of {total:?}");
        }
    }
}
