//! Certificates as PEM (RFC 7468), read and written.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{Error, PemObject};
use vane_identity::x509_svid::Certificate;

/// A certificate as PEM.
#[must_use]
pub fn encode(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text + "-----END CERTIFICATE-----\n"
}

/// The certificates of a PEM text; other sections are passed over.
///
/// # Errors
/// A section that is broken.
pub fn certificates(text: &str) -> Result<Vec<Certificate>, Error> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .map(|der| Ok(Certificate::from_der(&der?)))
        .collect()
}
