//! Certificates of a node: what stands in one, and whether its chain leads to a CA.
//!
//! Any certificate of an operator's own CA is taken, not only X.509-SVIDs. Each CA is asked by
//! itself, so that every chain there is gives its fingerprints (SPIRE's `ca:fingerprint`); only
//! those come into question whose name is somebody's issuer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::possession::{KeyKind, PublicKey, fingerprint};
use crate::template::hex;

/// The most bytes of one certificate.
const MAX_BYTES: usize = 64 * 1024;

/// What stands in a certificate.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) common_name: Option<String>,
    /// Hexadecimal, with an even number of digits.
    pub(crate) serial: String,
    pub(crate) uris: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether its key usage says digitalSignature.
    pub(crate) may_sign: bool,
    /// None for a kind of key that cannot be challenged.
    pub(crate) key: Option<PublicKey>,
    /// Bits of the modulus of an RSA key.
    pub(crate) rsa_bits: Option<usize>,
}

/// A CA that is trusted.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    der: Vec<u8>,
    subject: Vec<u8>,
    not_before: i64,
    not_after: i64,
}

/// Why a chain is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    /// The bytes are no certificate.
    #[error("malformed certificate")]
    Malformed,
    /// No CA that is trusted has signed it.
    #[error("x509: certificate signed by unknown authority")]
    UnknownAuthority,
    /// It is not valid now.
    #[error("x509: certificate has expired or is not yet valid")]
    Expired,
    /// Another rule of RFC 5280 is broken.
    #[error("x509: {0}")]
    Path(webpki::Error),
    /// The clock is before 1970.
    #[error("the clock is before 1970")]
    Clock,
}

/// Reads a certificate.
pub(crate) fn facts(der: &[u8]) -> Result<Facts, ChainError> {
    let certificate = parse(der)?;
    let (mut uris, mut addresses, mut may_sign) = (Vec::new(), Vec::new(), false);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::KeyUsage(usage) => may_sign = usage.digital_signature(),
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                        GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let common_name = certificate.subject().iter_common_name().next();
    let spki = certificate.public_key();
    Ok(Facts {
        common_name: common_name
            .and_then(|name| name.as_str().ok())
            .filter(|name| !name.is_empty())
            .map(ToOwned::to_owned),
        serial: serial(certificate.raw_serial()),
        uris,
        addresses,
        may_sign,
        key: key(spki),
        rsa_bits: rsa_bits(spki),
    })
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, ChainError> {
    if der.len() > MAX_BYTES {
        return Err(ChainError::Malformed);
    }
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| ChainError::Malformed)?;
    rest.is_empty()
        .then_some(certificate)
        .ok_or(ChainError::Malformed)
}

fn serial(raw: &[u8]) -> String {
    let start = raw.iter().position(|byte| *byte != 0);
    start
        .and_then(|start| raw.get(start..))
        .map_or_else(|| "00".to_owned(), hex)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn key(spki: &SubjectPublicKeyInfo<'_>) -> Option<PublicKey> {
    let kind = match spki.algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.1" => KeyKind::Rsa,
        "1.2.840.10045.2.1" => {
            let curve = spki.algorithm.parameters.as_ref()?.as_oid().ok()?;
            match curve.to_id_string().as_str() {
                "1.2.840.10045.3.1.7" => KeyKind::P256,
                "1.3.132.0.34" => KeyKind::P384,
                "1.3.132.0.35" => KeyKind::P521,
                _ => return None,
            }
        }
        _ => return None,
    };
    let bits = spki.subject_public_key.data.to_vec();
    Some(PublicKey { kind, bits })
}

fn rsa_bits(spki: &SubjectPublicKeyInfo<'_>) -> Option<usize> {
    match spki.parsed() {
        Ok(Parsed::RSA(key)) => {
            let start = key.modulus.iter().position(|byte| *byte != 0)?;
            let first = key.modulus.get(start)?.leading_zeros();
            let zeros = usize::try_from(first).ok()?;
            Some((key.modulus.len() - start) * 8 - zeros)
        }
        _ => None,
    }
}

impl Root {
    /// A CA to be trusted.
    ///
    /// # Errors
    /// [`ChainError::Malformed`].
    pub(crate) fn new(der: &[u8]) -> Result<Self, ChainError> {
        let certificate = parse(der)?;
        let validity = certificate.validity();
        Ok(Self {
            subject: certificate.subject().as_raw().to_vec(),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            der: der.to_vec(),
        })
    }
}

/// Any purpose will do (Go's ExtKeyUsageAny).
struct AnyPurpose;

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// Verifies that `chain`, leaf first, leads to one of `roots` at `now`; the fingerprints of all
/// certificates of such chains but the leaf.
///
/// # Errors
/// [`ChainError`].
pub(crate) fn verify(
    chain: &[Vec<u8>],
    roots: &[Root],
    now: SystemTime,
) -> Result<Vec<String>, ChainError> {
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| ChainError::Clock)?;
    let seconds = i64::try_from(since.as_secs()).map_err(|_| ChainError::Clock)?;
    let issuers = issuers(chain)?;
    let ders: Vec<_> = chain
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let (leaf, intermediates) = ders.split_first().ok_or(ChainError::Malformed)?;
    let leaf = EndEntityCert::try_from(leaf).map_err(path)?;
    let (mut found, mut failed) = (Vec::new(), ChainError::UnknownAuthority);
    for root in roots.iter().filter(|root| issuers.contains(&root.subject)) {
        if seconds < root.not_before || root.not_after < seconds {
            failed = ChainError::Expired;
            continue;
        }
        let der = CertificateDer::from(root.der.as_slice());
        let anchor = [webpki::anchor_from_trusted_cert(&der).map_err(path)?];
        let verified = leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchor,
            intermediates,
            UnixTime::since_unix_epoch(since),
            AnyPurpose,
            None,
            None,
        );
        match verified {
            Ok(verified) => {
                let between = verified.intermediate_certificates();
                let between = between.map(|one| fingerprint(&one.der()));
                for name in between.chain([fingerprint(&root.der)]) {
                    if !found.contains(&name) {
                        found.push(name);
                    }
                }
            }
            Err(error) => failed = path(error),
        }
    }
    if found.is_empty() {
        Err(failed)
    } else {
        Ok(found)
    }
}

fn issuers(chain: &[Vec<u8>]) -> Result<BTreeSet<Vec<u8>>, ChainError> {
    let issuer = |der: &Vec<u8>| Ok(parse(der)?.issuer().as_raw().to_vec());
    chain.iter().map(issuer).collect()
}

fn path(error: webpki::Error) -> ChainError {
    match error {
        webpki::Error::UnknownIssuer => ChainError::UnknownAuthority,
        webpki::Error::CertExpired { .. }
        | webpki::Error::CertNotValidYet { .. }
        | webpki::Error::InvalidCertValidity => ChainError::Expired,
        other => ChainError::Path(other),
    }
}
