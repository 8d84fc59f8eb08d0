//! A batch of SVIDs: keys and requests are made here, the server signs.

pub mod jwt;

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tonic::transport::Channel;
use tonic::{Request, Status};
use vane_chassis::clock::Clock;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::SpiffeId;
use vane_identity::key::{KeyType, PrivateKey};
use vane_identity::lifetime::Jitter;
use vane_identity::x509_svid::Certificate;
use vane_wire::spire::api::server::svid::v1::svid_client::SvidClient;
use vane_wire::spire::api::server::svid::v1::{BatchNewX509svidRequest, NewX509svidParams};

use crate::svid::{Svid, SvidError};

/// The most SVIDs of one request (SPIRE's limit).
pub const BATCH: usize = 500;
/// From so many on, keys are made on a thread of their own; RSA keys, which take a hundred
/// milliseconds each, always.
const MANY: usize = 16;
/// So long the server may take for a batch.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no SVID for an entry.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// No key or request could be made.
    #[error("cannot make a certificate request: {0}")]
    Request(String),
    /// The server cannot be asked.
    #[error("the server cannot be asked: {}", .0.message())]
    Call(Status),
    /// The server refused this one.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The server's answer is no SVID for the entry.
    #[error(transparent)]
    Answer(#[from] SvidError),
}

/// What became of each entry of a batch.
pub type Outcome = Vec<(EntryId, Result<Svid, IssueError>)>;

/// A private key of `kind` and a certificate request for `id` with it (PKCS#10 DER).
///
/// # Errors
/// [`IssueError::Request`].
pub fn key_and_csr(id: &SpiffeId, kind: KeyType) -> Result<(PrivateKey, Vec<u8>), IssueError> {
    let refuse = |error: String| IssueError::Request(error);
    let (key, _) = PrivateKey::generate(kind).map_err(|error| refuse(error.to_string()))?;
    let csr = csr(id, &key)?;
    Ok((key, csr))
}

/// A certificate request for `id` with `key` (PKCS#10 DER).
///
/// # Errors
/// [`IssueError::Request`].
pub fn csr(id: &SpiffeId, key: &PrivateKey) -> Result<Vec<u8>, IssueError> {
    let refuse = |error: rcgen::Error| IssueError::Request(error.to_string());
    let mut params = CertificateParams::new(Vec::new()).map_err(refuse)?;
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(refuse)?)];
    let pair = KeyPair::try_from(key.pkcs8()).map_err(refuse)?;
    Ok(params
        .serialize_request(&pair)
        .map_err(refuse)?
        .der()
        .to_vec())
}

/// Has SVIDs made for `entries`. Each entry has its own outcome.
pub async fn issue(
    channel: Channel,
    entries: Vec<Arc<Entry>>,
    kind: KeyType,
    clock: Arc<dyn Clock>,
) -> Outcome {
    let (requests, mut outcome) = match requests(entries, kind).await {
        Ok(made) => made,
        Err(outcome) => return outcome,
    };
    let params = requests
        .iter()
        .map(|(entry, _, csr)| NewX509svidParams {
            entry_id: entry.id.to_string(),
            csr: csr.clone().into(),
        })
        .collect();
    // The server is told the deadline, too, and need not sign for nobody.
    let mut request = Request::new(BatchNewX509svidRequest { params });
    request.set_timeout(DEADLINE);
    let mut client = SvidClient::new(channel);
    let answer = tokio::time::timeout(DEADLINE, client.batch_new_x509svid(request))
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer within 30 s")));
    let results = match answer {
        Ok(answer) => answer.into_inner().results,
        Err(status) => {
            let failed = requests
                .into_iter()
                .map(|(entry, ..)| (entry.id.clone(), Err(IssueError::Call(status.clone()))));
            outcome.extend(failed);
            return outcome;
        }
    };
    let now = clock.now();
    let mut results = results.into_iter();
    for (entry, key, _) in requests {
        let jitter = Jitter::new(fastrand::f64() * 2.0 - 1.0);
        let result = results
            .next()
            .ok_or_else(|| IssueError::Refused("the answer lacks this one".to_owned()));
        let svid = result.and_then(|result| {
            let status = result.status.unwrap_or_default();
            let svid = result
                .svid
                .filter(|_| status.code == 0)
                .ok_or(IssueError::Refused(status.message))?;
            let chain = svid
                .cert_chain
                .iter()
                .map(|der| Certificate::from_der(der))
                .collect();
            Ok(Svid::received(&entry, chain, key, now, jitter)?)
        });
        outcome.push((entry.id.clone(), svid));
    }
    outcome
}

type Requests = Vec<(Arc<Entry>, PrivateKey, Vec<u8>)>;

async fn requests(entries: Vec<Arc<Entry>>, kind: KeyType) -> Result<(Requests, Outcome), Outcome> {
    let make = move |entries: Vec<Arc<Entry>>| {
        let (mut made, mut failed) = (Vec::new(), Vec::new());
        for entry in entries {
            match key_and_csr(&entry.spiffe_id, kind) {
                Ok((key, csr)) => made.push((entry, key, csr)),
                Err(error) => failed.push((entry.id.clone(), Err(error))),
            }
        }
        (made, failed)
    };
    let is_quick = matches!(kind, KeyType::EcP256 | KeyType::EcP384);
    if is_quick && entries.len() < MANY {
        return Ok(make(entries));
    }
    let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id.clone()).collect();
    tokio::task::spawn_blocking(move || make(entries))
        .await
        .map_err(|error| {
            ids.into_iter()
                .map(|id| (id, Err(IssueError::Request(error.to_string()))))
                .collect()
        })
}
