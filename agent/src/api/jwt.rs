//! The unary calls of the JWT profile (SPIFFE_Workload_API.md section 6).
//!
//! The process is checked again after everything that takes time, right before the answer.
//! Codes and texts are SPIRE's.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use vane_identity::entry::Entry;
use vane_identity::id::SpiffeId;
use vane_identity::jwt_svid::{JwtError, JwtSvid, Verified};
use vane_wire::convert::claims;
use vane_wire::workload::{
    Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
};
use zeroize::{Zeroize as _, Zeroizing};

use super::connection::Connector;
use super::end::End;
use super::updates::{Source, is_attesting, is_open};
use crate::counters::Refused;
use crate::issue::jwt::JwtIssueError;
use crate::jwt::{Audience, Refusal, Wish};
use crate::snapshot::{Snapshot, Standing};
use crate::workload::{Attestation, Outcome};

/// Tokens of one call that are asked for at the same time.
const AT_ONCE: usize = 16;

/// FetchJWTSVID: one token for each entry that matches, or for those with the ID asked for.
pub(crate) async fn fetch(
    source: Arc<Source>,
    connector: Arc<Connector>,
    request: JwtsvidRequest,
) -> Result<Bytes, End> {
    let audience = Audience::try_from(request.audience);
    let audience = audience.map_err(|error| End::invalid(error.to_string()))?;
    let id = match request.spiffe_id.as_str() {
        "" => None,
        id => Some(
            SpiffeId::parse(id)
                .map_err(|error| End::invalid(format!("invalid requested SPIFFE ID: {error}")))?,
        ),
    };
    let _place = connector.place()?;
    let _waits = source.unanswered.one();
    let mut caller = Caller::attest(&source, &connector).await;
    let end = Instant::now() + source.patience;
    loop {
        let snapshot = source.reader.newest();
        End::overdue(&snapshot)?;
        let outcome = caller.attestation.outcome();
        let entries = entries(&snapshot, outcome, id.as_ref());
        if entries.is_empty() {
            if is_open(&snapshot, outcome) && caller.hears_more(&snapshot, end).await {
                continue;
            }
            return Err(End::nothing(&snapshot, caller.attestation.outcome()));
        }
        let left = end.saturating_duration_since(Instant::now());
        let tokens = entries.iter().cloned().map(|entry| {
            let (source, snapshot) = (Arc::clone(&source), Arc::clone(&snapshot));
            let audience = audience.clone();
            let customer = connector.guard.customer();
            async move {
                let wish = Wish {
                    entry: &entry,
                    audience: &audience,
                    customer,
                    patience: left,
                };
                source.tokens.get(&snapshot, wish).await
            }
        });
        let tokens: Result<Vec<JwtSvid>, Refusal> =
            stream::iter(tokens).buffered(AT_ONCE).try_collect().await;
        match tokens {
            Ok(tokens) if caller.is_current(&snapshot, id.as_ref(), &entries).await => {
                connector.recheck()?;
                source.counters.messages.inc();
                return Ok(response(&entries, &tokens));
            }
            // An entry came, went or changed while the server was asked: once more.
            Ok(_) | Err(Refusal::Changed) if !left.is_zero() => {}
            Ok(_) => return Err(failed(&Refusal::Late(source.patience))),
            Err(refusal) => return Err(failed(&refusal)),
        }
    }
}

/// The entries that match, without those of other IDs than `id`.
fn entries(snapshot: &Snapshot, outcome: &Outcome, id: Option<&SpiffeId>) -> Vec<Arc<Entry>> {
    let matches = snapshot.matches(outcome);
    let entries = snapshot.served(&matches).map(|served| &served.entry);
    entries
        .filter(|entry| id.is_none_or(|id| entry.spiffe_id == *id))
        .cloned()
        .collect()
}

/// Who calls, and what it was attested as.
struct Caller<'a> {
    source: &'a Source,
    connector: &'a Connector,
    attestation: Attestation,
}

impl<'a> Caller<'a> {
    async fn attest(source: &'a Source, connector: &'a Connector) -> Self {
        let (peer, facts) = (&connector.peer, &connector.facts);
        Self {
            source,
            connector,
            attestation: source.attestors.attest(peer, facts).await,
        }
    }

    /// Waits until the server or an attestor has told more; false when `end` comes first.
    async fn hears_more(&mut self, snapshot: &Snapshot, end: Instant) -> bool {
        let unconfirmed = snapshot.standing() == Standing::Unconfirmed;
        let more = async {
            tokio::select! {
                () = self.source.reader.confirmed(), if unconfirmed => {}
                () = self.attestation.changed() => {}
            }
        };
        let heard = timeout_at(end, more).await.is_ok();
        self.refresh().await;
        heard
    }

