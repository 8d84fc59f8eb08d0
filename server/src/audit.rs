//! What is written to the log about an administrator's change.
//!
//! An event is made from what the store acknowledged, never from the request alone, and is
//! durable in the log before the caller hears of it (DESIGN "Issuing order": store, then log,
//! then acknowledgement). It names no token and no key.

mod slots;

pub mod ledger;
pub mod refusals;

use std::fmt::Display;

use serde::{Serialize, Serializer};
use serde_json::json;
use uuid::Uuid;
use vane_authority::log::{Detail, Leaf};
use vane_chassis::telemetry::LogLevel;
use vane_identity::bundle::Bundle;
use vane_identity::entry::Entry;
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::selector::SelectorSet;

use crate::caller::Caller;

/// A change that the store has acknowledged.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// An entry is new.
    EntryCreated(&'a Entry),
    /// An entry has a new revision: this one.
    EntryUpdated(&'a Entry),
    /// An entry is gone: this one.
    EntryDeleted(&'a Entry),
    /// A join token was made.
    TokenCreated {
        /// The ID that its agent gets beside its own.
        alias: Option<&'a SpiffeId>,
        /// Seconds since the Unix epoch at which it ends.
        expires_at: i64,
    },
    /// An entry expired and its row is gone: this one.
    EntryPruned(&'a Entry),
    /// An agent may no longer attest, renew or call.
    AgentBanned(&'a SpiffeId),
    /// An agent was evicted.
    AgentDeleted(&'a SpiffeId),
    /// A federated bundle is new.
    BundleCreated(&'a Bundle),
    /// A federated bundle is this now, whether or not there was one.
    BundleSet(&'a Bundle),
    /// A federated bundle has changed: to this.
    BundleUpdated(&'a Bundle),
    /// The federated bundle of this trust domain is gone.
    BundleDeleted(&'a TrustDomain),
    /// Authorities were added to the own bundle: this is it now.
    BundleAppended(&'a Bundle),
    /// A downstream server's JWT key was added to the own bundle: this is it now.
    JwtAuthorityPublished(&'a Bundle),
    /// The level of the process's log is about to be this.
    LogLevelSet(LogLevel),
}

impl Change<'_> {
    /// `Service/Method`, as the log calls it.
    #[must_use]
    pub const fn action(&self) -> &'static str {
        match self {
            Self::EntryCreated(_) => "Entry/BatchCreateEntry",
            Self::EntryUpdated(_) => "Entry/BatchUpdateEntry",
            Self::EntryDeleted(_) => "Entry/BatchDeleteEntry",
            Self::EntryPruned(_) => "Entry/Prune",
            Self::TokenCreated { .. } => "Agent/CreateJoinToken",
            Self::AgentBanned(_) => "Agent/BanAgent",
            Self::AgentDeleted(_) => "Agent/DeleteAgent",
            Self::BundleCreated(_) => "Bundle/BatchCreateFederatedBundle",
            Self::BundleSet(_) => "Bundle/BatchSetFederatedBundle",
            Self::BundleUpdated(_) => "Bundle/BatchUpdateFederatedBundle",
            Self::BundleDeleted(_) => "Bundle/BatchDeleteFederatedBundle",
            Self::BundleAppended(_) => "Bundle/AppendBundle",
            Self::JwtAuthorityPublished(_) => "Bundle/PublishJWTAuthority",
            Self::LogLevelSet(_) => "Logger/SetLogLevel",
        }
    }

    fn detail(&self) -> Detail {
        let value = match self {
            Self::EntryCreated(entry) | Self::EntryUpdated(entry) => {
                return Detail::of(&Whole::from(*entry));
            }
            Self::EntryDeleted(entry) | Self::EntryPruned(entry) => json!({
                "entry_id": entry.id.as_str(),
                "spiffe_id": entry.spiffe_id,
                "revision_number": entry.revision_number,
            }),
            Self::TokenCreated { alias, expires_at } => json!({
                "agent_id": alias,
                "expires_at": expires_at,
            }),
            Self::AgentBanned(id) | Self::AgentDeleted(id) => json!({ "agent_id": id }),
            Self::BundleCreated(bundle)
            | Self::BundleSet(bundle)
            | Self::BundleUpdated(bundle)
            | Self::BundleAppended(bundle)
            | Self::JwtAuthorityPublished(bundle) => authorities(bundle),
            Self::BundleDeleted(name) => json!({ "trust_domain": name.as_str() }),
            Self::LogLevelSet(level) => json!({ "level": level.name() }),
        };
        Detail::of(&value)
    }

    /// The event, made by `caller`, with an ID of its own.
    #[must_use]
    pub fn leaf(&self, caller: &impl Display) -> Leaf {
        Leaf::Admin {
            caller: caller.to_string(),
            action: self.action().to_owned(),
            change_id: Uuid::new_v4().to_string(),
            detail: self.detail(),
        }
    }
}

/// An agent that attested by `method`, with the certificate of this serial number.
#[must_use]
pub fn attestation(caller: &Caller, agent: &SpiffeId, method: &str, serial: &str) -> Leaf {
    Leaf::Attestation {
        agent_id: agent.clone(),
        method: method.to_owned(),
        caller: caller.to_string(),
        detail: Detail::of(&json!({ "serial": serial })),
    }
}

/// Whom a bundle trusts, by the IDs of its authorities.
fn authorities(bundle: &Bundle) -> serde_json::Value {
    let x509 = bundle.x509_authorities.iter();
    let x509: Vec<_> = x509.map(|one| one.authority_id().ok()).collect();
    let jwt = bundle.jwt_authorities.iter();
    let jwt: Vec<_> = jwt.map(|one| &one.key_id).collect();
    json!({
        "trust_domain": bundle.trust_domain.as_str(),
        "sequence_number": bundle.sequence_number,
        "refresh_hint": bundle.refresh_hint,
        "x509_authorities": x509,
        "jwt_authorities": jwt,
    })
}

/// Every field, so that the log alone tells what was registered when.
#[derive(Serialize)]
struct Whole<'a> {
    entry_id: &'a str,
    spiffe_id: &'a SpiffeId,
    parent_id: &'a SpiffeId,
    #[serde(serialize_with = "texts")]
    selectors: &'a SelectorSet,
    x509_svid_ttl: u32,
    jwt_svid_ttl: u32,
    federates_with: &'a [TrustDomain],
    admin: bool,
    downstream: bool,
    expires_at: i64,
    dns_names: &'a [String],
    revision_number: i64,
    store_svid: bool,
    hint: &'a str,
    created_at: i64,
    disable_x509_svid_prefetch: bool,
    jwt_svid_include_jti: bool,
}

impl<'a> From<&'a Entry> for Whole<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            entry_id: entry.id.as_str(),
            spiffe_id: &entry.spiffe_id,
            parent_id: &entry.parent_id,
            selectors: &entry.selectors,
            x509_svid_ttl: entry.x509_svid_ttl,
            jwt_svid_ttl: entry.jwt_svid_ttl,
            federates_with: &entry.federates_with,
            admin: entry.admin,
            downstream: entry.downstream,
            expires_at: entry.expires_at,
            dns_names: &entry.dns_names,
            revision_number: entry.revision_number,
            store_svid: entry.store_svid,
            hint: &entry.hint,
            created_at: entry.created_at,
            disable_x509_svid_prefetch: entry.prefetch_disabled(),
            jwt_svid_include_jti: entry
                .additional_attributes
                .is_some_and(|attributes| attributes.jwt_svid_include_jti),
        }
    }
}

fn texts<S: Serializer>(selectors: &SelectorSet, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(selectors.iter().map(ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Transport;

    fn caller() -> Caller {
        Caller::new(Transport::Local {
            uid: 7,
            gid: 7,
            pid: None,
        })
    }

    #[test]
    fn an_event_says_who_did_what_to_what() {
        let id = SpiffeId::parse("spiffe://example.org/spire/agent/join_token/a").unwrap();
        let Leaf::Admin {
            caller,
            action,
            detail,
            ..
        } = Change::AgentBanned(&id).leaf(&caller())
        else {
            panic!("not an event of an administrator");
        };
        assert_eq!(
            (caller.as_str(), action.as_str()),
            ("uid:7", "Agent/BanAgent")
        );
        assert_eq!(detail, Detail::of(&json!({ "agent_id": id.as_str() })));
    }

    #[test]
    fn a_token_is_not_in_its_event() {
        let change = Change::TokenCreated {
            alias: None,
            expires_at: 5,
        };
        let shown = serde_json::to_value(change.leaf(&caller())).unwrap();
        let want = json!({ "agent_id": null, "expires_at": 5 });
        assert_eq!(shown["detail"], want);
    }
}
