use std::sync::LazyLock;

use serde_json::json;

use super::*;
use crate::key::{KeyType, PrivateKey};
use crate::x509_svid::{Role, X509Svid};

static CA: LazyLock<Certificate> = LazyLock::new(|| ca("one"));
static OTHER_CA: LazyLock<Certificate> = LazyLock::new(|| ca("two"));

fn ca(name: &str) -> Certificate {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().unwrap();
    Certificate::from_der(params.self_signed(&key).unwrap().der())
}

fn td() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn jwt(kind: KeyType, key_id: &str) -> JwtAuthority {
    let (_, public_key) = PrivateKey::generate(kind).unwrap();
    JwtAuthority {
        key_id: key_id.to_owned(),
        public_key,
        expires_at: 0,
        tainted: false,
    }
}

fn read(document: &Value) -> Bundle {
    Bundle::from_jwks(td(), document.to_string().as_bytes()).unwrap()
}

fn x509_key() -> Value {
    json!({"kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(CA.der())]})
}

/// Proves: X509-43, X509-44, X509-45, X509-46, X509-47, X509-49, JWT-34, JWT-35, JWT-36,
/// TDB-06, TDB-08, TDB-12, TDB-13, TDB-15, TDB-22, TDB-23, TDB-24.
#[test]
fn a_written_bundle_has_one_complete_key_an_authority_and_nothing_else() {
    let mut bundle = Bundle::empty(td());
    bundle.x509_authorities = vec![
        X509Authority::new(CA.clone()),
        X509Authority::new(OTHER_CA.clone()),
    ];
    bundle.jwt_authorities = vec![jwt(KeyType::EcP384, "k1"), jwt(KeyType::Rsa2048, "k2")];
    bundle.sequence_number = 7;
    bundle.refresh_hint = 300;
    let document: Value = serde_json::from_slice(&bundle.to_jwks().unwrap()).unwrap();
    assert_eq!(document["spiffe_sequence"], 7);
    assert_eq!(document["spiffe_refresh_hint"], 300);
    let keys = document["keys"].as_array().unwrap();
    let members = |key: &Value| {
        let mut names: Vec<String> = key.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(keys.len(), 4);
    assert_eq!(members(&keys[0]), "crv kty use x x5c y");
    assert_eq!(keys[0]["x5c"], json!([STANDARD.encode(CA.der())]));
    assert_eq!(members(&keys[2]), "crv kid kty use x y");
    assert_eq!(members(&keys[3]), "e kid kty n use");
    assert_eq!(
        (&keys[2]["crv"], &keys[2]["kid"]),
        (&json!("P-384"), &json!("k1"))
    );
}

/// Proves: TDB-01, TDB-11.
#[test]
fn a_bundle_is_read_back_as_it_was_written() {
    let mut bundle = Bundle::empty(td());
    bundle.x509_authorities = vec![
        X509Authority::new(CA.clone()),
        X509Authority::new(OTHER_CA.clone()),
    ];
    bundle.jwt_authorities = vec![
        jwt(KeyType::EcP256, "k0"),
        jwt(KeyType::EcP384, "k1"),
        jwt(KeyType::Rsa2048, "k2"),
    ];
    for sequence in [9_007_199_254_740_993, (1 << 63) - 1] {
        bundle.sequence_number = sequence;
        let read = Bundle::from_jwks(td(), &bundle.to_jwks().unwrap()).unwrap();
        assert_eq!(read, bundle);
    }
}

#[test]
fn another_library_reads_the_written_keys() {
    let key = jwt(KeyType::EcP256, "k0");
    let jwk = serde_json::to_value(jwt_jwk(&key, None).unwrap()).unwrap();
    let decode = |member: &str| {
        URL_SAFE_NO_PAD
            .decode(jwk[member].as_str().unwrap())
            .unwrap()
    };
    let spki = spki::from_ec_point(spki::Curve::P256, &decode("x"), &decode("y")).unwrap();
    assert_eq!(spki, key.public_key.spki());
}

/// Proves: WAPI-54, WAPI-55.
#[test]
fn the_workload_api_form_has_jwt_keys_only_and_no_use() {
    let mut bundle = Bundle::empty(td());
    assert_eq!(bundle.to_jwt_jwks().unwrap(), br#"{"keys":[]}"#);
    bundle.x509_authorities = vec![X509Authority::new(CA.clone())];
    bundle.jwt_authorities = vec![jwt(KeyType::EcP256, "k0")];
    bundle.sequence_number = 3;
    let document: Value = serde_json::from_slice(&bundle.to_jwt_jwks().unwrap()).unwrap();
    assert_eq!(document["keys"].as_array().unwrap().len(), 1);
    assert_eq!(document["keys"][0]["kid"], "k0");
    assert!(document["keys"][0].get("use").is_none());
    assert!(document.get("spiffe_sequence").is_none());
}

/// Proves: TDB-18, TDB-19, TDB-20, TDB-21, X509-50, JWT-37.
#[test]
fn an_entry_that_is_unknown_or_broken_spoils_only_itself() {
    let bad = [
        json!({"kty": "XYZ", "use": "x509-svid", "x5c": [STANDARD.encode(CA.der())]}),
        json!({"kty": "EC", "use": "foo-svid"}),
        json!({"kty": "EC", "x5c": [STANDARD.encode(OTHER_CA.der())]}),
        json!({"kty": "EC", "use": "X509-SVID", "x5c": [STANDARD.encode(OTHER_CA.der())]}),
        json!({"kty": "EC", "use": "x509-svid"}),
        json!({"kty": "EC", "use": "x509-svid", "x5c": []}),
        json!({"kty": "EC", "use": "x509-svid", "x5c": ["AAAA"]}),
        json!({"kty": "EC", "use": "jwt-svid", "crv": "P-256", "x": "AA", "y": "AA", "kid": "k"}),
        json!({"kty": "RSA", "use": "jwt-svid", "n": "AQAB", "e": "AQAB", "kid": "small"}),
        json!({"kty": "EC", "use": "jwt-svid"}),
        json!(17),
        json!(null),
    ];
    for one in bad {
        let bundle = read(&json!({"keys": [one, x509_key()]}));
        assert_eq!(
            bundle.x509_authorities,
            [X509Authority::new(CA.clone())],
            "{one}"
        );
        assert!(bundle.jwt_authorities.is_empty(), "{one}");
    }
}

/// Proves: X509-51.
#[test]
fn of_several_x5c_values_only_the_first_is_trusted() {
    let mut key = x509_key();
    key["x5c"] = json!([STANDARD.encode(CA.der()), STANDARD.encode(OTHER_CA.der())]);
    let bundle = read(&json!({"keys": [key]}));
    assert_eq!(bundle.x509_authorities, [X509Authority::new(CA.clone())]);
}

/// Proves: TDB-07, TDB-15.
#[test]
fn keys_are_required_and_further_members_are_ignored() {
    for bad in [
        "{}",
        r#"{"keys":null}"#,
        r#"{"keys":{}}"#,
        "[]",
        "",
        "nonsense",
    ] {
        assert!(Bundle::from_jwks(td(), bad.as_bytes()).is_err(), "{bad}");
    }
    let bundle = read(&json!({"keys": [x509_key()], "foo": 1}));
    assert_eq!(bundle.x509_authorities.len(), 1);
    assert_eq!((bundle.sequence_number, bundle.refresh_hint), (0, 0));
}

/// Proves: TDB-11, TDB-13.
#[test]
fn numbers_out_of_range_or_of_another_type_are_a_clean_error() {
    for member in [
        r#""spiffe_sequence":1e40"#,
        r#""spiffe_sequence":-1"#,
        r#""spiffe_sequence":"7""#,
        r#""spiffe_sequence":18446744073709551616"#,
        r#""spiffe_refresh_hint":1.5"#,
    ] {
        let document = format!(r#"{{"keys":[],{member}}}"#);
        assert!(
            Bundle::from_jwks(td(), document.as_bytes()).is_err(),
            "{member}"
        );
    }
}

/// Proves: TDB-16, TDB-17, X509-52.
#[test]
fn a_bundle_without_usable_keys_trusts_nobody() {
    for document in [
        json!({"keys": []}),
        json!({"keys": [{"kty": "EC", "use": "foo"}]}),
    ] {
        let anchors = read(&document).anchors();
        assert!(anchors.is_empty());
        let leaf = crate::x509_svid::tests::Leaf::new("spiffe://example.org/web").sign();
        let svid = X509Svid::parse(leaf.chain).unwrap();
        let now = crate::x509_svid::tests::now();
        assert!(anchors.verify(svid, Role::Client, now).is_err());
    }
}
