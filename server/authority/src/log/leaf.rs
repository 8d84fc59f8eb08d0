//! What stands in the log: one versioned JSON object per line.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vane_identity::entry::EntryId;
use vane_identity::id::SpiffeId;

use super::LogError;

/// The version of the form of a line.
const VERSION: u8 = 1;

/// One thing that happened or is about to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Leaf {
    /// A certificate that is about to be signed.
    X509 {
        /// The exact bytes that will be signed (TBSCertificate, DER).
        #[serde(serialize_with = "base64_text")]
        tbs: Vec<u8>,
        /// Whose.
        spiffe_id: SpiffeId,
        /// Decimal.
        serial: String,
        /// Who asked: a SPIFFE ID, or `local` for the admin socket.
        caller: String,
        /// The entry it comes from; none for agents, the server and authorities.
        #[serde(
            serialize_with = "entry_id_text",
            skip_serializing_if = "Option::is_none"
        )]
        entry_id: Option<EntryId>,
        /// Seconds since the Unix epoch.
        not_after: i64,
        /// The authority that signs it.
        authority_id: String,
    },
    /// A token that is about to be signed.
    Jwt {
        /// The exact bytes that will be signed: header and claims in base64url (RFC 7515
        /// section 5.1). Without the signature they are nobody's token.
        signing_input: String,
        /// Whose.
        spiffe_id: SpiffeId,
        /// Who asked, as above.
        caller: String,
        /// The entry it comes from; none for a minted one.
        #[serde(
            serialize_with = "entry_id_text",
            skip_serializing_if = "Option::is_none"
        )]
        entry_id: Option<EntryId>,
        /// Seconds since the Unix epoch.
        not_after: i64,
        /// The key that signs it: its `kid`.
        authority_id: String,
    },
    /// A key for tokens that is about to be published.
    JwtKey {
        /// The key (SubjectPublicKeyInfo, DER).
        #[serde(serialize_with = "base64_text")]
        public_key: Vec<u8>,
        /// Who made it.
        caller: String,
        /// Seconds since the Unix epoch.
        not_after: i64,
        /// Its `kid`.
        authority_id: String,
    },
    /// A change that an administrator made; the store has it already.
    Admin {
        /// Who.
        caller: String,
        /// What, as `Service/Method`.
        action: String,
        /// Which change of all.
        change_id: String,
        /// On what; no token, no key.
        detail: Detail,
    },
    /// A call that was refused.
    Refusal {
        /// Who called.
        caller: String,
        /// What, as `/package.Service/Method`.
        action: String,
        /// gRPC's name of the status.
        status: String,
        /// The words of the refusal; no token, no key.
        text: String,
    },
    /// Refusals that were only counted since the last such line: there were too many.
    Refusals {
        /// How many, by method and status.
        counts: BTreeMap<String, BTreeMap<String, u64>>,
    },
    /// An agent that attested.
    Attestation {
        /// Its ID.
        agent_id: SpiffeId,
        /// By which method.
        method: String,
        /// From where.
        caller: String,
        /// What else is worth keeping; no token, no key.
        detail: Detail,
    },
}

/// What more a leaf tells: JSON that is made once, however often it is written.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Detail(Box<RawValue>);

impl Detail {
    /// `value` as JSON; `null` when it has no such form.
    pub fn of(value: &impl Serialize) -> Self {
        Self(to_raw_value(value).unwrap_or_default())
    }

    /// The JSON.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

impl PartialEq for Detail {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

#[derive(Serialize)]
struct Line<'a> {
    v: u8,
    time: &'a str,
    #[serde(flatten)]
    leaf: &'a Leaf,
}

/// The lines of `leaves`, each ended by a newline. JSON escapes newlines in texts.
pub(super) fn lines(leaves: &[Leaf], now: SystemTime) -> Result<Vec<u8>, LogError> {
    let time = OffsetDateTime::from(now)
        .format(&Rfc3339)
        .unwrap_or_default();
    let mut out = Vec::with_capacity(leaves.len() * 1024);
    for leaf in leaves {
        let line = Line {
            v: VERSION,
            time: &time,
            leaf,
        };
        serde_json::to_writer(&mut out, &line).map_err(|e| LogError::Leaf(Arc::new(e)))?;
        out.push(b'\n');
    }
    Ok(out)
}

fn base64_text<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn entry_id_text<S: Serializer>(id: &Option<EntryId>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id.as_ref().map_or("", EntryId::as_str))
}
