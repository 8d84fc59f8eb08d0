//! The two rustls configurations, made so that the known traps stay closed:
//! an explicit provider, TLS 1.3 only, no tickets, no stored sessions.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::UnixTime;
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, ServerConfig};

use super::bootstrap::Bootstrap;
use super::identity::Identity;
use super::provider::provider;
use super::roots::Roots;
use super::verifier::{Authorizer, SpiffeVerifier};
use crate::clock::Clock;

/// The application protocol of all our connections: HTTP/2 (RFC 9113).
const ALPN: &[u8] = b"h2";

/// One side of mutual TLS.
#[derive(Clone)]
pub struct Party {
    /// Who we are.
    pub identity: Arc<Identity>,
    /// Against what peers are verified.
    pub roots: Arc<Roots>,
    /// Which verified peers are welcome.
    pub authorizer: Authorizer,
    /// When now is.
    pub clock: Arc<dyn Clock>,
}

/// The server's side. A client certificate is asked for and not required; one
/// that is given and does not verify ends the handshake.
///
/// # Errors
/// What rustls says about its own provider; none is known.
pub fn server_config(party: &Party) -> Result<Arc<ServerConfig>, Error> {
    let time = Arc::new(Time(Arc::clone(&party.clock)));
    let mut config = ServerConfig::builder_with_details(Arc::clone(provider()), time)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier(party))
        .with_cert_resolver(Arc::<Identity>::clone(&party.identity));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The client's side; presents the identity when there is one.
///
/// # Errors
/// What rustls says about its own provider; none is known.
pub fn client_config(party: &Party) -> Result<Arc<ClientConfig>, Error> {
    client(verifier(party), &party.identity, &party.clock)
}

/// The side of a client that has no bundle yet; presents no certificate.
///
/// # Errors
/// What rustls says about its own provider; none is known.
pub fn bootstrap_config(
    bootstrap: &Arc<Bootstrap>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, Error> {
    client(
        Arc::<Bootstrap>::clone(bootstrap),
        &Identity::empty(),
        clock,
    )
}

fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: &Arc<Identity>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, Error> {
    let time = Arc::new(Time(Arc::clone(clock)));
    let mut config = ClientConfig::builder_with_details(Arc::clone(provider()), time)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::<Identity>::clone(identity));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

fn verifier(party: &Party) -> Arc<SpiffeVerifier> {
    let roots = Arc::clone(&party.roots);
    Arc::new(SpiffeVerifier::new(roots, Arc::clone(&party.authorizer)))
}

impl fmt::Debug for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Party")
            .field("identity", &self.identity)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

/// Our clock as rustls asks for it.
#[derive(Debug)]
struct Time(Arc<dyn Clock>);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let since = self.0.now().duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}
