//! What is known of one entry's SVID. Pure: `now` is an argument.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use vane_identity::entry::Entry;

use crate::snapshot::State;
use crate::svid::Svid;

/// The first wait before a failed SVID is tried again; it doubles up to [`RETRY_MAX`].
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What is known of an entry's SVID.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) svid: Option<Arc<Svid>>,
    pub(super) asked: bool,
    pub(super) wanted: bool,
    pub(super) renew_now: bool,
    pub(super) failures: u32,
    pub(super) retry_at: Option<SystemTime>,
}

impl Slot {
    /// Whether an SVID is to be asked for now.
    pub(super) fn may_ask(&self, entry: &Entry, now: SystemTime) -> bool {
        if self.asked || self.retry_at.is_some_and(|at| now < at) {
            return false;
        }
        self.svid
            .as_ref()
            .is_none_or(|svid| self.renew_now || svid.is_due(entry, now))
    }

    /// Somebody waits: a try that failed before nobody did is not waited for any longer.
    pub(super) fn want(&mut self) {
        if !self.wanted {
            self.wanted = true;
            self.retry_at = None;
        }
    }

    pub(super) fn received(&mut self, svid: Svid) {
        *self = Self {
            svid: Some(Arc::new(svid)),
            wanted: self.wanted,
            renew_now: self.renew_now,
            ..Self::default()
        };
    }

    pub(super) fn failed(&mut self, now: SystemTime) -> Duration {
        let doubled = RETRY
            .saturating_mul(1 << self.failures.min(10))
            .min(RETRY_MAX);
        let delay = doubled.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.failures += 1;
        self.renew_now = true;
        self.retry_at = Some(now + delay);
        delay
    }

    pub(super) fn state(&self, entry: &Entry, now: SystemTime) -> State {
        match &self.svid {
            // One of before a change of the entry may say what the entry no longer grants.
            Some(svid) if svid.is_valid(now) && !svid.is_stale(entry) => {
                State::Ready(Arc::clone(svid))
            }
            _ if self.failures > 0 => State::Failed,
            _ => State::Pending,
        }
    }
}
