//! The self-check: a signed certificate is read back by a parser that did not write it and
//! compared, field by field, with what was planned.
//!
//! It finds a writer that is wrong, a key manager that signed with another key (when the
//! signature is verified) and memory that flipped. A certificate that fails is not given
//! out; that it was logged is right, since it was signed.

use vane_identity::lifetime::{Validity, to_unix};
use vane_identity::x509_svid::Certificate;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, KeyUsage, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Version};

use super::{CaPlan, Issuer, Plan, Serial, Signature, assemble, key_id};

/// A certificate or token is not what was planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// It cannot be read.
    #[error("the certificate cannot be read back")]
    Unreadable,
    /// A field differs from the plan.
    #[error("what was signed differs from its plan in {0}")]
    Differs(&'static str),
    /// The signature is not that of the issuer.
    #[error("the signature is not that of the issuer")]
    Signature,
}

/// What every field is compared with.
struct Expected<'a> {
    tbs: &'a [u8],
    serial: &'a Serial,
    signature: Signature,
    issuer: &'a [u8],
    subject: &'a [u8],
    validity: Validity,
    spki: &'a [u8],
    subject_key_id: [u8; 20],
    /// None for a self-signed certificate.
    authority_key_id: Option<[u8; 20]>,
    dns_names: &'a [String],
    uri: &'a str,
    ca: bool,
}

/// Compares a leaf with its plan.
///
/// # Errors
/// [`CheckError::Unreadable`], [`CheckError::Differs`].
pub fn leaf(
    certificate: &Certificate,
    tbs: &[u8],
    plan: &Plan,
    issuer: &Issuer,
    serial: &Serial,
) -> Result<(), CheckError> {
    let parsed = parse(certificate)?;
    parsed_leaf(&parsed, certificate, tbs, plan, issuer, serial)
}

/// As [`leaf`], of a `certificate` that was `parsed`.
///
/// # Errors
/// [`CheckError::Differs`].
pub fn parsed_leaf(
    parsed: &X509Certificate<'_>,
    certificate: &Certificate,
    tbs: &[u8],
    plan: &Plan,
    issuer: &Issuer,
    serial: &Serial,
) -> Result<(), CheckError> {
    compare(
        parsed,
        certificate,
        &Expected {
            tbs,
            serial,
            signature: issuer.signature,
            issuer: &issuer.subject,
            subject: &plan.subject.to_der(),
            validity: plan.validity,
            spki: plan.public_key.spki(),
            subject_key_id: key_id(&plan.public_key),
            authority_key_id: Some(issuer.key_id),
            dns_names: &plan.dns_names,
            uri: plan.spiffe_id.as_str(),
            ca: false,
        },
    )
}

/// Compares a self-signed CA with its plan and verifies its signature.
///
/// # Errors
/// [`CheckError`].
pub fn ca(
    certificate: &Certificate,
    tbs: &[u8],
    plan: &CaPlan,
    serial: &Serial,
) -> Result<(), CheckError> {
    let own = Parent {
        signature: plan.signature,
        subject: &plan.subject.to_der(),
        key_id: None,
        spki: plan.public_key.spki(),
    };
    ca_below(certificate, tbs, plan, &own, serial)
}

/// Compares a CA below `issuer` with its plan and verifies its signature.
///
/// # Errors
/// [`CheckError`].
pub fn intermediate(
    certificate: &Certificate,
    tbs: &[u8],
    plan: &CaPlan,
    issuer: &Issuer,
    serial: &Serial,
) -> Result<(), CheckError> {
    let parent = Parent {
        signature: issuer.signature,
        subject: &issuer.subject,
        key_id: Some(issuer.key_id),
        spki: issuer.public_key.spki(),
    };
    ca_below(certificate, tbs, plan, &parent, serial)
}

/// Who signed a CA: itself or another one.
struct Parent<'a> {
    signature: Signature,
    subject: &'a [u8],
    /// None for a self-signed certificate.
    key_id: Option<[u8; 20]>,
    spki: &'a [u8],
}

fn ca_below(
    certificate: &Certificate,
    tbs: &[u8],
    plan: &CaPlan,
    parent: &Parent<'_>,
    serial: &Serial,
) -> Result<(), CheckError> {
    compare(
        &parse(certificate)?,
        certificate,
        &Expected {
            tbs,
            serial,
            signature: parent.signature,
            issuer: parent.subject,
            subject: &plan.subject.to_der(),
            validity: plan.validity,
            spki: plan.public_key.spki(),
            subject_key_id: key_id(&plan.public_key),
            authority_key_id: parent.key_id,
            dns_names: &[],
            uri: plan.trust_domain.id().as_str(),
            ca: true,
        },
    )?;
    signature(certificate, parent.spki)
}

/// Verifies the signature of a certificate with the key of its issuer.
///
/// # Errors
/// [`CheckError::Unreadable`], [`CheckError::Signature`].
pub fn signature(certificate: &Certificate, issuer_spki: &[u8]) -> Result<(), CheckError> {
    let parsed = parse(certificate)?;
    let (_, spki) =
        SubjectPublicKeyInfo::from_der(issuer_spki).map_err(|_| CheckError::Unreadable)?;
    parsed
        .verify_signature(Some(&spki))
        .map_err(|_| CheckError::Signature)
}

