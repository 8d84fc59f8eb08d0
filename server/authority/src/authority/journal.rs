//! The journal: the records of this server in the store, and the bundle beside them.
//!
//! [`Authority::journal`] is the one way to it: what memory has is read again first whenever
//! the store may say something else. [`Authority::commit`] is the one way to change it.

use tokio::sync::MutexGuard;
use vane_identity::bundle::Bundle;
use vane_store::kv::{CommitError, KvError, Revision, Txn};
use vane_store::tables::row::Row;
use vane_store::tables::{authorities, bundles};
use vane_wire::record::{AuthorityRecord, AuthorityState};

use super::{Authority, AuthorityError, Result, published};
use crate::kind::Kind;

const PAGE: usize = 256;
/// Lost races before a change is given up.
const TRIES: usize = 16;

/// What the store holds of this server.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) records: Vec<AuthorityRecord>,
    /// The revision that made the bundle what it is.
    pub(super) bundle: Revision,
    /// Whether the store is known to say the same.
    fresh: bool,
}

impl Journal {
    /// The records of one kind.
    pub(super) fn of(&self, kind: Kind) -> Vec<AuthorityRecord> {
        let all = self.records.iter();
        all.filter(|record| Kind::of(record) == kind)
            .cloned()
            .collect()
    }

    fn take_over(&mut self, changes: Vec<AuthorityRecord>) {
        for change in changes {
            self.records.retain(|record| record.id != change.id);
            if change.state != AuthorityState::Revoked {
                self.records.push(change);
            }
        }
    }
}

