//! Doing what the schedule says: making, activating and pruning authorities of either kind.
//!
//! An authority is in the stored bundle before it can be active, and stored as active before
//! it signs; a CA certificate, or the key of a JWT authority, is in the log before that.

use std::sync::Arc;
use std::time::SystemTime;

use vane_identity::key::PublicKey;
use vane_identity::lifetime::{NOT_BEFORE_BACKDATE, Validity, from_unix, to_unix};
use vane_identity::x509_svid::Certificate;
use vane_wire::record::{AuthorityKind, AuthorityRecord, AuthorityState};

use super::journal::{Journal, find, old};
use super::{Authority, AuthorityError, Result, published};
use crate::jwt;
use crate::key_manager::{SignRequest, SignatureFormat};
use crate::kind::Kind;
use crate::log::Leaf;
use crate::schedule::{self, Action, Slot, Stage};
use crate::x509::check::{self, CheckError};
use crate::x509::{self, BadIssuer, CaPlan, Issuer, Serial};

/// The most authorities of one kind and server that are in the bundle; the schedule needs five.
pub(super) const MAX_OWN: usize = 32;
/// Who asks for what the schedule makes, in the log.
const CALLER: &str = "rotation";

impl Authority {
    /// Does what the schedule says until it says nothing, and when to ask it again.
    pub(super) async fn catch_up(&self) -> Result<Option<SystemTime>> {
        let mut journal = self.journal().await?;
        let mut due = Vec::new();
        for kind in Kind::ALL {
            due.extend(self.catch_up_with(&mut journal, kind).await?);
        }
        Ok(due.into_iter().min())
    }

    async fn catch_up_with(&self, journal: &mut Journal, kind: Kind) -> Result<Option<SystemTime>> {
        loop {
            let (records, now) = (journal.of(kind), self.deps.clock.now());
            let slots = slots(&records);
            let action = if self.profile.signs(kind) {
                schedule::next_action(&slots, now)
            } else {
                schedule::next_prune(&slots, now)
            };
            match action {
                Some(Action::Prepare) => drop(self.make(journal, kind).await?),
                Some(Action::Activate(id)) => self.sign_with(journal, find(&records, &id)?).await?,
                Some(Action::Prune(id)) => self.prune(journal, find(&records, &id)?).await?,
                None => return Ok(schedule::next_time(&slots, now)),
            }
        }
    }

    /// Makes the next authority of `kind` and publishes it.
    pub(super) async fn make(&self, journal: &mut Journal, kind: Kind) -> Result<AuthorityRecord> {
        let own = journal.of(kind);
        if own.len() >= MAX_OWN {
            return Err(AuthorityError::TooMany(own.len()));
        }
        let key_ref = kind.free_key_ref(&own);
        let key_type = self.profile.key_type(kind);
        let public_key = self.deps.keys.generate(key_ref, key_type).await?;
        let now = self.deps.clock.now();
        let (id, public, not_after) = match kind {
            Kind::X509 => self.new_x509(key_ref, &public_key, now).await?,
            Kind::Jwt => self.new_jwt(public_key, now).await?,
        };
        let record = AuthorityRecord {
            id,
            kind: public,
            state: AuthorityState::Prepared,
            owner: self.deps.server_id.clone(),
            key_ref: key_ref.to_owned(),
            issued_at: to_unix(now),
            not_after,
            activated_at: 0,
        };
        let mut changes = retired(&own, AuthorityState::Prepared);
        changes.push(record.clone());
        self.commit(journal, changes, |bundle| published::add(&record, bundle))
            .await?;
        tracing::info!(
            authority_id = record.id,
            kind = kind.name(),
            "prepared an authority"
        );
        Ok(record)
    }

    /// The ID, the public half and the end of a new CA.
    async fn new_x509(
        &self,
        key_ref: &str,
        public_key: &PublicKey,
        now: SystemTime,
    ) -> Result<(String, AuthorityKind, i64)> {
        let certificate = self.self_sign(key_ref, public_key, now).await?;
        let key_type = self.profile.key_type(Kind::X509);
        let issuer = Issuer::self_signed(&certificate, key_ref, key_type)?;
        let public = AuthorityKind::X509 {
            certificate_der: certificate,
        };
        Ok((issuer.authority_id, public, to_unix(issuer.not_after)))
    }

    /// The same of a new JWT key; it lives as long as a CA (SPIRE.md 1.1).
    async fn new_jwt(
        &self,
        public_key: PublicKey,
        now: SystemTime,
    ) -> Result<(String, AuthorityKind, i64)> {
        let (id, not_after) = (jwt::new_key_id()?, to_unix(now + self.profile.ca_ttl()));
        let leaf = Leaf::JwtKey {
            public_key: public_key.spki().to_vec(),
            caller: CALLER.to_owned(),
            not_after,
            authority_id: id.clone(),
        };
        self.deps.log.append(&[leaf]).await?;
        let public = AuthorityKind::Jwt {
            public_key_pkix: public_key,
        };
        Ok((id, public, not_after))
    }

