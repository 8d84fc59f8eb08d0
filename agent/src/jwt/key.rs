//! What a token is cached by.

use std::sync::Arc;
use std::time::SystemTime;

use vane_identity::entry::{Entry, EntryId};
use vane_identity::jwt_svid::{JwtSvid, MAX_AUDIENCE_BYTES, MAX_AUDIENCES};

use crate::sealed::Token;

/// Whom a token is for: at least one, sorted, each once. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Audience(Arc<[String]>);

/// Why a request's audience is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AudienceError {
    /// There is none (SPIRE's text).
    #[error("audience must be specified")]
    Missing,
    /// There are too many.
    #[error("too many audiences: {0}, at most {MAX_AUDIENCES} are allowed")]
    TooMany(usize),
    /// One is too long.
    #[error("audience of {0} bytes, at most {MAX_AUDIENCE_BYTES} are allowed")]
    TooLong(usize),
}

impl TryFrom<Vec<String>> for Audience {
    type Error = AudienceError;

    /// Empty ones count as not there (WAPI-45).
    fn try_from(mut all: Vec<String>) -> Result<Self, AudienceError> {
        all.retain(|one| !one.is_empty());
        all.sort_unstable();
        all.dedup();
        if all.is_empty() {
            return Err(AudienceError::Missing);
        }
        if all.len() > MAX_AUDIENCES {
            return Err(AudienceError::TooMany(all.len()));
        }
        let longest = all.iter().map(String::len).max().unwrap_or_default();
        if longest > MAX_AUDIENCE_BYTES {
            return Err(AudienceError::TooLong(longest));
        }
        Ok(Self(all.into()))
    }
}

impl Audience {
    /// The audiences.
    #[must_use]
    pub fn all(&self) -> &[String] {
        &self.0
    }
}

/// An entry as it was when the token was asked for, and whom the token is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) entry: EntryId,
    revision: (i64, i64),
    pub(super) audience: Audience,
    /// The number of the one call that it stands for: its token is not kept.
    pub(super) single: Option<u64>,
}

impl Key {
    /// The key of a call, the `count`th of all.
    pub(super) fn new(entry: &Entry, audience: &Audience, count: u64) -> Self {
        let has_jti = entry
            .additional_attributes
            .is_some_and(|attributes| attributes.jwt_svid_include_jti);
        Self {
            entry: entry.id.clone(),
            revision: (entry.revision_number, entry.created_at),
            audience: audience.clone(),
            single: has_jti.then_some(count),
        }
    }

    /// The key of what was held before a restart.
    pub(super) fn of(token: &Token) -> Self {
        Self {
            entry: token.entry_id.clone(),
            revision: token.revision,
            audience: Audience(Arc::clone(&token.audience)),
            single: None,
        }
    }

    /// What is kept of `svid`, a token for it.
    pub(super) fn token(&self, svid: JwtSvid, renew_at: SystemTime) -> Token {
        Token {
            entry_id: self.entry.clone(),
            revision: self.revision,
            audience: Arc::clone(&self.audience.0),
            svid,
            renew_at,
        }
    }

    /// Whether it is one of `entry` as it is now.
    pub(super) fn is_of(&self, entry: &Entry) -> bool {
        self.entry == entry.id && self.revision == (entry.revision_number, entry.created_at)
    }

    /// The bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.audience.all().iter().map(String::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audience(all: &[&str]) -> Result<Audience, AudienceError> {
        Audience::try_from(all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn an_audience_is_a_set_of_texts_that_say_something() {
        assert_eq!(audience(&["b", "a", "b"]), audience(&["a", "b"]));
        assert_eq!(audience(&["", "a"]), audience(&["a"]));
        assert_eq!(audience(&[]), Err(AudienceError::Missing));
        assert_eq!(audience(&["", ""]), Err(AudienceError::Missing));
    }

    #[test]
    fn an_audience_is_bounded() {
        let many: Vec<String> = (0..=MAX_AUDIENCES).map(|n| n.to_string()).collect();
        assert_eq!(
            Audience::try_from(many),
            Err(AudienceError::TooMany(MAX_AUDIENCES + 1))
        );
        let long = "x".repeat(MAX_AUDIENCE_BYTES + 1);
        assert_eq!(
            audience(&[&long]),
            Err(AudienceError::TooLong(MAX_AUDIENCE_BYTES + 1))
        );
    }
}
