//! The SPIFFE bundle as a JWK Set (SPIFFE_Trust_Domain_and_Bundle.md section 4).
//!
//! Reading ignores a bad or unknown entry and keeps the rest, as the standard wants
//! (TDB-18 to TDB-20); writing is strict: an X.509 authority has `x5c` and no `kid`, a JWT
//! authority a `kid`, and no member stands there that the standard does not define.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::bundle::{Bundle, JwtAuthority, MAX_AUTHORITIES, X509Authority};
use crate::id::TrustDomain;
use crate::key::PublicKey;
use crate::spki;
use crate::x509_svid::Certificate;

/// The most bytes of a bundle document that are read.
pub const MAX_BUNDLE_BYTES: usize = 4 * 1024 * 1024;

/// Why a document is no SPIFFE bundle, or a bundle cannot be written as one.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// The document is larger than [`MAX_BUNDLE_BYTES`].
    #[error("bundle document has {0} bytes, {MAX_BUNDLE_BYTES} are allowed")]
    TooLarge(usize),
    /// The document is no JSON object with an array `keys`, or a number is out of range.
    #[error("malformed bundle document: {0}")]
    Malformed(#[from] serde_json::Error),
    /// There are more authorities than [`MAX_AUTHORITIES`].
    #[error("bundle has {0} keys, {MAX_AUTHORITIES} are allowed")]
    TooMany(usize),
    /// A key of the bundle has a type that a JWK cannot say.
    #[error("authority {0} has a key that is neither EC nor RSA")]
    UnsupportedKey(String),
}

#[derive(Serialize)]
struct Document {
    keys: Vec<Jwk>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<i64>,
}

#[derive(Serialize, Default)]
struct Jwk {
    kty: &'static str,
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    usage: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x5c: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct ReadDocument {
    keys: Vec<Value>,
    #[serde(default)]
    spiffe_sequence: Option<u64>,
    #[serde(default)]
    spiffe_refresh_hint: Option<i64>,
}

impl Bundle {
    /// The bundle as a SPIFFE JWK Set with `spiffe_sequence` and, if it has one, the hint.
    ///
    /// # Errors
    /// [`JwksError::UnsupportedKey`].
    pub fn to_jwks(&self) -> Result<Vec<u8>, JwksError> {
        let x509 = self
            .x509_authorities
            .iter()
            .map(|one| x509_jwk(one, Some("x509-svid")));
        let jwt = self
            .jwt_authorities
            .iter()
            .map(|one| jwt_jwk(one, Some("jwt-svid")));
        let document = Document {
            keys: x509.chain(jwt).collect::<Result<_, _>>()?,
            spiffe_sequence: Some(self.sequence_number),
            spiffe_refresh_hint: (self.refresh_hint > 0).then_some(self.refresh_hint),
        };
        Ok(serde_json::to_vec(&document)?)
    }

    /// All keys as a JWK Set of RFC 7517, without what SPIFFE adds: no `use`, no sequence, no
    /// hint (SPIRE's format `jwks`).
    ///
    /// # Errors
    /// [`JwksError::UnsupportedKey`].
    pub fn to_plain_jwks(&self) -> Result<Vec<u8>, JwksError> {
        let x509 = self.x509_authorities.iter().map(|one| x509_jwk(one, None));
        let jwt = self.jwt_authorities.iter().map(|one| jwt_jwk(one, None));
        let document = Document {
            keys: x509.chain(jwt).collect::<Result<_, _>>()?,
            spiffe_sequence: None,
            spiffe_refresh_hint: None,
        };
        Ok(serde_json::to_vec(&document)?)
    }

    /// The JWT keys as the plain JWK Set of the Workload API: no `use`, nothing but JWT keys
    /// (checklist C-5, WAPI-54, WAPI-55).
    ///
    /// # Errors
    /// [`JwksError::UnsupportedKey`].
    pub fn to_jwt_jwks(&self) -> Result<Vec<u8>, JwksError> {
        let jwt = self.jwt_authorities.iter().map(|one| jwt_jwk(one, None));
        let document = Document {
            keys: jwt.collect::<Result<_, _>>()?,
            spiffe_sequence: None,
            spiffe_refresh_hint: None,
        };
        Ok(serde_json::to_vec(&document)?)
    }

