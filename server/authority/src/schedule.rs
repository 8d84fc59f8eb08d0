//! What a server does with its authorities of one kind, and when: a pure function of them and
//! `now`, the same for X.509 and JWT.
//!
//! SPIRE's thresholds (SPIRE.md 1.1): the next authority is prepared when less than half of
//! the active one's life is left (at most 30 days), and activated when less than a sixth is
//! left (at most 7 days), so that every agent had a third of that life to learn it. A
//! lifetime counts from issue. An authority that signs nothing any longer leaves the bundle
//! once nothing it signed can be valid, and a safety later: SPIRE's 24 h, but never more than
//! its own lifetime, so that short-lived authorities do not pile up.
//!
//! Acknowledgements do not move these times. SPIRE's activation threshold is the deadline
//! until which agents may learn the next authority, and nothing is won by activating it
//! earlier; once it passed waiting longer would cost the SVIDs their lifetime. An agent that
//! lags is reported when the authority is activated (`Authority::set_acks`).

use std::time::{Duration, SystemTime};

use vane_identity::lifetime::NOT_BEFORE_BACKDATE;

use crate::profile::MIN_CA_LEFT;

const PREPARE_AT_MOST: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const ACTIVATE_AT_MOST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const SAFETY: Duration = Duration::from_secs(24 * 60 * 60);

/// Where an authority stands, as far as the schedule looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// In the bundle, not signing yet.
    Prepared,
    /// Signing.
    Active,
    /// No longer signing; old or tainted.
    Retired,
}

/// An authority of this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its ID.
    pub id: String,
    /// Where it stands.
    pub stage: Stage,
    /// When it was made.
    pub issued_at: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the next authority.
    Prepare,
    /// Sign with this one from now on.
    Activate(String),
    /// Take this one out of the bundle.
    Prune(String),
}

impl Slot {
    fn lifetime(&self) -> Duration {
        self.not_after
            .duration_since(self.issued_at)
            .unwrap_or_default()
    }

    fn prepare_at(&self) -> SystemTime {
        self.not_after - (self.lifetime() / 2).min(PREPARE_AT_MOST)
    }

    fn activate_at(&self) -> SystemTime {
        self.not_after - (self.lifetime() / 6).min(ACTIVATE_AT_MOST)
    }

    fn prune_at(&self) -> SystemTime {
        self.not_after + self.lifetime().min(SAFETY)
    }

    /// Whether it has time left to sign with, and is valid already: one that was made before
    /// the clock was set back begins in the future, and so would all that it signed.
    fn can_sign(&self, now: SystemTime) -> bool {
        self.issued_at <= now + NOT_BEFORE_BACKDATE && now + MIN_CA_LEFT < self.not_after
    }
}

/// The next thing to do at `now`, if there is one. Call it again once that is done.
#[must_use]
pub fn next_action(slots: &[Slot], now: SystemTime) -> Option<Action> {
    let active = of(slots, Stage::Active).filter(|slot| slot.can_sign(now));
    let prepared = of(slots, Stage::Prepared).filter(|slot| slot.can_sign(now));
    match (active, prepared) {
        (None, None) => Some(Action::Prepare),
        (None, Some(next)) => Some(Action::Activate(next.id.clone())),
        (Some(active), None) if now > active.prepare_at() => Some(Action::Prepare),
        (Some(active), Some(next)) if now > active.activate_at() => {
            Some(Action::Activate(next.id.clone()))
        }
        _ => next_prune(slots, now),
    }
}

/// The same of a kind that is switched off: those that there are leave in their time, and
/// none is made.
#[must_use]
pub fn next_prune(slots: &[Slot], now: SystemTime) -> Option<Action> {
    let mut slots = slots.iter();
    slots
        .find(|slot| slot.stage != Stage::Active && now > slot.prune_at())
        .map(|slot| Action::Prune(slot.id.clone()))
}

/// When, after `now`, [`next_action`] may say something else by itself; a moment after each
/// threshold, since they are passed, not reached.
#[must_use]
pub fn next_time(slots: &[Slot], now: SystemTime) -> Option<SystemTime> {
    let thresholds = |slot: &Slot| match slot.stage {
        Stage::Prepared => vec![slot.not_after - MIN_CA_LEFT, slot.prune_at()],
        Stage::Active => vec![
            slot.prepare_at(),
            slot.activate_at(),
            slot.not_after - MIN_CA_LEFT,
        ],
        Stage::Retired => vec![slot.prune_at()],
    };
    let moment = Duration::from_millis(10);
    slots
        .iter()
        .flat_map(thresholds)
        .map(|time| time + moment)
        .filter(|time| *time > now)
        .min()
}

