//! SPIFFE IDs and trust domains (SPIFFE-ID.md section 2).
//!
//! A [`TrustDomain`] or [`SpiffeId`] cannot exist malformed. Parsing is strict:
//! nothing is decoded, lower-cased or normalised, so byte comparison is identity
//! comparison (decision C-1 of the checklist: upper case in a trust domain is refused).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest SPIFFE ID in bytes, scheme included (SPIFFE-ID.md section 2.3).
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;
/// The longest trust domain name in bytes (SPIFFE-ID.md section 2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// Why a text is no SPIFFE ID or trust domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("cannot be empty")]
    Empty,
    /// The scheme is not `spiffe` or no authority follows.
    #[error("scheme is missing or invalid")]
    Scheme,
    /// The trust domain name is empty.
    #[error("trust domain is missing")]
    NoTrustDomain,
    /// A byte in the trust domain name is outside `[a-z0-9.-_]`.
    #[error(
        "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
    )]
    TrustDomainChar,
    /// The trust domain name is longer than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("trust domain is {0} bytes long, {MAX_TRUST_DOMAIN_BYTES} are allowed")]
    TrustDomainLength(usize),
    /// The whole ID is longer than [`MAX_SPIFFE_ID_BYTES`].
    #[error("SPIFFE ID is {0} bytes long, {MAX_SPIFFE_ID_BYTES} are allowed")]
    Length(usize),
    /// A path does not begin with a slash.
    #[error("path must have a leading slash")]
    NoLeadingSlash,
    /// A path segment is empty.
    #[error("path cannot contain empty segments")]
    EmptySegment,
    /// A path segment is `.` or `..`.
    #[error("path cannot contain dot segments")]
    DotSegment,
    /// The path ends in a slash.
    #[error("path cannot have a trailing slash")]
    TrailingSlash,
    /// A byte in a path segment is outside `[a-zA-Z0-9.-_]`.
    #[error(
        "path segment characters are limited to letters, numbers, dots, dashes, and underscores"
    )]
    PathChar,
}

/// The name of a trust domain, without scheme, e.g. `example.org`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE ID, e.g. `spiffe://example.org/web`; without a path it names the trust domain.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    path_at: usize,
}

impl TrustDomain {
    /// Reads a bare trust domain name.
    ///
    /// # Errors
    /// [`IdError::NoTrustDomain`], [`IdError::TrustDomainChar`], [`IdError::TrustDomainLength`].
    pub fn parse(name: &str) -> Result<Self, IdError> {
        check_trust_domain(name)?;
        Ok(Self(name.into()))
    }

    /// Reads a trust domain name, or the trust domain of a SPIFFE ID, as operators write either.
    ///
    /// # Errors
    /// As [`TrustDomain::parse`] and [`SpiffeId::parse`].
    pub fn parse_name_or_id(text: &str) -> Result<Self, IdError> {
        if text.contains(":/") {
            return SpiffeId::parse(text).map(|id| id.trust_domain());
        }
        Self::parse(text)
    }

    /// The bare name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself: `spiffe://<name>`.
    #[must_use]
    pub fn id(&self) -> SpiffeId {
        let text = format!("{SCHEME}{}", self.0);
        SpiffeId {
            path_at: text.len(),
            text: text.into(),
        }
    }

    /// The ID of this trust domain with `path`, which begins with a slash or is empty.
    ///
    /// # Errors
    /// The path rules of [`SpiffeId::parse`].
    pub fn with_path(&self, path: &str) -> Result<SpiffeId, IdError> {
        check_path(path)?;
        let text = format!("{SCHEME}{}{path}", self.0);
        check_length(&text)?;
        Ok(SpiffeId {
            path_at: SCHEME.len() + self.0.len(),
            text: text.into(),
        })
    }

    /// The ID that Vane's and SPIRE's servers carry: `spiffe://<name>/spire/server`.
    ///
    /// # Errors
    /// Only when the name is so long that the ID passes [`MAX_SPIFFE_ID_BYTES`]; it cannot be.
    pub fn server_id(&self) -> Result<SpiffeId, IdError> {
        self.with_path("/spire/server")
    }
}

impl SpiffeId {
    /// Reads a SPIFFE ID strictly: no query, fragment, port, userinfo, percent-encoding,
    /// empty or dot segment, trailing slash, or upper case in the trust domain.
    ///
    /// # Errors
    /// The first rule of SPIFFE-ID.md section 2 that the text breaks.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        check_length(text)?;
        let rest = text.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
        let name = rest.split_once('/').map_or(rest, |(name, _)| name);
        check_trust_domain(name)?;
        let path_at = SCHEME.len() + name.len();
        check_path(text.get(path_at..).unwrap_or_default())?;
        Ok(Self {
            text: text.into(),
            path_at,
        })
    }

    /// The whole ID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of its trust domain.
    #[must_use]
    pub fn trust_domain_name(&self) -> &str {
        self.text
            .get(SCHEME.len()..self.path_at)
            .unwrap_or_default()
    }

    /// Its trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_name().into())
    }

    /// The path with its leading slash, or the empty text.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get(self.path_at..).unwrap_or_default()
    }

    /// Whether the ID lies in `trust_domain`.
    #[must_use]
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain_name() == trust_domain.as_str()
    }

    /// Whether the path is `/spire` or below it, which SPIRE reserves.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.path() == "/spire" || self.path().starts_with("/spire/")
    }

    /// Whether the ID is one of an agent: `/spire/agent/…`.
    #[must_use]
    pub fn is_agent(&self) -> bool {
        self.path().starts_with("/spire/agent/")
    }
}

fn check_length(text: &str) -> Result<(), IdError> {
    if text.len() > MAX_SPIFFE_ID_BYTES {
        return Err(IdError::Length(text.len()));
    }
    Ok(())
}

fn check_trust_domain(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::NoTrustDomain);
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(IdError::TrustDomainLength(name.len()));
    }
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if !name.bytes().all(allowed) {
        return Err(IdError::TrustDomainChar);
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), IdError> {
    if path.is_empty() {
        return Ok(());
    }
    let segments = path.strip_prefix('/').ok_or(IdError::NoLeadingSlash)?;
    if segments.is_empty() || segments.ends_with('/') {
        return Err(IdError::TrailingSlash);
    }
    segments.split('/').try_for_each(check_segment)
}

fn check_segment(segment: &str) -> Result<(), IdError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    match segment {
        "" => Err(IdError::EmptySegment),
        "." | ".." => Err(IdError::DotSegment),
        _ if !segment.bytes().all(allowed) => Err(IdError::PathChar),
        _ => Ok(()),
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

macro_rules! text_value {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text)
                    .map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
            }
        }
    };
}

text_value!(TrustDomain);
text_value!(SpiffeId);

#[cfg(test)]
mod tests;
