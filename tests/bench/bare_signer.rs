//! The least that issuing a JWT-SVID can cost: the token built and signed, in a loop, without a
//! server around it.

use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use vane_authority::jwt;
use vane_authority::profile::{Profile, ProfileConfig, WantedToken};
use vane_chassis::clock::{Clock, System};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::{KeyType, PrivateKey};
use vane_identity::lifetime::Validity;

/// A JWT key without a server.
pub(crate) struct BareSigner {
    profile: Profile,
    issuer: jwt::Issuer,
    key: EcdsaKeyPair,
}

impl BareSigner {
    pub(crate) fn new() -> Self {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let profile = Profile::new(&ProfileConfig::new(trust_domain)).unwrap();
        let (private, public) = PrivateKey::generate(KeyType::EcP256).unwrap();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private.pkcs8()).unwrap();
        let now = System.now();
        let validity = Validity::issued_at(now, profile.ca_ttl(), now + 2 * profile.ca_ttl());
        let issuer = jwt::Issuer::new("bare", "bare", &public, validity).unwrap();
        Self {
            profile,
            issuer,
            key,
        }
    }

    /// Signs a token of `id`.
    pub(crate) fn issue(&self, id: &SpiffeId, audience: &[String], now: SystemTime) -> String {
        let wanted = WantedToken {
            spiffe_id: id,
            audience,
            ttl: Duration::ZERO,
        };
        let end = self.issuer.validity.not_after;
        let plan = self.profile.plan_token(&wanted, now, end).unwrap();
        let input = jwt::signing_input(&plan, None, &self.issuer);
        let signature = self
            .key
            .sign(&SystemRandom::new(), input.as_bytes())
            .unwrap();
        jwt::assemble(&input, signature.as_ref())
    }
}