impl Authority {
    /// The journal as the store has it.
    pub(super) async fn journal(&self) -> Result<MutexGuard<'_, Journal>> {
        let mut journal = self.journal.lock().await;
        if !journal.fresh {
            self.resume(&mut journal).await?;
        }
        Ok(journal)
    }

    /// Reads the journal, retires what cannot sign (its key is gone or is another, or its kind
    /// was switched off), and puts back into the bundle what signs or will.
    async fn resume(&self, journal: &mut Journal) -> Result<()> {
        journal.records = self.read_journal().await?;
        let lost = self.without_key(&journal.records).await?;
        let row = bundles::get(&*self.deps.kv, self.profile.trust_domain()).await?;
        journal.bundle = row.as_ref().map_or(0, |row| row.mod_revision);
        let needed: Vec<AuthorityRecord> = journal
            .records
            .iter()
            .filter(|record| is_live(record) && lost.iter().all(|lost| lost.id != record.id))
            .cloned()
            .collect();
        let put_back = |bundle: &mut Bundle| {
            needed.iter().for_each(|one| published::add(one, bundle));
        };
        let stored = row.map_or_else(|| self.empty_bundle(), |row| row.value);
        let mut whole = stored.clone();
        put_back(&mut whole);
        if lost.is_empty() && whole.same_content(&stored) {
            journal.fresh = true;
        } else {
            self.commit(journal, lost, put_back).await?;
        }
        self.load_active(&journal.records)?;
        self.publish(&journal.records);
        Ok(())
    }

    fn empty_bundle(&self) -> Bundle {
        Bundle::empty(self.profile.trust_domain().clone())
    }

    /// Those that sign or will, but cannot or may not, as old ones.
    async fn without_key(&self, records: &[AuthorityRecord]) -> Result<Vec<AuthorityRecord>> {
        let keys = self.deps.keys.public_keys().await?;
        let has_key = |record: &AuthorityRecord| {
            let own = keys.iter().find(|key| key.key_ref == record.key_ref);
            own.is_some_and(|key| published::public_key(record).as_ref() == Some(&key.public_key))
        };
        let mut lost = Vec::new();
        for record in records.iter().filter(|record| is_live(record)) {
            if !self.profile.signs(Kind::of(record)) {
                tracing::info!(
                    authority_id = record.id,
                    "its kind is switched off: retired"
                );
            } else if !has_key(record) {
                let text = "the key of this authority is gone: another one is made";
                tracing::warn!(authority_id = record.id, text);
            } else {
                continue;
            }
            lost.push(old(record));
        }
        Ok(lost)
    }

    async fn read_journal(&self) -> Result<Vec<AuthorityRecord>> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = authorities::page(&*self.deps.kv, after.as_ref(), PAGE).await?;
            let own = page.rows.into_iter().map(|row| row.value);
            all.extend(own.filter(|record| record.owner == self.deps.server_id));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Writes `changes` and what `edit` makes of the own bundle in one transaction, then takes
    /// them over. Revoked records are deleted.
    pub(super) async fn commit(
        &self,
        journal: &mut Journal,
        changes: Vec<AuthorityRecord>,
        edit: impl Fn(&mut Bundle),
    ) -> Result<()> {
        for _ in 0..TRIES {
            let (txn, bundle) = self.transaction(&changes, &edit).await?;
            // Stays so when the outcome is unknown or this future is dropped.
            journal.fresh = false;
            match self.deps.kv.commit(txn).await {
                Ok(revision) => {
                    journal.take_over(changes);
                    journal.bundle = bundle.unwrap_or(revision);
                    journal.fresh = true;
                    self.publish(&journal.records);
                    return Ok(());
                }
                // Another server changed the bundle: read it again.
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let cause = "the bundle is changed by others all the time".to_owned();
        Err(KvError::Unavailable {
            cause,
            way_out: "it is tried again".to_owned(),
        }
        .into())
    }

    /// The transaction, and the revision that the bundle keeps when it is not changed by it.
    async fn transaction(
        &self,
        changes: &[AuthorityRecord],
        edit: &impl Fn(&mut Bundle),
    ) -> Result<(Txn, Option<Revision>)> {
        let kv = &*self.deps.kv;
        let row: Option<Row<Bundle>> = bundles::get(kv, self.profile.trust_domain()).await?;
        let value = row.as_ref().map(|row| row.value.clone());
        let mut bundle = value.unwrap_or_else(|| self.empty_bundle());
        edit(&mut bundle);
        let same = |row: &&Row<Bundle>| row.value.same_content(&bundle);
        let kept = row.as_ref().filter(same).map(|row| row.mod_revision);
        let mut txn = bundles::put(row.as_ref(), bundle);
        for record in changes {
            let row = authorities::get(kv, &record.id).await?;
            txn = match (&row, record.state) {
                (Some(row), AuthorityState::Revoked) => txn.and(authorities::deletion(row)),
                (None, AuthorityState::Revoked) => txn,
                (row, _) => txn.and(authorities::put(row.as_ref(), record)),
            };
        }
        Ok((txn, kept))
    }

    fn publish(&self, records: &[AuthorityRecord]) {
        self.published.send_replace(records.into());
    }
}

/// Whether it signs or will.
pub(super) fn is_live(record: &AuthorityRecord) -> bool {
    matches!(
        record.state,
        AuthorityState::Prepared | AuthorityState::Active
    )
}

/// `record` as an old one.
pub(super) fn old(record: &AuthorityRecord) -> AuthorityRecord {
    AuthorityRecord {
        state: AuthorityState::Old,
        ..record.clone()
    }
}

pub(super) fn find(records: &[AuthorityRecord], id: &str) -> Result<AuthorityRecord> {
    let found = records.iter().find(|record| record.id == id).cloned();
    found.ok_or_else(|| AuthorityError::Unknown(id.to_owned()))
}

/// The record `id`, if it is in `state`.
pub(super) fn expect(
    records: &[AuthorityRecord],
    id: &str,
    state: AuthorityState,
    wanted: &'static str,
) -> Result<AuthorityRecord> {
    let record = find(records, id)?;
    if record.state != state {
        return Err(AuthorityError::State {
            id: record.id,
            state: record.state,
            wanted,
        });
    }
    Ok(record)
}
