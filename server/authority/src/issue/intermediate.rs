//! The steps of the CA of a downstream server.
//!
//! SPIRE's shape (SPIRE.md 1.2): the trust domain's ID, the parent's name with
//! `OU=DOWNSTREAM-<depth>`, no path length, at most as long as the parent. Its signature is
//! always verified.

use std::time::{Duration, SystemTime};

use vane_identity::entry::EntryId;
use vane_identity::key::PublicKey;
use vane_identity::lifetime::{Validity, to_unix};
use vane_identity::x509_svid::Certificate;

use super::{IssueError, Issues};
use crate::key_manager::SignatureFormat;
use crate::log::Leaf;
use crate::profile::{MAX_TTL, Profile};
use crate::x509::check::{self, CheckError};
use crate::x509::{self, CaPlan, Issuer, Serial};

/// What is asked for. The caller decided that it may be.
#[derive(Debug, Clone)]
pub struct CaRequest {
    /// The key to certify.
    pub public_key: PublicKey,
    /// How long from now; zero = as long as an own CA.
    pub ttl: Duration,
    /// Who asked, for the log.
    pub caller: String,
    /// The entry that allows it, for the log.
    pub entry_id: Option<EntryId>,
}

/// An authority that signs CAs below itself.
#[derive(Debug)]
pub(crate) struct Parent<'a>(pub(crate) &'a Issuer);

/// A CA on its way.
pub(crate) struct Draft {
    plan: CaPlan,
    serial: Serial,
    tbs: Vec<u8>,
}

impl Issues for Parent<'_> {
    type Request = CaRequest;
    type Draft = Draft;
    /// The chain, the new CA first, without the root.
    type Svid = Vec<Certificate>;
    const FORMAT: SignatureFormat = SignatureFormat::X509;

    fn key_ref(&self) -> &str {
        &self.0.key_ref
    }

    fn validity(&self) -> Validity {
        Validity {
            not_before: self.0.not_before,
            not_after: self.0.not_after,
        }
    }

    fn draft(
        &self,
        profile: &Profile,
        request: &CaRequest,
        now: SystemTime,
    ) -> Result<Draft, IssueError> {
        let ttl = match request.ttl {
            Duration::ZERO => profile.ca_ttl(),
            ttl => ttl.min(MAX_TTL),
        };
        let plan = CaPlan::below(
            profile.trust_domain().clone(),
            self.0,
            request.public_key.clone(),
            Validity::issued_at(now, ttl, self.0.not_after),
        )
        .map_err(|_| CheckError::Differs("the name of its issuer"))?;
        let serial = Serial::random()?;
        let tbs = x509::intermediate_tbs(&plan, self.0, &serial);
        Ok(Draft { plan, serial, tbs })
    }

    fn leaf(&self, draft: &Draft, request: &CaRequest) -> Leaf {
        Leaf::X509 {
            tbs: draft.tbs.clone(),
            spiffe_id: draft.plan.trust_domain.id(),
            serial: draft.serial.decimal(),
            caller: request.caller.clone(),
            entry_id: request.entry_id.clone(),
            not_after: to_unix(draft.plan.validity.not_after),
            authority_id: self.0.authority_id.clone(),
        }
    }

    fn message(draft: &Draft) -> &[u8] {
        &draft.tbs
    }

    fn finish(
        &self,
        draft: Draft,
        signature: &[u8],
        _: bool,
    ) -> Result<Vec<Certificate>, IssueError> {
        let certificate = x509::assemble(&draft.tbs, self.0.signature, signature);
        let Draft { plan, serial, tbs } = &draft;
        check::intermediate(&certificate, tbs, plan, self.0, serial)?;
        let mut chain = Vec::with_capacity(1 + self.0.intermediates.len());
        chain.push(certificate);
        chain.extend(self.0.intermediates.iter().cloned());
        Ok(chain)
    }
}
