//! What the agent serves at one moment: immutable, shared by all readers.
//!
//! The owner of the cache publishes a new one at each change; readers never lock it for
//! long. A message is encoded once for each set of matching entries and shared as bytes; the
//! bytes are wiped when the last reader drops them, since keys are in them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use prost::Message;
use vane_identity::bundle::Bundle;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::TrustDomain;
use vane_identity::selector::Selector;
use vane_wire::workload::{JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse};
use zeroize::Zeroizing;

use crate::svid::Svid;
use crate::workload::{Match, Outcome};

/// The most messages that a snapshot keeps encoded.
const MAX_ENCODED: usize = 1_024;

/// An entry and what there is for it.
#[derive(Debug, Clone)]
pub struct Served {
    /// The entry.
    pub entry: Arc<Entry>,
    /// Its SVID.
    pub svid: State,
}

/// Whether an entry has an SVID.
#[derive(Debug, Clone)]
pub enum State {
    /// It has.
    Ready(Arc<Svid>),
    /// It is being fetched, or waits for somebody who asks.
    Pending,
    /// The last try failed; it is tried again.
    Failed,
}

/// How far what is served can be relied upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    /// As the server said last.
    #[default]
    Current,
    /// From before a restart, and the server was not reached since: what is missing may exist.
    Unconfirmed,
    /// Out of contact for longer than `offline_grace`: nothing may be served.
    Overdue,
}

/// The entries that match a process, by their place in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Matches(Box<[usize]>);

impl Matches {
    /// Whether none matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Which message of the Workload API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// X.509-SVIDs with keys and bundles.
    X509Svid,
    /// X.509 bundles.
    X509Bundles,
    /// JWT bundles.
    JwtBundles,
}

/// What is served.
#[derive(Debug)]
pub struct Snapshot {
    standing: Standing,
    trust_domain: TrustDomain,
    entries: Vec<Served>,
    by_selector: HashMap<Selector, Vec<usize>>,
    bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    encoded: Mutex<HashMap<(Kind, Matches), Bytes>>,
}

impl Snapshot {
    /// A snapshot of `entries`, sorted by entry ID. Those whose SVIDs go to a store are not
    /// served here.
    #[must_use]
    pub fn new(
        trust_domain: TrustDomain,
        entries: impl IntoIterator<Item = Served>,
        bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    ) -> Self {
        let entries: Vec<Served> = entries
            .into_iter()
            .filter(|one| !one.entry.store_svid)
            .collect();
        let mut by_selector: HashMap<Selector, Vec<usize>> = HashMap::new();
        for (at, served) in entries.iter().enumerate() {
            if let Some(first) = served.entry.selectors.iter().next() {
                by_selector.entry(first.clone()).or_default().push(at);
            }
        }
        Self {
            standing: Standing::Current,
            trust_domain,
            entries,
            by_selector,
            bundles,
            encoded: Mutex::default(),
        }
    }

    /// The same with another standing.
    #[must_use]
    pub fn with_standing(self, standing: Standing) -> Self {
        Self { standing, ..self }
    }

    /// How far it can be relied upon.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The bundle of the own trust domain.
    #[must_use]
    pub fn own_bundle(&self) -> Option<&Arc<Bundle>> {
        self.bundle(&self.trust_domain)
    }

