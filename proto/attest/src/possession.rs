//! Possession of a key, shown by signing two nonces: the challenger's and one's own.
//!
//! What is signed is SHA-256 of both, as the digest (SPIRE.md trap 23). Go signs RSA-PSS with
//! the longest salt, others with one as long as the digest: both are taken.

use aws_lc_rs::digest::digest;
use aws_lc_rs::rand::{SystemRandom, fill};
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA256_ASN1,
    ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_SHA256, RsaPssSaltLength, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls_pki_types::PrivateKeyDer;

/// The bytes of a nonce.
pub(crate) const NONCE: usize = 32;
/// The most bytes of one number of an ECDSA signature: P-521's.
const MAX_SCALAR: usize = 66;

/// The public key of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    pub(crate) kind: KeyKind,
    /// The bits of the subjectPublicKey.
    pub(crate) bits: Vec<u8>,
}

/// What kind of key it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyKind {
    Rsa,
    P256,
    P384,
    P521,
}

/// A signature of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signature {
    Rsa(Vec<u8>),
    /// r and s, big endian.
    Ecdsa(Vec<u8>, Vec<u8>),
}

/// A private key of one kind.
pub(crate) enum PrivateKey {
    Rsa(rsa::KeyPair),
    Ecdsa(EcdsaKeyPair),
}

/// Why nothing can be signed with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key is damaged, or of another kind than the certificate's.
    #[error("it is no key of the kind that the certificate has")]
    Malformed,
    /// The key is not the certificate's.
    #[error("it is not the key of the certificate")]
    OtherKey,
    /// The library cannot sign with it.
    #[error("keys of this kind cannot sign here: take rsa, ec-p256 or ec-p521")]
    Unsupported,
    /// Signing failed.
    #[error("it cannot sign")]
    Signing,
}

/// A nonce that nobody knows.
pub(crate) fn nonce() -> Option<[u8; NONCE]> {
    let mut nonce = [0; NONCE];
    fill(&mut nonce).ok()?;
    Some(nonce)
}

/// Whether `signature` over both nonces was made with `key`.
pub(crate) fn verify(
    key: &PublicKey,
    challenge: &[u8; NONCE],
    response: &[u8; NONCE],
    signature: &Signature,
) -> bool {
    let signed = [*challenge, *response].concat();
    let holds = |algorithm: &'static dyn VerificationAlgorithm, signature: &[u8]| {
        UnparsedPublicKey::new(algorithm, &key.bits)
            .verify(&signed, signature)
            .is_ok()
    };
    let ecdsa = |algorithm, r: &[u8], s: &[u8]| {
        der_signature(r, s).is_some_and(|signature| holds(algorithm, &signature))
    };
    match (key.kind, signature) {
        (KeyKind::Rsa, Signature::Rsa(signature)) => {
            holds(&LONGEST_SALT, signature) || holds(&RSA_PSS_2048_8192_SHA256, signature)
        }
        (KeyKind::P256, Signature::Ecdsa(r, s)) => ecdsa(&ECDSA_P256_SHA256_ASN1, r, s),
        (KeyKind::P384, Signature::Ecdsa(r, s)) => ecdsa(&ECDSA_P384_SHA256_ASN1, r, s),
        (KeyKind::P521, Signature::Ecdsa(r, s)) => ecdsa(&ECDSA_P521_SHA256_ASN1, r, s),
        _ => false,
    }
}

static LONGEST_SALT: aws_lc_rs::signature::RsaParameters =
    RSA_PSS_2048_8192_SHA256.with_pss_salt_length(RsaPssSaltLength::Max);

/// `SEQUENCE { r INTEGER, s INTEGER }`.
fn der_signature(r: &[u8], s: &[u8]) -> Option<Vec<u8>> {
    let mut numbers = integer(r)?;
    numbers.extend(integer(s)?);
    let mut signature = vec![0x30];
    let length = u8::try_from(numbers.len()).ok()?;
    if length >= 0x80 {
        signature.push(0x81);
    }
    signature.push(length);
    signature.extend(numbers);
    Some(signature)
}

fn integer(number: &[u8]) -> Option<Vec<u8>> {
    let start = number.iter().position(|byte| *byte != 0)?;
    let digits = number.get(start..)?;
    if digits.len() > MAX_SCALAR {
        return None;
    }
    // A first bit would be a sign.
    let sign = digits.first().is_some_and(|first| *first >= 0x80);
    let length = u8::try_from(digits.len() + usize::from(sign)).ok()?;
    let mut integer = vec![0x02, length];
    integer.extend(sign.then_some(0));
    integer.extend_from_slice(digits);
    Some(integer)
}

impl PrivateKey {
    /// The key in `der`, which must be that of `public`.
    pub(crate) fn read(der: &PrivateKeyDer<'_>, public: &PublicKey) -> Result<Self, KeyError> {
        let bytes = der.secret_der();
        let ecdsa = |algorithm| {
            EcdsaKeyPair::from_private_key_der(algorithm, bytes)
                .map(Self::Ecdsa)
                .map_err(|_| KeyError::Malformed)
        };
        let key = match public.kind {
            KeyKind::Rsa => rsa::KeyPair::from_pkcs8(bytes)
                .or_else(|_| rsa::KeyPair::from_der(bytes))
                .map(Self::Rsa)
                .map_err(|_| KeyError::Malformed)?,
            KeyKind::P256 => ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING)?,
            KeyKind::P521 => ecdsa(&ECDSA_P521_SHA256_FIXED_SIGNING)?,
            KeyKind::P384 => return Err(KeyError::Unsupported),
        };
        let own = match &key {
            Self::Rsa(key) => key.public_key().as_ref(),
            Self::Ecdsa(key) => key.public_key().as_ref(),
        };
        (own == public.bits)
            .then_some(key)
            .ok_or(KeyError::OtherKey)
    }

    /// Signs both nonces.
    pub(crate) fn sign(
        &self,
        challenge: &[u8; NONCE],
        response: &[u8; NONCE],
    ) -> Result<Signature, KeyError> {
        let signed = [*challenge, *response].concat();
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PSS_SHA256, &random, &signed, &mut signature)
                    .map_err(|_| KeyError::Signing)?;
                Ok(Signature::Rsa(signature))
            }
            Self::Ecdsa(key) => {
                let signature = key.sign(&random, &signed).map_err(|_| KeyError::Signing)?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                Ok(Signature::Ecdsa(r.to_vec(), s.to_vec()))
            }
        }
    }
}

/// SHA-1 of a certificate, as SPIRE names certificates.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    let sha1 = &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY;
    crate::template::hex(digest(sha1, der).as_ref())
}
