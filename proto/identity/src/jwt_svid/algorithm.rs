//! The nine signature algorithms of JWT-SVIDs, and which keys they fit (JWT-SVID.md section
//! 2.1, RFC 7518 section 3.1).
//!
//! The key decides: an algorithm verifies with a key only when the key is of its kind and,
//! for ECDSA, on its curve.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521,
    OID_PKCS1_RSAENCRYPTION,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::key::PublicKey;

/// A signature algorithm of a JWT-SVID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "RFC 7518 section 3.1 says what each name means"
)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    Ps256,
    Ps384,
    Ps512,
}

/// The kinds of keys that verify JWT-SVIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    P521,
    Rsa,
}

/// An algorithm with a key that it fits.
pub(super) struct Verification<'a>(UnparsedPublicKey<&'a [u8]>);

impl Algorithm {
    /// All that there are.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
    ];

    /// The value of `alg`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }

    /// The algorithm that `alg` names, byte for byte.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// Whether `signature` is that of `signed` by `key`; no when the key is of another kind.
    #[must_use]
    pub fn accepts(self, key: &PublicKey, signed: &str, signature: &[u8]) -> bool {
        let verification = self.verification(key);
        verification.is_some_and(|one| one.accepts(signed, signature))
    }

    /// Verification with `key`, if it is of the kind of this algorithm.
    pub(super) fn verification(self, key: &PublicKey) -> Option<Verification<'_>> {
        let (kind, algorithm) = self.needs();
        let fits = kind_of(key)? == kind;
        fits.then(|| Verification(UnparsedPublicKey::new(algorithm, key.spki())))
    }

    fn needs(self) -> (Kind, &'static dyn VerificationAlgorithm) {
        match self {
            Self::Rs256 => (Kind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => (Kind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => (Kind::Rsa, &signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Es256 => (Kind::P256, &signature::ECDSA_P256_SHA256_FIXED),
            Self::Es384 => (Kind::P384, &signature::ECDSA_P384_SHA384_FIXED),
            Self::Es512 => (Kind::P521, &signature::ECDSA_P521_SHA512_FIXED),
            Self::Ps256 => (Kind::Rsa, &signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => (Kind::Rsa, &signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => (Kind::Rsa, &signature::RSA_PSS_2048_8192_SHA512),
        }
    }
}

impl Verification<'_> {
    /// Whether `signature` is that of `signed`.
    pub(super) fn accepts(&self, signed: &str, signature: &[u8]) -> bool {
        self.0.verify(signed.as_bytes(), signature).is_ok()
    }
}

fn kind_of(key: &PublicKey) -> Option<Kind> {
    let (_, info) = SubjectPublicKeyInfo::from_der(key.spki()).ok()?;
    if info.algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
        return Some(Kind::Rsa);
    }
    if info.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return None;
    }
    let curve = info.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let curves = [
        (OID_EC_P256, Kind::P256),
        (OID_NIST_EC_P384, Kind::P384),
        (OID_NIST_EC_P521, Kind::P521),
    ];
    let found = curves.into_iter().find(|(oid, _)| *oid == curve);
    found.map(|(_, kind)| kind)
}
