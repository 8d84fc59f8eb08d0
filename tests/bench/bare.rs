//! The least that issuing an X.509-SVID can cost: the CSR parsed and verified, the leaf built
//! and signed, in a loop, without a server around it.

use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use vane_authority::csr;
use vane_authority::profile::{Profile, ProfileConfig, SvidKind, Wanted};
use vane_authority::subject::{Subject, SubjectConfig};
use vane_authority::x509::{CaPlan, Issuer, Serial, Signature, assemble, ca_tbs, leaf_tbs};
use vane_chassis::clock::{Clock, System};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::{KeyType, PrivateKey};
use vane_identity::lifetime::Validity;
use vane_identity::x509_svid::Certificate;

/// A CA without a server.
pub(crate) struct BareCa {
    profile: Profile,
    issuer: Issuer,
    key: EcdsaKeyPair,
}

impl BareCa {
    pub(crate) fn new() -> Self {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let profile = Profile::new(&profile(&trust_domain)).unwrap();
        let (private, public) = PrivateKey::generate(KeyType::EcP256).unwrap();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, private.pkcs8()).unwrap();
        let serial = Serial::random().unwrap();
        let now = System.now();
        let plan = CaPlan::new(
            trust_domain,
            &Subject::ca(&SubjectConfig::default()).unwrap(),
            public,
            KeyType::EcP256,
            Validity::issued_at(now, profile.ca_ttl(), now + 2 * profile.ca_ttl()),
            &serial,
        );
        let tbs = ca_tbs(&plan, &serial);
        let certificate = assemble(&tbs, Signature::EcdsaSha256, &sign(&key, &tbs));
        let issuer = Issuer::self_signed(&certificate, "bare", KeyType::EcP256).unwrap();
        Self {
            profile,
            issuer,
            key,
        }
    }

    /// Verifies a CSR and signs a leaf for its key.
    pub(crate) fn issue(&self, csr: &[u8], id: &SpiffeId, now: SystemTime) -> Certificate {
        let csr = csr::verify(csr).unwrap();
        let kind = SvidKind::Workload {
            dns_names: Vec::new(),
        };
        let wanted = Wanted {
            kind: &kind,
            spiffe_id: id,
            public_key: &csr.public_key,
            ttl: Duration::ZERO,
        };
        let plan = self
            .profile
            .plan(&wanted, now, self.issuer.not_after)
            .unwrap();
        let tbs = leaf_tbs(&plan, &self.issuer, &Serial::random().unwrap());
        assemble(&tbs, self.issuer.signature, &sign(&self.key, &tbs))
    }
}

/// The defaults of a server.
pub(crate) fn profile(trust_domain: &TrustDomain) -> ProfileConfig {
    ProfileConfig::new(trust_domain.clone())
}

fn sign(key: &EcdsaKeyPair, message: &[u8]) -> Vec<u8> {
    let signature = key.sign(&SystemRandom::new(), message).unwrap();
    signature.as_ref().to_vec()
}
