//! Selectors, and the sets of selectors or trust domains that lists are filtered by.

use vane_identity::entry::MAX_SELECTORS;
use vane_identity::id::{IdError, TrustDomain};
use vane_identity::selector::{Selector, SelectorError, SelectorSet};

use crate::generated::spire::api::types::{self, federates_with_match, selector_match};

/// The most trust domains in a filter.
pub const MAX_FILTER_TRUST_DOMAINS: usize = 256;

/// Why a list of selectors or a filter was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetRefusal {
    /// A selector is not valid.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// A trust domain is not valid.
    #[error(transparent)]
    TrustDomain(#[from] IdError),
    /// There are too many.
    #[error("too many {what}: {count}, {max} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// Seen.
        count: usize,
        /// Allowed.
        max: usize,
    },
    /// A filter without selectors.
    #[error("empty selector set")]
    NoSelectors,
    /// A filter without trust domains.
    #[error("empty trust domain set")]
    NoTrustDomains,
    /// The way to compare is unknown.
    #[error("unknown match behavior: {0}")]
    Behavior(i32),
}

/// How a set is compared with that of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetMatch {
    /// Both are the same.
    Exact,
    /// It has nothing that the filter has not.
    Subset,
    /// It has all that the filter has.
    Superset,
    /// Both have something in common.
    Any,
}

/// A filter by selectors; has at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectorFilter {
    /// What to compare with.
    pub selectors: SelectorSet,
    /// How to compare.
    pub by: SetMatch,
}

/// A filter by federated trust domains; has at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomainFilter {
    /// What to compare with, sorted, without duplicates.
    pub trust_domains: Vec<TrustDomain>,
    /// How to compare.
    pub by: SetMatch,
}

impl From<&Selector> for types::Selector {
    fn from(selector: &Selector) -> Self {
        Self {
            r#type: selector.kind().to_owned(),
            value: selector.value().to_owned(),
        }
    }
}

impl TryFrom<&types::Selector> for Selector {
    type Error = SelectorError;

    fn try_from(wire: &types::Selector) -> Result<Self, SelectorError> {
        Self::new(&wire.r#type, &wire.value)
    }
}

/// A set as a list, sorted.
#[must_use]
pub fn to_wire(selectors: &SelectorSet) -> Vec<types::Selector> {
    selectors.iter().map(types::Selector::from).collect()
}

/// A list as a set; at most [`MAX_SELECTORS`].
///
/// # Errors
/// [`SetRefusal::Selector`], [`SetRefusal::TooMany`].
pub fn from_wire(wire: &[types::Selector]) -> Result<SelectorSet, SetRefusal> {
    at_most("selectors", wire.len(), MAX_SELECTORS)?;
    wire.iter()
        .map(|one| Selector::try_from(one).map_err(SetRefusal::from))
        .collect()
}

/// Trust domains as a sorted list without duplicates. As operators write them and SPIRE
/// takes them: names, or SPIFFE IDs of which the trust domain counts.
///
/// # Errors
/// [`SetRefusal::TrustDomain`], [`SetRefusal::TooMany`].
pub fn trust_domains(
    what: &'static str,
    wire: &[String],
    max: usize,
) -> Result<Vec<TrustDomain>, SetRefusal> {
    at_most(what, wire.len(), max)?;
    let mut all = wire
        .iter()
        .map(|name| TrustDomain::parse_name_or_id(name))
        .collect::<Result<Vec<_>, IdError>>()?;
    all.sort();
    all.dedup();
    Ok(all)
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), SetRefusal> {
    if count > max {
        return Err(SetRefusal::TooMany { what, count, max });
    }
    Ok(())
}

impl TryFrom<&types::SelectorMatch> for SelectorFilter {
    type Error = SetRefusal;

