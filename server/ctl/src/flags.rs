//! Values of flags that several nouns share.

use clap::ValueEnum;
use vane_wire::spire::api::types;

use crate::failure::{self, Failure};

/// Seconds as a number or as a duration.
pub(crate) fn seconds(text: &str) -> Result<i32, String> {
    let whole = match text.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => humantime::parse_duration(text)
            .map_err(|_| "write seconds, or a duration like 1h30m")?
            .as_secs(),
    };
    i32::try_from(whole).map_err(|_| format!("{whole} seconds are more than {} allowed", i32::MAX))
}

/// How the selectors of a filter relate to those of an entry.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Match {
    /// The same.
    Exact,
    /// All of the entry's are among those given.
    Subset,
    /// All given are among the entry's.
    Superset,
    /// They have one in common.
    Any,
}

impl Match {
    /// The number of SPIRE's MatchBehavior, which is the same for both kinds of filters.
    pub(crate) fn wire(self) -> i32 {
        match self {
            Self::Exact => 0,
            Self::Subset => 1,
            Self::Superset => 2,
            Self::Any => 3,
        }
    }
}

/// The selectors of the flag --selector, for the wire.
pub(crate) fn selectors(texts: &[String]) -> Result<Vec<types::Selector>, Failure> {
    texts
        .iter()
        .map(|text| {
            let selector = failure::selector("--selector", text)?;
            Ok(types::Selector {
                r#type: selector.kind().to_owned(),
                value: selector.value().to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use types::selector_match::MatchBehavior;

    use super::*;

    #[test]
    fn a_duration_is_seconds_or_text() {
        assert_eq!(seconds("0"), Ok(0));
        assert_eq!(seconds("600"), Ok(600));
        assert_eq!(seconds("1h30m"), Ok(5400));
        for bad in [
            "",
            "soon",
            "-5",
            "1.5",
            "2147483648",
            "99999999999999999999",
        ] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_ways_to_compare_have_the_numbers_of_spire() {
        let pairs = [
            (Match::Exact, MatchBehavior::MatchExact),
            (Match::Subset, MatchBehavior::MatchSubset),
            (Match::Superset, MatchBehavior::MatchSuperset),
            (Match::Any, MatchBehavior::MatchAny),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours.wire(), i32::from(theirs));
        }
    }
}