    /// The bundle that a process with these entries verifies peers of `trust_domain` with: its
    /// own, whether an entry matches or not, and those that an entry federates with.
    #[must_use]
    pub fn bundle_for<'a>(
        &'a self,
        matches: &'a Matches,
        trust_domain: &TrustDomain,
    ) -> Option<&'a Bundle> {
        self.visible(matches)
            .find(|bundle| bundle.trust_domain == *trust_domain)
    }

    /// The bundle of `trust_domain`, whoever is to have it.
    #[must_use]
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        self.bundles.get(trust_domain)
    }

    /// The own trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// An entry by its ID, for `explain` and tests.
    #[must_use]
    pub fn find(&self, id: &EntryId) -> Option<&Served> {
        let at = self.entries.binary_search_by(|one| one.entry.id.cmp(id));
        at.ok().and_then(|at| self.entries.get(at))
    }

    /// The entries that match what is known of a process.
    #[must_use]
    pub fn matches(&self, outcome: &Outcome) -> Matches {
        let known = outcome.known();
        let candidates = known
            .iter()
            .filter_map(|selector| self.by_selector.get(selector))
            .flatten();
        let mut found: Vec<usize> = candidates
            .copied()
            .filter(|at| {
                self.entries
                    .get(*at)
                    .is_some_and(|served| served.entry.selectors.is_subset(known))
            })
            .collect();
        found.sort_unstable();
        Matches(self.without_doubled_hints(found).into())
    }

    /// Whether an entry could match, were more known of the process.
    #[must_use]
    pub fn may_match(&self, outcome: &Outcome) -> bool {
        !outcome.unknown().is_empty()
            && self
                .entries
                .iter()
                .any(|served| outcome.matches(&served.entry.selectors) == Match::Unknown)
    }

    /// Of entries with the same hint the oldest stays, then the one with the lowest ID
    /// (WAPI-29, as SPIRE).
    fn without_doubled_hints(&self, found: Vec<usize>) -> Vec<usize> {
        let mut best: HashMap<&str, (i64, usize)> = HashMap::new();
        for at in &found {
            let Some(entry) = self.entries.get(*at).map(|served| &served.entry) else {
                continue;
            };
            if !entry.hint.is_empty() {
                let mine = (entry.created_at, *at);
                best.entry(&entry.hint)
                    .and_modify(|held| *held = (*held).min(mine))
                    .or_insert(mine);
            }
        }
        let stays = |at: &usize| {
            let hint = self
                .entries
                .get(*at)
                .map_or("", |served| served.entry.hint.as_str());
            hint.is_empty() || best.get(hint).is_none_or(|(_, kept)| kept == at)
        };
        found.into_iter().filter(stays).collect()
    }

    /// The entries of `matches`.
    pub fn served<'a>(&'a self, matches: &'a Matches) -> impl Iterator<Item = &'a Served> {
        matches.0.iter().filter_map(|at| self.entries.get(*at))
    }

    /// The entries of `matches` that have no SVID.
    #[must_use]
    pub fn lacking(&self, matches: &Matches) -> Vec<EntryId> {
        self.ids(matches, |state| !matches!(state, State::Ready(_)))
    }

    /// The entries of `matches` that have one.
    #[must_use]
    pub fn granted(&self, matches: &Matches) -> Box<[EntryId]> {
        let ready = |state: &State| matches!(state, State::Ready(_));
        self.ids(matches, ready).into()
    }

    fn ids(&self, matches: &Matches, wanted: impl Fn(&State) -> bool) -> Vec<EntryId> {
        self.served(matches)
            .filter(|served| wanted(&served.svid))
            .map(|served| served.entry.id.clone())
            .collect()
    }

    /// Whether an SVID for one of `matches` is on its way.
    #[must_use]
    pub fn is_pending(&self, matches: &Matches) -> bool {
        self.served(matches)
            .any(|served| matches!(served.svid, State::Pending))
    }

    /// The message of `kind` for `matches`, encoded; none when it would have nothing in it.
    #[must_use]
    pub fn message(&self, kind: Kind, matches: &Matches, now: SystemTime) -> Option<Bytes> {
        let key = (kind, matches.clone());
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = encoded.get(&key) {
            return Some(bytes.clone());
        }
        let bytes = self.encode(kind, matches, now)?;
        if encoded.len() < MAX_ENCODED {
            encoded.insert(key, bytes.clone());
        }
        Some(bytes)
    }

    fn encode(&self, kind: Kind, matches: &Matches, now: SystemTime) -> Option<Bytes> {
        match kind {
            Kind::X509Svid => self
                .x509_svids(matches, now)
                .map(|message| encoded(&message)),
            Kind::X509Bundles => Some(encoded(&self.x509_bundles(matches))),
            Kind::JwtBundles => Some(encoded(&self.jwt_bundles(matches))),
        }
    }

    fn x509_svids(&self, matches: &Matches, now: SystemTime) -> Option<X509svidResponse> {
        let own = self.bundles.get(&self.trust_domain)?.x509_der();
        let svids: Vec<X509svid> = self
            .served(matches)
            .filter_map(|served| match &served.svid {
                State::Ready(svid) if svid.is_valid(now) => Some((served, svid)),
                _ => None,
            })
            .map(|(served, svid)| {
                let mut message = X509svid::default();
                message.spiffe_id = served.entry.spiffe_id.to_string();
                message.x509_svid = svid.chain.clone().into();
                message.x509_svid_key = svid.key.pkcs8().to_vec();
                message.bundle = own.clone().into();
                message.hint.clone_from(&served.entry.hint);
                message
            })
            .collect();
        if svids.is_empty() {
            return None;
        }
        let federated = self
            .federated(matches)
            .map(|bundle| (bundle.trust_domain.id().to_string(), bundle.x509_der()));
        Some(X509svidResponse {
            svids,
            crl: Vec::new(),
            federated_bundles: federated.collect(),
        })
    }

    fn x509_bundles(&self, matches: &Matches) -> X509BundlesResponse {
        let bundles = self.visible(matches).map(|bundle| {
            (
                bundle.trust_domain.id().to_string(),
                bundle.x509_der().into(),
            )
        });
        X509BundlesResponse {
            crl: Vec::new(),
            bundles: bundles.collect(),
        }
    }

    fn jwt_bundles(&self, matches: &Matches) -> JwtBundlesResponse {
        let bundles = self.visible(matches).filter_map(|bundle| {
            // A key that no JWK can say makes its bundle unavailable, not the others.
            let jwks = bundle.to_jwt_jwks().ok()?;
            Some((bundle.trust_domain.id().to_string(), jwks.into()))
        });
        JwtBundlesResponse {
            bundles: bundles.collect(),
        }
    }

    /// The bundles of foreign trust domains that one of the entries federates with.
    fn federated<'a>(&'a self, matches: &'a Matches) -> impl Iterator<Item = &'a Bundle> {
        let names: BTreeSet<&TrustDomain> = self
            .served(matches)
            .flat_map(|served| &served.entry.federates_with)
            .collect();
        names
            .into_iter()
            .filter(|name| **name != self.trust_domain)
            .filter_map(|name| self.bundles.get(name).map(Arc::as_ref))
    }

    fn visible<'a>(&'a self, matches: &'a Matches) -> impl Iterator<Item = &'a Bundle> {
        self.bundles
            .get(&self.trust_domain)
            .map(Arc::as_ref)
            .into_iter()
            .chain(self.federated(matches))
    }
}

fn encoded(message: &impl Message) -> Bytes {
    Bytes::from_owner(Zeroizing::new(message.encode_to_vec()))
}

#[cfg(test)]
mod tests;
