use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::{any, proptest};
use serde_json::json;

use super::*;
use crate::key::PublicKey;
use crate::lifetime::from_unix;

const NOW: i64 = 1_700_000_000;

/// A key that signs with every algorithm that it fits.
enum Key {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// P-256, P-384, P-521 and RSA; RSA keys are slow to make.
static KEYS: LazyLock<[Key; 4]> = LazyLock::new(|| {
    let ec = |algorithm| Key::Ec(EcdsaKeyPair::generate(algorithm).unwrap());
    [
        ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
        ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        ec(&signature::ECDSA_P521_SHA512_FIXED_SIGNING),
        Key::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
    ]
});

impl Key {
    fn public(&self) -> PublicKey {
        let spki: PublicKeyX509Der<'_> = match self {
            Self::Ec(pair) => pair.public_key().as_der().unwrap(),
            Self::Rsa(pair) => pair.public_key().as_der().unwrap(),
        };
        PublicKey::from_spki(spki.as_ref())
    }

    fn sign(&self, algorithm: Algorithm, message: &str) -> Vec<u8> {
        let rng = SystemRandom::new();
        let padding: &dyn signature::RsaEncoding = match algorithm {
            Algorithm::Rs384 => &signature::RSA_PKCS1_SHA384,
            Algorithm::Rs512 => &signature::RSA_PKCS1_SHA512,
            Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
            Algorithm::Ps384 => &signature::RSA_PSS_SHA384,
            Algorithm::Ps512 => &signature::RSA_PSS_SHA512,
            _ => &signature::RSA_PKCS1_SHA256,
        };
        match self {
            Self::Ec(pair) => pair.sign(&rng, message.as_bytes()).unwrap().as_ref().into(),
            Self::Rsa(pair) => {
                let mut out = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &rng, message.as_bytes(), &mut out)
                    .unwrap();
                out
            }
        }
    }
}

fn key_of(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::Es256 => 0,
        Algorithm::Es384 => 1,
        Algorithm::Es512 => 2,
        _ => 3,
    }
}

fn td() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

/// The four keys as `k0` to `k3`.
fn bundle() -> Bundle {
    let mut bundle = Bundle::empty(td());
    let authority = |(at, key): (usize, &Key)| JwtAuthority {
        key_id: format!("k{at}"),
        public_key: key.public(),
        expires_at: 0,
        tainted: false,
    };
    bundle.jwt_authorities = KEYS.iter().enumerate().map(authority).collect();
    bundle
}

fn claims() -> Value {
    json!({"sub": "spiffe://example.org/web", "aud": ["me"], "exp": NOW + 300, "iat": NOW})
}

fn part(json: &str) -> String {
    URL_SAFE_NO_PAD.encode(json)
}

/// Signs any texts with the first key.
fn signed(header: &str, claims: &str) -> String {
    let input = format!("{}.{}", part(header), part(claims));
    let signature = KEYS[0].sign(Algorithm::Es256, &input);
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn with_header(header: &Value) -> String {
    signed(&header.to_string(), &claims().to_string())
}

fn with_claims(claims: &Value) -> String {
    let header = json!({"alg": "ES256", "kid": "k0", "typ": "JWT"});
    signed(&header.to_string(), &claims.to_string())
}

/// The usual claims with one more or another one; `null` takes it out.
fn with_claim(name: &str, value: Value) -> String {
    let mut claims = claims();
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    } else {
        claims[name] = value;
    }
    with_claims(&claims)
}

fn verify_in(token: &str, bundle: &Bundle) -> Result<Verified, JwtError> {
    JwtSvid::verify(token, "me", |_| Some(bundle), from_unix(NOW))
}

fn verify(token: &str) -> Result<Verified, JwtError> {
    verify_in(token, &bundle())
}

fn refused(token: &str) -> JwtError {
    verify(token).unwrap_err()
}

