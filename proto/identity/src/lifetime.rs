//! When a certificate is valid and when it is renewed. Pure functions of time.
//!
//! A lifetime counts from issue (for an agent: from reception), never from notBefore,
//! which lies [`NOT_BEFORE_BACKDATE`] earlier: at short TTLs the rule would else be due on
//! arrival (DESIGN "Rotation is a pure function").

use std::time::{Duration, SystemTime};

/// How far notBefore lies before the issue of a certificate (SPIRE's `NotBeforeCushion`).
pub const NOT_BEFORE_BACKDATE: Duration = Duration::from_secs(10);
/// An entry is not renewed sooner than this after its last issue.
pub const MIN_RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// What was received so much in the future was received under another clock. Less is how
/// clocks are corrected in small steps.
pub const OTHER_CLOCK: Duration = Duration::from_secs(2);

/// The time in which a certificate is valid, both ends inclusive (RFC 5280 section 4.1.2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First instant.
    pub not_before: SystemTime,
    /// Last instant.
    pub not_after: SystemTime,
}

impl Validity {
    /// A validity of `ttl` from `now`, backdated, and cut at `cap` (the issuer's notAfter).
    /// Both ends are whole seconds, since certificates carry no fractions.
    #[must_use]
    pub fn issued_at(now: SystemTime, ttl: Duration, cap: SystemTime) -> Self {
        let not_after = now.checked_add(ttl).map_or(cap, |end| end.min(cap));
        Self {
            not_before: whole_seconds(now - NOT_BEFORE_BACKDATE),
            not_after: whole_seconds(not_after),
        }
    }

    /// Whether `now` lies in it.
    #[must_use]
    pub fn contains(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// A draw in [-1, 1] that spreads renewals; made by the caller so that this stays pure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jitter(f64);

impl Jitter {
    /// No jitter.
    pub const NONE: Self = Self(0.0);

    /// Clamps `draw` to [-1, 1]; anything that is no number counts as 0.
    #[must_use]
    pub fn new(draw: f64) -> Self {
        Self(if draw.is_nan() {
            0.0
        } else {
            draw.clamp(-1.0, 1.0)
        })
    }
}

/// When something issued at `issued_at` and valid until `not_after` is renewed: at half its
/// lifetime +-10 % of that half, never sooner than [`MIN_RENEW_INTERVAL`] after its issue.
/// What was already over at its issue is due after that interval.
#[must_use]
pub fn renew_at(issued_at: SystemTime, not_after: SystemTime, jitter: Jitter) -> SystemTime {
    let half = not_after
        .duration_since(issued_at)
        .unwrap_or_default()
        .div_f64(2.0);
    let moved = half.mul_f64(1.0 + 0.1 * jitter.0);
    issued_at + moved.max(MIN_RENEW_INTERVAL)
}

/// When what was received at `received_at` is renewed: as [`renew_at`], of a life that ends
/// at the end of `validity`, but never has more than the whole length of it. A receiver whose
/// clock is behind the issuer's would else renew after the end.
#[must_use]
pub fn renewal(received_at: SystemTime, validity: Validity, jitter: Jitter) -> SystemTime {
    let length = validity.not_after.duration_since(validity.not_before);
    let end = received_at.checked_add(length.unwrap_or_default());
    let end = end.map_or(validity.not_after, |end| end.min(validity.not_after));
    renew_at(received_at, end, jitter)
}

/// Whether what was received at `received_at` and is to be renewed at `due` is to be renewed
/// now: its time came, or the clock was set back to before its reception, so that its time
/// means nothing any more.
#[must_use]
pub fn is_due(received_at: SystemTime, due: SystemTime, now: SystemTime) -> bool {
    due <= now || received_at > now + OTHER_CLOCK
}

/// `time` without its fraction of a second, rounded down.
#[must_use]
pub fn whole_seconds(time: SystemTime) -> SystemTime {
    from_unix(to_unix(time))
}

/// Whole seconds since the Unix epoch, negative before it.
#[must_use]
pub fn to_unix(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            let whole = i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX);
            let part = i64::from(before.duration().subsec_nanos() > 0);
            -whole - part
        }
    }
}

/// The instant `seconds` after (or before) the Unix epoch; saturates at the ends of what
/// `SystemTime` holds.
#[must_use]
pub fn from_unix(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let moved = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    moved.unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_at_half_the_lifetime_give_or_take_a_tenth_of_it() {
        let issued = from_unix(1_000);
        let end = from_unix(1_060);
        assert_eq!(renew_at(issued, end, Jitter::NONE), from_unix(1_030));
        assert_eq!(renew_at(issued, end, Jitter::new(1.0)), from_unix(1_033));
        assert_eq!(renew_at(issued, end, Jitter::new(-7.0)), from_unix(1_027));
    }

    #[test]
    fn renewal_never_comes_sooner_than_a_second_after_the_issue() {
        let issued = from_unix(1_000);
        for end in [990, 1_000, 1_001] {
            assert_eq!(
                renew_at(issued, from_unix(end), Jitter::NONE),
                from_unix(1_001)
            );
        }
    }

    #[test]
    fn a_receiver_whose_clock_is_behind_renews_before_the_end_all_the_same() {
        let issued = from_unix(10_000);
        let validity = Validity::issued_at(issued, Duration::from_secs(60), from_unix(20_000));
        let after = |received| {
            let due = renewal(received, validity, Jitter::NONE);
            due.duration_since(received).unwrap().as_secs()
        };
        assert_eq!(after(issued), 30);
        assert_eq!(after(issued - Duration::from_secs(3_600)), 35);
        assert_eq!(after(issued - Duration::from_secs(86_400)), 35);
        assert_eq!(after(issued + Duration::from_secs(3_600)), 1, "over");
    }

    #[test]
    fn what_was_received_in_the_future_is_due() {
        let (received, due) = (from_unix(10_000), from_unix(10_030));
        let table = [
            (10_000, false),
            (10_029, false),
            (10_030, true),
            (10_000 + 3_600, true),
            (10_000 + 86_400, true),
            (9_999, false),
            (9_998, false),
            (9_997, true),
            (10_000 - 3_600, true),
            (10_000 - 86_400, true),
        ];
        for (now, want) in table {
            assert_eq!(is_due(received, due, from_unix(now)), want, "{now}");
        }
    }

    #[test]
    fn validity_is_backdated_whole_and_capped_by_the_issuer() {
        let now = from_unix(1_000) + Duration::from_millis(700);
        let validity = Validity::issued_at(now, Duration::from_secs(60), from_unix(1_030));
        assert_eq!(validity.not_before, from_unix(990));
        assert_eq!(validity.not_after, from_unix(1_030));
        assert!(validity.contains(now));
        assert!(!validity.contains(from_unix(1_031)));
    }

    #[test]
    fn unix_seconds_round_down_on_both_sides_of_the_epoch() {
        assert_eq!(to_unix(from_unix(-5)), -5);
        assert_eq!(to_unix(from_unix(-5) + Duration::from_millis(1)), -5);
        assert_eq!(to_unix(from_unix(7) + Duration::from_millis(999)), 7);
    }
}
