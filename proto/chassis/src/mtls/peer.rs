//! Who is at the other end of a connection, read once per connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use vane_identity::id::SpiffeId;
use vane_identity::x509_svid::{Certificate, X509Error, serial_decimal};

use super::verifier::parse;

/// The other end of an accepted connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it called from.
    pub address: SocketAddr,
    /// The X.509-SVID that it presented and the handshake verified.
    pub svid: Option<Arc<PeerSvid>>,
}

/// What is kept of a peer's X.509-SVID. It was verified when the connection
/// was made; a caller who serves for longer looks at `not_after` again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSvid {
    /// Its SPIFFE ID.
    pub spiffe_id: SpiffeId,
    /// Its serial number in decimal, as SPIRE prints it.
    pub serial: String,
    /// The last second in which it is valid.
    pub not_after: SystemTime,
    /// The certificate itself.
    pub leaf: Certificate,
    /// What was presented beside the leaf, in order.
    pub intermediates: Vec<Certificate>,
}

impl PeerSvid {
    /// Reads the chain of an established connection; `None` when the peer
    /// presented none.
    ///
    /// # Errors
    /// None that a verified chain can cause.
    pub fn from_chain(chain: Option<&[CertificateDer<'_>]>) -> Result<Option<Self>, X509Error> {
        let Some((leaf, intermediates)) = chain.and_then(<[_]>::split_first) else {
            return Ok(None);
        };
        let svid = parse(leaf, intermediates)?;
        let info = svid.leaf();
        let (leaf, intermediates) = svid.chain().split_first().ok_or(X509Error::Empty)?;
        Ok(Some(Self {
            spiffe_id: svid.id().clone(),
            serial: serial_decimal(&info.serial),
            not_after: info.validity.not_after,
            leaf: leaf.clone(),
            intermediates: intermediates.to_vec(),
        }))
    }
}
