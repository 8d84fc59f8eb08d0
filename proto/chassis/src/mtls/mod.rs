//! Mutual TLS between SPIFFE identities.
//!
//! TLS 1.3 with aws-lc-rs only, the hybrid X25519MLKEM768 first, and no
//! session is ever resumed: a resumed one would skip the check of the peer's
//! certificate against the bundle of today. A peer is verified against the
//! bundle of *its own* trust domain and then has to be on the caller's list
//! (X509-SVID.md section 5, SPIFFE_Workload_API.md section 5).
//!
//! Own certificates ([`Identity`]) and bundles ([`Roots`]) are swapped while
//! connections are accepted; a connection keeps what its handshake saw. What a
//! verified peer may ask for is not decided here.

mod provider;
mod roots;

mod identity;

mod verifier;

mod bootstrap;
mod peer;

mod config;

mod client;
mod incoming;

pub use bootstrap::{Bootstrap, Seen};
pub use client::{ClientStream, connect};
pub use config::{Party, bootstrap_config, client_config, server_config};
pub use identity::{Identity, IdentityError};
pub use incoming::{Acceptor, Incoming, Limits, TlsListener, TlsStream};
pub use peer::{Peer, PeerSvid};
pub use provider::provider;
pub use roots::Roots;
pub use rustls::Error;
pub use verifier::{Authorizer, Refusal, anyone, only};
pub(crate) use verifier::{check_signature, schemes};

#[cfg(test)]
mod testing;

#[cfg(test)]
mod tests;
