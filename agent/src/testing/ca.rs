//! The CA of the server for tests.

use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use vane_identity::key::key_identifier;
use vane_identity::x509_svid::Certificate;

use super::TTL;

pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(super) certificate: Certificate,
}

impl Ca {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into().unwrap())];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key_id = key_identifier(key.public_key_raw());
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.to_vec());
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: Certificate::from_der(certificate.der()),
            issuer: Issuer::new(params, key),
        }
    }

    /// A leaf for what `csr` asks.
    pub(super) fn sign(&self, csr: &[u8], now: SystemTime) -> Vec<u8> {
        let csr = CertificateSigningRequestDer::from(csr);
        let mut request = CertificateSigningRequestParams::from_der(&csr).unwrap();
        request.params.not_before = now.into();
        request.params.not_after = (now + TTL).into();
        request.params.is_ca = IsCa::ExplicitNoCa;
        request.params.use_authority_key_identifier_extension = true;
        request.signed_by(&self.issuer).unwrap().der().to_vec()
    }
}
