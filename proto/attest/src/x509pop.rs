//! Attestation by an X.509 certificate and proof that the node has its key, SPIRE's `x509pop`
//! (SPIRE.md 1.4, 1.5): the evidence is the chain, the challenge a nonce to be signed with one
//! of the node's own.
//!
//! `mode = "external_pki"` trusts CAs of files, `mode = "spiffe"` the trust domain's own: a
//! certificate of `/spire-exchange/…` becomes an agent of that path. Everything is bounded and
//! the chain verified before anything is answered; a challenge is good for its one stream.

mod config;
mod wire;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use vane_chassis::builtin::{Builtin, OpenError};
use zeroize::Zeroizing;

use crate::chain::{self, Facts, Root};
use crate::possession::{self, PrivateKey, Signature};
use crate::template::Template;
use crate::{Admission, Attested, Claim, Deps, ProveError, Prover, Step, Verifier, VerifyError};

use config::{ConfigError, certificates, read, roots};
use wire::{
    Challenge, EcdsaSignature, Evidence, Nonce, Response, RsaSignature, json, nonce, parse,
};

pub use config::{Elsewhere, Mode, ProverConfig, VerifierConfig};

const NAME: &str = "x509pop";
/// What a path template may name.
const FIELDS: &[&str] = &[
    "PluginName",
    "Fingerprint",
    "SerialNumberHex",
    "TrustDomain",
    "SVIDPathTrimmed",
    "Subject.CommonName",
    "URISanSelectors.",
];

/// The agent's half.
pub struct Node {
    config: ProverConfig,
    /// The key of the evidence that was sent last: files may be replaced meanwhile.
    key: Mutex<Option<Arc<PrivateKey>>>,
}

/// The server's half.
#[derive(Debug)]
pub struct Gate {
    roots: Vec<Root>,
    template: Template,
    config: VerifierConfig,
    deps: Deps,
}

impl Builtin<dyn Prover, ()> for Node {
    const NAME: &'static str = NAME;
    type Config = ProverConfig;

    async fn open(config: ProverConfig, (): &()) -> Result<Arc<dyn Prover>, OpenError> {
        Ok(Arc::new(Self {
            config,
            key: Mutex::default(),
        }))
    }
}

#[async_trait]
impl Prover for Node {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn evidence(&self) -> Result<Vec<u8>, ProveError> {
        let mut chain = certificates(&self.config.certificate_path)?;
        if let Some(path) = &self.config.intermediates_path {
            chain.extend(certificates(path)?);
        }
        let leaf = chain.first().ok_or_else(|| ProveError::NoCertificate {
            path: self.config.certificate_path.clone(),
        })?;
        let key = self.read_key(leaf)?;
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
        let encoded = chain.iter().map(|der| STANDARD.encode(der)).collect();
        json(&Evidence {
            certificates: Some(encoded),
        })
    }

    async fn answer(&self, challenge: &[u8]) -> Result<Vec<u8>, ProveError> {
        let key = self
            .key
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let key = key.ok_or(ProveError::UnexpectedChallenge(NAME))?;
        let bad = || ProveError::Challenge(NAME);
        let challenge: Challenge = parse(challenge).ok_or_else(bad)?;
        let wanted = match *key {
            PrivateKey::Rsa(_) => challenge.rsa_signature,
            PrivateKey::Ecdsa(_) => challenge.ecdsa_signature,
        };
        let theirs = wanted.and_then(|it| nonce(&it.nonce)).ok_or_else(bad)?;
        let own = possession::nonce().ok_or(ProveError::Random)?;
        let signature = key
            .sign(&theirs, &own)
            .map_err(|source| self.bad_key(source))?;
        let nonce = STANDARD.encode(own);
        json(&match signature {
            Signature::Rsa(signature) => Response {
                rsa_signature: Some(RsaSignature {
                    nonce,
                    signature: STANDARD.encode(signature),
                }),
                ecdsa_signature: None,
            },
            Signature::Ecdsa(r, s) => Response {
                rsa_signature: None,
                ecdsa_signature: Some(EcdsaSignature {
                    nonce,
                    r: STANDARD.encode(r),
                    s: STANDARD.encode(s),
                }),
            },
        })
    }
}

