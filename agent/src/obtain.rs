//! How the agent comes to an SVID of its own: the one that was kept while it is valid, else a
//! new one by attestation.
//!
//! What may pass is tried again with growing waits. A refusal is not, unless somebody is being
//! served meanwhile ([`Persistence::Serving`]): then the agent goes on and asks again at the
//! longest wait, since a new join token may lie in its file by then. A denial is final.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use vane_attest::{PROVERS, Prover, join_token};
use vane_chassis::backoff::{Backoff, Policy};
use vane_chassis::builtin::{OpenError, open_section};
use vane_chassis::clock::Clock;
use vane_chassis::mtls::{
    self, Bootstrap, Identity, Party, Roots, bootstrap_config, client_config, only,
};
use vane_client::channel;
use vane_identity::bundle::Bundle;
use vane_identity::id::IdError;
use vane_identity::key::{KeyError, KeyType, PrivateKey};

use crate::bootstrap::{self, BootstrapError, Trust};
use crate::config::Config;
use crate::node::{self, NodeError};
use crate::own_svid::{Disk, DiskError, Kept, OwnSvid};

/// The wait for a bundle's file: to look costs nobody else anything, and a pod waits for it.
const FILE_WAIT: Duration = Duration::from_secs(2);

/// What is needed to obtain one.
pub struct Obtain {
    /// The configuration.
    pub config: Arc<Config>,
    /// When now is.
    pub clock: Arc<dyn Clock>,
    /// The waits between two tries.
    pub backoff: Policy,
    /// What the server is trusted by.
    pub roots: Arc<Roots>,
    /// Where it is kept.
    pub disk: Arc<Disk>,
}

/// What who is denied, or finds a server that it cannot verify, asks of who attests.
#[derive(Debug, Default)]
pub struct Anew {
    is_possible: AtomicBool,
    wanted: Notify,
    doubted: Notify,
}

/// Whether a refusal ends the tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Nobody is served yet: the operator shall see it.
    Starting,
    /// Workloads are served from what is held; they are not to lose it for that.
    Serving,
}

