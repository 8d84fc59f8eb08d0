//! The reader of JWT-SVIDs against serde_json and the base64 of its own output.
//!
//! The input is a header and claims, each behind its length; or, when the first octet is odd,
//! a whole token. What is accepted must say the same to a plain JSON reader: the reader may
//! refuse more than others, never understand something else.

#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use vane_identity::bundle::Bundle;
use vane_identity::id::TrustDomain;
use vane_identity::jwt_svid::{Algorithm, JwtSvid};
use vane_identity::lifetime::from_unix;

fuzz_target!(|input: &[u8]| {
    let [form, rest @ ..] = input else {
        return;
    };
    let token = if form % 2 == 1 {
        match std::str::from_utf8(rest) {
            Ok(token) => token.to_owned(),
            Err(_) => return,
        }
    } else {
        let (header, claims) = rest.split_at(usize::from(form / 2).min(rest.len()));
        let encode = |part| URL_SAFE_NO_PAD.encode(part);
        format!("{}.{}.{}", encode(header), encode(claims), encode(b"signature"))
    };
    if let Ok(svid) = JwtSvid::parse(&token) {
        agrees(&svid, &token);
    }
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let bundle = Box::new(Bundle::empty(trust_domain));
    let verified = JwtSvid::verify(&token, "a", |_| Some(bundle), from_unix(0));
    assert!(verified.is_err(), "no key, no token");
});

/// What the reader says against what anybody reads.
fn agrees(svid: &JwtSvid, token: &str) {
    let parts: Vec<Value> = token
        .split('.')
        .take(2)
        .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap())
        .collect();
    let [header, claims] = parts.as_slice() else {
        panic!("less than two parts");
    };
    assert!(Algorithm::by_name(header["alg"].as_str().unwrap()).is_some());
    assert_eq!(header["kid"], svid.key_id());
    assert_eq!(claims["sub"], svid.id().as_str());
    match &claims["aud"] {
        Value::Array(all) => assert!(all.iter().eq(svid.audience())),
        one => assert_eq!(*one, svid.audience()[0]),
    }
    assert_eq!(claims["exp"].as_f64().unwrap().floor() as i64, svid.expires_at());
    assert_eq!(svid.token(), token);
}
