//! A seam for tests: lets the disk fail at a chosen moment.
//!
//! Production code has the empty value only; no configuration reaches it.

use std::fmt;
use std::io;
use std::sync::Arc;

/// The moments at which a test may let the disk fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The database is about to be opened.
    Open,
    /// Nothing of the batch was written yet.
    Append,
    /// The batch is written, not synced.
    Sync,
    /// The batch is on disk, nobody knows yet.
    Synced,
    /// The batch is acknowledged, sled has nothing of it yet.
    Apply,
}

/// Lets tests fail a [`Stage`]; does nothing in production.
#[derive(Clone, Default)]
pub(crate) struct Faults(Option<Arc<FaultFn>>);

type FaultFn = dyn Fn(Stage) -> io::Result<()> + Send + Sync;

impl Faults {
    #[cfg(test)]
    pub(crate) fn new(f: impl Fn(Stage) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(f)))
    }

    /// Fails when the test wants `stage` to fail.
    pub(super) fn at(&self, stage: Stage) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |fault| fault(stage))
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faults")
    }
}