impl Node {
    fn read_key(&self, leaf: &[u8]) -> Result<PrivateKey, ProveError> {
        let path = &self.config.private_key_path;
        let public = chain::facts(leaf).ok().and_then(|facts| facts.key);
        let public = public.ok_or_else(|| self.bad_key(possession::KeyError::Unsupported))?;
        let text = Zeroizing::new(read(path)?);
        let der = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|_| self.bad_key(possession::KeyError::Malformed))?;
        PrivateKey::read(&der, &public).map_err(|source| self.bad_key(source))
    }

    fn bad_key(&self, source: possession::KeyError) -> ProveError {
        ProveError::Key {
            path: self.config.private_key_path.clone(),
            source,
        }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Builtin<dyn Verifier, Deps> for Gate {
    const NAME: &'static str = NAME;
    type Config = VerifierConfig;

    async fn open(config: VerifierConfig, deps: &Deps) -> Result<Arc<dyn Verifier>, OpenError> {
        let gate = Self::new(config, deps).map_err(OpenError::failed)?;
        Ok(Arc::new(gate))
    }
}

impl Gate {
    fn new(mut config: VerifierConfig, deps: &Deps) -> Result<Self, ConfigError> {
        for (key, value) in [
            ("max_intermediates", config.max_intermediates),
            ("max_rsa_key_size", config.max_rsa_key_size),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero(key));
            }
        }
        if !config.spiffe_prefix.starts_with('/') {
            return Err(ConfigError::Prefix(config.spiffe_prefix));
        }
        if !config.spiffe_prefix.ends_with('/') {
            config.spiffe_prefix.push('/');
        }
        let template = match (&config.agent_path_template, config.mode) {
            (Some(template), _) => template.as_str(),
            (None, Mode::ExternalPki) => "/{{ .PluginName }}/{{ .Fingerprint }}",
            (None, Mode::Spiffe) => "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}",
        };
        if !template.starts_with('/') {
            return Err(ConfigError::TemplateSlash);
        }
        Ok(Self {
            template: Template::parse(template, FIELDS)?,
            roots: roots(&config)?,
            config,
            deps: deps.clone(),
        })
    }

    /// The certificates of the evidence, leaf first, within the limits.
    fn read(&self, evidence: &[u8]) -> Result<(Vec<Vec<u8>>, Facts), VerifyError> {
        let parsed: Option<Evidence> = parse(evidence);
        let parsed = parsed.ok_or_else(|| malformed("failed to unmarshal data"))?;
        let encoded = parsed.certificates.unwrap_or_default();
        if encoded.is_empty() {
            return Err(malformed("no certificate to attest"));
        }
        // Before anything is decoded: a long chain costs nothing.
        if encoded.len() - 1 > self.config.max_intermediates {
            return Err(malformed("too many intermediate certificates"));
        }
        let (mut chain, mut leaf) = (Vec::new(), None);
        for (at, text) in encoded.iter().enumerate() {
            let which = || match at {
                0 => "leaf certificate".to_owned(),
                at => format!("intermediate certificate {}", at - 1),
            };
            let unreadable = || malformed(format!("unable to parse {}", which()));
            let der = STANDARD.decode(text).map_err(|_| unreadable())?;
            let facts = chain::facts(&der).map_err(|_| unreadable())?;
            if facts
                .rsa_bits
                .is_some_and(|bits| bits > self.config.max_rsa_key_size)
            {
                return Err(malformed(format!("{} key size too large", which())));
            }
            leaf.get_or_insert(facts);
            chain.push(der);
        }
        let leaf = leaf.ok_or_else(|| malformed("no certificate to attest"))?;
        Ok((chain, leaf))
    }

    /// The CAs of this moment.
    fn roots_now(&self) -> Vec<Root> {
        match self.config.mode {
            Mode::ExternalPki => self.roots.clone(),
            Mode::Spiffe => {
                let own = (self.deps.bundle)();
                let authorities = own.iter().flat_map(|bundle| &bundle.x509_authorities);
                authorities
                    .filter_map(|one| Root::new(one.certificate.der()).ok())
                    .collect()
            }
        }
    }

    fn check_address(&self, leaf: &Facts, peer: Option<IpAddr>) -> Result<(), VerifyError> {
        if !self.config.verify_client_ip {
            return Ok(());
        }
        let peer = peer.map(|address| address.to_canonical());
        let peer = peer.ok_or_else(|| internal("client IP not available for verification"))?;
        if leaf.addresses.contains(&peer) {
            return Ok(());
        }
        Err(denied(format!(
            "client IP {peer} does not match any certificate IP SAN"
        )))
    }

    fn attested(
        &self,
        leaf: &Facts,
        der: &[u8],
        authorities: &[String],
    ) -> Result<Attested, VerifyError> {
        let trimmed = self.svid_path(leaf)?;
        let sans = self.sans(leaf);
        let path = self.template.render(|field| match field {
            "PluginName" => Some(NAME.to_owned()),
            "Fingerprint" => Some(possession::fingerprint(der)),
            "SerialNumberHex" => Some(leaf.serial.clone()),
            "TrustDomain" => Some(self.deps.trust_domain.to_string()),
            "SVIDPathTrimmed" => Some(trimmed.clone()),
            "Subject.CommonName" => Some(leaf.common_name.clone().unwrap_or_default()),
            other => {
                let key = other.strip_prefix("URISanSelectors.")?;
                let found = sans.iter().find(|(name, _)| name == key);
                found.map(|(_, value)| value.clone())
            }
        });
        let path = path.map_err(|error| internal(format!("failed to make spiffe id: {error}")))?;
        let mut selectors = Vec::new();
        selectors.extend(
            leaf.common_name
                .iter()
                .map(|name| format!("subject:cn:{name}")),
        );
        selectors.extend(
            authorities
                .iter()
                .map(|one| format!("ca:fingerprint:{one}")),
        );
        selectors.push(format!("serialnumber:{}", leaf.serial));
        selectors.extend(sans.iter().map(|(key, value)| format!("san:{key}:{value}")));
        Ok(Attested {
            path,
            selectors,
            admission: Admission::Again,
        })
    }

    /// In mode `spiffe` the path of the certificate's SPIFFE ID behind the prefix.
    fn svid_path(&self, leaf: &Facts) -> Result<String, VerifyError> {
        if self.config.mode != Mode::Spiffe {
            return Ok(String::new());
        }
        let ids = leaf
            .uris
            .iter()
            .filter_map(|uri| uri.strip_prefix("spiffe://"));
        let own = ids.clone().find_map(|id| {
            let path = id.strip_prefix(self.deps.trust_domain.as_str())?;
            path.starts_with('/').then_some(path)
        });
        let path = own.ok_or_else(|| denied("valid SVID x509 cert not found"))?;
        let trimmed = path.strip_prefix(&self.config.spiffe_prefix);
        let trimmed = trimmed.filter(|path| !path.is_empty());
        trimmed
            .map(ToOwned::to_owned)
            .ok_or_else(|| denied("x509 cert doesnt match SVID prefix"))
    }

    /// Keys and values of `x509pop://<trust domain>/<key>/<value>`; the last of a key counts.
    fn sans(&self, leaf: &Facts) -> Vec<(String, String)> {
        let prefix = format!("x509pop://{}/", self.deps.trust_domain);
        let mut sans: Vec<(String, String)> = Vec::new();
        for uri in leaf.uris.iter().filter_map(|uri| uri.strip_prefix(&prefix)) {
            let Some((key, value)) = uri.trim_matches('/').split_once('/') else {
                continue;
            };
            sans.retain(|(known, _)| known != key);
            sans.push((key.to_owned(), value.to_owned()));
        }
        sans
    }
}

