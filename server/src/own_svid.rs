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
use vane_authority::kind::Kind;
use vane_authority::profile::SvidKind;
use vane_chassis::clock::{Clock, sleep_until};
use vane_chassis::mtls::{Identity, IdentityError};
use vane_identity::id::{IdError, SpiffeId, TrustDomain};
use vane_identity::key::{KeyError, KeyType, PrivateKey, PublicKey};
use vane_identity::lifetime::{Jitter, is_due, renewal};
use vane_identity::x509_svid::{Certificate, X509Svid};
use vane_wire::record::AuthorityState;

use crate::vitals::OwnTimes;

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
    times: watch::Sender<OwnTimes>,
    issued_at: SystemTime,
    due: SystemTime,
    /// The last renewal failed: another authority may be what was missing.
    failed: bool,
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
            times: watch::Sender::new(OwnTimes {
                not_after: clock.now(),
                due: clock.now(),
            }),
            issued_at: clock.now(),
            due: clock.now(),
            failed: false,
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

    /// When it ends and is renewed, as it changes.
    #[must_use]
    pub fn times(&self) -> watch::Receiver<OwnTimes> {
        self.times.subscribe()
    }

    /// Renews until `stop`.
    ///
    /// # Errors
    /// None: a renewal that fails is tried again, and the old one is presented.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        let mut authorities = self.authority.authorities();
        let mut jumps = self.clock.jumps();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep_until(&*self.clock, self.due) => {}
                () = jumps.next() => {
                    if !is_due(self.issued_at, self.due, self.clock.now()) {
                        continue;
                    }
                }
                Ok(()) = authorities.changed() => {
                    let tainted = authorities.borrow_and_update().iter().any(|record| {
                        record.id == self.signed_by && record.state == AuthorityState::Tainted
                    });
                    if !tainted && !self.failed {
                        continue;
                    }
                }
            }
            let renewed = self.renew().await;
            self.failed = renewed.is_err();
            if let Err(error) = renewed {
                tracing::error!(%error, "the server's own SVID is not renewed; trying again");
                self.due = self.clock.now() + RETRY;
            }
        }
    }

    async fn renew(&mut self) -> Result<(), OwnSvidError> {
        let (key, public_key) = generate(self.authority.profile().key_type(Kind::X509)).await?;
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
        self.issued_at = self.clock.now();
        self.due = renewal(self.issued_at, svid.leaf().validity, jitter);
        let signer = svid.leaf().authority_key_id.as_deref().unwrap_or_default();
        self.signed_by = signer.iter().map(|byte| format!("{byte:02x}")).collect();
        self.times.send_replace(OwnTimes {
            not_after: svid.leaf().validity.not_after,
            due: self.due,
        });
        self.chain.send_replace(svid.chain().into());
        Ok(())
    }
}

/// A key of the CA's kind, as SPIRE's; an RSA key takes seconds to find.
async fn generate(kind: KeyType) -> Result<(PrivateKey, PublicKey), KeyError> {
    let generated = tokio::task::spawn_blocking(move || PrivateKey::generate(kind)).await;
    generated.unwrap_or(Err(KeyError::Generate))
}

#[cfg(test)]
mod tests {
    use vane_authority::authority::Deps;
    use vane_authority::key_manager;
    use vane_authority::log::Log;
    use vane_authority::profile::ProfileConfig;
    use vane_chassis::builtin::{Section, open_section};
    use vane_chassis::clock::{Manual, Watched};
    use vane_chassis::tasks::Tasks;
    use vane_identity::lifetime::NOT_BEFORE_BACKDATE;
    use vane_store::memory::MemoryKv;

    use super::*;

    const TTL: Duration = Duration::from_secs(600);

    struct World {
        authority: Arc<Authority>,
        clock: Arc<Manual>,
        watched: Arc<Watched>,
        chain: watch::Receiver<Arc<[Certificate]>>,
        tasks: Tasks,
        identity: Arc<Identity>,
    }