    async fn refresh(&mut self) {
        if self.attestation.is_old() {
            let (peer, facts) = (&self.connector.peer, &self.connector.facts);
            let attestors = &self.source.attestors;
            self.attestation.renew(attestors, peer, facts).await;
        }
    }

    /// Whether `before`, which matched in `snapshot`, are the entries that match now.
    async fn is_current(
        &mut self,
        snapshot: &Arc<Snapshot>,
        id: Option<&SpiffeId>,
        before: &[Arc<Entry>],
    ) -> bool {
        let newest = self.source.reader.newest();
        if Arc::ptr_eq(&newest, snapshot) && !self.attestation.is_old() {
            return true;
        }
        self.refresh().await;
        entries(&newest, self.attestation.outcome(), id) == before
    }
}

fn failed(refusal: &Refusal) -> End {
    let text = format!("could not fetch JWT-SVID: {refusal}");
    match refusal {
        Refusal::Full | Refusal::Pace => End {
            reason: Refused::Limit,
            status: Status::resource_exhausted(text),
        },
        Refusal::Failed(error) => match **error {
            JwtIssueError::Invalid(_) => End::invalid(text),
            // A profile that is switched off (checklist C-16).
            JwtIssueError::NotOffered(_) => End {
                reason: Refused::Unavailable,
                status: Status::unimplemented(text),
            },
            _ => End::unavailable(text),
        },
        _ => End::unavailable(text),
    }
}

/// The answer, encoded; its bytes are wiped when it is sent.
fn response(entries: &[Arc<Entry>], tokens: &[JwtSvid]) -> Bytes {
    let svids = entries.iter().zip(tokens).map(|(entry, token)| Jwtsvid {
        spiffe_id: entry.spiffe_id.to_string(),
        svid: token.token().to_owned(),
        hint: entry.hint.clone(),
    });
    let mut message = JwtsvidResponse {
        svids: svids.collect(),
    };
    let bytes = Zeroizing::new(message.encode_to_vec());
    message.svids.iter_mut().for_each(|one| one.svid.zeroize());
    Bytes::from_owner(bytes)
}

/// ValidateJWTSVID: with the bundle of the token's own trust domain, when this process is to
/// have it. As SPIRE, a process without an identity may validate tokens of the own trust domain.
pub(crate) async fn validate(
    source: Arc<Source>,
    connector: Arc<Connector>,
    mut request: ValidateJwtsvidRequest,
) -> Result<Bytes, End> {
    let token = Zeroizing::new(std::mem::take(&mut request.svid));
    if request.audience.is_empty() {
        return Err(End::invalid("audience must be specified"));
    }
    if token.is_empty() {
        return Err(End::invalid("svid must be specified"));
    }
    let _place = connector.place()?;
    let mut caller = Caller::attest(&source, &connector).await;
    let end = Instant::now() + source.patience;
    let (snapshot, verified) = loop {
        let snapshot = source.reader.newest();
        End::overdue(&snapshot)?;
        let outcome = caller.attestation.outcome();
        let matches = snapshot.matches(outcome);
        let bundle = |trust_domain: &_| snapshot.bundle_for(&matches, trust_domain);
        let now = source.clock.now();
        match JwtSvid::verify(&token, &request.audience, bundle, now) {
            Ok(verified) => break (snapshot, verified),
            // The entry that federates with it may be one of those that cannot be told to match.
            Err(JwtError::NoBundle(_)) if is_attesting(&snapshot, outcome) => {
                if !caller.hears_more(&snapshot, end).await {
                    return Err(End::nothing(&snapshot, caller.attestation.outcome()));
                }
            }
            Err(JwtError::NoBundle(_)) if snapshot.may_match(outcome) => {
                return Err(End::nothing(&snapshot, outcome));
            }
            Err(error) => return Err(End::invalid(error.to_string())),
        }
    };
    connector.recheck()?;
    source.counters.messages.inc();
    let message = ValidateJwtsvidResponse {
        spiffe_id: verified.svid.id().to_string(),
        claims: Some(claims::to_wire(shown(&source, &snapshot, verified))),
    };
    Ok(message.encode_to_vec().into())
}

/// The claims that the caller sees: of a foreign trust domain only what the standard has and
/// the configuration allows (ID-33). `aud` is a list whatever it was (D-16).
fn shown(source: &Source, snapshot: &Snapshot, verified: Verified) -> Map<String, Value> {
    let mut claims = verified.claims;
    if !verified.svid.id().is_member_of(snapshot.trust_domain()) {
        claims.retain(|name, _| {
            matches!(name.as_str(), "sub" | "aud" | "exp") || source.foreign_claims.contains(name)
        });
    }
    if let Some(one) = claims.get_mut("aud").filter(|aud| aud.is_string()) {
        *one = Value::Array(vec![one.take()]);
    }
    claims
}
