//! What keeps entries and the bundles they federate with together: `f/…`.
//!
//! An entry names only trust domains whose bundle is there, and a bundle goes only when no
//! entry names it. Neither is a rule of one row, so each side leaves a mark that the other
//! compares:
//!
//! | key | changed by |
//! |---|---|
//! | `f/e/<n>` | each write of an entry that federates with a trust domain of bucket n |
//! | `f/b` | each deletion of a bundle |
//!
//! Invariant: who writes an entry reads `f/b` *before* it looks for the bundles, who deletes
//! a bundle reads `f/e/<n>` *before* it looks for the entries; what was looked at was at least
//! as new, so a commit under the compare decides on what is still so. The buckets bound the
//! operations of one entry, however many trust domains it names; a shared one costs a retry.

use std::collections::BTreeSet;

use bytes::Bytes;
use vane_identity::entry::Entry;
use vane_identity::id::TrustDomain;

use super::row;
use crate::kv::{Compare, Kv, KvError, Revision, Txn};
use crate::record;

const ENTRIES: &[u8] = b"f/e/";
const BUNDLES: &[u8] = b"f/b";
const BUCKETS: u32 = 32;

/// The value of a mark: random, so that each write of it is a change.
pub type Mark = [u8; 16];

/// A mark as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    key: Bytes,
    /// None when nobody ever wrote it.
    revision: Option<Revision>,
}

/// Reads the mark of bundles. Look for the bundles of an entry after that, in what has at
/// least [`Seen::revision`].
///
/// # Errors
/// [`KvError`].
pub async fn bundles(kv: &dyn Kv) -> Result<Seen, KvError> {
    Seen::read(kv, Bytes::from_static(BUNDLES)).await
}

/// Reads the mark of the entries that federate with `trust_domain`. Look for them after that,
/// in what has at least [`Seen::revision`].
///
/// # Errors
/// [`KvError`].
pub async fn entries(kv: &dyn Kv, trust_domain: &TrustDomain) -> Result<Seen, KvError> {
    Seen::read(kv, bucket(trust_domain)).await
}

/// What the write of `entry` needs beside the entry: its bundles, looked for after `seen` of
/// [`bundles`], are still there. Nothing for one that federates with nobody.
#[must_use]
pub fn entry_written(entry: &Entry, seen: &Seen, mark: Mark) -> Txn {
    if entry.federates_with.is_empty() {
        return Txn::new();
    }
    let touched: BTreeSet<Bytes> = entry.federates_with.iter().map(bucket).collect();
    let txn = Txn::new().when(seen.unchanged());
    let value = record::frame(&mark);
    touched
        .into_iter()
        .fold(txn, |txn, key| txn.put(key, value.clone()))
}

/// What the deletion of a bundle needs beside the bundle: the entries that federate with it,
/// looked for after `seen` of [`entries`], are still all.
#[must_use]
pub fn bundle_deleted(seen: &Seen, mark: Mark) -> Txn {
    Txn::new()
        .when(seen.unchanged())
        .put(Bytes::from_static(BUNDLES), record::frame(&mark))
}

impl Seen {
    async fn read(kv: &dyn Kv, key: Bytes) -> Result<Self, KvError> {
        let item = kv.get(&key).await?;
        let revision = item.map(|item| item.mod_revision);
        Ok(Self { key, revision })
    }

    /// What was known when it was read: 0 when the mark was never written.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision.unwrap_or_default()
    }

    fn unchanged(&self) -> Compare {
        match self.revision {
            Some(revision) => Compare::ModRevision(self.key.clone(), revision),
            None => Compare::Absent(self.key.clone()),
        }
    }
}

fn bucket(trust_domain: &TrustDomain) -> Bytes {
    let number = crc32c::crc32c(trust_domain.as_str().as_bytes()) % BUCKETS;
    row::key(ENTRIES, number.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use vane_identity::bundle::Bundle;
    use vane_identity::entry::EntryId;
    use vane_identity::id::SpiffeId;

    use super::*;
    use crate::kv::CommitError;
    use crate::memory::MemoryKv;
    use crate::tables::bundles as table;
    use crate::tables::entries::{self as registry, CreateError};

    fn named(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    fn entry(id: &str, federates_with: &[&str]) -> Entry {
        let own = |path: &str| SpiffeId::parse(&format!("spiffe://example.org/{path}")).unwrap();
        Entry {
            id: EntryId::parse(id).unwrap(),
            spiffe_id: own(id),
            parent_id: own("spire/agent/x"),
            selectors: ["unix:uid:1".parse().unwrap()].into_iter().collect(),
            x509_svid_ttl: 0,
            federates_with: federates_with.iter().map(|name| named(name)).collect(),
            admin: false,
            downstream: false,
            expires_at: 0,
            dns_names: Vec::new(),
            revision_number: 0,
            store_svid: false,
            jwt_svid_ttl: 0,
            hint: String::new(),
            created_at: 1,
            additional_attributes: None,
        }
    }

    async fn deletion(kv: &MemoryKv, name: &str, seen: &Seen) -> Result<Revision, CommitError> {
        let row = table::get(kv, &named(name)).await.unwrap().unwrap();
        let txn = table::deletion(&row).and(bundle_deleted(seen, [9; 16]));
        kv.commit(txn).await
    }

    #[tokio::test]
    async fn a_bundle_does_not_go_while_an_entry_that_names_it_comes() {
        let kv = MemoryKv::new().unwrap();
        for name in ["a.org", "b.org"] {
            let bundle = Bundle::empty(named(name));
            kv.commit(table::put_federated(None, &bundle))
                .await
                .unwrap();
        }
        let unseen = entries(&kv, &named("a.org")).await.unwrap();
        let there = bundles(&kv).await.unwrap();
        let one = entry("one", &["a.org"]);
        let link = entry_written(&one, &there, [1; 16]);
        registry::create(&kv, &one, link).await.unwrap();
        let conflict = deletion(&kv, "a.org", &unseen).await;
        assert!(matches!(conflict, Err(CommitError::Conflict { .. })));
        let seen = entries(&kv, &named("a.org")).await.unwrap();
        deletion(&kv, "a.org", &seen).await.unwrap();
    }

    #[tokio::test]
    async fn an_entry_does_not_come_while_a_bundle_goes() {
        let kv = MemoryKv::new().unwrap();
        let bundle = Bundle::empty(named("a.org"));
        kv.commit(table::put_federated(None, &bundle))
            .await
            .unwrap();
        let there = bundles(&kv).await.unwrap();
        let seen = entries(&kv, &named("a.org")).await.unwrap();
        deletion(&kv, "a.org", &seen).await.unwrap();
        let one = entry("one", &["a.org"]);
        let link = entry_written(&one, &there, [1; 16]);
        let refused = registry::create(&kv, &one, link).await;
        assert_eq!(refused, Err(CreateError::Changed));
        let alone = entry("two", &[]);
        let link = entry_written(&alone, &there, [1; 16]);
        registry::create(&kv, &alone, link).await.unwrap();
    }

    #[test]
    fn an_entry_with_many_trust_domains_fits_into_a_transaction() {
        let names: Vec<String> = (0..256).map(|n| format!("td{n}.org")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let entry = entry("one", &names);
        let seen = Seen {
            key: Bytes::from_static(BUNDLES),
            revision: Some(7),
        };
        let txn = registry::creation(&entry).and(entry_written(&entry, &seen, [1; 16]));
        txn.check().unwrap();
        assert!(txn.ops.len() <= 34);
    }
}
