//! How the log fares: what waits for it, since when, and what went wrong last.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vane_chassis::metrics::Latency;

use super::LogError;

/// How the log fares at one moment.
#[derive(Debug, Clone, Default)]
pub struct LogHealth {
    /// So long nothing was done although something waits.
    pub stuck_for: Duration,
    /// Appends that wait.
    pub waiting: u64,
    /// Why the last append failed, and how long ago; none when it did not.
    pub error: Option<(LogError, Duration)>,
}

/// The counts of a log. Fed without a lock while all is well.
#[derive(Debug)]
pub(super) struct Vitals {
    started: Instant,
    waiting: AtomicU64,
    /// Milliseconds after `started` of the last progress, or of when something began to wait.
    since: AtomicU64,
    latency: Latency,
    failed: AtomicBool,
    error: Mutex<Option<(LogError, Instant)>>,
}

/// An append that waits; dropped when it does not any more.
#[derive(Debug)]
pub(super) struct Waiting<'v> {
    vitals: &'v Vitals,
    began: Instant,
}

impl Vitals {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            waiting: AtomicU64::new(0),
            since: AtomicU64::new(0),
            latency: Latency::default(),
            failed: AtomicBool::new(false),
            error: Mutex::new(None),
        }
    }

    /// How long appends took.
    pub(super) fn latency(&self) -> &Latency {
        &self.latency
    }

    /// An append begins to wait.
    pub(super) fn wait(&self, now: Instant) -> Waiting<'_> {
        if self.waiting.fetch_add(1, Ordering::AcqRel) == 0 {
            self.touch(now);
        }
        Waiting {
            vitals: self,
            began: now,
        }
    }

    pub(super) fn health(&self, now: Instant) -> LogHealth {
        let waiting = self.waiting.load(Ordering::Acquire);
        let since = Duration::from_millis(self.since.load(Ordering::Acquire));
        let quiet = now
            .saturating_duration_since(self.started)
            .saturating_sub(since);
        let error = self.lock().clone();
        LogHealth {
            stuck_for: if waiting > 0 { quiet } else { Duration::ZERO },
            waiting,
            error: error.map(|(error, at)| (error, now.saturating_duration_since(at))),
        }
    }

    fn touch(&self, now: Instant) {
        let since = now.saturating_duration_since(self.started).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.since.store(since, Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(LogError, Instant)>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<'_> {
    /// The log answered.
    pub(super) fn end(self, result: &Result<(), LogError>, now: Instant) {
        let vitals = self.vitals;
        vitals.touch(now);
        match result {
            Ok(()) => {
                vitals
                    .latency
                    .observe(now.saturating_duration_since(self.began));
                if vitals.failed.swap(false, Ordering::AcqRel) {
                    *vitals.lock() = None;
                }
            }
            Err(error) => {
                *vitals.lock() = Some((error.clone(), now));
                vitals.failed.store(true, Ordering::Release);
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.vitals.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use vane_chassis::clock::{Clock as _, Manual};

    use super::*;

    #[test]
    fn a_log_is_stuck_while_something_waits_and_nothing_is_done() {
        let clock = Manual::starting_now();
        let vitals = Vitals::new(clock.monotonic());
        let stuck = |vitals: &Vitals| vitals.health(clock.monotonic()).stuck_for.as_secs();
        clock.advance(Duration::from_secs(100));
        assert_eq!(stuck(&vitals), 0, "nobody waits");
        let (one, two) = (
            vitals.wait(clock.monotonic()),
            vitals.wait(clock.monotonic()),
        );
        clock.advance(Duration::from_secs(30));
        assert_eq!(stuck(&vitals), 30);
        one.end(&Ok(()), clock.monotonic());
        assert_eq!(stuck(&vitals), 0, "it goes on");
        clock.advance(Duration::from_secs(5));
        assert_eq!(stuck(&vitals), 5);
        two.end(&Err(LogError::Closed), clock.monotonic());
        clock.advance(Duration::from_secs(2));
        let health = vitals.health(clock.monotonic());
        assert_eq!((health.stuck_for, health.waiting), (Duration::ZERO, 0));
        assert_eq!(health.error.unwrap().1, Duration::from_secs(2));
        vitals
            .wait(clock.monotonic())
            .end(&Ok(()), clock.monotonic());
        assert!(vitals.health(clock.monotonic()).error.is_none());
        assert_eq!(vitals.latency().count(), 2);
        drop(vitals.wait(clock.monotonic()));
        assert_eq!(
            vitals.health(clock.monotonic()).waiting,
            0,
            "a caller that left"
        );
    }
}
