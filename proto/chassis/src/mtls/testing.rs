//! Certificate authorities and SVIDs for tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::PrivateKey;
use vane_identity::x509_svid::{Anchors, Certificate};

use super::*;
use crate::clock::{Clock, Manual};

/// The instant at which tests begin, and certificates with them.
pub(super) const BIRTH: SystemTime = SystemTime::UNIX_EPOCH;
/// How long a leaf lives.
pub(super) const TTL: Duration = Duration::from_secs(3600);
/// The tests' now: half of a leaf's life.
pub(super) const START: Duration = Duration::from_secs(1800);

pub(super) fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

pub(super) fn trust_domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// A CA and the trust domain that it says it is for.
pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
    trust_domain: TrustDomain,
}

/// A leaf with its key.
pub(super) type Svid = (Vec<Certificate>, PrivateKey);

impl Ca {
    pub(super) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: Certificate::from_der(certificate.der()),
            issuer: Issuer::new(params, key),
            trust_domain: trust_domain(name),
        }
    }

    /// A CA of the same trust domain that this one signed.
    pub(super) fn intermediate(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params(self.trust_domain.as_str());
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self {
            certificate: Certificate::from_der(certificate.der()),
            issuer: Issuer::new(params, key),
            trust_domain: self.trust_domain.clone(),
        }
    }

    pub(super) fn certificate(&self) -> Certificate {
        self.certificate.clone()
    }

    /// Its bundle.
    pub(super) fn bundle(&self) -> Anchors {
        Anchors::new(self.trust_domain.clone(), [&self.certificate])
    }

    /// An SVID, in whatever trust domain.
    pub(super) fn issue(&self, id: &str) -> Svid {
        self.issue_with(&[id], |_| {})
    }

    pub(super) fn issue_with(
        &self,
        uris: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Svid {
        let key = KeyPair::generate().unwrap();
        let mut params = params(uris);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKey::from_pkcs8(key.serialize_der());
        (vec![Certificate::from_der(leaf.der())], key)
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(&[&format!("spiffe://{name}")]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_after = (BIRTH + 10 * TTL).into();
    // webpki tries every authority of the same name: each has its own.
    let serial = format!("{:016x}", fastrand::u64(..));
    params
        .distinguished_name
        .push(DnType::CustomDnType(vec![2, 5, 4, 5]), serial);
    params
}

fn params(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "SPIFFE");
    params.not_before = BIRTH.into();
    params.not_after = (BIRTH + TTL).into();
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()))
        .collect();
    params
}

/// Two parties of `td.test` who know its bundle and welcome each other.
pub(super) struct World {
    pub(super) ca: Ca,
    pub(super) clock: Arc<Manual>,
    pub(super) server: Party,
    pub(super) client: Party,
}

pub(super) const SERVER: &str = "spiffe://td.test/spire/server";
pub(super) const AGENT: &str = "spiffe://td.test/spire/agent/a";

impl World {
    pub(super) fn new() -> Self {
        let ca = Ca::new("td.test");
        let clock = Arc::new(Manual::new(BIRTH + START));
        let party = |own: &str, authorizer| Party {
            identity: identity(&ca.issue(own)),
            roots: Roots::new([ca.bundle()]),
            authorizer,
            clock: Arc::<Manual>::clone(&clock) as Arc<dyn Clock>,
        };
        Self {
            server: party(SERVER, anyone()),
            client: party(AGENT, only(id(SERVER))),
            ca,
            clock,
        }
    }
}

pub(super) fn identity((chain, key): &Svid) -> Arc<Identity> {
    Identity::new(chain, key).unwrap()
}
