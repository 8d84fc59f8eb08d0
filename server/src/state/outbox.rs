//! What waits to be sent on one stream: at most [`PENDING_BYTES`], then nothing.
//!
//! An outbox that runs over is emptied and marked lost: the stream then lists the set again,
//! which needs no memory of what was missed. So a slow agent costs its outbox and no more.
//! The state pushes while it holds its lock; a stream pops while it holds the same lock for
//! reading, so that what it makes from the state itself comes after all that was pushed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::message::{Message, Shared};

/// The most bytes that wait for one stream, unless one message alone has more. Few in unit
/// tests, so that it runs over.
pub const PENDING_BYTES: usize = if cfg!(test) { 2048 } else { 64 * 1024 };

/// The outbox of one stream.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Arc<Shared>>,
    weight: usize,
    lost: bool,
    doubted: bool,
    replaced: bool,
}

/// What a stream finds in its outbox.
#[derive(Debug)]
pub(crate) enum Pop {
    /// The next message.
    Message(Arc<Shared>),
    /// Messages were thrown away.
    Lost,
    /// Nothing.
    Empty,
}

impl Outbox {
    /// Appends a message, or loses all when there is no room.
    pub(crate) fn push(&self, message: &Arc<Shared>) {
        let mut queue = self.lock();
        if queue.lost {
            return;
        }
        let weight = queue.weight.saturating_add(message.weight());
        if weight > PENDING_BYTES && !queue.messages.is_empty() {
            queue.lose();
            return;
        }
        queue.weight = weight;
        queue.messages.push_back(Arc::clone(message));
    }

    /// Throws everything away: the set is to be listed again.
    pub(crate) fn lose(&self) {
        self.lock().lose();
    }

    /// The record of the agent changed: it may no longer be served.
    pub(crate) fn doubt(&self) {
        self.lock().doubted = true;
    }

    /// Newer streams of the same agent took the place of this one.
    pub(crate) fn replace(&self) {
        self.lock().replaced = true;
    }

    /// Takes the next message; only a message of bundles, if `bundles_only`: then the others
    /// keep waiting in their order.
    pub(crate) fn pop(&self, bundles_only: bool) -> Pop {
        let mut queue = self.lock();
        if std::mem::take(&mut queue.lost) {
            return Pop::Lost;
        }
        let is_next = |message: &Arc<Shared>| !bundles_only || is_bundles(message);
        let next = queue.messages.iter().position(is_next);
        let Some(message) = next.and_then(|at| queue.messages.remove(at)) else {
            return Pop::Empty;
        };
        queue.weight = queue.weight.saturating_sub(message.weight());
        Pop::Message(message)
    }

    /// Whether the agent's record changed since the last call.
    pub(crate) fn take_doubt(&self) -> bool {
        std::mem::take(&mut self.lock().doubted)
    }

    /// Whether the stream is to end for newer ones.
    pub(crate) fn is_replaced(&self) -> bool {
        self.lock().replaced
    }

    /// Wakes the stream, once it no longer helps to hold the state's lock.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until [`Outbox::wake`] is called, or was since the last wait.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// No code panics while it holds this lock, so poison carries no meaning.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_bundles(message: &Arc<Shared>) -> bool {
    matches!(message.message(), Message::Bundles { .. })
}

impl Queue {
    fn lose(&mut self) {
        self.messages.clear();
        self.weight = 0;
        self.lost = true;
    }
}