/// Proves: JWT-11.
#[test]
fn all_nine_algorithms_verify_with_a_key_that_fits_and_with_no_other() {
    for algorithm in Algorithm::ALL {
        for (at, key) in KEYS.iter().enumerate() {
            let header = json!({"alg": algorithm.name(), "kid": format!("k{at}"), "typ": "JWT"});
            let input = format!(
                "{}.{}",
                part(&header.to_string()),
                part(&claims().to_string())
            );
            let signature = URL_SAFE_NO_PAD.encode(key.sign(algorithm, &input));
            let verified = verify(&format!("{input}.{signature}"));
            if at == key_of(algorithm) {
                let verified = verified.unwrap();
                assert_eq!(verified.svid.key_id(), format!("k{at}"), "{algorithm:?}");
            } else {
                assert_eq!(verified, Err(JwtError::KeyMismatch(algorithm)));
            }
        }
    }
}

/// Proves: JWT-21, JWT-28, JWT-39.
#[test]
fn what_was_signed_comes_back_and_other_claims_do_not_disturb() {
    let token = with_claim("https://example.org/roles", json!(["a", {"b": 1.5}]));
    for _ in 0..2 {
        let Verified { svid, claims } = verify(&token).unwrap();
        assert_eq!(svid.id().as_str(), "spiffe://example.org/web");
        assert_eq!(svid.audience(), ["me"]);
        assert_eq!((svid.issued_at(), svid.expires_at()), (NOW, NOW + 300));
        assert_eq!(svid.token(), token);
        assert_eq!(
            claims["https://example.org/roles"],
            json!(["a", {"b": 1.5}])
        );
        assert_eq!(JwtSvid::parse(&token).unwrap(), svid);
    }
    for audience in [json!("me"), json!(["other", "me"]), json!(["", "me"])] {
        assert!(verify(&with_claim("aud", audience)).is_ok());
    }
    assert!(verify(&with_claim("jti", json!("again"))).is_ok());
}

/// Proves: JWT-08, JWT-09.
#[test]
fn any_other_algorithm_is_refused_before_anything_else_is_looked_at() {
    for alg in [
        json!("none"),
        json!("None"),
        json!("HS256"),
        json!("HS384"),
        json!("HS512"),
        json!("EdDSA"),
        json!("ES256K"),
        json!("es256"),
        json!("ES256 "),
        json!(""),
        json!(256),
        json!(["ES256"]),
        Value::Null,
    ] {
        let header = json!({"alg": alg, "kid": "nobody", "typ": "x", "crit": ["x"]});
        let token = signed(&header.to_string(), "no claims");
        assert!(matches!(refused(&token), JwtError::Algorithm(_)), "{alg}");
    }
    let none = json!({"kid": "k0"});
    assert!(matches!(
        refused(&with_header(&none)),
        JwtError::Algorithm(_)
    ));
    // Also with the public key as the secret: there is no HMAC here at all.
    let text = refused(&with_header(&json!({"alg": "x".repeat(5_000)}))).to_string();
    assert!(text.len() < 150, "{text}");
}

/// Proves: JWT-05, JWT-06, JWT-10, JWT-13, JWT-15.
#[test]
fn a_header_says_algorithm_key_and_type_and_nothing_else() {
    for typ in [json!("JWT"), json!("JOSE")] {
        assert!(
            verify(&with_header(
                &json!({"alg": "ES256", "kid": "k0", "typ": typ})
            ))
            .is_ok()
        );
    }
    assert!(verify(&with_header(&json!({"alg": "ES256", "kid": "k0"}))).is_ok());
    let unnamed = verify(&with_header(&json!({"alg": "ES256"}))).unwrap();
    assert_eq!(unnamed.svid.key_id(), "k0");
    for typ in [
        json!("wit+jwt"),
        json!("at+jwt"),
        json!("jwt+x"),
        json!("jwt"),
        json!(1),
        Value::Null,
    ] {
        let header = json!({"alg": "ES256", "kid": "k0", "typ": typ});
        assert_eq!(refused(&with_header(&header)), JwtError::Type, "{typ}");
    }
    for (name, value) in [
        ("crit", json!(["x"])),
        ("crit", json!(["alg"])),
        ("crit", json!([])),
        ("b64", json!(false)),
        ("jwk", json!({"kty": "EC"})),
        ("jku", json!("https://evil.example.org")),
        ("x5c", json!([])),
        ("x5u", json!("https://evil.example.org")),
        ("cty", json!("JWT")),
    ] {
        let mut header = json!({"alg": "ES256", "kid": "k0", "typ": "JWT"});
        header[name] = value;
        assert_eq!(
            refused(&with_header(&header)),
            JwtError::Header(name.to_owned())
        );
    }
    for kid in [
        json!(""),
        json!(7),
        Value::Null,
        json!("k".repeat(MAX_KEY_ID_BYTES + 1)),
    ] {
        let header = json!({"alg": "ES256", "kid": kid});
        assert_eq!(refused(&with_header(&header)), JwtError::KeyId);
    }
    // ES384 with the P-256 key, RS256 with it as well.
    for alg in [Algorithm::Es384, Algorithm::Rs256, Algorithm::Ps512] {
        let header = json!({"alg": alg.name(), "kid": "k0"});
        assert_eq!(refused(&with_header(&header)), JwtError::KeyMismatch(alg));
    }
}