#[async_trait]
impl Verifier for Gate {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn verify(&self, claim: &Claim<'_>) -> Result<Step, VerifyError> {
        let (chain, leaf) = self.read(claim.evidence)?;
        let authorities = chain::verify(&chain, &self.roots_now(), claim.now)
            .map_err(|error| denied(format!("certificate verification failed: {error}")))?;
        self.check_address(&leaf, claim.peer)?;
        let Some(round) = claim.rounds.first() else {
            return challenge(&leaf).map(Step::Challenge);
        };
        check_answer(&leaf, &round.challenge, &round.response)?;
        let der = chain.first().map(Vec::as_slice).unwrap_or_default();
        self.attested(&leaf, der, &authorities).map(Step::Attested)
    }
}

fn challenge(leaf: &Facts) -> Result<Vec<u8>, VerifyError> {
    let unable = |why| internal(format!("unable to generate challenge: {why}"));
    if !leaf.may_sign {
        return Err(unable("certificate not intended for digital signature use"));
    }
    let key = leaf
        .key
        .as_ref()
        .ok_or_else(|| unable("unsupported public key type"))?;
    let nonce = possession::nonce().ok_or_else(|| unable("no randomness"))?;
    let nonce = Some(Nonce {
        nonce: STANDARD.encode(nonce),
    });
    let challenge = match key.kind {
        possession::KeyKind::Rsa => Challenge {
            rsa_signature: nonce,
            ecdsa_signature: None,
        },
        _ => Challenge {
            rsa_signature: None,
            ecdsa_signature: nonce,
        },
    };
    serde_json::to_vec(&challenge).map_err(|_| unable("it cannot be written"))
}

