//! What attestation found out, and what it could not.
//!
//! Pure values. Invariant: a selector is known, unknown or absent; only what
//! is known can match an entry, and only what is neither known nor unknown
//! says that an entry does not match.

use vane_identity::selector::{Selector, SelectorSet};

/// Selectors that could not be found out now: all of one type whose value begins with `prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The selector type, e.g. `unix`.
    pub kind: &'static str,
    /// The beginning of the value, e.g. `user:`; empty = every selector of this type.
    pub prefix: &'static str,
}

impl Unknown {
    fn covers(&self, selector: &Selector) -> bool {
        selector.kind() == self.kind && selector.value().starts_with(self.prefix)
    }
}

/// One attestor's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attested {
    /// What is known.
    pub selectors: Vec<Selector>,
    /// What could not be found out.
    pub unknown: Vec<Unknown>,
    /// What will be told without being asked: the process's generation moves then.
    pub soon: Soon,
}

/// What an attestor that was asked will tell soon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Soon {
    /// Nothing.
    #[default]
    Nothing,
    /// Some of what is unknown.
    Unknown,
    /// A newer answer, or that there is none: nobody should be denied before.
    Anything,
}

impl Attested {
    /// Nothing is known of this type.
    #[must_use]
    pub fn failed(kind: &'static str) -> Self {
        Self {
            selectors: Vec::new(),
            unknown: vec![Unknown { kind, prefix: "" }],
            soon: Soon::Nothing,
        }
    }
}

/// All attestors' answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    known: SelectorSet,
    unknown: Vec<Unknown>,
    soon: Soon,
}

/// Whether an entry's selectors match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// All are known.
    Yes,
    /// One is absent.
    No,
    /// None is absent, but not all are known: UNAVAILABLE if no other entry matches.
    Unknown,
}

impl Outcome {
    /// The selectors that are known.
    #[must_use]
    pub fn known(&self) -> &SelectorSet {
        &self.known
    }

    /// What could not be found out, for `explain`.
    #[must_use]
    pub fn unknown(&self) -> &[Unknown] {
        &self.unknown
    }

    /// What is on its way.
    #[must_use]
    pub fn soon(&self) -> Soon {
        self.soon
    }

    /// Whether `selectors`, of an entry, match.
    #[must_use]
    pub fn matches(&self, selectors: &SelectorSet) -> Match {
        if selectors.is_subset(&self.known) {
            return Match::Yes;
        }
        let possible = |wanted: &Selector| {
            self.known.contains(wanted) || self.unknown.iter().any(|unknown| unknown.covers(wanted))
        };
        if selectors.iter().all(possible) {
            Match::Unknown
        } else {
            Match::No
        }
    }
}

impl FromIterator<Attested> for Outcome {
    fn from_iter<I: IntoIterator<Item = Attested>>(answers: I) -> Self {
        let (mut known, mut unknown, mut soon) = (Vec::new(), Vec::new(), Soon::Nothing);
        for answer in answers {
            soon = soon.max(answer.soon);
            known.extend(answer.selectors);
            unknown.extend(answer.unknown);
        }
        Self {
            known: known.into_iter().collect(),
            unknown,
            soon,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(selectors: &[(&str, &str)]) -> SelectorSet {
        selectors
            .iter()
            .map(|(kind, value)| Selector::new(kind, value).unwrap())
            .collect()
    }

    #[test]
    fn an_unknown_selector_neither_matches_nor_denies() {
        let unix = Attested {
            selectors: vec![Selector::new("unix", "uid:7").unwrap()],
            unknown: vec![Unknown {
                kind: "unix",
                prefix: "user:",
            }],
            soon: Soon::Nothing,
        };
        let outcome: Outcome = [unix, Attested::failed("k8s")].into_iter().collect();
        assert_eq!(outcome.matches(&set(&[("unix", "uid:7")])), Match::Yes);
        assert_eq!(outcome.matches(&set(&[("unix", "uid:8")])), Match::No);
        assert_eq!(
            outcome.matches(&set(&[("unix", "uid:7"), ("unix", "user:ann")])),
            Match::Unknown
        );
        assert_eq!(
            outcome.matches(&set(&[("unix", "uid:8"), ("unix", "user:ann")])),
            Match::No
        );
        assert_eq!(
            outcome.matches(&set(&[("unix", "uid:7"), ("k8s", "ns:a")])),
            Match::Unknown
        );
        assert_eq!(outcome.matches(&set(&[("docker", "label:a")])), Match::No);
    }
}