    fn try_from(wire: &types::SelectorMatch) -> Result<Self, SetRefusal> {
        use selector_match::MatchBehavior;
        let selectors = from_wire(&wire.selectors)?;
        if selectors.is_empty() {
            return Err(SetRefusal::NoSelectors);
        }
        let by = match MatchBehavior::try_from(wire.r#match) {
            Ok(MatchBehavior::MatchExact) => SetMatch::Exact,
            Ok(MatchBehavior::MatchSubset) => SetMatch::Subset,
            Ok(MatchBehavior::MatchSuperset) => SetMatch::Superset,
            Ok(MatchBehavior::MatchAny) => SetMatch::Any,
            Err(_) => return Err(SetRefusal::Behavior(wire.r#match)),
        };
        Ok(Self { selectors, by })
    }
}

impl TryFrom<&types::FederatesWithMatch> for TrustDomainFilter {
    type Error = SetRefusal;

    fn try_from(wire: &types::FederatesWithMatch) -> Result<Self, SetRefusal> {
        use federates_with_match::MatchBehavior;
        let max = MAX_FILTER_TRUST_DOMAINS;
        let trust_domains = trust_domains("trust domains", &wire.trust_domains, max)?;
        if trust_domains.is_empty() {
            return Err(SetRefusal::NoTrustDomains);
        }
        let by = match MatchBehavior::try_from(wire.r#match) {
            Ok(MatchBehavior::MatchExact) => SetMatch::Exact,
            Ok(MatchBehavior::MatchSubset) => SetMatch::Subset,
            Ok(MatchBehavior::MatchSuperset) => SetMatch::Superset,
            Ok(MatchBehavior::MatchAny) => SetMatch::Any,
            Err(_) => return Err(SetRefusal::Behavior(wire.r#match)),
        };
        Ok(Self { trust_domains, by })
    }
}

impl SelectorFilter {
    /// Whether something with `selectors` passes. Nothing at all never does.
    #[must_use]
    pub fn accepts(&self, selectors: &SelectorSet) -> bool {
        !selectors.is_empty()
            && match self.by {
                SetMatch::Exact => *selectors == self.selectors,
                SetMatch::Subset => selectors.is_subset(&self.selectors),
                SetMatch::Superset => self.selectors.is_subset(selectors),
                SetMatch::Any => selectors.intersects(&self.selectors),
            }
    }
}

impl TrustDomainFilter {
    /// Whether something that federates with `trust_domains` passes. Nothing at all never does.
    #[must_use]
    pub fn accepts(&self, trust_domains: &[TrustDomain]) -> bool {
        let theirs = |one: &TrustDomain| trust_domains.contains(one);
        let ours = |one: &TrustDomain| self.trust_domains.binary_search(one).is_ok();
        !trust_domains.is_empty()
            && match self.by {
                SetMatch::Exact => {
                    self.trust_domains.iter().all(theirs) && trust_domains.iter().all(ours)
                }
                SetMatch::Subset => trust_domains.iter().all(ours),
                SetMatch::Superset => self.trust_domains.iter().all(theirs),
                SetMatch::Any => trust_domains.iter().any(ours),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(texts: &[&str]) -> Vec<types::Selector> {
        texts
            .iter()
            .map(|text| types::Selector::from(&text.parse::<Selector>().unwrap()))
            .collect()
    }

    fn filter(texts: &[&str], by: i32) -> SelectorFilter {
        let selectors = wire(texts);
        SelectorFilter::try_from(&types::SelectorMatch {
            selectors,
            r#match: by,
        })
        .unwrap()
    }

    fn domains(names: &[&str]) -> Vec<TrustDomain> {
        names
            .iter()
            .map(|name| TrustDomain::parse(name).unwrap())
            .collect()
    }

    fn domain_filter(names: &[&str], by: i32) -> TrustDomainFilter {
        let trust_domains = names.iter().map(|&name| name.to_owned()).collect();
        let wire = types::FederatesWithMatch {
            trust_domains,
            r#match: by,
        };
        TrustDomainFilter::try_from(&wire).unwrap()
    }

    #[test]
    fn a_list_becomes_a_sorted_set_and_comes_back() {
        let set = from_wire(&wire(&["b:2", "a:1", "b:2"])).unwrap();
        assert_eq!(to_wire(&set), wire(&["a:1", "b:2"]));
    }

    #[test]
    fn bad_selectors_are_refused_in_spires_words() {
        let table = [
            ("", "v", "missing selector type"),
            ("a:b", "v", "selector type contains ':'"),
            ("a", "", "missing selector value"),
        ];
        for (kind, value, text) in table {
            let one = types::Selector {
                r#type: kind.into(),
                value: value.into(),
            };
            assert_eq!(from_wire(&[one]).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn a_list_over_the_limit_is_refused_before_it_is_read() {
        let empty = vec![types::Selector::default(); MAX_SELECTORS + 1];
        let refused = from_wire(&empty).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "too many selectors: 257, 256 are allowed"
        );
    }

    #[test]
    fn filters_compare_in_four_ways() {
        // Rows: what is filtered; columns: exact, subset, superset, any of {a:1, b:2}.
        let table = [
            (vec![], [false, false, false, false]),
            (vec!["a:1"], [false, true, false, true]),
            (vec!["a:1", "b:2"], [true, true, true, true]),
            (vec!["a:1", "b:2", "c:3"], [false, false, true, true]),
            (vec!["c:3"], [false, false, false, false]),
        ];
        for (texts, expected) in table {
            let set = from_wire(&wire(&texts)).unwrap();
            let got = [0, 1, 2, 3].map(|by| filter(&["b:2", "a:1"], by).accepts(&set));
            assert_eq!(got, expected, "{texts:?}");
            let names: Vec<String> = texts.iter().map(|text| text.replace(':', "")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let got =
                [0, 1, 2, 3].map(|by| domain_filter(&["b2", "a1"], by).accepts(&domains(&names)));
            assert_eq!(got, expected, "{names:?}");
        }
    }

    #[test]
    fn empty_filters_and_unknown_ways_are_refused() {
        let none = SelectorFilter::try_from(&types::SelectorMatch::default()).unwrap_err();
        assert_eq!(none.to_string(), "empty selector set");
        let none = TrustDomainFilter::try_from(&types::FederatesWithMatch::default()).unwrap_err();
        assert_eq!(none.to_string(), "empty trust domain set");
        let selectors = wire(&["a:1"]);
        let odd = types::SelectorMatch {
            selectors,
            r#match: 9,
        };
        let refused = SelectorFilter::try_from(&odd).unwrap_err();
        assert_eq!(refused.to_string(), "unknown match behavior: 9");
    }

    #[test]
    fn a_trust_domain_may_be_written_as_its_id() {
        let both = [
            "spiffe://b.org".to_owned(),
            "a.org".to_owned(),
            "b.org".to_owned(),
        ];
        assert_eq!(
            trust_domains("x", &both, 3).unwrap(),
            domains(&["a.org", "b.org"])
        );
        assert!(trust_domains("x", &both, 2).is_err());
    }
}