    impl World {
        async fn new() -> Self {
            let manual = Arc::new(Manual::starting_now());
            let watched = Watched::new(Arc::<Manual>::clone(&manual));
            let clock: Arc<dyn Clock> = Arc::<Watched>::clone(&watched);
            let trust_domain = TrustDomain::parse("example.org").unwrap();
            let section = Section::new("memory", Default::default());
            let key_deps = key_manager::Deps {
                data_dir: "/nonexistent".into(),
            };
            let keys = open_section(key_manager::BUILTINS, &section, &key_deps);
            let deps = Deps {
                clock: Arc::clone(&clock),
                kv: Arc::new(MemoryKv::new().unwrap()),
                keys: keys.await.unwrap(),
                log: Arc::new(Log::off(Arc::clone(&clock))),
                server_id: "server".to_owned(),
            };
            let profile = ProfileConfig {
                ca_ttl: 10 * TTL,
                default_x509_svid_ttl: TTL,
                ..ProfileConfig::new(trust_domain.clone())
            };
            let authority = Authority::open(&profile, deps).await.unwrap();
            let own = OwnSvid::open(Arc::clone(&authority), clock, &trust_domain);
            let own = own.await.unwrap();
            let (chain, identity) = (own.chain(), own.identity());
            let mut tasks = Tasks::new();
            tasks.spawn("clock", Arc::clone(&watched).run(tasks.token()));
            tasks.spawn("authorities", Arc::clone(&authority).run(tasks.token()));
            tasks.spawn("own SVID", own.run(tasks.token()));
            Self {
                authority,
                clock: manual,
                watched: Arc::clone(&watched),
                chain,
                tasks,
                identity,
            }
        }

        /// Waits for the next chain; its leaf.
        async fn next(&mut self) -> vane_identity::x509_svid::CertificateInfo {
            let changed = self.chain.changed();
            let changed = tokio::time::timeout(Duration::from_secs(30), changed);
            changed.await.unwrap().unwrap();
            let chain = self.chain.borrow_and_update().clone();
            chain[0].info().unwrap()
        }
    }

    #[tokio::test]
    async fn it_is_renewed_at_half_its_lifetime() {
        let mut world = World::new().await;
        assert!(!world.identity.is_empty());
        let first = world.chain.borrow_and_update()[0].info().unwrap();
        assert_eq!(
            first.spiffe_id.unwrap().as_str(),
            "spiffe://example.org/spire/server"
        );
        let validity = first.validity;
        let lifetime = validity.not_after.duration_since(validity.not_before);
        assert_eq!(lifetime.unwrap(), TTL + NOT_BEFORE_BACKDATE);
        world.clock.advance(TTL / 2 - TTL / 10);
        tokio::task::yield_now().await;
        assert!(!world.chain.has_changed().unwrap(), "not before its time");
        world.clock.advance(TTL / 5);
        let second = world.next().await;
        assert_ne!(second.serial, first.serial);
        assert_ne!(second.spki, first.spki, "each has a key of its own");
        world.tasks.token().cancel();
        world.tasks.join(Duration::from_secs(5)).await.unwrap();
    }

    /// Whatever the clock is set to, what is presented soon after is valid then.
    #[tokio::test]
    async fn when_the_clock_is_set_a_valid_one_follows_at_once() {
        let mut world = World::new().await;
        let hour = Duration::from_secs(3_600);
        let day = 24 * hour;
        for (forward, by) in [(true, hour), (false, hour), (true, day), (false, day)] {
            world.chain.mark_unchanged();
            let now = world.clock.now();
            world.clock.set(if forward { now + by } else { now - by });
            world.watched.now();
            world.clock.advance(vane_chassis::clock::SETTLE);
            let now = world.clock.now();
            let valid = async {
                loop {
                    let leaf = world.next().await;
                    let signer = world.authority.authorities().borrow().iter().any(|one| {
                        let id: String = leaf
                            .authority_key_id
                            .iter()
                            .flatten()
                            .map(|b| format!("{b:02x}"))
                            .collect();
                        let begins = vane_identity::lifetime::from_unix(one.issued_at);
                        one.id == id && begins <= now + NOT_BEFORE_BACKDATE
                    });
                    if leaf.validity.contains(now) && signer {
                        return;
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(30), valid)
                .await
                .unwrap();
        }
    }

    #[tokio::test]
    async fn it_is_renewed_at_once_when_its_authority_is_tainted() {
        let mut world = World::new().await;
        let first = world.chain.borrow_and_update()[0].info().unwrap();
        let old = world.authority.authorities().borrow()[0].id.clone();
        let next = world.authority.prepare(Kind::X509).await.unwrap();
        world
            .authority
            .activate(Kind::X509, &next.id)
            .await
            .unwrap();
        tokio::task::yield_now().await;
        assert!(!world.chain.has_changed().unwrap(), "an old one is good");
        world.authority.taint(Kind::X509, &old).await.unwrap();
        let second = world.next().await;
        let signer = |info: &vane_identity::x509_svid::CertificateInfo| {
            let id = info.authority_key_id.clone().unwrap();
            id.iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        assert_eq!((signer(&first), signer(&second)), (old, next.id));
    }
}