fn of(slots: &[Slot], stage: Stage) -> Option<&Slot> {
    slots.iter().find(|slot| slot.stage == stage)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn slot(id: &str, stage: Stage, from: u64, to: u64) -> Slot {
        Slot {
            id: id.to_owned(),
            stage,
            issued_at: at(from),
            not_after: at(to),
        }
    }

    fn day(stage: Stage) -> Slot {
        slot("a", stage, 0, 24 * HOUR)
    }

    #[test]
    fn an_empty_server_prepares_and_then_activates() {
        assert_eq!(next_action(&[], at(0)), Some(Action::Prepare));
        assert_eq!(
            next_action(&[day(Stage::Prepared)], at(0)),
            Some(Action::Activate("a".into()))
        );
        assert_eq!(next_action(&[day(Stage::Active)], at(0)), None);
    }

    #[test]
    fn a_ca_of_a_day_is_followed_at_twelve_and_replaced_at_twenty_hours() {
        let active = day(Stage::Active);
        let next = slot("b", Stage::Prepared, 12 * HOUR, 36 * HOUR);
        let (first, both) = ([active.clone()], [active, next]);
        assert_eq!(next_action(&first, at(12 * HOUR)), None);
        assert_eq!(
            next_action(&first, at(12 * HOUR + 1)),
            Some(Action::Prepare)
        );
        assert_eq!(next_action(&both, at(20 * HOUR)), None);
        assert_eq!(
            next_action(&both, at(20 * HOUR + 1)),
            Some(Action::Activate("b".into()))
        );
        assert_eq!(
            next_time(&first, at(HOUR)),
            Some(at(12 * HOUR) + Duration::from_millis(10))
        );
        assert_eq!(
            next_time(&both, at(13 * HOUR)),
            Some(at(20 * HOUR) + Duration::from_millis(10))
        );
    }

    #[test]
    fn long_lives_are_followed_a_month_and_replaced_a_week_before_their_end() {
        let days = |n: u64| n * 24 * HOUR;
        let active = slot("a", Stage::Active, 0, days(365));
        assert_eq!(
            next_action(std::slice::from_ref(&active), at(days(335))),
            None
        );
        assert_eq!(
            next_action(std::slice::from_ref(&active), at(days(335) + 1)),
            Some(Action::Prepare)
        );
        let both = [active, slot("b", Stage::Prepared, days(335), days(700))];
        assert_eq!(next_action(&both, at(days(358))), None);
        assert_eq!(
            next_action(&both, at(days(358) + 1)),
            Some(Action::Activate("b".into()))
        );
    }

    #[test]
    fn a_server_that_was_off_past_the_thresholds_goes_on_at_once() {
        let late = [
            day(Stage::Active),
            slot("b", Stage::Prepared, 12 * HOUR, 36 * HOUR),
        ];
        assert_eq!(
            next_action(&late, at(30 * HOUR)),
            Some(Action::Activate("b".into()))
        );
        assert_eq!(next_action(&late, at(40 * HOUR)), Some(Action::Prepare));
        assert_eq!(
            next_action(&[day(Stage::Active)], at(24 * HOUR - 1)),
            Some(Action::Prepare)
        );
    }

    #[test]
    fn an_authority_leaves_the_bundle_a_safety_after_its_end() {
        let short = [
            slot("b", Stage::Active, 1_000, 100_000),
            slot("a", Stage::Retired, 0, 40),
        ];
        assert_eq!(
            next_action(&short, at(1_080)),
            Some(Action::Prune("a".into()))
        );
        let long = [
            slot("b", Stage::Active, 48 * HOUR, 72 * HOUR),
            day(Stage::Retired),
        ];
        assert_eq!(next_action(&long, at(48 * HOUR)), None);
        assert_eq!(
            next_action(&long, at(48 * HOUR + 1)),
            Some(Action::Prune("a".into()))
        );
    }

    #[test]
    fn an_unused_authority_that_ended_is_no_reason_to_wake_up_and_leaves_too() {
        let slots = [
            slot("b", Stage::Active, 0, 1_000 * HOUR),
            slot("a", Stage::Prepared, 0, HOUR),
        ];
        assert_eq!(next_action(&slots, at(HOUR)), None);
        let prune = at(2 * HOUR) + Duration::from_millis(10);
        assert_eq!(next_time(&slots, at(HOUR)), Some(prune));
        assert_eq!(next_action(&slots, prune), Some(Action::Prune("a".into())));
    }

    #[test]
    fn the_next_time_is_never_past() {
        for stage in [Stage::Prepared, Stage::Active, Stage::Retired] {
            for now in [0, 12, 20, 23, 24, 48, 100] {
                let next = next_time(&[day(stage)], at(now * HOUR + 1));
                assert!(next.is_none_or(|next| next > at(now * HOUR + 1)));
            }
        }
    }

    /// What is done when the clock, at noon of the second day, is set by so much.
    #[test]
    fn a_clock_that_jumps_prepares_activates_and_never_goes_back_to_what_retired() {
        let day = |n: u64| n * 24 * HOUR;
        let noon = day(2) + 12 * HOUR;
        let slots = [
            slot("old", Stage::Retired, day(1), day(2) + 8 * HOUR),
            slot("now", Stage::Active, day(2), day(3)),
        ];
        let next = slot("next", Stage::Prepared, noon, noon + day(1));
        let both = [&slots[..], &[next]].concat();
        let activate = Some(Action::Activate("next".into()));
        let hour = HOUR.cast_signed();
        for (jump, alone, with_next) in [
            (0, None, None),
            (hour, Some(Action::Prepare), None),
            (-hour, None, None),
            // The one that signs is over, or not yet valid.
            (24 * hour, Some(Action::Prepare), Some(Action::Prepare)),
            (-24 * hour, Some(Action::Prepare), Some(Action::Prepare)),
            // The one that signs is over and the next one is not.
            (13 * hour, Some(Action::Prepare), activate),
        ] {
            let now = at(noon.saturating_add_signed(jump));
            assert_eq!(next_action(&slots, now), alone, "{jump}");
            assert_eq!(next_action(&both, now), with_next, "{jump}, prepared");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_by_seconds_changes_nothing() {
        let slots = [slot("a", Stage::Active, 10_000, 20_000)];
        assert_eq!(next_action(&slots, at(9_991)), None);
        assert_eq!(next_action(&slots, at(9_989)), Some(Action::Prepare));
    }
}
