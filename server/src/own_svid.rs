//! The server's own X.509-SVID, `/spire/server`: in memory only, with a key of its own.
//!
//! Renewed at half its lifetime, and at once when its authority is tainted. The listener
//! presents what [`Identity`] holds at the time of each handshake.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vane_authority::authority::Authority;
use vane_authority::issue::{IssueError, X509Request};
use vane_authority::profile::SvidKind;
use vane_chassis::clock::{Clock, sleep_until};
use vane_chassis::mtls::{Identity, IdentityError};
use vane_identity::id::{IdError, SpiffeId, TrustDomain};
use vane_identity::key::{KeyError, KeyType, PrivateKey};
use vane_identity::lifetime::{Jitter, renew_at};
use vane_identity::x509_svid::{Certificate, X509Svid};
use vane_wire::record::AuthorityState;

/// The wait after a renewal that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Why the server has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum OwnSvidError {
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It was not issued.
    #[error("cannot issue the server's own SVID: {0}")]
    Issue(#[from] IssueError),
    /// The answer lacks it.
    #[error("cannot issue the server's own SVID: no answer")]
    Nothing,
    /// TLS does not take it.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The trust domain's name is too long for the ID.
    #[error(transparent)]
    Id(#[from] IdError),
}

/// The server's SVID and who keeps it fresh.
pub struct OwnSvid {
    authority: Arc<Authority>,
    identity: Arc<Identity>,
    clock: Arc<dyn Clock>,
    id: SpiffeId,
    chain: watch::Sender<Arc<[Certificate]>>,
    due: SystemTime,
    signed_by: String,
}

impl OwnSvid {
    /// Issues the first one.
    ///
    /// # Errors
    /// [`OwnSvidError`].
    pub async fn open(
        authority: Arc<Authority>,
        clock: Arc<dyn Clock>,
        trust_domain: &TrustDomain,
    ) -> Result<Self, OwnSvidError> {
        let mut own = Self {
            authority,
            identity: Identity::empty(),
            id: trust_domain.server_id()?,
            chain: watch::channel(Arc::from([])).0,
            due: clock.now(),
            signed_by: String::new(),
            clock,
        };
        own.renew().await?;
        Ok(own)
    }

    /// What TLS presents.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity)
    }

    /// The chain as it changes.
    #[must_use]
    pub fn chain(&self) -> watch::Receiver<Arc<[Certificate]>> {
        self.chain.subscribe()
    }

    /// Renews until `stop`.
    ///
    /// # Errors
    /// None: a renewal that fails is tried again, and the old one is presented.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        let mut authorities = self.authority.authorities();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep_until(&*self.clock, self.due) => {}
                Ok(()) = authorities.changed() => {
                    let tainted = authorities.borrow_and_update().iter().any(|record| {
                        record.id == self.signed_by && record.state == AuthorityState::Tainted
                    });
                    if !tainted {
                        continue;
                    }
                }
            }
            if let Err(error) = self.renew().await {
                tracing::error!(%error, "the server's own SVID is not renewed; trying again");
                self.due = self.clock.now() + RETRY;
            }
        }
    }

    async fn renew(&mut self) -> Result<(), OwnSvidError> {
        let (key, public_key) = PrivateKey::generate(KeyType::EcP256)?;
        let request = X509Request {
            kind: SvidKind::Server,
            spiffe_id: self.id.clone(),
            public_key,
            ttl: Duration::ZERO,
            caller: "server".to_owned(),
            entry_id: None,
        };
        let svid: X509Svid = self
            .authority
            .issue_x509(vec![request])
            .await
            .pop()
            .ok_or(OwnSvidError::Nothing)??;
        self.identity.swap(svid.chain(), &key)?;
        let jitter = Jitter::new(fastrand::f64() * 2.0 - 1.0);
        self.due = renew_at(self.clock.now(), svid.leaf().validity.not_after, jitter);
        let signer = svid.leaf().authority_key_id.as_deref().unwrap_or_default();
        self.signed_by = signer.iter().map(|byte| format!("{byte:02x}")).collect();
        self.chain.send_replace(svid.chain().into());
        Ok(())
    }
}
