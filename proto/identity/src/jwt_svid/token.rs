//! The compact form of a JWT, taken apart (RFC 7515 section 7.1).
//!
//! The size is looked at before anything else, `alg` before the rest of the header, the
//! header before the claims. JSON is read so that no member can stand there twice: two
//! readers could otherwise see two different tokens.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{Algorithm, JwtError, MAX_KEY_ID_BYTES, MAX_TOKEN_BYTES};

/// So much of a name that others chose is shown in an error.
const SHOWN: usize = 32;

/// A token whose header is that of a JWT-SVID; its claims are any.
pub(super) struct Token<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    pub(super) claims: Map<String, Value>,
    /// What the signature covers.
    pub(super) signed: &'a str,
    pub(super) signature: Vec<u8>,
}

impl<'a> Token<'a> {
    pub(super) fn read(token: &'a str) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::TooLarge(token.len()));
        }
        let parts = JwtError::Form("it must have three parts");
        let (signed, signature) = token.rsplit_once('.').ok_or(parts.clone())?;
        let (header, claims) = signed.split_once('.').ok_or(parts.clone())?;
        if claims.contains('.') {
            return Err(parts);
        }
        let header = object("header", &decode(header)?)?;
        let algorithm = algorithm(&header)?;
        check_members(&header)?;
        check_type(&header)?;
        Ok(Self {
            algorithm,
            key_id: key_id(&header)?,
            claims: object("claims", &decode(claims)?)?,
            signed,
            signature: decode(signature)?,
        })
    }
}

fn decode(part: &str) -> Result<Vec<u8>, JwtError> {
    let decoded = URL_SAFE_NO_PAD.decode(part);
    decoded.map_err(|_| JwtError::Form("a part is not base64url without padding"))
}

fn algorithm(header: &Map<String, Value>) -> Result<Algorithm, JwtError> {
    let name = header.get("alg").and_then(Value::as_str);
    let name = name.ok_or_else(|| JwtError::Algorithm("(none said)".to_owned()))?;
    Algorithm::by_name(name).ok_or_else(|| JwtError::Algorithm(format!("{:?}", shown(name))))
}

fn check_members(header: &Map<String, Value>) -> Result<(), JwtError> {
    let known = |name: &&String| matches!(name.as_str(), "alg" | "kid" | "typ");
    match header.keys().find(|name| !known(name)) {
        Some(name) => Err(JwtError::Header(shown(name))),
        None => Ok(()),
    }
}

fn check_type(header: &Map<String, Value>) -> Result<(), JwtError> {
    match header.get("typ").map(Value::as_str) {
        None | Some(Some("JWT" | "JOSE")) => Ok(()),
        Some(_) => Err(JwtError::Type),
    }
}

fn key_id(header: &Map<String, Value>) -> Result<Option<String>, JwtError> {
    let Some(value) = header.get("kid") else {
        return Ok(None);
    };
    let kid = value.as_str().filter(|kid| !kid.is_empty());
    let kid = kid.filter(|kid| kid.len() <= MAX_KEY_ID_BYTES);
    kid.map(|kid| Some(kid.to_owned())).ok_or(JwtError::KeyId)
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

fn object(part: &'static str, json: &[u8]) -> Result<Map<String, Value>, JwtError> {
    let malformed = |reason: String| JwtError::Json { part, reason };
    match serde_json::from_slice(json) {
        Ok(Strict(Value::Object(members))) => Ok(members),
        Ok(_) => Err(malformed("it is no object".to_owned())),
        Err(error) => Err(malformed(position(&error))),
    }
}

/// Where and what, without the text around it: claims are not for errors.
fn position(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Data => "a member stands there twice",
        _ => "no JSON",
    };
    format!("{what}, at byte {}", error.column())
}

/// A JSON value in which no object has a member twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without a member twice")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Strict(value)) = access.next_element()? {
            all.push(value);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some((name, Strict(value))) = access.next_entry::<String, Strict>()? {
            if all.insert(name, value).is_some() {
                return Err(A::Error::custom("twice"));
            }
        }
        Ok(Value::Object(all))
    }
}
