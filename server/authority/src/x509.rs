//! X.509 certificates: written, put together with their signature, and checked.
//!
//! The steps are separate because the issuance log stands between them: the to-be-signed
//! bytes are written first ([`leaf_tbs`], [`ca_tbs`]), logged, signed elsewhere, joined
//! ([`assemble`]) and read back ([`check`]). The shape is SPIRE's (SPIRE.md 1.2), extension
//! order included; X509-SVID.md sections 2 to 4 and RFC 5280 hold. An own writer of about
//! two hundred lines instead of rcgen, which signs while it writes.

pub mod check;
mod write;

use std::time::SystemTime;

use aws_lc_rs::rand;
use vane_identity::id::TrustDomain;
use vane_identity::key::{KeyType, PublicKey, key_identifier};
use vane_identity::lifetime::Validity;
use vane_identity::x509_svid::{Certificate, serial_decimal};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

use crate::csr::ec_point;
use crate::profile::Plan;
use crate::subject::{Attribute, Subject};
pub use write::{assemble, ca_tbs, intermediate_tbs, leaf_tbs};

/// A serial number: random in [1, 2^128).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serial([u8; 16]);

/// The operating system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct NoRandomness;

/// A certificate of the journal cannot be an issuer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the certificate or key of the authority cannot be read, or is of another kind")]
pub struct BadIssuer;

/// How certificates are signed with a kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// ecdsa-with-SHA256
    EcdsaSha256,
    /// ecdsa-with-SHA384
    EcdsaSha384,
    /// sha256WithRSAEncryption
    RsaSha256,
}

/// A CA as the issuer of leaves: what is written into each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// Lower-case hex of its key identifier.
    pub authority_id: String,
    /// The name of its key in the key manager.
    pub key_ref: String,
    /// How it signs.
    pub signature: Signature,
    /// Its name, DER.
    pub subject: Vec<u8>,
    /// Its key identifier.
    pub key_id: [u8; 20],
    /// Its key.
    pub public_key: PublicKey,
    /// When it begins.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
    /// What follows the leaf in a chain; nothing for a self-signed CA, whose root every
    /// verifier has.
    pub intermediates: Vec<Certificate>,
}

/// Every field of a CA except its serial and those of its issuer, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaPlan {
    /// The URI SAN is its ID.
    pub trust_domain: TrustDomain,
    /// Its name, serial number included.
    pub subject: Subject,
    /// Its key.
    pub public_key: PublicKey,
    /// How it signs.
    pub signature: Signature,
    /// When it is valid.
    pub validity: Validity,
}

impl Serial {
    /// A random serial number.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 16];
        rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        if bytes == [0; 16] {
            bytes = 1u128.to_be_bytes();
        }
        Ok(Self(bytes))
    }

    /// Big endian, without leading zeros.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let zeros = self.0.iter().take_while(|byte| **byte == 0).count();
        self.0.get(zeros..).unwrap_or_default()
    }

    /// As SPIRE prints it.
    #[must_use]
    pub fn decimal(&self) -> String {
        serial_decimal(self.bytes())
    }
}

impl Signature {
    /// The signature made with a kind of key.
    #[must_use]
    pub fn of(key_type: KeyType) -> Self {
        match key_type {
            KeyType::EcP256 => Self::EcdsaSha256,
            KeyType::EcP384 => Self::EcdsaSha384,
            KeyType::Rsa2048 | KeyType::Rsa4096 => Self::RsaSha256,
        }
    }

    /// The content octets of its OID.
    fn oid(self) -> &'static [u8] {
        match self {
            Self::EcdsaSha256 => &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
            Self::EcdsaSha384 => &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
            Self::RsaSha256 => &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b],
        }
    }
}

