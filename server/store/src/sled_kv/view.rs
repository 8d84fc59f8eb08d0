//! What readers see: the durable state, whether sled has it yet or not.
//!
//! Invariant: a batch is seen from the moment on that the journal has it on the disk: until sled
//! has taken all of its keys they are answered from `ahead`. So nobody reads what a failed sync
//! would take back, or half a batch. While the store is down nothing is read at all.
//! Readers hold the lock shared for one key or [`STRIDE`] keys; the writer
//! takes it alone only to swap a pointer.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use super::disk::Disk;
use crate::kv::{Item, KvError};

/// Most items that are read under one lock.
pub(super) const STRIDE: usize = 256;

/// The state of the store as readers see it.
#[derive(Debug)]
pub(super) struct View(RwLock<State>);

/// What the keys of a batch have that sled is still taking; None is removed.
pub(super) type Ahead = HashMap<Bytes, Option<Item>>;

#[derive(Debug)]
struct State {
    disk: Result<Arc<Disk>, KvError>,
    ahead: Ahead,
    /// Counts the handles that served, so that a late complaint about an
    /// earlier one is told apart.
    generation: u64,
}

impl View {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Self(RwLock::new(State {
            disk: Ok(disk),
            ahead: Ahead::new(),
            generation: 0,
        }))
    }

    /// Reads one key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Item>, Failure> {
        let state = self.read();
        let disk = state.disk()?;
        if let Some(ahead) = state.ahead.get(key) {
            return Ok(ahead.clone());
        }
        let stored = disk.read(key).map_err(|error| state.failure(error))?;
        Ok(stored.map(|stored| stored.item))
    }

    /// Reads at most `limit` items, and whether more follow.
    pub(super) fn range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<(Vec<Item>, bool), Failure> {
        let state = self.read();
        let disk = state.disk()?;
        let hidden = |key: &[u8]| !state.ahead.is_empty() && state.ahead.contains_key(key);
        let mut items = disk
            .read_range(prefix, after, limit.saturating_add(1), hidden)
            .map_err(|error| state.failure(error))?;
        let in_range = |item: &&Item| {
            item.key.starts_with(prefix) && after.is_none_or(|after| item.key.as_ref() > after)
        };
        let ahead = state.ahead.values().flatten();
        items.extend(ahead.filter(in_range).cloned());
        items.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let more = items.len() > limit;
        items.truncate(limit);
        Ok((items, more))
    }

    /// Why the store is down, when it is.
    pub(super) fn check(&self) -> Result<(), KvError> {
        self.read()
            .disk()
            .map(drop)
            .map_err(|failure| failure.error)
    }

    /// The handle, when the store is up.
    pub(super) fn disk(&self) -> Result<Arc<Disk>, KvError> {
        self.read().disk.clone()
    }

    pub(super) fn generation(&self) -> u64 {
        self.read().generation
    }

    /// Shows a batch that is durable and that sled has not taken yet.
    pub(super) fn show(&self, ahead: Ahead) {
        self.write().ahead = ahead;
    }

    /// Sled has taken all of it.
    pub(super) fn taken(&self) {
        let taken = std::mem::take(&mut self.write().ahead);
        drop(taken);
    }

    /// Takes the handle from the readers; they get `error` from now on.
    pub(super) fn take_down(&self, error: KvError) -> Option<Arc<Disk>> {
        let mut state = self.write();
        state.ahead = Ahead::new();
        std::mem::replace(&mut state.disk, Err(error)).ok()
    }

    /// Gives the readers a handle again.
    pub(super) fn put_up(&self, disk: Arc<Disk>) {
        let mut state = self.write();
        state.disk = Ok(disk);
        state.generation = state.generation.wrapping_add(1);
    }

    /// A panic under the lock is sled's and caught below it: no poison.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A read that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: KvError,
    /// The handle that failed, when it should be looked at.
    pub(super) suspect: Option<u64>,
}

impl State {
    fn disk(&self) -> Result<&Disk, Failure> {
        match &self.disk {
            Ok(disk) => Ok(disk),
            Err(error) => Err(Failure {
                error: error.clone(),
                suspect: None,
            }),
        }
    }

    fn failure(&self, error: KvError) -> Failure {
        let suspect = matches!(error, KvError::Unavailable { .. }).then_some(self.generation);
        Failure { error, suspect }
    }
}
