//! Certificate signing requests (PKCS#10, RFC 2986): what is taken from one.
//!
//! Only the public key of a CSR ever reaches a certificate, except for a minted SVID, whose
//! caller is an administrator. [`verify`] returns only what the signature covers; the one
//! that does not look at the signature is called [`parse_unverified`] and serves
//! AttestAgent and RenewAgent, where SPIRE does not look either. Limits come before
//! parsing. A refusal is a text of ours behind SPIRE's prefix: see [`CsrError`].

use aws_lc_rs::signature::{self, ParsedPublicKey};
use vane_identity::entry::MAX_DNS_NAMES;
use vane_identity::id::MAX_SPIFFE_ID_BYTES;
use vane_identity::key::PublicKey;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA,
    OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, Oid,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::subject::{Subject, SubjectError};

/// The most bytes of a CSR that is looked at: an RSA-8192 key and [`MAX_DNS_NAMES`] fit.
pub const MAX_CSR_BYTES: usize = 64 * 1024;
/// The bits of an RSA key that is certified: at least the first, at most the second.
pub const RSA_BITS: (usize, usize) = (2048, 8192);

/// What was asked for. Nothing of it is authorized by being here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csr {
    /// The key: EC P-256, EC P-384, or RSA within [`RSA_BITS`]; on its curve.
    pub public_key: PublicKey,
    /// The requested name.
    pub subject: Subject,
    /// The requested URI SANs, as they stand: at most 16, none longer than a SPIFFE ID.
    pub uris: Vec<String>,
    /// The requested DNS SANs, as they stand: at most [`MAX_DNS_NAMES`].
    pub dns_names: Vec<String>,
}

/// Why a CSR is refused. The texts carry SPIRE's prefixes, `malformed CSR: ` for what
/// cannot be read and `invalid CSR signature: ` for a signature; both are the caller's
/// fault (InvalidArgument).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It is larger than [`MAX_CSR_BYTES`].
    #[error("malformed CSR: {0} bytes, {MAX_CSR_BYTES} are allowed")]
    TooLarge(usize),
    /// The bytes are no CSR.
    #[error("malformed CSR: not a DER certification request")]
    Malformed,
    /// Bytes follow the CSR.
    #[error("malformed CSR: {0} trailing bytes")]
    Trailing(usize),
    /// The key is of a kind that is not certified.
    #[error("malformed CSR: unsupported public key: {0}")]
    Key(&'static str),
    /// There is more of something than is allowed.
    #[error("malformed CSR: {count} {what}, {max} are allowed")]
    TooMany {
        /// What.
        what: &'static str,
        /// Seen.
        count: usize,
        /// Allowed.
        max: usize,
    },
    /// The name is too large.
    #[error("malformed CSR: {0}")]
    Subject(#[from] SubjectError),
    /// The signature was made with an algorithm that is not accepted for the key.
    #[error("invalid CSR signature: unsupported algorithm")]
    Algorithm,
    /// The signature is not that of the key.
    #[error("invalid CSR signature: verification failed")]
    Signature,
}

impl CsrError {
    /// Whether the CSR could be read and only its signature is wrong.
    #[must_use]
    pub fn is_signature(&self) -> bool {
        matches!(self, Self::Algorithm | Self::Signature)
    }
}

/// Reads a CSR and verifies that the key it names signed it (proof of possession).
///
/// # Errors
/// [`CsrError`].
pub fn verify(der: &[u8]) -> Result<Csr, CsrError> {
    let request = parse(der)?;
    let csr = read(&request)?;
    if !SIGNATURES.contains(&request.signature_algorithm.algorithm) {
        return Err(CsrError::Algorithm);
    }
    request.verify_signature().map_err(|error| match error {
        x509_parser::error::X509Error::SignatureUnsupportedAlgorithm => CsrError::Algorithm,
        _ => CsrError::Signature,
    })?;
    Ok(csr)
}

/// Reads a CSR without looking at its signature: whoever sent it need not have the key.
/// For callers that are authenticated by other means and get a certificate for themselves.
///
/// # Errors
/// [`CsrError`], never one of the signature.
pub fn parse_unverified(der: &[u8]) -> Result<Csr, CsrError> {
    let request = parse(der)?;
    let csr = read(&request)?;
    on_curve(&request.certification_request_info.subject_pki)?;
    Ok(csr)
}

/// The signature algorithms that are accepted. No SHA-1; no RSA-PSS, which no SPIFFE
/// software uses for a CSR.
const SIGNATURES: [Oid<'static>; 5] = [
    OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384,
    OID_PKCS1_SHA256WITHRSA,
    OID_PKCS1_SHA384WITHRSA,
    OID_PKCS1_SHA512WITHRSA,
];

/// The most URI SANs that are read; one is allowed, the others are for the error.
const MAX_URIS: usize = 16;

fn parse(der: &[u8]) -> Result<X509CertificationRequest<'_>, CsrError> {
    if der.len() > MAX_CSR_BYTES {
        return Err(CsrError::TooLarge(der.len()));
    }
    match X509CertificationRequest::from_der(der) {
        Ok(([], request)) => Ok(request),
        Ok((rest, _)) => Err(CsrError::Trailing(rest.len())),
        Err(_) => Err(CsrError::Malformed),
    }
}

