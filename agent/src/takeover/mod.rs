//! Take-over: a second process of the same node goes on where the first one was, and no connect
//! is refused.
//!
//! Over the admin socket, behind a preface of its own, in this order, each step bounded in time:
//!
//! 1. The successor says [`Hello`](message::Ask::Hello). Only root and the agent's own user are
//!    heard. The predecessor freezes its [`Tenure`](crate::tenure) and tells its state: own SVID
//!    and key.
//! 2. The successor is in sync with the server, or has what was sealed:
//!    [`Warm`](message::Ask::Warm). The predecessor passes its listening sockets and the lock of
//!    `data_dir` (SCM_RIGHTS).
//! 3. The successor serves on them: [`Serving`](message::Ask::Serving). The predecessor accepts no
//!    more, ends its streams and itself.
//!
//! Until the third step is done the predecessor goes on as before when the successor ends or is
//! late. A start that finds a holder who does not answer says who it is.

mod frame;
mod message;

mod predecessor;
mod successor;

pub use message::PREFACE;
pub use predecessor::{Estate, Passed, Taken};
pub use successor::{Inherited, Start, StartError, Successor, TakeOverError, begin};

/// So long one step may take that needs no third party.
const STEP: std::time::Duration = std::time::Duration::from_secs(5);
/// So long the successor may take to be warm.
pub const WARM: std::time::Duration = std::time::Duration::from_secs(30);

#[cfg(test)]
mod tests;
