//! Private and public keys.
//!
//! A private key is PKCS#8 DER, wiped when dropped, and appears neither in `Debug` nor in
//! an error. A public key is its SubjectPublicKeyInfo DER (PKIX).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The kinds of keys that Vane makes; names as SPIRE's `ca_key_type`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyType {
    /// ECDSA on P-256, the default.
    #[default]
    #[serde(rename = "ec-p256")]
    EcP256,
    /// ECDSA on P-384.
    #[serde(rename = "ec-p384")]
    EcP384,
    /// RSA with 2048 bits.
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    /// RSA with 4096 bits.
    #[serde(rename = "rsa-4096")]
    Rsa4096,
}

/// Why a key could not be made or read. Carries no key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The library refused to generate a key.
    #[error("key generation failed")]
    Generate,
    /// The bytes are no PKCS#8 key that is supported.
    #[error("not a supported PKCS#8 private key")]
    Malformed,
}

/// A private key as PKCS#8 DER; wiped on drop.
#[derive(Clone)]
pub struct PrivateKey(Arc<Zeroizing<Vec<u8>>>);

/// A public key as SubjectPublicKeyInfo DER (RFC 5280 section 4.1.2.7).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey(Arc<[u8]>);

impl PrivateKey {
    /// A fresh key from the operating system's random source, with its public half.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn generate(kind: KeyType) -> Result<(Self, PublicKey), KeyError> {
        let (pkcs8, public) = match kind {
            KeyType::EcP256 => ec(&signature::ECDSA_P256_SHA256_ASN1_SIGNING)?,
            KeyType::EcP384 => ec(&signature::ECDSA_P384_SHA384_ASN1_SIGNING)?,
            KeyType::Rsa2048 => rsa(KeySize::Rsa2048)?,
            KeyType::Rsa4096 => rsa(KeySize::Rsa4096)?,
        };
        Ok((Self::from_pkcs8(pkcs8), public))
    }

    /// Takes PKCS#8 DER over; the bytes are not looked at.
    #[must_use]
    pub fn from_pkcs8(der: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(der)))
    }

    /// The PKCS#8 DER. Do not copy it to where it is not wiped.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.0
    }
}

fn ec(
    algorithm: &'static signature::EcdsaSigningAlgorithm,
) -> Result<(Vec<u8>, PublicKey), KeyError> {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    let pair = EcdsaKeyPair::generate(algorithm).map_err(|_| KeyError::Generate)?;
    let pkcs8 = pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
    let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| KeyError::Generate)?;
    Ok((pkcs8.as_ref().to_vec(), PublicKey::from_spki(spki.as_ref())))
}

fn rsa(size: KeySize) -> Result<(Vec<u8>, PublicKey), KeyError> {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
    let pair = aws_lc_rs::rsa::KeyPair::generate(size).map_err(|_| KeyError::Generate)?;
    let pkcs8: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyError::Generate)?;
    let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| KeyError::Generate)?;
    Ok((pkcs8.as_ref().to_vec(), PublicKey::from_spki(spki.as_ref())))
}

impl PublicKey {
    /// A public key from SubjectPublicKeyInfo DER; the bytes are not looked at.
    #[must_use]
    pub fn from_spki(der: &[u8]) -> Self {
        Self(der.into())
    }

    /// The SubjectPublicKeyInfo DER.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.0
    }

    /// SHA-256 of the SubjectPublicKeyInfo, for comparing keys.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(digest::digest(&digest::SHA256, &self.0).as_ref());
        out
    }
}

/// The RFC 5280 section 4.2.1.2 method-1 key identifier: SHA-1 of the bits of the
/// subjectPublicKey. SPIRE's authority IDs are its lower-case hex.
#[must_use]
pub fn key_identifier(subject_public_key_bits: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    let sum = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, subject_public_key_bits);
    out.copy_from_slice(sum.as_ref());
    out
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_is_not_printed() {
        let (key, public) = PrivateKey::generate(KeyType::EcP256).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(redacted)");
        assert_eq!(format!("{public:?}"), "PublicKey(91 bytes)");
    }

    #[test]
    fn every_kind_of_key_is_generated_as_pkcs8_with_its_spki() {
        for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let (key, public) = PrivateKey::generate(kind).unwrap();
            assert_eq!(key.pkcs8()[0], 0x30);
            assert_eq!(public.spki()[0], 0x30);
        }
    }
}
