//! How a stream or a call of the Workload API ends without an answer.

use tonic::Status;

use crate::counters::{Counters, Refused};
use crate::snapshot::{Snapshot, Standing};
use crate::workload::Outcome;

const OVERDUE: &str = "the agent has not reached its server for longer than agent.offline_grace: it serves nothing until it does";
const UNCONFIRMED: &str =
    "no identity is known yet: the agent has not reached its server since it started";

/// The reason, as it is counted, and what the caller is told.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) reason: Refused,
    pub(crate) status: Status,
}

impl End {
    /// It can be had later.
    pub(crate) fn unavailable(text: impl Into<String>) -> Self {
        Self {
            reason: Refused::Unavailable,
            status: Status::unavailable(text),
        }
    }

    /// The process is not what connected.
    pub(crate) fn changed(text: String) -> Self {
        Self {
            reason: Refused::ProcessChanged,
            status: Status::permission_denied(text),
        }
    }

    /// The request says something that cannot be meant.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self {
            reason: Refused::Request,
            status: Status::invalid_argument(text),
        }
    }

    /// Nothing of `snapshot` may be served.
    ///
    /// # Errors
    /// UNAVAILABLE, not PERMISSION_DENIED: nobody took the identity away, the agent only does
    /// not know.
    pub(crate) fn overdue(snapshot: &Snapshot) -> Result<(), Self> {
        match snapshot.standing() {
            Standing::Overdue => Err(Self::unavailable(OVERDUE)),
            Standing::Current | Standing::Unconfirmed => Ok(()),
        }
    }

    /// No entry of `snapshot` matches `outcome`, or none could be told to.
    pub(crate) fn nothing(snapshot: &Snapshot, outcome: &Outcome) -> Self {
        if snapshot.standing() == Standing::Unconfirmed {
            return Self::unavailable(UNCONFIRMED);
        }
        if snapshot.may_match(outcome) {
            return Self::unavailable(
                "workload attestation is not complete: some of its selectors are not known now",
            );
        }
        Self {
            reason: Refused::NoIdentity,
            status: Status::permission_denied("no identity issued"),
        }
    }

    /// Counts it; what the caller is told.
    pub(crate) fn count(self, counters: &Counters) -> Status {
        counters.refuse(self.reason);
        self.status
    }
}