    /// Reads a SPIFFE bundle of `trust_domain`. Entries that are of no known kind or `use`,
    /// or are broken, are left out; a bundle without any is one that trusts nobody.
    ///
    /// # Errors
    /// The document is too large, no JWK Set, or has a number out of range.
    pub fn from_jwks(trust_domain: TrustDomain, json: &[u8]) -> Result<Self, JwksError> {
        if json.len() > MAX_BUNDLE_BYTES {
            return Err(JwksError::TooLarge(json.len()));
        }
        let document: ReadDocument = serde_json::from_slice(json)?;
        if document.keys.len() > MAX_AUTHORITIES {
            return Err(JwksError::TooMany(document.keys.len()));
        }
        let mut bundle = Self::empty(trust_domain);
        bundle.sequence_number = document.spiffe_sequence.unwrap_or_default();
        bundle.refresh_hint = document.spiffe_refresh_hint.unwrap_or_default();
        for key in &document.keys {
            match text(key, "use") {
                Some("x509-svid") => bundle.x509_authorities.extend(read_x509(key)),
                Some("jwt-svid") => bundle.jwt_authorities.extend(read_jwt(key)),
                _ => {}
            }
        }
        Ok(bundle)
    }
}

fn x509_jwk(authority: &X509Authority, usage: Option<&'static str>) -> Result<Jwk, JwksError> {
    let unsupported = || JwksError::UnsupportedKey("of an X.509 authority".to_owned());
    let info = authority.certificate.info().map_err(|_| unsupported())?;
    let mut jwk = key_jwk(&info.spki).ok_or_else(unsupported)?;
    jwk.usage = usage;
    jwk.x5c = Some(vec![STANDARD.encode(authority.certificate.der())]);
    Ok(jwk)
}

fn jwt_jwk(authority: &JwtAuthority, usage: Option<&'static str>) -> Result<Jwk, JwksError> {
    let unsupported = || JwksError::UnsupportedKey(authority.key_id.clone());
    let mut jwk = key_jwk(authority.public_key.spki()).ok_or_else(unsupported)?;
    jwk.usage = usage;
    jwk.kid = Some(authority.key_id.clone());
    Ok(jwk)
}

fn key_jwk(spki: &[u8]) -> Option<Jwk> {
    let (_, info) = SubjectPublicKeyInfo::from_der(spki).ok()?;
    match info.parsed().ok()? {
        ParsedKey::EC(point) => {
            let data = point.data();
            let (tag, xy) = data.split_first()?;
            let (x, y) = xy.split_at_checked(xy.len() / 2)?;
            let curve = spki::Curve::by_coordinate(x.len()).filter(|_| *tag == 4)?;
            Some(Jwk {
                kty: "EC",
                crv: Some(curve.name()),
                x: Some(URL_SAFE_NO_PAD.encode(x)),
                y: Some(URL_SAFE_NO_PAD.encode(y)),
                ..Jwk::default()
            })
        }
        ParsedKey::RSA(rsa) => Some(Jwk {
            kty: "RSA",
            n: Some(URL_SAFE_NO_PAD.encode(spki::without_leading_zeros(rsa.modulus))),
            e: Some(URL_SAFE_NO_PAD.encode(spki::without_leading_zeros(rsa.exponent))),
            ..Jwk::default()
        }),
        _ => None,
    }
}

fn text<'a>(key: &'a Value, member: &str) -> Option<&'a str> {
    key.get(member).and_then(Value::as_str)
}

/// The first `x5c` certificate; further ones are ignored (X509-51), and so is an entry
/// without any (X509-50) or with a `kty` that nobody knows (TDB-18).
fn read_x509(key: &Value) -> Option<X509Authority> {
    known_kty(key)?;
    let first = key.get("x5c")?.as_array()?.first()?.as_str()?;
    let certificate = Certificate::from_der(&STANDARD.decode(first).ok()?);
    certificate.info().ok()?;
    Some(X509Authority::new(certificate))
}

fn known_kty(key: &Value) -> Option<()> {
    matches!(text(key, "kty")?, "EC" | "RSA").then_some(())
}

fn read_jwt(key: &Value) -> Option<JwtAuthority> {
    let key_id = text(key, "kid").filter(|kid| !kid.is_empty())?;
    let decode = |member| URL_SAFE_NO_PAD.decode(text(key, member)?).ok();
    let spki = match text(key, "kty")? {
        "EC" => {
            let curve = spki::Curve::by_name(text(key, "crv")?)?;
            spki::from_ec_point(curve, &decode("x")?, &decode("y")?)?
        }
        "RSA" => spki::from_rsa(&decode("n")?, &decode("e")?)?,
        _ => return None,
    };
    Some(JwtAuthority {
        key_id: key_id.to_owned(),
        public_key: PublicKey::from_spki(&spki),
        expires_at: 0,
        tainted: false,
    })
}

#[cfg(test)]
mod tests;