/// Proves: JWT-17, JWT-19, JWT-20, JWT-24, JWT-40.
#[test]
fn a_claim_that_is_missing_or_of_another_form_is_refused() {
    for sub in [
        Value::Null,
        json!(""),
        json!(7),
        json!(["spiffe://example.org/web"]),
    ] {
        assert_eq!(refused(&with_claim("sub", sub)), JwtError::NoSubject);
    }
    for sub in [
        "foo",
        "spiffe://",
        "spiffe://Example.org/a",
        "spiffe://example.org/",
        "spiffe://example.org//a",
        "spiffe://example.org/a/",
        "spiffe://example.org/%61",
        "https://example.org/a",
        "spiffe://example.org/../a",
        "spiffe://example.org/a?b",
        "spiffe://example.org:80/a",
        "spiffe://user@example.org/a",
    ] {
        assert!(
            matches!(
                refused(&with_claim("sub", json!(sub))),
                JwtError::Subject(_)
            ),
            "{sub}"
        );
    }
    for aud in [
        Value::Null,
        json!([]),
        json!(""),
        json!([""]),
        json!(7),
        json!({"me": 1}),
        json!(["me", 7]),
    ] {
        assert_eq!(refused(&with_claim("aud", aud)), JwtError::NoAudience);
    }
    for aud in ["ME", "m", "mee", "me ", "other"] {
        let refused = refused(&with_claim("aud", json!([aud])));
        assert!(matches!(refused, JwtError::OtherAudience { .. }), "{aud}");
    }
    let many = vec!["me"; MAX_AUDIENCES + 1];
    assert_eq!(
        refused(&with_claim("aud", json!(many))),
        JwtError::AudienceSize
    );
    for name in ["exp", "nbf", "iat"] {
        for date in [
            json!("1700000300"),
            json!(-1),
            json!(1e300),
            json!([NOW]),
            json!(true),
        ] {
            assert_eq!(refused(&with_claim(name, date)), JwtError::Date(name));
        }
    }
    assert_eq!(
        refused(&with_claim("exp", Value::Null)),
        JwtError::Date("exp")
    );
    let anyone = JwtSvid::verify(
        &with_claims(&claims()),
        "",
        |_| Some(Box::new(bundle())),
        from_unix(NOW),
    );
    assert_eq!(anyone, Err(JwtError::AudienceUnsaid));
}

/// Proves: JWT-25, JWT-26.
#[test]
fn a_token_counts_from_its_start_to_its_end_and_a_minute_more() {
    let exp = |exp| verify(&with_claim("exp", exp)).map(drop);
    let nbf = |nbf| verify(&with_claim("nbf", nbf)).map(drop);
    let iat = |iat| verify(&with_claim("iat", iat)).map(drop);
    assert_eq!(exp(json!(NOW - 300)), Err(JwtError::Expired));
    assert_eq!(exp(json!(NOW - 60)), Err(JwtError::Expired));
    assert_eq!(exp(json!(NOW - 59)), Ok(()));
    assert_eq!(exp(json!(0)), Err(JwtError::Expired));
    assert_eq!(exp(json!(1_700_000_300.75)), Ok(()));
    assert_eq!(exp(json!(MAX_DATE)), Ok(()));
    assert_eq!(nbf(json!(NOW + 300)), Err(JwtError::NotYetValid));
    assert_eq!(nbf(json!(NOW + 60)), Ok(()));
    assert_eq!(nbf(json!(NOW)), Ok(()));
    assert_eq!(iat(json!(NOW + 61)), Err(JwtError::IssuedInFuture));
    assert_eq!(iat(Value::Null), Ok(()));
}