fn read(request: &X509CertificationRequest<'_>) -> Result<Csr, CsrError> {
    let info = &request.certification_request_info;
    let (uris, dns_names) = requested_names(request)?;
    Ok(Csr {
        public_key: public_key(&info.subject_pki)?,
        subject: Subject::from_x509(&info.subject)?,
        uris,
        dns_names,
    })
}

/// What stands before the point in the SubjectPublicKeyInfo of a P-256 key (RFC 5480):
/// id-ecPublicKey, secp256r1, an uncompressed point follows.
const P256_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
/// The same for P-384.
const P384_PREFIX: [u8; 24] = [
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
    0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00, 0x04,
];
/// rsaEncryption with its NULL (RFC 8017 appendix A.1).
const RSA_ALGORITHM: [u8; 15] = [
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];

/// The key, if its encoding is the one canonical form of a supported kind: explicit curve
/// parameters, compressed points and odd algorithm identifiers go no further.
fn public_key(spki: &SubjectPublicKeyInfo<'_>) -> Result<PublicKey, CsrError> {
    let raw = spki.raw;
    if ec_point(raw).is_some() || rsa_bits(spki).is_some_and(rsa_is_allowed) {
        return Ok(PublicKey::from_spki(raw));
    }
    Err(CsrError::Key(match rsa_bits(spki) {
        Some(_) => "RSA keys must have 2048 to 8192 bits",
        None => "EC P-256, EC P-384 and RSA are supported",
    }))
}

/// The point of an EC key in the form that [`public_key`] lets through.
pub(crate) fn ec_point(spki: &[u8]) -> Option<&[u8]> {
    // The last octet of a prefix is the first of the point.
    if spki.starts_with(&P256_PREFIX) && spki.len() == P256_PREFIX.len() + 64 {
        return spki.get(P256_PREFIX.len() - 1..);
    }
    if spki.starts_with(&P384_PREFIX) && spki.len() == P384_PREFIX.len() + 96 {
        return spki.get(P384_PREFIX.len() - 1..);
    }
    None
}

fn rsa_is_allowed(bits: usize) -> bool {
    (RSA_BITS.0..=RSA_BITS.1).contains(&bits)
}

fn rsa_bits(spki: &SubjectPublicKeyInfo<'_>) -> Option<usize> {
    let algorithm = spki.raw.windows(RSA_ALGORITHM.len()).take(8);
    if !algorithm.into_iter().any(|window| window == RSA_ALGORITHM) {
        return None;
    }
    let x509_parser::public_key::PublicKey::RSA(key) = spki.parsed().ok()? else {
        return None;
    };
    let zeros = key.modulus.iter().take_while(|byte| **byte == 0).count();
    let modulus = key.modulus.get(zeros..)?;
    let top = modulus.first()?.leading_zeros() as usize;
    Some(modulus.len() * 8 - top)
}

/// Whether the key is one: verifying a signature finds that out by itself.
fn on_curve(spki: &SubjectPublicKeyInfo<'_>) -> Result<(), CsrError> {
    let algorithm: &'static dyn signature::VerificationAlgorithm = match spki.raw.len() {
        91 => &signature::ECDSA_P256_SHA256_ASN1,
        120 => &signature::ECDSA_P384_SHA384_ASN1,
        _ => &signature::RSA_PKCS1_2048_8192_SHA256,
    };
    ParsedPublicKey::new(algorithm, &spki.subject_public_key.data)
        .map(drop)
        .map_err(|_| CsrError::Key("it is no point on its curve or no RSA key"))
}

/// The URI and DNS SANs of the extension request (RFC 2985 section 5.4.2).
fn requested_names(
    request: &X509CertificationRequest<'_>,
) -> Result<(Vec<String>, Vec<String>), CsrError> {
    let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
    let extensions = request.requested_extensions();
    for extension in extensions.into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(san) = extension else {
            continue;
        };
        for name in &san.general_names {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                _ => {}
            }
        }
    }
    at_most("URI SANs", uris.len(), MAX_URIS)?;
    at_most("DNS SANs", dns_names.len(), MAX_DNS_NAMES)?;
    let longest = uris.iter().map(String::len).max().unwrap_or_default();
    at_most("bytes of a URI SAN", longest, MAX_SPIFFE_ID_BYTES)?;
    Ok((uris, dns_names))
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), CsrError> {
    if count > max {
        return Err(CsrError::TooMany { what, count, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
