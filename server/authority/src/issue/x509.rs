//! The steps of a certificate.

use std::time::{Duration, SystemTime};

use vane_identity::entry::EntryId;
use vane_identity::id::SpiffeId;
use vane_identity::key::PublicKey;
use vane_identity::lifetime::{Validity, to_unix};
use vane_identity::x509_svid::X509Svid;

use super::{IssueError, Issues};
use crate::key_manager::SignatureFormat;
use crate::log::Leaf;
use crate::profile::{Plan, Profile, SvidKind, Wanted};
use crate::x509::check;
use crate::x509::{self, Issuer, Serial};

/// What is asked for. The caller decided that it may be.
#[derive(Debug, Clone)]
pub struct X509Request {
    /// What for.
    pub kind: SvidKind,
    /// For whom; from the registry, never from a CSR.
    pub spiffe_id: SpiffeId,
    /// The key to certify.
    pub public_key: PublicKey,
    /// How long from now; zero = the default of the kind.
    pub ttl: Duration,
    /// Who asked, for the log: a SPIFFE ID, or a name of a local caller.
    pub caller: String,
    /// The entry it comes from, for the log.
    pub entry_id: Option<EntryId>,
}

/// A certificate on its way.
pub(crate) struct Draft {
    plan: Plan,
    serial: Serial,
    tbs: Vec<u8>,
}

impl Issues for Issuer {
    type Request = X509Request;
    type Draft = Draft;
    type Svid = X509Svid;
    const FORMAT: SignatureFormat = SignatureFormat::X509;

    fn key_ref(&self) -> &str {
        &self.key_ref
    }

    fn validity(&self) -> Validity {
        Validity {
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }

    fn draft(
        &self,
        profile: &Profile,
        request: &X509Request,
        now: SystemTime,
    ) -> Result<Draft, IssueError> {
        let wanted = Wanted {
            kind: &request.kind,
            spiffe_id: &request.spiffe_id,
            public_key: &request.public_key,
            ttl: request.ttl,
        };
        let plan = profile.plan(&wanted, now, self.not_after)?;
        let serial = Serial::random()?;
        let tbs = x509::leaf_tbs(&plan, self, &serial);
        Ok(Draft { plan, serial, tbs })
    }

    fn leaf(&self, draft: &Draft, request: &X509Request) -> Leaf {
        Leaf::X509 {
            tbs: draft.tbs.clone(),
            spiffe_id: draft.plan.spiffe_id.clone(),
            serial: draft.serial.decimal(),
            caller: request.caller.clone(),
            entry_id: request.entry_id.clone(),
            not_after: to_unix(draft.plan.validity.not_after),
            authority_id: self.authority_id.clone(),
        }
    }

    fn message(draft: &Draft) -> &[u8] {
        &draft.tbs
    }

    fn finish(&self, draft: Draft, signature: &[u8], verify: bool) -> Result<X509Svid, IssueError> {
        let certificate = x509::assemble(&draft.tbs, self.signature, signature);
        if verify {
            check::signature(&certificate, self.public_key.spki())?;
        }
        let mut chain = Vec::with_capacity(1 + self.intermediates.len());
        chain.push(certificate.clone());
        chain.extend(self.intermediates.iter().cloned());
        X509Svid::parse_with(chain, |parsed| {
            let Draft { plan, serial, tbs } = &draft;
            check::parsed_leaf(parsed, &certificate, tbs, plan, self, serial)?;
            Ok(())
        })
    }
}
