//! The rows that say what the log is owed: a few, written again and again.
//!
//! Owns which row a change writes. Invariant: a row that the log does not have yet is never
//! given to another change; one that nobody logged (its commit failed, or its caller went away)
//! is never given again. A row that the log has is better written over than deleted first: a
//! busy server deletes next to nothing, and an idle one keeps nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Which rows there are. Numbers begin anew with each process, after the rows of the last one
/// are gone.
#[derive(Debug, Default)]
pub(super) struct Slots {
    state: Mutex<State>,
    /// Something was logged.
    pub(super) logged: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// The store has the row and so has the log.
    logged: Vec<u64>,
    /// The store does not have the row.
    absent: Vec<u64>,
}

impl Slots {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A row for a change.
    pub(super) fn take(&self) -> u64 {
        let mut state = self.state();
        let known = state.logged.pop().or_else(|| state.absent.pop());
        known.unwrap_or_else(|| {
            let new = state.next;
            state.next += 1;
            new
        })
    }

    /// The log has what these rows say.
    pub(super) fn are_logged(&self, slots: impl IntoIterator<Item = u64>) {
        self.state().logged.extend(slots);
        self.logged.notify_one();
    }

    /// At most `limit` rows to delete; nobody gets them meanwhile.
    pub(super) fn to_delete(&self, limit: usize) -> Vec<u64> {
        let logged = &mut self.state().logged;
        let kept = logged.len().saturating_sub(limit);
        logged.split_off(kept)
    }

    /// These rows are deleted.
    pub(super) fn are_deleted(&self, slots: Vec<u64>) {
        self.state().absent.extend(slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_given_again_once_the_log_has_it_and_not_while_it_is_deleted() {
        let slots = Slots::default();
        let (a, b) = (slots.take(), slots.take());
        assert_ne!(a, b);
        slots.are_logged([a]);
        assert_eq!(slots.take(), a);
        slots.are_logged([a, b]);
        let deleting = slots.to_delete(1);
        assert_eq!(deleting, [b]);
        assert_eq!(slots.take(), a);
        let c = slots.take();
        assert!(c != a && c != b);
        slots.are_deleted(deleting);
        assert_eq!(slots.take(), b);
        assert!(slots.to_delete(9).is_empty(), "nothing is logged");
    }
}