impl Issuer {
    /// Reads a self-signed CA certificate as an issuer whose key is of `key_type`.
    ///
    /// # Errors
    /// [`BadIssuer`], also when the key in the certificate is of another kind.
    pub fn self_signed(
        certificate: &Certificate,
        key_ref: &str,
        key_type: KeyType,
    ) -> Result<Self, BadIssuer> {
        let info = certificate.info().map_err(|_| BadIssuer)?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate.der()).map_err(|_| BadIssuer)?;
        let public_key = PublicKey::from_spki(&info.spki);
        let signature = Signature::of(key_type);
        if key_type_of(&public_key).map(Signature::of) != Some(signature) {
            return Err(BadIssuer);
        }
        Ok(Self {
            authority_id: authority_id(&info.key_id),
            key_ref: key_ref.to_owned(),
            signature,
            subject: raw_name(parsed.subject()),
            key_id: info.key_id,
            public_key,
            not_before: info.validity.not_before,
            not_after: info.validity.not_after,
            intermediates: Vec::new(),
        })
    }
}

impl CaPlan {
    /// The plan of a CA below `issuer`, as SPIRE names it: the issuer's name, with the depth of
    /// its chain as organizational unit.
    ///
    /// # Errors
    /// [`BadIssuer`] when the issuer's name cannot be read.
    pub fn below(
        trust_domain: TrustDomain,
        issuer: &Issuer,
        public_key: PublicKey,
        validity: Validity,
    ) -> Result<Self, BadIssuer> {
        let (_, name) = X509Name::from_der(&issuer.subject).map_err(|_| BadIssuer)?;
        let subject = Subject::from_x509(&name).map_err(|_| BadIssuer)?;
        let depth = issuer.intermediates.len().saturating_add(1);
        Ok(Self {
            trust_domain,
            subject: subject.with_organizational_unit(&format!("DOWNSTREAM-{depth}")),
            public_key,
            signature: issuer.signature,
            validity,
        })
    }

    /// The plan of a CA: `subject` gets the decimal serial as its serial number attribute.
    #[must_use]
    pub fn new(
        trust_domain: TrustDomain,
        subject: &Subject,
        public_key: PublicKey,
        key_type: KeyType,
        validity: Validity,
        serial: &Serial,
    ) -> Self {
        let subject = subject.clone();
        Self {
            trust_domain,
            subject: subject.with(Attribute::SerialNumber, &serial.decimal()),
            public_key,
            signature: Signature::of(key_type),
            validity,
        }
    }
}

/// The kind of a key that Vane makes; an RSA key of another size counts as the next larger.
#[must_use]
pub fn key_type_of(public_key: &PublicKey) -> Option<KeyType> {
    let (_, spki) = SubjectPublicKeyInfo::from_der(public_key.spki()).ok()?;
    match spki.parsed().ok()? {
        x509_parser::public_key::PublicKey::EC(point) => match point.key_size() {
            256 => Some(KeyType::EcP256),
            384 => Some(KeyType::EcP384),
            _ => None,
        },
        x509_parser::public_key::PublicKey::RSA(key) if key.key_size() <= 2048 => {
            Some(KeyType::Rsa2048)
        }
        x509_parser::public_key::PublicKey::RSA(_) => Some(KeyType::Rsa4096),
        _ => None,
    }
}

/// SPIRE's authority ID of a key identifier: its lower-case hex.
#[must_use]
pub fn authority_id(key_id: &[u8; 20]) -> String {
    key_id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The RFC 5280 method-1 identifier of a key; of its whole encoding should that not be a
/// SubjectPublicKeyInfo, which the self-check would find.
fn key_id(public_key: &PublicKey) -> [u8; 20] {
    if let Some(point) = ec_point(public_key.spki()) {
        return key_identifier(point);
    }
    match SubjectPublicKeyInfo::from_der(public_key.spki()) {
        Ok((_, spki)) => key_identifier(&spki.subject_public_key.data),
        Err(_) => key_identifier(public_key.spki()),
    }
}

fn raw_name(name: &X509Name<'_>) -> Vec<u8> {
    name.as_raw().to_vec()
}

#[cfg(test)]
mod tests;
