//! What a service account token says of itself, unverified: only for a person who reads why it
//! was refused. Nothing is decided by it.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audiences,
    #[serde(default)]
    exp: Option<u64>,
    #[serde(default)]
    sub: String,
    #[serde(default, rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Some(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

#[derive(Default, Deserialize)]
struct Bound {
    pod: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    name: String,
}

/// The token's claims in words; none when it is no token.
pub(super) fn described(token: &str, now: SystemTime) -> Option<String> {
    let payload = token.split('.').nth(1)?;
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    let audiences = match claims.aud {
        Audiences::One(one) => vec![one],
        Audiences::Some(some) => some,
    };
    let mut text = format!("is for audience {audiences:?}, of {:?}", claims.sub);
    match claims.kubernetes.pod {
        // Writing to a String does not fail.
        Some(pod) => {
            let _ = write!(text, ", bound to pod {:?}", pod.name);
        }
        None => text.push_str(", bound to no pod"),
    }
    if let Some(exp) = claims.exp {
        let at = UNIX_EPOCH.checked_add(Duration::from_secs(exp))?;
        let verb = if at <= now { "expired" } else { "expires" };
        let at = humantime::format_rfc3339_seconds(at);
        let _ = write!(text, ", {verb} at {at}");
    }
    Some(text)
}
