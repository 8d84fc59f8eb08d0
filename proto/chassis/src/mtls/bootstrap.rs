//! The first contact of an agent that was told to trust the server once
//! (`insecure_bootstrap`): any chain is accepted whose leaf carries the wanted
//! SPIFFE ID, and what was accepted is kept so that it can be shown.
//!
//! Whoever answers can claim that ID. It is for getting started; everything
//! after the first bundle is verified against that bundle.

use std::fmt;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use vane_identity::id::SpiffeId;
use vane_identity::x509_svid::{Certificate, X509Svid};

use super::verifier::{Refusal, check_signature, no_tls12, parse, schemes};

/// What answered at the first contact.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    chain: Vec<Certificate>,
}

impl Seen {
    /// SHA-256 of the server's own certificate (DER), in hex.
    #[must_use]
    pub fn leaf_fingerprint(&self) -> String {
        fingerprint(self.chain.first())
    }

    /// SHA-256 of the last certificate presented, the one nearest to the root:
    /// the server's own when it presented no other.
    #[must_use]
    pub fn top_fingerprint(&self) -> String {
        fingerprint(self.chain.last())
    }

    /// The chain that was presented, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }
}

fn fingerprint(certificate: Option<&Certificate>) -> String {
    let hash = digest(&SHA256, certificate.map_or(&[], Certificate::der));
    hash.as_ref().iter().fold(String::new(), |mut hex, byte| {
        use fmt::Write as _;
        // Writing to a String does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen")
            .field("leaf", &self.leaf_fingerprint())
            .field("top", &self.top_fingerprint())
            .finish()
    }
}

/// Accepts the wanted ID from anybody, once: every later handshake with the
/// same value must present the same leaf.
#[derive(Debug)]
pub struct Bootstrap {
    wanted: SpiffeId,
    seen: OnceLock<Seen>,
}

impl Bootstrap {
    /// For the server with this ID.
    #[must_use]
    pub fn new(wanted: SpiffeId) -> Arc<Self> {
        Arc::new(Self {
            wanted,
            seen: OnceLock::new(),
        })
    }

    /// What answered, after the first handshake.
    #[must_use]
    pub fn seen(&self) -> Option<&Seen> {
        self.seen.get()
    }

    fn accept(&self, svid: &X509Svid) -> Result<(), Refusal> {
        let refused = || Refusal::NotAuthorized(svid.id().clone());
        if *svid.id() != self.wanted {
            return Err(refused());
        }
        let seen = self.seen.get_or_init(|| Seen {
            chain: svid.chain().to_vec(),
        });
        if seen.chain.first() != svid.chain().first() {
            return Err(refused());
        }
        Ok(())
    }
}

impl ServerCertVerifier for Bootstrap {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let svid = parse(leaf, intermediates).map_err(Refusal::from)?;
        self.accept(&svid)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}
