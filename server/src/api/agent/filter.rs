//! Which agents a list or a count is about.

use tonic::Code;
use vane_wire::spire::api::server::agent::v1::count_agents_request;
use vane_wire::spire::api::server::agent::v1::list_agents_request::Filter;
use vane_wire::status::Refusal;

use crate::state::AgentFilter;

/// The filter of a count, which is the same message under another name.
pub(super) fn same_filter(filter: count_agents_request::Filter) -> Filter {
    Filter {
        by_attestation_type: filter.by_attestation_type,
        by_selector_match: filter.by_selector_match,
        by_banned: filter.by_banned,
        by_can_reattest: filter.by_can_reattest,
        by_expires_before: filter.by_expires_before,
    }
}

/// Reads a filter; without one all agents pass.
///
/// # Errors
/// INVALID_ARGUMENT for selectors and for a time that cannot be read (SPIRE takes the latter
/// for no filter at all, and `agent purge` would take everything).
pub(super) fn read(wire: Option<Filter>) -> Result<AgentFilter, Refusal> {
    let Some(wire) = wire else {
        return Ok(AgentFilter::default());
    };
    let selectors = wire.by_selector_match.as_ref().map(TryInto::try_into);
    let expires_before = match wire.by_expires_before.as_str() {
        "" => None,
        text => Some(parse_time(text).ok_or_else(|| bad_time(text))?),
    };
    Ok(AgentFilter {
        attestation_type: Some(wire.by_attestation_type).filter(|kind| !kind.is_empty()),
        selectors: selectors
            .transpose()
            .map_err(|error| Refusal::of("failed to parse selectors", &error))?,
        banned: wire.by_banned,
        can_reattest: wire.by_can_reattest,
        expires_before,
    })
}

fn bad_time(text: &str) -> Refusal {
    let shown: String = text.chars().take(80).collect();
    let form = "2006-01-02 15:04:05 -0700 -07";
    Refusal::new(
        Code::InvalidArgument,
        format!("by_expires_before \"{shown}\" is not of the form {form}"),
    )
}

/// A time of the form `2006-01-02 15:04:05 -0700 -07` as Unix seconds. The zone's name at the
/// end may be anything; the offset before it counts.
fn parse_time(text: &str) -> Option<i64> {
    let mut parts = text.split(' ');
    let (date, clock, offset) = (parts.next()?, parts.next()?, parts.next()?);
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    let valid = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !valid || parts.count() > 1 {
        return None;
    }
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(seconds - offset_seconds(offset)?)
}

fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let number = |part: &str| {
        let digits = (1..=4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| part.parse().ok()).flatten()
    };
    let all: Vec<i64> = text.split(separator).map(number).collect::<Option<_>>()?;
    all.try_into().ok()
}

/// `+hhmm` or `-hhmm`, or `Z`.
fn offset_seconds(text: &str) -> Option<i64> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("Z", "") => return Some(0),
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    if digits.len() != 4 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: i64 = digits.parse().ok()?;
    Some(sign * (number / 100 * 3_600 + number % 100 * 60))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar (Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms", days_from_civil).
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use vane_identity::id::SpiffeId;
    use vane_identity::selector::{Selector, SelectorSet};
    use vane_wire::record::AgentRecord;
    use vane_wire::spire::api::types;

    use super::*;

    fn agent() -> AgentRecord {
        AgentRecord {
            spiffe_id: SpiffeId::parse("spiffe://example.org/spire/agent/join_token/a").unwrap(),
            attestation_type: "join_token".to_owned(),
            serial: "1".to_owned(),
            new_serial: None,
            not_after: 1_000,
            new_not_after: 0,
            selectors: SelectorSet::from_iter([Selector::new("a", "1").unwrap()]),
            banned: false,
            can_reattest: true,
            agent_version: String::new(),
            csr_key_sha256: None,
            previous: None,
        }
    }

    fn accepts(filter: Filter) -> bool {
        read(Some(filter)).unwrap().accepts(&agent())
    }

    #[test]
    fn each_field_filters_and_an_absent_one_does_not() {
        assert!(accepts(Filter::default()));
        let kind = |kind: &str| Filter {
            by_attestation_type: kind.to_owned(),
            ..Filter::default()
        };
        assert!(accepts(kind("join_token")));
        assert!(!accepts(kind("x509pop")));
        for (banned, can, passes) in [
            (None, Some(true), true),
            (Some(false), None, true),
            (Some(true), None, false),
            (None, Some(false), false),
        ] {
            let filter = Filter {
                by_banned: banned,
                by_can_reattest: can,
                ..Filter::default()
            };
            assert_eq!(accepts(filter), passes, "{banned:?} {can:?}");
        }
        let selectors = |value: &str| Filter {
            by_selector_match: Some(types::SelectorMatch {
                selectors: vec![types::Selector {
                    r#type: "a".to_owned(),
                    value: value.to_owned(),
                }],
                r#match: 3,
            }),
            ..Filter::default()
        };
        assert!(accepts(selectors("1")));
        assert!(!accepts(selectors("2")));
        let before = |text: &str| Filter {
            by_expires_before: text.to_owned(),
            ..Filter::default()
        };
        assert!(accepts(before("1970-01-01 00:16:41 +0000 UTC")));
        assert!(!accepts(before("1970-01-01 00:16:40 +0000 UTC")));
    }

    #[test]
    fn an_empty_selector_set_and_an_unreadable_time_are_refused() {
        let filter = Filter {
            by_selector_match: Some(types::SelectorMatch::default()),
            ..Filter::default()
        };
        let refused = read(Some(filter)).unwrap_err();
        assert_eq!(
            refused.message(),
            "failed to parse selectors: empty selector set"
        );
        let filter = Filter {
            by_expires_before: "soon".to_owned(),
            ..Filter::default()
        };
        assert!(read(Some(filter)).is_err());
    }

    #[test]
    fn times_are_read_as_go_prints_them() {
        let table = [
            ("1970-01-01 00:00:00 +0000 UTC", Some(0)),
            ("2000-02-29 12:30:45 +0000 UTC", Some(951_827_445)),
            ("2026-11-21 04:12:00 +0200 +02", Some(1_795_227_120)),
            ("2026-11-20 21:12:00 -0500 -05", Some(1_795_227_120)),
            ("2026-13-01 00:00:00 +0000 UTC", None),
            ("2026-01-01 24:00:00 +0000 UTC", None),
            ("2026-01-01", None),
            ("", None),
            ("2026-01-01 00:00:00 +00000 UTC", None),
            ("99999-01-01 00:00:00 +0000 UTC", None),
        ];
        for (text, seconds) in table {
            assert_eq!(parse_time(text), seconds, "{text}");
        }
    }
}
