//! What two processes say to each other at a take-over. Unknown fields are ignored, so that a
//! version may add some.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use vane_identity::bundle::Bundle;
use vane_identity::key::PrivateKey;
use vane_identity::lifetime::{from_unix, to_unix};
use zeroize::{Zeroize as _, Zeroizing};

use crate::own_svid::OwnSvid;
use crate::pem;

/// What a connection of a take-over begins with, where others have the HTTP/2 preface.
pub const PREFACE: [u8; 24] = *b"VANE TAKE-OVER\r\n\r\nV1\r\n\r\n";
/// The version of these messages.
pub(super) const VERSION: u32 = 1;

/// The successor's words.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Wants to take over.
    Hello {
        /// Its [`VERSION`].
        version: u32,
        /// The trust domain that it is configured for.
        trust_domain: String,
    },
    /// Is in sync, and wants the sockets.
    Warm,
    /// Serves on these sockets.
    Serving {
        /// Their names.
        sockets: Vec<String>,
    },
}

/// The predecessor's words.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// What it holds.
    State(State),
    /// Names of the descriptors that come with this message: the lock first, then the sockets.
    Sockets(Vec<Socket>),
    /// It does not hand over.
    Refused {
        /// Why.
        why: String,
    },
}

/// What a predecessor holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// The [`VERSION`] of its messages.
    pub(super) version: u32,
    /// Its process.
    pub(super) pid: u32,
    /// The agent's own SVID, when there is one.
    pub(super) own: Option<Own>,
    /// The authorities of its trust domain, PEM.
    pub(super) bundle: String,
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Socket {
    /// What it is for.
    pub(super) name: String,
    /// Its path or address.
    pub(super) place: String,
    /// Whether the file is somebody else's, who removes it.
    pub(super) is_kept: bool,
}

/// The agent's own SVID with its key.
#[derive(Serialize, Deserialize)]
pub(super) struct Own {
    svid: String,
    key: String,
    reattestable: bool,
    received_at: i64,
}

impl Drop for Own {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Own").finish_non_exhaustive()
    }
}

impl Own {
    /// `own` as it is told.
    pub(super) fn of(own: &OwnSvid) -> Self {
        Self {
            svid: own.chain.iter().map(|one| one.to_pem()).collect(),
            key: STANDARD.encode(own.key.pkcs8()),
            reattestable: own.reattestable,
            received_at: to_unix(own.received_at),
        }
    }

    /// What was told; none when it is no SVID with its key.
    pub(super) fn read(&self) -> Option<OwnSvid> {
        let chain = pem::certificates(&self.svid).ok()?;
        let key = Zeroizing::new(STANDARD.decode(self.key.as_bytes()).ok()?);
        OwnSvid::new(
            chain,
            PrivateKey::from_pkcs8(key.to_vec()),
            self.reattestable,
            from_unix(self.received_at),
        )
        .ok()
    }
}

/// The authorities of `bundle` as PEM.
pub(super) fn authorities(bundle: &Bundle) -> String {
    let roots = bundle.x509_authorities.iter();
    roots.map(|one| one.certificate.to_pem()).collect()
}