    async fn self_sign(
        &self,
        key_ref: &str,
        public_key: &PublicKey,
        now: SystemTime,
    ) -> Result<Certificate> {
        let serial = Serial::random()?;
        let end = now + self.profile.ca_ttl();
        let plan = CaPlan::new(
            self.profile.trust_domain().clone(),
            self.profile.ca_subject(),
            public_key.clone(),
            self.profile.key_type(Kind::X509),
            Validity::issued_at(now, self.profile.ca_ttl(), end),
            &serial,
        );
        let tbs = x509::ca_tbs(&plan, &serial);
        let leaf = Leaf::X509 {
            tbs: tbs.clone(),
            spiffe_id: plan.trust_domain.id(),
            serial: serial.decimal(),
            caller: CALLER.to_owned(),
            entry_id: None,
            not_after: to_unix(plan.validity.not_after),
            authority_id: key_ref.to_owned(),
        };
        self.deps.log.append(&[leaf]).await?;
        let request = SignRequest {
            key_ref,
            message: &tbs,
            format: SignatureFormat::X509,
        };
        let signature = self
            .deps
            .keys
            .sign(&[request])
            .await?
            .pop()
            .ok_or(CheckError::Signature)?;
        let certificate = x509::assemble(&tbs, plan.signature, &signature);
        check::ca(&certificate, &tbs, &plan, &serial)?;
        Ok(certificate)
    }

    /// Signs with `next` from now on.
    pub(super) async fn sign_with(
        &self,
        journal: &mut Journal,
        next: AuthorityRecord,
    ) -> Result<()> {
        let (kind, id) = (Kind::of(&next), next.id.clone());
        let lowest = *self.acks.borrow();
        let known = lowest.is_none_or(|lowest| lowest >= journal.bundle);
        let mut changes = retired(&journal.of(kind), AuthorityState::Active);
        changes.push(AuthorityRecord {
            state: AuthorityState::Active,
            activated_at: to_unix(self.deps.clock.now()),
            ..next
        });
        // Stored before it signs: a restart continues with this one.
        self.commit(journal, changes, |_| {}).await?;
        self.load_active(&journal.records)?;
        tracing::info!(
            authority_id = id,
            kind = kind.name(),
            "activated an authority"
        );
        if !known {
            tracing::warn!(
                authority_id = id,
                ?lowest,
                bundle = journal.bundle,
                "activated before every connected agent acknowledged it"
            );
        }
        Ok(())
    }

    /// Takes `record` out of the bundle and the journal.
    pub(super) async fn prune(&self, journal: &mut Journal, record: AuthorityRecord) -> Result<()> {
        let gone = AuthorityRecord {
            state: AuthorityState::Revoked,
            ..record.clone()
        };
        self.commit(journal, vec![gone], |bundle| {
            published::remove(&record, bundle);
        })
        .await?;
        tracing::info!(
            authority_id = record.id,
            "took an authority out of the bundle"
        );
        Ok(())
    }

    /// Lets those sign that the journal says.
    pub(super) fn load_active(&self, records: &[AuthorityRecord]) -> Result<()> {
        let (mut x509, mut jwt) = (None, None);
        let active = |record: &&AuthorityRecord| record.state == AuthorityState::Active;
        for record in records.iter().filter(active) {
            match &record.kind {
                AuthorityKind::X509 { certificate_der } => {
                    x509 = Some(Arc::new(issuer_of(record, certificate_der)?));
                }
                AuthorityKind::Jwt { public_key_pkix } => {
                    jwt = Some(Arc::new(jwt::Issuer::new(
                        &record.id,
                        &record.key_ref,
                        public_key_pkix,
                        validity(record),
                    )?));
                }
            }
        }
        self.active.store(x509);
        self.active_jwt.store(jwt);
        Ok(())
    }
}

fn stage(record: &AuthorityRecord) -> Option<Stage> {
    match record.state {
        AuthorityState::Prepared => Some(Stage::Prepared),
        AuthorityState::Active => Some(Stage::Active),
        AuthorityState::Old | AuthorityState::Tainted => Some(Stage::Retired),
        AuthorityState::Revoked => None,
    }
}

/// When a record that has no certificate may sign.
fn validity(record: &AuthorityRecord) -> Validity {
    let (issued_at, not_after) = (from_unix(record.issued_at), from_unix(record.not_after));
    Validity {
        not_before: issued_at - NOT_BEFORE_BACKDATE,
        not_after,
    }
}

pub(super) fn slots(records: &[AuthorityRecord]) -> Vec<Slot> {
    let slot = |record: &AuthorityRecord| {
        Some(Slot {
            id: record.id.clone(),
            stage: stage(record)?,
            issued_at: from_unix(record.issued_at),
            not_after: from_unix(record.not_after),
        })
    };
    records.iter().filter_map(slot).collect()
}

/// The issuer that a record is: its key may be of another kind than the configured one, when
/// `ca_key_type` was changed since it was made.
fn issuer_of(record: &AuthorityRecord, certificate: &Certificate) -> Result<Issuer, BadIssuer> {
    let key = published::public_key(record).ok_or(BadIssuer)?;
    let key_type = x509::key_type_of(&key).ok_or(BadIssuer)?;
    Issuer::self_signed(certificate, &record.key_ref, key_type)
}

/// Those in `state`, as old ones.
fn retired(records: &[AuthorityRecord], state: AuthorityState) -> Vec<AuthorityRecord> {
    let matching = records.iter().filter(|record| record.state == state);
    matching.map(old).collect()
}
