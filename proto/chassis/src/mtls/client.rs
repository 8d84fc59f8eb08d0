//! A TLS connection that we make.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

/// A connection to a verified server.
pub type ClientStream<S> = tokio_rustls::client::TlsStream<S>;

/// Makes TLS out of a connected stream. The caller sets the deadline.
///
/// A server that refuses *our* certificate says so after this has succeeded
/// (TLS 1.3): as an alert, or as a broken pipe, at the first read or write.
///
/// # Errors
/// The I/O error, or rustls' error inside one; see
/// [`Refusal::find`](super::Refusal::find).
pub async fn connect<S>(stream: S, config: Arc<ClientConfig>) -> io::Result<ClientStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Names play no part in SPIFFE, and none is sent.
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    TlsConnector::from(config).connect(name, stream).await
}
