//! What the agent knows of its server's state at a moment: pure, `now` goes in.
//!
//! In contact is who is in sync on an open stream. Who was not yet since its start serves what
//! it had sealed; who is out of contact for longer than `offline_grace` serves nothing.

use std::time::{Duration, SystemTime};

use crate::snapshot::Standing;

#[derive(Debug)]
pub(super) struct Contact {
    /// Since when the agent is out of contact; none while it is in contact.
    lost_at: Option<SystemTime>,
    /// It has been in contact since its start.
    was_in_contact: bool,
    /// The last try failed: nothing comes from the server for now.
    is_failing: bool,
    grace: Option<Duration>,
}

impl Contact {
    /// Nothing is known yet.
    pub(super) fn none(now: SystemTime, grace: Option<Duration>) -> Self {
        Self {
            lost_at: Some(now),
            was_in_contact: false,
            is_failing: false,
            grace,
        }
    }

    /// What is known is of then.
    pub(super) fn restored(heard_at: SystemTime, grace: Option<Duration>) -> Self {
        Self {
            is_failing: true,
            ..Self::none(heard_at, grace)
        }
    }

    /// The stream is in sync; whether that is new.
    pub(super) fn gained(&mut self) -> bool {
        let was_there = self.lost_at.is_none() && !self.is_failing;
        (self.lost_at, self.was_in_contact, self.is_failing) = (None, true, false);
        !was_there
    }

    /// The stream is over; it may well be opened again at once.
    pub(super) fn lost(&mut self, now: SystemTime) {
        self.lost_at.get_or_insert(now);
    }

    /// The server cannot be reached; whether that is new.
    pub(super) fn failed(&mut self) -> bool {
        !std::mem::replace(&mut self.is_failing, true)
    }

    /// Whether something may be waited for.
    pub(super) fn is_promising(&self) -> bool {
        !self.is_failing
    }

    pub(super) fn standing(&self, now: SystemTime) -> Standing {
        match self.ends_at() {
            Some(end) if end <= now => Standing::Overdue,
            _ if self.was_in_contact => Standing::Current,
            _ => Standing::Unconfirmed,
        }
    }

    /// When the grace ends, if it is running.
    pub(super) fn ends_at(&self) -> Option<SystemTime> {
        self.lost_at?.checked_add(self.grace?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(600);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_grace_counts_from_the_last_contact_and_not_from_later_failures() {
        let mut contact = Contact::restored(at(100), Some(GRACE));
        assert_eq!(contact.standing(at(699)), Standing::Unconfirmed);
        assert_eq!(contact.standing(at(700)), Standing::Overdue);
        assert!(contact.gained());
        assert!(!contact.gained(), "nothing new");
        assert_eq!(contact.standing(at(1_000_000)), Standing::Current);
        contact.lost(at(1_000_000));
        contact.lost(at(1_000_500));
        assert!(contact.failed() && !contact.failed());
        assert_eq!(contact.standing(at(1_000_599)), Standing::Current);
        assert_eq!(contact.standing(at(1_000_600)), Standing::Overdue);
        assert_eq!(contact.ends_at(), Some(at(1_000_600)));
    }

    #[test]
    fn without_a_grace_nothing_ends() {
        let mut contact = Contact::none(at(0), None);
        assert_eq!(contact.standing(at(u32::MAX.into())), Standing::Unconfirmed);
        contact.gained();
        contact.lost(at(1));
        assert_eq!(contact.standing(at(u32::MAX.into())), Standing::Current);
    }
}
