use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

use super::*;
use crate::subject::Attribute;

fn request(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    change(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

fn key(algorithm: &'static rcgen::SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

#[test]
fn supported_keys_are_read_with_the_requested_names() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let key = key(algorithm);
        let der = request(&key, |params| {
            params
                .distinguished_name
                .push(DnType::OrganizationName, "ACME");
            params.subject_alt_names = vec![dns("a.example.org"), uri("spiffe://example.org/a")];
        });
        let csr = verify(&der).unwrap();
        assert_eq!(
            csr.public_key.spki(),
            rcgen::PublicKeyData::subject_public_key_info(&key)
        );
        assert_eq!(csr.uris, ["spiffe://example.org/a"]);
        assert_eq!(csr.dns_names, ["a.example.org"]);
        let organization = Subject::default().with(Attribute::Organization, "ACME");
        assert_eq!(csr.subject, organization);
        assert_eq!(parse_unverified(&der).unwrap(), csr);
    }
}

#[test]
fn other_kinds_of_keys_are_refused_by_name() {
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P521_SHA512] {
        let der = request(&key(algorithm), |_| {});
        let text = verify(&der).unwrap_err().to_string();
        assert_eq!(
            text,
            "malformed CSR: unsupported public key: EC P-256, EC P-384 and RSA are supported"
        );
    }
}

/// The kind of key is that of the SubjectPublicKeyInfo, whatever the signature says
/// (rcgen#448).
#[test]
fn the_kind_of_key_comes_from_the_key_and_not_from_the_signature() {
    let der = request(&key(&rcgen::PKCS_ECDSA_P256_SHA256), |_| {});
    let spki = verify(&der).unwrap().public_key;
    assert_eq!(spki.spki().len(), 91);
    let sha384 = replace(
        &der,
        b"\x2a\x86\x48\xce\x3d\x04\x03\x02",
        b"\x2a\x86\x48\xce\x3d\x04\x03\x03",
    );
    assert_eq!(verify(&sha384), Err(CsrError::Signature));
    assert_eq!(parse_unverified(&sha384).unwrap().public_key, spki);
}

fn replace(der: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = der
        .windows(from.len())
        .rposition(|window| window == from)
        .unwrap();
    let mut out = der.to_vec();
    out[at..at + to.len()].copy_from_slice(to);
    out
}

#[test]
fn a_signature_of_another_key_is_refused_only_where_it_is_looked_at() {
    let mut der = request(&key(&rcgen::PKCS_ECDSA_P256_SHA256), |_| {});
    let last = der.len() - 1;
    der[last] ^= 1;
    let error = verify(&der).unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid CSR signature: verification failed"
    );
    assert!(error.is_signature());
    assert!(parse_unverified(&der).is_ok());
}

#[test]
fn a_point_off_the_curve_is_refused_even_unverified() {
    let key = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let mut der = request(&key, |_| {});
    let at = der
        .windows(27)
        .position(|window| window == P256_PREFIX)
        .unwrap()
        + 27;
    der[at..at + 64].fill(0x11);
    let text = parse_unverified(&der).unwrap_err().to_string();
    assert!(
        text.ends_with("no point on its curve or no RSA key"),
        "{text}"
    );
}

#[test]
fn what_is_no_csr_is_refused_before_it_costs_anything() {
    let der = request(&key(&rcgen::PKCS_ECDSA_P256_SHA256), |_| {});
    let mut longer = der.clone();
    longer.extend([0, 0, 0]);
    let cases: [(&[u8], &str); 4] = [
        (b"", "malformed CSR: not a DER certification request"),
        (
            b"\x30\x03\x02\x01\x01",
            "malformed CSR: not a DER certification request",
        ),
        (&longer, "malformed CSR: 3 trailing bytes"),
        (
            &[0x30; 65537],
            "malformed CSR: 65537 bytes, 65536 are allowed",
        ),
    ];
    for (bytes, text) in cases {
        assert_eq!(verify(bytes).unwrap_err().to_string(), text);
        assert_eq!(parse_unverified(bytes).unwrap_err().to_string(), text);
    }
}

#[test]
fn every_truncation_is_an_error_and_never_a_panic() {
    let der = request(&key(&rcgen::PKCS_ECDSA_P256_SHA256), |params| {
        params.subject_alt_names = vec![uri("spiffe://example.org/a")];
    });
    for len in 0..der.len() {
        assert!(verify(&der[..len]).is_err());
    }
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 0xff;
        let _ = parse_unverified(&changed);
        assert!(verify(&changed).is_err());
    }
}

#[test]
fn too_many_names_are_refused() {
    let der = request(&key(&rcgen::PKCS_ECDSA_P256_SHA256), |params| {
        params.subject_alt_names = (0..129).map(|n| dns(&format!("h{n}.org"))).collect();
    });
    assert_eq!(
        verify(&der).unwrap_err().to_string(),
        "malformed CSR: 129 DNS SANs, 128 are allowed"
    );
}