/// Proves: JWT-02, JWT-03, JWT-29, JWT-31.
#[test]
fn anything_but_three_parts_of_base64url_with_a_good_signature_is_refused() {
    let token = with_claims(&claims());
    let (input, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = input.split_once('.').unwrap();
    for bad in [
        String::new(),
        header.to_owned(),
        input.to_owned(),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}.a.b"),
        format!("{token}="),
        format!(" {token}"),
        format!("{token}\n"),
        format!("{header}.{payload}.{signature}+/"),
        format!("{header}. {payload}.{signature}"),
        format!("{header}é.{payload}.{signature}"),
        json!({"protected": header, "payload": payload, "signature": signature}).to_string(),
        json!({"payload": payload, "signatures": [{"protected": header, "signature": signature}]})
            .to_string(),
    ] {
        assert!(matches!(refused(&bad), JwtError::Form(_)), "{bad}");
    }
    for (at, _) in token.char_indices() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] ^= 1;
        let changed = String::from_utf8(bytes).unwrap();
        assert!(verify(&changed).is_err(), "byte {at}");
    }
    assert_eq!(refused(&format!("{input}.")), JwtError::Signature);
    let short = &signature[..signature.len() - 2];
    assert_eq!(refused(&format!("{input}.{short}")), JwtError::Signature);
    // The same signature as ASN.1, as X.509 has it.
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mut der = vec![0x30, 70];
    for half in raw.chunks(32) {
        der.extend([2, 33, 0]);
        der.extend(half);
    }
    let der = format!("{input}.{}", URL_SAFE_NO_PAD.encode(der));
    assert_eq!(refused(&der), JwtError::Signature);
    let huge = "a".repeat(MAX_TOKEN_BYTES + 1);
    assert_eq!(refused(&huge), JwtError::TooLarge(huge.len()));
}

