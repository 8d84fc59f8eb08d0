//! An X.509-SVID of a workload, as the agent holds it, and when it is replaced.
//!
//! The decision is pure: entry, what is held and `now` go in. A lifetime counts from
//! reception (`renew_at` of identity).

use std::time::{Duration, SystemTime};

use vane_identity::entry::Entry;
use vane_identity::key::PrivateKey;
use vane_identity::lifetime::{Jitter, is_due, renewal};
use vane_identity::x509_svid::{Certificate, X509Error, X509Svid};

/// An X.509-SVID with its key.
#[derive(Debug)]
pub struct Svid {
    /// The chain as DER, leaf first, concatenated.
    pub chain: Vec<u8>,
    /// Its private key.
    pub key: PrivateKey,
    /// Its last valid instant.
    pub not_after: SystemTime,
    /// When it was received.
    pub received_at: SystemTime,
    /// When it is replaced.
    pub renew_at: SystemTime,
    /// The key identifier of its signer, lower-case hex.
    pub authority: String,
    /// The revision of the entry that it was issued for.
    pub(crate) revision: (i64, i64),
}

impl Svid {
    /// Takes a chain over that was received at `now` for `entry`.
    ///
    /// # Errors
    /// The chain's leaf has not the shape of an X.509-SVID of the entry's ID, or has ended.
    pub fn received(
        entry: &Entry,
        chain: Vec<Certificate>,
        key: PrivateKey,
        now: SystemTime,
        jitter: Jitter,
    ) -> Result<Self, SvidError> {
        let svid = X509Svid::parse(chain)?;
        if *svid.id() != entry.spiffe_id {
            return Err(SvidError::OtherId(svid.id().to_string()));
        }
        let leaf = svid.leaf();
        if let Ok(ago) = now.duration_since(leaf.validity.not_after) {
            return Err(SvidError::Over(ago));
        }
        let authority = leaf.authority_key_id.as_deref().unwrap_or_default();
        Ok(Self {
            not_after: leaf.validity.not_after,
            received_at: now,
            renew_at: renewal(now, leaf.validity, jitter),
            authority: hex(authority),
            revision: revision(entry),
            chain: svid
                .chain()
                .iter()
                .flat_map(|one| one.der().iter().copied())
                .collect(),
            key,
        })
    }

    /// Whether it may still be served at `now`.
    #[must_use]
    pub fn is_valid(&self, now: SystemTime) -> bool {
        now <= self.not_after
    }

    /// Whether it is to be replaced at `now`: its time has come, the clock was set back to
    /// before its reception, or the entry changed since.
    #[must_use]
    pub fn is_due(&self, entry: &Entry, now: SystemTime) -> bool {
        is_due(self.received_at, self.renew_at, now) || self.is_stale(entry)
    }

    /// Whether the entry changed since it was issued.
    #[must_use]
    pub fn is_stale(&self, entry: &Entry) -> bool {
        self.revision != revision(entry)
    }
}

/// Why an answer of the server is no SVID for an entry.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// It cannot be read.
    #[error(transparent)]
    Shape(#[from] X509Error),
    /// It is one of another ID.
    #[error("the server sent an SVID of {0}")]
    OtherId(String),
    /// It was over when it came: asked for again at once it would be so again.
    #[error(
        "the server's SVID ended {0:?} ago by this node's clock: the clocks of node and server differ, correct the wrong one (`vane agent status` shows by how much)"
    )]
    Over(Duration),
}

fn revision(entry: &Entry) -> (i64, i64) {
    (entry.revision_number, entry.created_at)
}

/// Lower-case hex, as authority IDs are written.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
