//! Selectors: what an attestor found out about a process or a node.
//!
//! A selector is `type:value`. An entry is matched when its selectors are a subset of
//! those of the caller (AND only, as in SPIRE). A set is kept sorted and without
//! duplicates, so that equality and subset tests need no allocation.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The most bytes in a selector's type.
pub const MAX_TYPE_BYTES: usize = 255;
/// The most bytes in a selector's value.
pub const MAX_VALUE_BYTES: usize = 8192;

/// Why a text is no selector. Texts as SPIRE's where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The type is empty.
    #[error("missing selector type")]
    NoType,
    /// The type has a colon.
    #[error("selector type contains ':'")]
    ColonInType,
    /// The value is empty.
    #[error("missing selector value")]
    NoValue,
    /// A text of a selector on the command line without a colon.
    #[error("selector \"{0}\" must be formatted as type:value")]
    NoColon(String),
    /// Type or value is too long.
    #[error("selector is too long: {len} bytes, {max} are allowed")]
    TooLong {
        /// Bytes seen.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
}

/// One attested property, `type:value`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    kind: Arc<str>,
    value: Arc<str>,
}

/// Sorted selectors without duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SelectorSet(Arc<[Selector]>);

impl Selector {
    /// A selector of type `kind` (without colon) and `value`.
    ///
    /// # Errors
    /// An empty, too long, or colon-carrying part.
    pub fn new(kind: &str, value: &str) -> Result<Self, SelectorError> {
        if kind.is_empty() {
            return Err(SelectorError::NoType);
        }
        if kind.contains(':') {
            return Err(SelectorError::ColonInType);
        }
        if value.is_empty() {
            return Err(SelectorError::NoValue);
        }
        check_length(kind, MAX_TYPE_BYTES)?;
        check_length(value, MAX_VALUE_BYTES)?;
        Ok(Self {
            kind: kind.into(),
            value: value.into(),
        })
    }

    /// The attestor's type, e.g. `unix`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The value, e.g. `uid:1000`.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

fn check_length(text: &str, max: usize) -> Result<(), SelectorError> {
    if text.len() > max {
        return Err(SelectorError::TooLong {
            len: text.len(),
            max,
        });
    }
    Ok(())
}

impl SelectorSet {
    /// Whether each selector of `self` is in `other`.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        let mut theirs = other.0.iter();
        self.0.iter().all(|mine| {
            theirs
                .by_ref()
                .find(|their| *their >= mine)
                .is_some_and(|their| their == mine)
        })
    }

    /// Whether the two have a selector in common.
    #[must_use]
    pub fn intersects(&self, other: &Self) -> bool {
        self.0.iter().any(|mine| other.contains(mine))
    }

    /// Whether `selector` is in the set.
    #[must_use]
    pub fn contains(&self, selector: &Selector) -> bool {
        self.0.binary_search(selector).is_ok()
    }

    /// The selectors in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Selector> {
        self.0.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Selector> for SelectorSet {
    fn from_iter<I: IntoIterator<Item = Selector>>(selectors: I) -> Self {
        let mut all: Vec<Selector> = selectors.into_iter().collect();
        all.sort();
        all.dedup();
        Self(all.into())
    }
}

impl<'a> IntoIterator for &'a SelectorSet {
    type Item = &'a Selector;
    type IntoIter = std::slice::Iter<'a, Selector>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    /// Reads `type:value` as operators write it.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let (kind, value) = text
            .split_once(':')
            .ok_or_else(|| SelectorError::NoColon(text.to_owned()))?;
        Self::new(kind, value)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