/// Whether the answer shows the key of `leaf`.
fn check_answer(leaf: &Facts, challenge: &[u8], answer: &[u8]) -> Result<(), VerifyError> {
    let failed = |why| denied(format!("challenge response verification failed: {why}"));
    let sent: Option<Challenge> = parse(challenge);
    let sent = sent.ok_or_else(|| internal("the challenge was lost"))?;
    let answer: Option<Response> = parse(answer);
    let answer = answer.ok_or_else(|| malformed("unable to unmarshal challenge response"))?;
    let key = leaf
        .key
        .as_ref()
        .ok_or_else(|| failed("unsupported public key type"))?;
    let (theirs, signature, text) = match key.kind {
        possession::KeyKind::Rsa => {
            let answer = answer
                .rsa_signature
                .ok_or_else(|| failed("expecting RSA response"))?;
            let signature = STANDARD.decode(&answer.signature).map(Signature::Rsa);
            (answer.nonce, signature.ok(), "RSA signature verify failed")
        }
        _ => {
            let answer = answer
                .ecdsa_signature
                .ok_or_else(|| failed("expecting ECDSA response"))?;
            let (r, s) = (STANDARD.decode(&answer.r), STANDARD.decode(&answer.s));
            let signature = r.ok().zip(s.ok()).map(|(r, s)| Signature::Ecdsa(r, s));
            (answer.nonce, signature, "ECDSA signature verify failed")
        }
    };
    let own = sent.rsa_signature.or(sent.ecdsa_signature);
    let own = own
        .and_then(|it| nonce(&it.nonce))
        .ok_or_else(|| failed("invalid challenge nonce"))?;
    let theirs = nonce(&theirs).ok_or_else(|| failed("invalid response nonce"))?;
    let holds = signature.is_some_and(|it| possession::verify(key, &own, &theirs, &it));
    if holds { Ok(()) } else { Err(failed(text)) }
}

fn malformed(why: impl std::fmt::Display) -> VerifyError {
    VerifyError::Malformed(format!("nodeattestor({NAME}): {why}"))
}

fn denied(why: impl std::fmt::Display) -> VerifyError {
    VerifyError::Denied(format!("nodeattestor({NAME}): {why}"))
}

fn internal(why: impl std::fmt::Display) -> VerifyError {
    VerifyError::Internal(format!("nodeattestor({NAME}): {why}"))
}

#[cfg(test)]
mod tests;
