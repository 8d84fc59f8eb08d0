//! What is wrong with this server now: a pure function of a [`Snapshot`] of its parts.
//!
//! Only a log whose writer does nothing is mended by a restart; everything else mends itself
//! once its cause is gone, and a restart would only lose the hot state. A fault of which the
//! server still works, or which is over soon, is told and keeps no work away. There is no
//! upstream authority in this version, so `no_upstream` is never found here.

use std::time::Duration;

use vane_authority::log::{LogError, LogHealth};
use vane_chassis::clock::{Jump, SETTLE};
use vane_chassis::health::{Fault, Finding, Harm, jump_detail};
use vane_store::kv::KvError;

use crate::publish::Unpublished;

/// The log does nothing for so long: no work should be sent.
const LOG_SLOW: Duration = Duration::from_secs(10);
/// So long: its writer hangs.
const LOG_HANGS: Duration = Duration::from_secs(60);
/// An error of the log that is older was not tried again since: with nothing to do it cannot
/// be known to be over, and work is what would try it.
const LOG_RETRIED: Duration = Duration::from_secs(30);
/// An authority that ends so soon without a successor is told.
const ENDS_SOON: Duration = Duration::from_secs(5 * 60);

/// The parts of the server at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Why the store does not answer.
    pub store: Option<KvError>,
    /// How long ago the state was known to be that of the store.
    pub confirmed_age: Duration,
    /// How old it may be for everything.
    pub max_staleness: Duration,
    /// How long the authority that signs is valid; none when none signs.
    pub signs_for: Option<Duration>,
    /// The log.
    pub log: LogHealth,
    /// The last jump of the clock, and how long ago it was noticed; older ones than
    /// [`vane_chassis::clock::DOUBT`] are left out.
    pub jump: Option<(Jump, Duration)>,
    /// What publishers cannot do.
    pub unpublished: Vec<Unpublished>,
}

/// What is wrong.
#[must_use]
pub fn judge(snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(snapshot.store.as_ref().map(store));
    found.extend(stale(snapshot));
    found.extend(signing(snapshot.signs_for));
    found.extend(log(&snapshot.log));
    found.extend(snapshot.jump.map(|(jump, ago)| clock(jump, ago)));
    found.extend(snapshot.unpublished.iter().map(unpublished));
    found
}

fn store(error: &KvError) -> Finding {
    let fault = match error.is_full() {
        true => Fault::DiskFull,
        false => Fault::StoreGone,
    };
    let (detail, next) = match error {
        KvError::Unavailable { cause, way_out } => (cause.clone(), way_out.clone()),
        KvError::Corrupt { what, way_out } => (what.clone(), way_out.clone()),
        KvError::NewerFormat { .. } => (
            error.to_string(),
            "run the newer version of vane-server again".to_owned(),
        ),
    };
    Finding::new(fault, Harm::Unready, detail, next)
}

fn stale(snapshot: &Snapshot) -> Option<Finding> {
    if snapshot.confirmed_age <= snapshot.max_staleness {
        return None;
    }
    let detail = format!(
        "the registry was last known to be that of the store {} s ago: no attestation, no change and no first SVID until it is again",
        snapshot.confirmed_age.as_secs()
    );
    let next = "look at the store; the server goes on by itself";
    Some(Finding::new(Fault::Stale, Harm::Unready, detail, next))
}

fn signing(left: Option<Duration>) -> Option<Finding> {
    let next = "the log of this server says why no authority could be made; it is tried every 5 s";
    match left {
        Some(left) if left > ENDS_SOON => None,
        Some(left) if !left.is_zero() => {
            let detail = format!("the authority that signs ends in {} s", left.as_secs());
            Some(Finding::new(Fault::CaExpired, Harm::Degraded, detail, next))
        }
        _ => {
            let detail = "no X.509 authority of this server is valid: nothing is signed";
            Some(Finding::new(Fault::CaExpired, Harm::Unready, detail, next))
        }
    }
}

fn log(log: &LogHealth) -> Option<Finding> {
    if log.stuck_for >= LOG_SLOW {
        let hangs = log.stuck_for >= LOG_HANGS;
        let detail = format!(
            "{} appends wait and none was written for {} s: nothing is signed or acknowledged meanwhile",
            log.waiting,
            log.stuck_for.as_secs()
        );
        let (harm, next) = match hangs {
            true => (
                Harm::Dead,
                "look at the file system of data_dir, then restart the server",
            ),
            false => (Harm::Unready, "look at the file system of data_dir"),
        };
        return Some(Finding::new(Fault::LogStuck, harm, detail, next));
    }
    let (error, ago) = log.error.as_ref()?;
    let harm = match error {
        LogError::Closed => Harm::Dead,
        _ if *ago < LOG_RETRIED => Harm::Unready,
        _ => Harm::Degraded,
    };
    let (fault, next) = match error {
        _ if error.is_full() => (
            Fault::DiskFull,
            "free space on the file system of data_dir; the log goes on by itself",
        ),
        LogError::Closed => (Fault::LogStuck, "restart the server"),
        _ => (
            Fault::LogStuck,
            "look at the file system of data_dir; the log goes on by itself",
        ),
    };
    Some(Finding::new(fault, harm, error.to_string(), next))
}

fn clock(jump: Jump, ago: Duration) -> Finding {
    let detail = jump_detail(jump, ago);
    let next = "check that it is right now (chronyc tracking); nobody is denied as expired for ten minutes";
    let harm = match ago < SETTLE {
        true => Harm::Unready,
        false => Harm::Degraded,
    };
    Finding::new(Fault::ClockJump, harm, detail, next)
}

/// Who holds an older bundle learns of a new authority late, and nobody else.
fn unpublished(trouble: &Unpublished) -> Finding {
    let Unpublished { publisher, error } = trouble;
    let detail = format!("the bundle of now is not published by {publisher}: {error}");
    let next = "mend what the error names; it is tried again by itself";
    Finding::new(Fault::NotPublished, Harm::Degraded, detail, next)
}

#[cfg(test)]
mod tests;
