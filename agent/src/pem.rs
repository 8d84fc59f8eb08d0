//! Certificates of PEM texts (RFC 7468).

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{Error, PemObject};
use vane_identity::x509_svid::Certificate;

/// The certificates of a PEM text; other sections are passed over.
///
/// # Errors
/// A section that is broken.
pub fn certificates(text: &str) -> Result<Vec<Certificate>, Error> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .map(|der| Ok(Certificate::from_der(&der?)))
        .collect()
}
