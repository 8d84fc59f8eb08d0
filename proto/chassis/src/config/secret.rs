//! A configured secret: expanded from the environment, never printed.
//!
//! `${VAR}` stands for the environment variable VAR, `$${` for a literal `${`;
//! any other `$` is itself. A variable that is not set is an error, not an
//! empty secret. The text is zeroized when dropped.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// What is printed instead of a secret.
const SHOWN: &str = "<secret>";

/// A secret of a configuration file.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A secret from a source that needs no expansion.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself. Do not log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Nothing was configured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a secret could not be expanded. Names variables, never values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The environment has no such variable, or one that is not UTF-8.
    #[error("the environment variable {0} is not set")]
    NotSet(String),
    /// A `${` without its `}`.
    #[error("a ${{ is not closed; a literal one is written $${{")]
    NotClosed,
    /// A `${}` around nothing, or around what is no variable name.
    #[error("a ${{…}} does not hold the name of an environment variable")]
    NotAName,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHOWN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_empty() { "" } else { SHOWN })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Zeroizing::new(String::deserialize(deserializer)?);
        expand(&raw, |name| std::env::var(name).ok())
            .map(Self)
            .map_err(D::Error::custom)
    }
}

fn expand(
    raw: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Zeroizing<String>, SecretError> {
    let mut out = Zeroizing::new(String::new());
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(literal) = before.strip_suffix('$') {
            out.push_str(literal);
            out.push_str("${");
            rest = after;
            continue;
        }
        let (name, after) = after.split_once('}').ok_or(SecretError::NotClosed)?;
        if !is_name(name) {
            return Err(SecretError::NotAName);
        }
        let value = variable(name).map(Zeroizing::new);
        let value = value.ok_or_else(|| SecretError::NotSet(name.to_owned()))?;
        out.push_str(before);
        out.push_str(&value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(raw: &str) -> Result<String, SecretError> {
        expand(raw, |name| (name == "TOKEN").then(|| "abc".to_owned())).map(|s| s.to_string())
    }

    #[test]
    fn variables_are_expanded_once_and_other_dollars_stay() {
        let cases = [
            ("plain", "plain"),
            ("${TOKEN}", "abc"),
            ("a-${TOKEN}-${TOKEN}-z", "a-abc-abc-z"),
            ("$TOKEN $", "$TOKEN $"),
            ("$${TOKEN}", "${TOKEN}"),
            ("pa$$word", "pa$$word"),
        ];
        for (raw, want) in cases {
            assert_eq!(expanded(raw).as_deref(), Ok(want), "{raw}");
        }
    }

    #[test]
    fn what_cannot_be_expanded_is_an_error_that_names_the_variable() {
        assert_eq!(
            expanded("${NOPE}"),
            Err(SecretError::NotSet("NOPE".to_owned()))
        );
        assert_eq!(expanded("x${TOKEN"), Err(SecretError::NotClosed));
        assert_eq!(expanded("${}"), Err(SecretError::NotAName));
        assert_eq!(expanded("${a b}"), Err(SecretError::NotAName));
    }
}