fn parse(certificate: &Certificate) -> Result<X509Certificate<'_>, CheckError> {
    match X509Certificate::from_der(certificate.der()) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) | Err(_) => Err(CheckError::Unreadable),
    }
}

fn same(what: &'static str, same: bool) -> Result<(), CheckError> {
    match same {
        true => Ok(()),
        false => Err(CheckError::Differs(what)),
    }
}

fn compare(
    parsed: &X509Certificate<'_>,
    certificate: &Certificate,
    expected: &Expected<'_>,
) -> Result<(), CheckError> {
    let tbs = &parsed.tbs_certificate;
    let oid = expected.signature.oid();
    same("version", tbs.version == X509Version::V3)?;
    same(
        "serial number",
        tbs.serial.to_bytes_be() == expected.serial.bytes(),
    )?;
    same(
        "signature algorithm",
        tbs.signature.algorithm.as_bytes() == oid,
    )?;
    same(
        "outer signature algorithm",
        parsed.signature_algorithm == tbs.signature,
    )?;
    same("issuer", tbs.issuer.as_raw() == expected.issuer)?;
    same("subject", tbs.subject.as_raw() == expected.subject)?;
    let (not_before, not_after) = (tbs.validity.not_before, tbs.validity.not_after);
    same(
        "notBefore",
        not_before.timestamp() == to_unix(expected.validity.not_before),
    )?;
    same(
        "notAfter",
        not_after.timestamp() == to_unix(expected.validity.not_after),
    )?;
    same("public key", tbs.subject_pki.raw == expected.spki)?;
    extensions(parsed, expected)?;
    same("the bytes that were logged", tbs.as_ref() == expected.tbs)?;
    // A parser may be lenient about what surrounds them.
    let again = assemble(
        expected.tbs,
        expected.signature,
        &parsed.signature_value.data,
    );
    same("encoding", again == *certificate)
}

/// Exactly the planned extensions: each is there once, with its criticality, and no other.
fn extensions(parsed: &X509Certificate<'_>, expected: &Expected<'_>) -> Result<(), CheckError> {
    let count = match (expected.ca, expected.authority_key_id) {
        (true, None) => 4,
        (true, Some(_)) => 5,
        (false, _) => 6,
    };
    same("number of extensions", parsed.extensions().len() == count)?;
    let mut seen = [false; 6];
    for extension in parsed.extensions() {
        let (index, good, critical) = match extension.parsed_extension() {
            ParsedExtension::KeyUsage(usage) => (0, key_usage(usage, expected.ca), true),
            ParsedExtension::BasicConstraints(basic) => {
                let good = basic.ca == expected.ca && basic.path_len_constraint.is_none();
                (1, good, true)
            }
            ParsedExtension::SubjectKeyIdentifier(id) => {
                (2, id.0 == expected.subject_key_id, false)
            }
            ParsedExtension::SubjectAlternativeName(san) => {
                let critical = expected.subject == [0x30, 0x00];
                (3, alternative_names(&san.general_names, expected), critical)
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let others = usage.any
                    || usage.code_signing
                    || usage.email_protection
                    || usage.time_stamping
                    || usage.ocsp_signing
                    || !usage.other.is_empty();
                let good = usage.server_auth && usage.client_auth && !others;
                (4, good && !expected.ca, false)
            }
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                let key_id = id.key_identifier.as_ref().map(|id| id.0);
                let good = key_id == expected.authority_key_id.as_ref().map(<[u8; 20]>::as_slice);
                (5, good && id.authority_cert_issuer.is_none(), false)
            }
            _ => return Err(CheckError::Differs("an extension that was not planned")),
        };
        let name = EXTENSION_NAMES.get(index).copied().unwrap_or_default();
        same(name, good && extension.critical == critical)?;
        let first = seen
            .get_mut(index)
            .is_some_and(|seen| !std::mem::replace(seen, true));
        same(name, first)?;
    }
    Ok(())
}

const EXTENSION_NAMES: [&str; 6] = [
    "key usage",
    "basic constraints",
    "subject key identifier",
    "subject alternative names",
    "extended key usage",
    "authority key identifier",
];

/// Bits as x509-parser numbers them: bit 0 is digitalSignature.
fn key_usage(usage: &KeyUsage, ca: bool) -> bool {
    const LEAF: u16 = 1 | 1 << 2 | 1 << 4;
    const CA: u16 = 1 << 5 | 1 << 6;
    usage.flags == if ca { CA } else { LEAF }
}

fn alternative_names(names: &[GeneralName<'_>], expected: &Expected<'_>) -> bool {
    let Some((GeneralName::URI(uri), dns_names)) = names.split_last() else {
        return false;
    };
    let planned = expected.dns_names.iter().map(String::as_str);
    let found = dns_names.iter().map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    *uri == expected.uri && found.eq(planned.map(Some))
}
