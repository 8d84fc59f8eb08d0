//! A certificate chain as `Debug.GetInfo` of server and agent shows it.
//!
//! [`with_root`] completes a chain by the authority that signed it; [`subject`] is a name as
//! Go prints it, which SPIRE's tools show. Nothing is verified here.

use x509_parser::x509::X509Name;

use crate::bundle::Bundle;
use crate::x509_svid::Certificate;

/// `chain` (leaf first) with the root of `bundle` that signed its last certificate, if there
/// is one.
#[must_use]
pub fn with_root(chain: &[Certificate], bundle: Option<&Bundle>) -> Vec<Certificate> {
    let mut chain = chain.to_vec();
    let signer = chain.last().and_then(|last| last.info().ok());
    let signer = signer.and_then(|info| info.authority_key_id);
    let roots = bundle.iter().flat_map(|bundle| &bundle.x509_authorities);
    let root = roots
        .map(|root| &root.certificate)
        .find(|root| root.info().ok().map(|info| info.key_id.to_vec()) == signer);
    chain.extend(root.filter(|_| signer.is_some()).cloned());
    chain
}

/// The subject as Go prints it (RFC 2253: the last attribute first); empty when the
/// certificate cannot be read.
#[must_use]
pub fn subject(certificate: &Certificate) -> String {
    x509_parser::parse_x509_certificate(certificate.der())
        .map(|(_, parsed)| name(parsed.subject()))
        .unwrap_or_default()
}

fn name(name: &X509Name<'_>) -> String {
    let attributes: Vec<_> = name.iter_attributes().collect();
    let texts = attributes.iter().rev().map(|attribute| {
        let oid = attribute.attr_type().to_id_string();
        let kind = match oid.as_str() {
            "2.5.4.3" => "CN",
            "2.5.4.5" => "SERIALNUMBER",
            "2.5.4.6" => "C",
            "2.5.4.7" => "L",
            "2.5.4.8" => "ST",
            "2.5.4.9" => "STREET",
            "2.5.4.10" => "O",
            "2.5.4.11" => "OU",
            "2.5.4.17" => "POSTALCODE",
            other => other,
        };
        format!("{kind}={}", escaped(attribute.as_str().unwrap_or_default()))
    });
    texts.collect::<Vec<_>>().join(",")
}

fn escaped(value: &str) -> String {
    let special = |c: char| matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';');
    value
        .chars()
        .flat_map(|c| special(c).then_some('\\').into_iter().chain([c]))
        .collect()
}
