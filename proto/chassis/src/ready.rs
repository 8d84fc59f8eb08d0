//! Ready means that nothing is awaited any more.
//!
//! Each part that has something to do before the process can serve registers
//! it and holds the [`Pending`] until it is done. What is still awaited can be
//! listed by name, so that "not ready" always says why.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

/// What the process waits for. Clones share it.
#[derive(Clone)]
pub struct Ready(Arc<watch::Sender<Awaited>>);

#[derive(Default)]
struct Awaited {
    next: u64,
    names: BTreeMap<u64, String>,
}

/// One thing that is awaited, until [`done`](Self::done) or dropped.
#[must_use = "dropping it says that it is done"]
pub struct Pending {
    ready: Ready,
    number: u64,
}

impl Ready {
    /// Nothing is awaited.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::default()))
    }

    /// Waits for one thing more.
    pub fn register(&self, name: impl Into<String>) -> Pending {
        let mut number = 0;
        self.0.send_modify(|awaited| {
            number = awaited.next;
            awaited.next += 1;
            awaited.names.insert(number, name.into());
        });
        Pending {
            ready: self.clone(),
            number,
        }
    }

    /// Whether nothing is awaited.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.borrow().names.is_empty()
    }

    /// What is awaited, in the order of registration.
    #[must_use]
    pub fn awaited(&self) -> Vec<String> {
        self.0.borrow().names.values().cloned().collect()
    }

    /// Returns as soon as nothing is awaited.
    pub async fn wait(&self) {
        let mut changes = self.0.subscribe();
        // It ends with an error when the sender is gone, and we hold it.
        let _ = changes.wait_for(|awaited| awaited.names.is_empty()).await;
    }
}

impl Default for Ready {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ready").field(&self.awaited()).finish()
    }
}

impl Pending {
    /// It is done: the same as dropping it, in words.
    pub fn done(self) {}
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.ready.0.send_modify(|awaited| {
            awaited.names.remove(&self.number);
        });
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pending").field(&self.number).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_ready_when_the_last_awaited_thing_is_done() {
        let ready = Ready::new();
        assert!(ready.is_ready());
        let store = ready.register("store");
        let sync = ready.register("sync");
        let again = ready.register("sync");
        assert_eq!(ready.awaited(), ["store", "sync", "sync"]);
        sync.done();
        drop(store);
        assert_eq!(ready.awaited(), ["sync"]);
        tokio::join!(ready.wait(), async {
            assert!(!ready.is_ready());
            again.done();
        });
        assert!(ready.is_ready());
    }
}
