//! How long a TorchModel whose reconcile failed waits: 1 s, doubled with each failure up to 5 min, with jitter.
//!
//! Used by `error_policy`. Invariant: a success or a new generation starts again at 1 s; one object's failures never delay
//! another.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(300);

/// Objects that are remembered. Beyond that (also since some are deleted while they fail) all start again at the first delay.
const MAX_OBJECTS: usize = 10_000;

/// Failures in a row, by the object's UID.
#[derive(Default)]
pub struct Backoff(Mutex<HashMap<String, Failures>>);

#[derive(Clone, Copy, Default)]
struct Failures {
    generation: i64,
    count: u32,
}

impl Backoff {
    /// Counts a failure and says how long to wait.
    pub fn next(&self, meta: &ObjectMeta) -> Duration {
        delay(meta, self.count(meta))
    }

    /// Counts a failure; true for the first of this generation.
    pub fn is_first(&self, meta: &ObjectMeta) -> bool {
        self.count(meta) == 1
    }

    /// The object was reconciled.
    pub fn forget(&self, meta: &ObjectMeta) {
        if let Some(uid) = &meta.uid {
            self.lock().remove(uid);
        }
    }

    fn count(&self, meta: &ObjectMeta) -> u32 {
        let generation = meta.generation.unwrap_or_default();
        let mut objects = self.lock();
        if objects.len() >= MAX_OBJECTS {
            objects.clear();
        }
        let failures = objects.entry(meta.uid.clone().unwrap_or_default()).or_default();
        if failures.generation != generation {
            *failures = Failures { generation, count: 0 };
        }
        failures.count = failures.count.saturating_add(1);
        failures.count
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Up to a fifth is taken off, by object and count, so that objects that failed together do not return together.
fn delay(meta: &ObjectMeta, count: u32) -> Duration {
    let whole = FIRST.saturating_mul(2u32.saturating_pow(count.saturating_sub(1))).min(LAST);
    let mut hasher = DefaultHasher::new();
    (&meta.uid, count).hash(&mut hasher);
    let thousandths = 800 + u32::try_from(hasher.finish() % 201).unwrap_or_default();
    whole.mul_f64(f64::from(thousandths) / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(generation: i64) -> ObjectMeta {
        ObjectMeta { uid: Some("u".to_owned()), generation: Some(generation), ..ObjectMeta::default() }
    }

    #[test]
    fn doubles_from_a_second_to_five_minutes_less_a_fifth_at_most() {
        let backoff = Backoff::default();
        for whole in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            let whole = Duration::from_secs(whole);
            let delay = backoff.next(&meta(1));
            assert!(delay <= whole && delay >= whole.mul_f64(0.8), "{delay:?} of {whole:?}");
        }
    }

    #[test]
    fn starts_again_after_success_and_with_a_new_generation() {
        let backoff = Backoff::default();
        assert!(backoff.is_first(&meta(1)) && !backoff.is_first(&meta(1)));
        assert!(backoff.is_first(&meta(2)));
        backoff.forget(&meta(2));
        assert!(backoff.is_first(&meta(2)));
    }
}
