//! A token that is held, and what may be done with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use vane_identity::bundle::Bundle;
use vane_identity::jwt_svid::JwtSvid;
use vane_identity::lifetime::from_unix;

use crate::sealed::Token;

/// A token that is held.
#[derive(Debug)]
pub struct Held {
    /// The token and what it was asked for.
    pub token: Arc<Token>,
    /// Counts up with each use of any token: the larger, the later used.
    used: AtomicU64,
    /// The count when it was received.
    born: u64,
}

impl Held {
    /// A token that was used at `used` last and came when the count was `born`.
    pub(super) fn new(token: Arc<Token>, used: u64, born: u64) -> Self {
        Self {
            token,
            used: AtomicU64::new(used),
            born,
        }
    }

    /// The token.
    #[must_use]
    pub fn svid(&self) -> &JwtSvid {
        &self.token.svid
    }

    /// Whether it may be served at `now`. No leeway: who gets it needs some of its life.
    #[must_use]
    pub fn is_valid(&self, now: SystemTime) -> bool {
        now < self.expires_at()
    }

    /// Whether it is to be replaced at `now`.
    #[must_use]
    pub fn is_due(&self, now: SystemTime) -> bool {
        self.token.renew_at <= now
    }

    /// Whether its key is still good in `bundle`: not tainted.
    #[must_use]
    pub fn is_untainted(&self, bundle: &Bundle) -> bool {
        !is_tainted(self.svid(), bundle)
    }

    pub(super) fn expires_at(&self) -> SystemTime {
        from_unix(self.svid().expires_at())
    }

    /// Somebody gets it, as the `count`th use.
    pub(super) fn touch(&self, count: u64) {
        self.used.store(count, Ordering::Relaxed);
    }

    pub(super) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether somebody got it since it was received.
    pub(super) fn is_used(&self) -> bool {
        self.last_used() > self.born
    }
}

/// Whether the key of `svid` is tainted in `bundle`.
pub(super) fn is_tainted(svid: &JwtSvid, bundle: &Bundle) -> bool {
    let mut keys = bundle.jwt_authorities.iter();
    keys.any(|key| key.tainted && key.key_id == svid.key_id())
}

/// Whether the key of `svid` is in `bundle`.
pub(super) fn knows(svid: &JwtSvid, bundle: &Bundle) -> bool {
    let mut keys = bundle.jwt_authorities.iter();
    keys.any(|key| key.key_id == svid.key_id())
}
