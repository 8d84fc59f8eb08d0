use proptest::prelude::*;
use vane_identity::key::{KeyType, PrivateKey};

use super::*;
use crate::convert::test_ca;

fn jwt_key() -> types::JwtKey {
    let (_, public) = PrivateKey::generate(KeyType::EcP256).unwrap();
    types::JwtKey {
        public_key: public.spki().to_vec().into(),
        key_id: "kid-1".into(),
        expires_at: 99,
        tainted: true,
    }
}

fn full() -> types::Bundle {
    types::Bundle {
        trust_domain: "example.org".into(),
        x509_authorities: vec![types::X509Certificate {
            asn1: test_ca::root().to_vec().into(),
            tainted: true,
        }],
        jwt_authorities: vec![jwt_key()],
        refresh_hint: 300,
        sequence_number: u64::MAX,
        wit_authorities: Vec::new(),
    }
}

fn refused(change: impl FnOnce(&mut types::Bundle)) -> String {
    let mut wire = full();
    change(&mut wire);
    Bundle::try_from(&wire).unwrap_err().to_string()
}

#[test]
fn a_bundle_comes_back_with_its_tainted_marks() {
    let wire = full();
    let bundle = Bundle::try_from(&wire).unwrap();
    assert_eq!(types::Bundle::from(&bundle), wire);
}

#[test]
fn a_trust_domain_may_be_written_as_its_id() {
    let mut wire = full();
    wire.trust_domain = "spiffe://example.org".into();
    let bundle = Bundle::try_from(&wire).unwrap();
    assert_eq!(bundle.trust_domain.as_str(), "example.org");
}

#[test]
fn a_bundle_is_read_as_that_of_one_trust_domain_only() {
    let [own, other] = ["example.org", "other.org"].map(|name| TrustDomain::parse(name).unwrap());
    assert!(from_wire(&full(), &own).is_ok());
    let refused = from_wire(&full(), &other).unwrap_err();
    assert_eq!(
        refused.to_string(),
        r#"bundle is of trust domain "example.org", not of "other.org""#
    );
}

#[test]
fn each_broken_field_is_named() {
    type Change = fn(&mut types::Bundle);
    let table: [(Change, &str); 10] = [
        (
            |b| b.trust_domain.clear(),
            "invalid trust domain: trust domain is missing",
        ),
        (|b| b.refresh_hint = -1, "refresh hint is negative: -1"),
        (
            |b| b.x509_authorities[0].asn1.clear(),
            "unable to parse X.509 authority: malformed certificate",
        ),
        (
            |b| {
                b.x509_authorities[0].asn1 =
                    [&b.x509_authorities[0].asn1[..], &[0]].concat().into();
            },
            "unable to parse X.509 authority: malformed certificate",
        ),
        (
            |b| b.jwt_authorities[0].public_key = vec![1, 2].into(),
            "unable to parse JWT authority: malformed public key",
        ),
        (
            |b| b.jwt_authorities[0].public_key = vec![0; MAX_PUBLIC_KEY_BYTES + 1].into(),
            "unable to parse JWT authority: public key has 4097 bytes, 4096 are allowed",
        ),
        (
            |b| b.jwt_authorities[0].key_id.clear(),
            "unable to parse JWT authority: missing key ID",
        ),
        (
            |b| b.jwt_authorities[0].key_id = "x".repeat(MAX_KEY_ID_BYTES + 1),
            "unable to parse JWT authority: key ID has 1025 bytes, 1024 are allowed",
        ),
        (
            |b| b.x509_authorities = vec![Default::default(); MAX_AUTHORITIES + 1],
            "too many X.509 authorities: 257, 256 are allowed",
        ),
        (
            |b| b.jwt_authorities = vec![Default::default(); MAX_AUTHORITIES + 1],
            "too many JWT authorities: 257, 256 are allowed",
        ),
    ];
    for (change, text) in table {
        assert_eq!(refused(change), text);
    }
}

#[test]
fn a_mask_keeps_what_it_names_and_always_the_trust_domain() {
    let wire = full();
    assert_eq!(apply_mask(wire.clone(), None), wire);
    let bare = types::Bundle {
        trust_domain: "example.org".into(),
        ..Default::default()
    };
    assert_eq!(apply_mask(wire.clone(), Some(&BundleMask::default())), bare);
    let mask = BundleMask {
        sequence_number: true,
        ..Default::default()
    };
    let one = types::Bundle {
        sequence_number: u64::MAX,
        ..bare
    };
    assert_eq!(apply_mask(wire, Some(&mask)), one);
}

proptest! {
    #[test]
    fn the_numbers_and_marks_of_a_bundle_survive_wire_and_disk(
        trust_domain in "[a-z0-9]{1,10}(\\.[a-z0-9_-]{1,10}){0,3}",
        (refresh_hint, sequence_number) in (0..=i64::MAX, any::<u64>()),
        marks in prop::collection::vec(any::<bool>(), 0..5),
        keys in prop::collection::vec((".{1,20}", any::<i64>(), any::<bool>()), 0..4),
    ) {
        use crate::record::Record as _;
        let key = jwt_key();
        let wire = types::Bundle {
            trust_domain, refresh_hint, sequence_number,
            x509_authorities: marks.into_iter().map(|tainted| types::X509Certificate {
                asn1: test_ca::root().to_vec().into(), tainted,
            }).collect(),
            jwt_authorities: keys.into_iter().map(|(key_id, expires_at, tainted)| types::JwtKey {
                key_id, expires_at, tainted, public_key: key.public_key.clone(),
            }).collect(),
            wit_authorities: Vec::new(),
        };
        let bundle = Bundle::try_from(&wire).unwrap();
        prop_assert_eq!(types::Bundle::from(&bundle), wire);
        prop_assert_eq!(&Bundle::decode(&bundle.encode()).unwrap(), &bundle);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        use prost::Message as _;
        if let Ok(wire) = types::Bundle::decode(bytes.as_slice()) {
            let _ = Bundle::try_from(&wire);
        }
        let authority = types::X509Certificate { asn1: bytes.clone().into(), tainted: false };
        let _ = X509Authority::try_from(&authority);
        let key = types::JwtKey { public_key: bytes.into(), key_id: "k".into(), ..Default::default() };
        let _ = JwtAuthority::try_from(&key);
    }
}
