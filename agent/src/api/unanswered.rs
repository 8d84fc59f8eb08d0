//! The calls that wait for their first answer: an agent that hands over ends when there are none.

use std::sync::Arc;

use tokio::sync::watch;

/// How many there are; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unanswered(Arc<watch::Sender<usize>>);

/// A call that waits while this lives.
#[derive(Debug)]
pub(crate) struct Waits(Unanswered);

impl Unanswered {
    /// One more.
    pub(crate) fn one(&self) -> Waits {
        self.0.send_modify(|count| *count += 1);
        Waits(self.clone())
    }

    /// Waits until there are none.
    pub(crate) async fn none(&self) {
        // The sender is here.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
