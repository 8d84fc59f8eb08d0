//! The bundles against which peers are verified, one per trust domain.
//!
//! Invariant: they are never pooled. The authorities of one trust domain say
//! nothing about the identities of another (X509-SVID.md section 5.1).

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use vane_identity::id::TrustDomain;
use vane_identity::x509_svid::Anchors;

/// The bundles of today. Readers never wait.
#[derive(Debug, Default)]
pub struct Roots(ArcSwap<HashMap<TrustDomain, Anchors>>);

impl Roots {
    /// These bundles and no others.
    #[must_use]
    pub fn new(bundles: impl IntoIterator<Item = Anchors>) -> Arc<Self> {
        let roots = Self::default();
        roots.replace(bundles);
        Arc::new(roots)
    }

    /// Uses these bundles and no others from the next handshake on.
    pub fn replace(&self, bundles: impl IntoIterator<Item = Anchors>) {
        let keyed = bundles
            .into_iter()
            .map(|bundle| (bundle.trust_domain().clone(), bundle));
        self.0.store(Arc::new(keyed.collect()));
    }

    /// Adds the bundle of a trust domain, or uses it instead of the one before.
    pub fn set(&self, bundle: &Anchors) {
        self.0.rcu(|now| {
            let mut next = HashMap::clone(now);
            next.insert(bundle.trust_domain().clone(), bundle.clone());
            next
        });
    }

    /// Trusts this trust domain no more.
    pub fn remove(&self, trust_domain: &TrustDomain) {
        self.0.rcu(|now| {
            let mut next = HashMap::clone(now);
            next.remove(trust_domain);
            next
        });
    }

    /// The bundle of a trust domain.
    #[must_use]
    pub fn find(&self, trust_domain: &TrustDomain) -> Option<Anchors> {
        self.0.load().get(trust_domain).cloned()
    }
}