/// Why there is no SVID for the agent.
#[derive(Debug, thiserror::Error)]
pub enum ObtainError {
    /// What is on disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is nothing to trust the server by.
    #[error(transparent)]
    Trust(#[from] BootstrapError),
    /// The method of attestation cannot be used.
    #[error("cannot attest: {0}")]
    Prover(#[from] OpenError),
    /// No key can be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The server's ID cannot be made.
    #[error(transparent)]
    Id(#[from] IdError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] mtls::Error),
    /// The server did not give one.
    #[error("cannot attest: {0}")]
    Node(#[from] NodeError),
}

impl Anew {
    /// Says whether this node may attest again by itself.
    pub fn set_possible(&self, is_possible: bool) {
        self.is_possible.store(is_possible, Ordering::Relaxed);
    }

    /// Asks for a new attestation, since the server denies what there is; false when this node
    /// cannot.
    #[must_use]
    pub fn ask(&self) -> bool {
        let is_possible = self.is_possible.load(Ordering::Relaxed);
        if is_possible {
            self.wanted.notify_one();
        }
        is_possible
    }

    /// Says that the server does not verify against the roots that there are.
    pub fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Waits until somebody doubts, or has since the last wait.
    pub async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// Waits until somebody asked, or has since the last wait.
    pub async fn asked(&self) {
        self.wanted.notified().await;
    }
}

impl Obtain {
    /// The SVID that was kept, while it is valid.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn kept(&self) -> Result<Option<OwnSvid>, ObtainError> {
        let Kept { svid, bundle, .. } = self.disk.load()?;
        Ok(self.usable(svid, &self.trust(bundle, false)))
    }

    fn usable(
        &self,
        svid: Option<OwnSvid>,
        trust: &Result<Trust, BootstrapError>,
    ) -> Option<OwnSvid> {
        let valid = svid.filter(|svid| self.clock.now() < svid.not_after)?;
        let Ok(Trust::Bundle(bundle)) = trust else {
            return None;
        };
        self.roots.set(&bundle.anchors());
        tracing::info!(agent_id = %valid.id, "continuing with the SVID that was kept");
        Some(valid)
    }

    /// The kept SVID while it is valid, else a new one by attestation.
    ///
    /// # Errors
    /// What is on disk cannot be used, or the server refuses for good.
    pub async fn own_svid(&self, persistence: Persistence) -> Result<OwnSvid, ObtainError> {
        let Kept {
            svid, key, bundle, ..
        } = self.disk.load()?;
        if let Some(own) = self.usable(svid, &self.trust(bundle.clone(), false)) {
            return Ok(own);
        }
        let key = match key {
            Some(key) => key,
            None => PrivateKey::generate(KeyType::EcP256)?.0,
        };
        self.disk.keep_key(&key, None)?;
        let (own, bundle) = self.attest(bundle, &key, persistence).await?;
        self.disk.keep(Some(&own), Some(&bundle))?;
        tracing::info!(agent_id = %own.id, "attested");
        Ok(own)
    }

    /// What the server is trusted by now; the configured file is read anew.
    fn trust(&self, kept: Option<Bundle>, is_doubted: bool) -> Result<Trust, BootstrapError> {
        let now = self.clock.now();
        bootstrap::trust(&self.config.agent, kept, is_doubted, now)
    }

    /// Believes the configured file, too, since the server does not verify against what there
    /// is; whether there is something new to believe.
    pub fn trust_anew(&self) -> bool {
        let kept = self.disk.load().ok().and_then(|kept| kept.bundle);
        let known = kept.clone().map(|bundle| bundle.x509_authorities);
        let known = known.unwrap_or_default();
        match self.trust(kept, true) {
            Ok(Trust::Bundle(bundle)) => {
                self.roots.set(&bundle.anchors());
                let mut all = bundle.x509_authorities.iter();
                !all.all(|one| known.contains(one))
            }
            Ok(Trust::FirstUse) => false,
            Err(error) => {
                tracing::warn!(%error, "there is no other bundle to verify the server by");
                false
            }
        }
    }

    async fn attest(
        &self,
        kept: Option<Bundle>,
        key: &PrivateKey,
        persistence: Persistence,
    ) -> Result<(OwnSvid, Bundle), ObtainError> {
        let prover = self.prover().await?;
        let mut backoff = Backoff::new(self.backoff, fastrand::Rng::new());
        let mut is_doubted = false;
        loop {
            let tried = match self.trust(kept.clone(), is_doubted) {
                Ok(trust) => self.attest_once(&trust, &*prover, key).await,
                Err(error) => Err(error.into()),
            };
            let error = match tried {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let delay = match &error {
                ObtainError::Node(NodeError::Untrusted(_)) if !is_doubted => {
                    is_doubted = true;
                    Duration::ZERO
                }
                ObtainError::Node(passing) if passing.is_passing() => backoff.next_delay(),
                ObtainError::Trust(error)
                    if error.is_passing() || persistence == Persistence::Serving =>
                {
                    FILE_WAIT
                }
                ObtainError::Node(NodeError::Refused(_) | NodeError::Prove(_))
                    if persistence == Persistence::Serving =>
                {
                    self.config.agent.max_backoff
                }
                _ => return Err(error),
            };
            tracing::warn!(%error, delay_ms = delay.as_millis(), "not attested yet");
            tokio::time::sleep(delay).await;
        }
    }

    /// A new SVID for `key` by another attestation; nothing is tried again.
    ///
    /// # Errors
    /// [`ObtainError`].
    pub async fn again(&self, key: &PrivateKey) -> Result<OwnSvid, ObtainError> {
        let prover = self.prover().await?;
        self.attest_trusted(&*prover, key).await
    }

    /// Attests to a server that is trusted by the roots that there are.
    async fn attest_trusted(
        &self,
        prover: &dyn Prover,
        key: &PrivateKey,
    ) -> Result<OwnSvid, ObtainError> {
        let agent = &self.config.agent;
        let party = Party {
            identity: Identity::empty(),
            roots: Arc::clone(&self.roots),
            authorizer: only(agent.trust_domain.server_id()?),
            clock: Arc::clone(&self.clock),
        };
        let tls = client_config(&party)?;
        let channel = channel::server(&agent.server_address, agent.server_port, tls);
        let clock = Arc::clone(&self.clock);
        let now = move || clock.now();
        Ok(node::attest(channel, prover, &agent.trust_domain, key, now).await?)
    }

    async fn attest_once(
        &self,
        trust: &Trust,
        prover: &dyn Prover,
        key: &PrivateKey,
    ) -> Result<(OwnSvid, Bundle), ObtainError> {
        let agent = &self.config.agent;
        match trust {
            Trust::Bundle(bundle) => {
                self.roots.set(&bundle.anchors());
                let own = self.attest_trusted(prover, key).await?;
                Ok((own, bundle.clone()))
            }
            Trust::FirstUse => {
                let first = Bootstrap::new(agent.trust_domain.server_id()?);
                let tls = bootstrap_config(&first, &self.clock)?;
                let channel = channel::server(&agent.server_address, agent.server_port, tls);
                let bundle = node::first_bundle(channel.clone(), &agent.trust_domain).await?;
                if let Some(seen) = first.seen() {
                    tracing::warn!(
                        fingerprint = seen.top_fingerprint(),
                        leaf = seen.leaf_fingerprint(),
                        "insecure_bootstrap: trusting the server that answered"
                    );
                }
                self.roots.set(&bundle.anchors());
                let clock = Arc::clone(&self.clock);
                let now = move || clock.now();
                let own = node::attest(channel, prover, &agent.trust_domain, key, now).await?;
                Ok((own, bundle))
            }
        }
    }

    async fn prover(&self) -> Result<Arc<dyn Prover>, ObtainError> {
        let agent = &self.config.agent;
        if agent.join_token.is_some() || agent.join_token_file.is_some() {
            let token = join_token::Config {
                token: agent.join_token.clone(),
                token_file: agent.join_token_file.clone(),
            };
            return Ok(Arc::new(join_token::JoinToken::new(token)));
        }
        Ok(open_section(PROVERS, &self.config.node_attestor, &()).await?)
    }
}
