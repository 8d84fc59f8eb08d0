//! A throw-away CA for the tests of the converters.

use std::sync::LazyLock;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use vane_identity::lifetime::{from_unix, to_unix};

/// notAfter of everything made here, Unix seconds.
pub(crate) const NOT_AFTER: i64 = 2_000_000_000;

struct Ca {
    der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

static CA: LazyLock<Ca> = LazyLock::new(|| {
    let key = KeyPair::generate().unwrap();
    let mut params = params("spiffe://example.org");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let der = params.self_signed(&key).unwrap().der().to_vec();
    Ca {
        der,
        issuer: Issuer::new(params, key),
    }
});

/// The CA certificate, DER.
pub(crate) fn root() -> &'static [u8] {
    &CA.der
}

/// A leaf with `id`, DER.
pub(crate) fn leaf(id: &str) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let signed = params(id).signed_by(&key, &CA.issuer).unwrap();
    signed.der().to_vec()
}

fn params(id: &str) -> CertificateParams {
    assert_eq!(to_unix(from_unix(NOT_AFTER)), NOT_AFTER);
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.not_after = from_unix(NOT_AFTER).into();
    params
}