/// Proves: JWT-31.
#[test]
fn a_member_that_stands_there_twice_is_refused_at_any_depth() {
    let good = claims().to_string();
    let header = r#"{"alg":"ES256","kid":"k0"}"#;
    for (header, claims) in [
        (r#"{"alg":"ES256","alg":"ES256","kid":"k0"}"#, good.clone()),
        (r#"{"alg":"none","alg":"ES256","kid":"k0"}"#, good.clone()),
        (r#"{"alg":"ES256","\u0061lg":"ES256"}"#, good.clone()),
        (
            header,
            good.replacen('{', r#"{"sub":"spiffe://example.org/db","#, 1),
        ),
        (header, good.replacen('{', r#"{"x":[{"y":1,"y":2}],"#, 1)),
        (header, "[]".to_owned()),
        (header, "\"text\"".to_owned()),
        (header, String::new()),
        (header, good.clone() + "x"),
        (
            header,
            format!("{{\"x\":{}{}}}", "[".repeat(5_000), "]".repeat(5_000)),
        ),
        ("7", good.clone()),
    ] {
        let refused = refused(&signed(header, &claims));
        assert!(
            matches!(refused, JwtError::Json { .. }),
            "{header} {refused:?}"
        );
    }
    let mut input = part(header);
    input.push('.');
    input.push_str(&URL_SAFE_NO_PAD.encode(b"{\"sub\":\"\xff\"}"));
    assert!(matches!(
        refused(&format!("{input}.")),
        JwtError::Json { .. }
    ));
}

/// Proves: JWT-37, JWT-38, ID-32, WAPI-65.
#[test]
fn only_the_jwt_keys_of_the_subjects_own_trust_domain_count() {
    let token = with_claims(&claims());
    let none = JwtSvid::verify(&token, "me", |_| None::<&Bundle>, from_unix(NOW));
    assert_eq!(none, Err(JwtError::NoBundle(td())));
    // A caller that mixes bundles up gets nothing.
    let mut other = bundle();
    other.trust_domain = TrustDomain::parse("other.org").unwrap();
    assert_eq!(verify_in(&token, &other), Err(JwtError::NoBundle(td())));
    assert_eq!(
        verify_in(&token, &Bundle::empty(td())),
        Err(JwtError::NoKeys(td()))
    );
    // The keys of the same bundle, but as WIT and X.509 keys.
    let document = String::from_utf8(bundle().to_jwks().unwrap()).unwrap();
    for usage in ["wit-svid", "x509-svid", "JWT-SVID"] {
        let document = document.replace("jwt-svid", usage);
        let read = Bundle::from_jwks(td(), document.as_bytes()).unwrap();
        assert_eq!(verify_in(&token, &read), Err(JwtError::NoKeys(td())));
    }
    let read = Bundle::from_jwks(td(), document.as_bytes()).unwrap();
    assert!(verify_in(&token, &read).is_ok());
}

#[test]
fn the_key_is_found_by_its_id_and_must_not_be_over() {
    let token = with_claims(&claims());
    let mut bundle = bundle();
    bundle.jwt_authorities[0].tainted = true;
    assert!(verify_in(&token, &bundle).is_ok(), "tainted is not revoked");
    bundle.jwt_authorities[0].expires_at = NOW - 59;
    assert!(verify_in(&token, &bundle).is_ok());
    bundle.jwt_authorities[0].expires_at = NOW - 60;
    let unknown = Err(JwtError::UnknownKey("k0".to_owned()));
    assert_eq!(verify_in(&token, &bundle), unknown);
    bundle.jwt_authorities.remove(0);
    assert_eq!(verify_in(&token, &bundle), unknown);
    let unnamed = with_header(&json!({"alg": "ES256"}));
    let mismatch = Err(JwtError::KeyMismatch(Algorithm::Es256));
    assert_eq!(verify_in(&unnamed, &bundle), mismatch);
    // Another key under the same name.
    let pair = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let other = Key::Ec(pair).public();
    bundle.jwt_authorities.push(JwtAuthority {
        key_id: "k0".to_owned(),
        public_key: other,
        expires_at: 0,
        tainted: false,
    });
    assert_eq!(verify_in(&token, &bundle), Err(JwtError::Signature));
}

/// Proves: JWT-41.
#[test]
fn a_token_is_not_printed() {
    let token = with_claim("email", json!("a@example.org"));
    let verified = verify(&token).unwrap();
    let (input, signature) = token.rsplit_once('.').unwrap();
    let printed = format!("{verified:?} {:?}", JwtSvid::parse(&token));
    assert!(!printed.contains(signature) && !printed.contains(input));
    assert!(!printed.contains("a@example.org"), "{printed}");
    assert!(printed.contains("spiffe://example.org/web"));
}

#[test]
fn an_agent_takes_a_token_only_with_a_key_id() {
    let unnamed = with_header(&json!({"alg": "ES256"}));
    assert_eq!(JwtSvid::parse(&unnamed), Err(JwtError::KeyId));
    let unsigned = with_claims(&claims());
    let unsigned = format!("{}.", unsigned.rsplit_once('.').unwrap().0);
    assert!(
        JwtSvid::parse(&unsigned).is_ok(),
        "the signature is not looked at"
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>()) {
        let _ = JwtSvid::parse(&text);
        let _ = JwtSvid::parse(&format!("{}.{}.{}", part(&text), part(&text), part(&text)));
        assert!(verify(&signed(r#"{"alg":"ES256"}"#, &text)).is_err());
    }

    #[test]
    fn what_verifies_is_what_was_signed(
        audience in proptest::collection::vec("[ -~é]{0,40}", 1..8),
        path in "(/[a-zA-Z0-9._-]{1,20}){1,4}",
        left in 1i64..100_000,
    ) {
        let Ok(id) = td().with_path(&path) else { return Ok(()) };
        let claims = json!({"sub": id.as_str(), "aud": audience, "exp": NOW + left});
        let verified = JwtSvid::verify(&with_claims(&claims), &audience[0], |_| Some(Box::new(bundle())), from_unix(NOW));
        if audience[0].is_empty() {
            assert_eq!(verified, Err(JwtError::AudienceUnsaid));
        } else {
            let verified = verified.unwrap();
            assert_eq!(verified.svid.id(), &id);
            assert_eq!(verified.svid.audience(), audience);
            assert_eq!(Value::Object(verified.claims), claims);
        }
    }
}
