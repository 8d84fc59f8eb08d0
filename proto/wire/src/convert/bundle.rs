//! Trust bundles: reading, writing, masks.
//!
//! WIT authorities are not read and written empty: nothing here serves them yet.

use vane_identity::bundle::{Bundle, JwtAuthority, MAX_AUTHORITIES, X509Authority};
use vane_identity::id::{IdError, TrustDomain};
use vane_identity::key::PublicKey;
use vane_identity::x509_svid::{Certificate, X509Error};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::generated::spire::api::types::{self, BundleMask};

/// The most bytes of a key ID.
pub const MAX_KEY_ID_BYTES: usize = 1024;
/// The most bytes of a public key (an RSA key of 8192 bits has 1056).
pub const MAX_PUBLIC_KEY_BYTES: usize = 4096;

/// Why a message is no bundle. SPIRE's texts where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleRefusal {
    /// The trust domain.
    #[error("invalid trust domain: {0}")]
    TrustDomain(#[from] IdError),
    /// It is the bundle of another trust domain.
    #[error("bundle is of trust domain \"{0}\", not of \"{1}\"")]
    OtherTrustDomain(TrustDomain, TrustDomain),
    /// A CA certificate.
    #[error("unable to parse X.509 authority: {0}")]
    X509(#[from] X509Error),
    /// A JWT key.
    #[error("unable to parse JWT authority: {0}")]
    Jwt(#[from] KeyRefusal),
    /// There are too many authorities of a kind.
    #[error("too many {what}: {count}, {max} are allowed")]
    TooMany {
        /// Of which.
        what: &'static str,
        /// Seen.
        count: usize,
        /// Allowed.
        max: usize,
    },
    /// The refresh hint is below zero.
    #[error("refresh hint is negative: {0}")]
    RefreshHint(i64),
}

/// Why a message is no JWT authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// It has no key ID.
    #[error("missing key ID")]
    NoKeyId,
    /// Its key ID is too long.
    #[error("key ID has {0} bytes, {MAX_KEY_ID_BYTES} are allowed")]
    KeyIdLength(usize),
    /// Its key is too long.
    #[error("public key has {0} bytes, {MAX_PUBLIC_KEY_BYTES} are allowed")]
    KeyLength(usize),
    /// Its key is no SubjectPublicKeyInfo.
    #[error("malformed public key")]
    Malformed,
}

impl From<&Bundle> for types::Bundle {
    fn from(bundle: &Bundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain.as_str().to_owned(),
            x509_authorities: bundle.x509_authorities.iter().map(Into::into).collect(),
            jwt_authorities: bundle.jwt_authorities.iter().map(Into::into).collect(),
            refresh_hint: bundle.refresh_hint,
            sequence_number: bundle.sequence_number,
            wit_authorities: Vec::new(),
        }
    }
}

impl TryFrom<&types::Bundle> for Bundle {
    type Error = BundleRefusal;

    fn try_from(wire: &types::Bundle) -> Result<Self, BundleRefusal> {
        let trust_domain = TrustDomain::parse_name_or_id(&wire.trust_domain)?;
        at_most("X.509 authorities", wire.x509_authorities.len())?;
        at_most("JWT authorities", wire.jwt_authorities.len())?;
        let x509 = wire.x509_authorities.iter().map(X509Authority::try_from);
        let jwt = wire.jwt_authorities.iter().map(JwtAuthority::try_from);
        if wire.refresh_hint < 0 {
            return Err(BundleRefusal::RefreshHint(wire.refresh_hint));
        }
        Ok(Self {
            trust_domain,
            x509_authorities: x509.collect::<Result<_, _>>()?,
            jwt_authorities: jwt.collect::<Result<_, _>>()?,
            refresh_hint: wire.refresh_hint,
            sequence_number: wire.sequence_number,
        })
    }
}

/// The bundle of `expected`, and of no other trust domain.
///
/// # Errors
/// [`BundleRefusal::OtherTrustDomain`], and as `TryFrom`.
pub fn from_wire(wire: &types::Bundle, expected: &TrustDomain) -> Result<Bundle, BundleRefusal> {
    let bundle = Bundle::try_from(wire)?;
    if bundle.trust_domain != *expected {
        let (found, expected) = (bundle.trust_domain, expected.clone());
        return Err(BundleRefusal::OtherTrustDomain(found, expected));
    }
    Ok(bundle)
}

fn at_most(what: &'static str, count: usize) -> Result<(), BundleRefusal> {
    let max = MAX_AUTHORITIES;
    if count > max {
        return Err(BundleRefusal::TooMany { what, count, max });
    }
    Ok(())
}

impl From<&X509Authority> for types::X509Certificate {
    fn from(authority: &X509Authority) -> Self {
        Self {
            asn1: authority.certificate.der().to_vec().into(),
            tainted: authority.tainted,
        }
    }
}

impl TryFrom<&types::X509Certificate> for X509Authority {
    type Error = X509Error;

    fn try_from(wire: &types::X509Certificate) -> Result<Self, X509Error> {
        let certificate = Certificate::from_der(&wire.asn1);
        certificate.info()?;
        Ok(Self {
            certificate,
            tainted: wire.tainted,
        })
    }
}

impl From<&JwtAuthority> for types::JwtKey {
    fn from(authority: &JwtAuthority) -> Self {
        Self {
            public_key: authority.public_key.spki().to_vec().into(),
            key_id: authority.key_id.clone(),
            expires_at: authority.expires_at,
            tainted: authority.tainted,
        }
    }
}

impl TryFrom<&types::JwtKey> for JwtAuthority {
    type Error = KeyRefusal;

    fn try_from(wire: &types::JwtKey) -> Result<Self, KeyRefusal> {
        check_public_key(&wire.public_key)?;
        if wire.key_id.is_empty() {
            return Err(KeyRefusal::NoKeyId);
        }
        if wire.key_id.len() > MAX_KEY_ID_BYTES {
            return Err(KeyRefusal::KeyIdLength(wire.key_id.len()));
        }
        Ok(Self {
            key_id: wire.key_id.clone(),
            public_key: PublicKey::from_spki(&wire.public_key),
            expires_at: wire.expires_at,
            tainted: wire.tainted,
        })
    }
}

fn check_public_key(der: &[u8]) -> Result<(), KeyRefusal> {
    if der.len() > MAX_PUBLIC_KEY_BYTES {
        return Err(KeyRefusal::KeyLength(der.len()));
    }
    let (rest, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| KeyRefusal::Malformed)?;
    info.parsed().map_err(|_| KeyRefusal::Malformed)?;
    if !rest.is_empty() {
        return Err(KeyRefusal::Malformed);
    }
    Ok(())
}

/// The mask that names every field, which is what no mask means.
pub const ALL_FIELDS: BundleMask = BundleMask {
    x509_authorities: true,
    jwt_authorities: true,
    refresh_hint: true,
    sequence_number: true,
    wit_authorities: true,
};

/// The fields of `bundle` that `mask` names; all of them without a mask, the trust domain
/// always.
#[must_use]
pub fn apply_mask(mut bundle: types::Bundle, mask: Option<&BundleMask>) -> types::Bundle {
    let Some(mask) = mask else {
        return bundle;
    };
    macro_rules! keep {
        ($($field:ident)+) => {
            $(if !mask.$field {
                bundle.$field = Default::default();
            })+
        };
    }
    keep!(x509_authorities jwt_authorities refresh_hint sequence_number wit_authorities);
    bundle
}

#[cfg(test)]
mod tests;
