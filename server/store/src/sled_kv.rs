//! The embedded store: sled behind a journal, with the durability that sled alone lacks.
//!
//! Invariant: an acknowledged commit is on disk (`fdatasync` of the journal, then of sled's
//! files before the journal forgets it), and nothing that is not on disk was ever read or published.
//! One tree, one writing thread, no sled transactions and no sled watches.
//! Damage found at opening is an error with the way out, never a panic.
//! Not here: several servers on one store; that is what etcd is for.

mod blobs;
mod failure;
mod faults;
mod journal;
mod layout;
mod stand_by;

mod changes;

mod disk;

mod plan;
mod view;

mod write_through;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use async_trait::async_trait;
use tokio::sync::{Semaphore, oneshot};

use self::disk::Disk;
pub use self::disk::SledConfig;
use self::faults::Faults;
use self::plan::Job;
use self::stand_by::StandBy;
use self::view::{Failure, STRIDE, View};
use self::writer::{Message, Shared, Writer};
use crate::kv::{
    CommitError, Epoch, Feed, Item, Kv, KvError, Page, Revision, RingLimits, Txn, Watch,
    WatchError, is_reserved,
};

/// Bytes of transactions that may wait for the writer, in KiB.
const QUEUE_KIB: usize = 64 * 1024;

/// A store in a folder of its own.
///
/// Dropping it waits for the writing thread: commits that were handed over
/// are finished, the folder can be opened again at once.
#[derive(Debug)]
pub struct SledKv {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    inbox: Option<mpsc::Sender<Message>>,
    thread: Option<JoinHandle<()>>,
}

impl SledKv {
    /// Opens the store, or makes an empty one; blocks while it reads.
    ///
    /// # Errors
    /// [`KvError::Corrupt`] when the files are damaged,
    /// [`KvError::NewerFormat`] when a newer version wrote them,
    /// [`KvError::Unavailable`] when they cannot be read or another process
    /// has them open.
    pub fn open(config: SledConfig) -> Result<Self, KvError> {
        Self::open_with(config, Faults::default(), RingLimits::default())
    }

    pub(crate) fn open_with(
        config: SledConfig,
        faults: Faults,
        ring: RingLimits,
    ) -> Result<Self, KvError> {
        let disk = open_disk(&config, &faults)?;
        let shared = Arc::new(Shared {
            epoch: disk.epoch(),
            feed: Feed::new(disk.revision(), ring),
            view: View::new(Arc::new(disk)),
        });
        let (inbox, messages) = mpsc::channel();
        let writer = Writer::new(config, faults, Arc::clone(&shared), messages);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| KvError::Unavailable {
                cause: format!("the writing thread did not start: {error}"),
                way_out: "raise the limit of threads of this user".to_owned(),
            })?;
        Ok(Self {
            shared,
            places: Arc::new(Semaphore::new(QUEUE_KIB)),
            inbox: Some(inbox),
            thread: Some(thread),
        })
    }

    /// Reports a failed read to the writer, which reopens the store.
    fn report(&self, failure: Failure) -> KvError {
        if let (Some(generation), Some(inbox)) = (failure.suspect, &self.inbox) {
            let _ = inbox.send(Message::Suspect(generation, failure.error.clone()));
        }
        failure.error
    }
}

impl Drop for SledKv {
    fn drop(&mut self) {
        self.inbox = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("store writer panicked");
        }
    }
}

#[async_trait]
impl Kv for SledKv {
    async fn get(&self, key: &[u8]) -> Result<Option<Item>, KvError> {
        if is_reserved(key) {
            return Ok(None);
        }
        let read = self.shared.view.get(key);
        read.map_err(|failure| self.report(failure))
    }

    async fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page, KvError> {
        let revision = self.shared.feed.revision();
        let limit = limit.max(1);
        let mut items: Vec<Item> = Vec::new();
        let mut more = true;
        while more && items.len() < limit {
            let last = items.last().map(|item| item.key.clone());
            let after = last.as_deref().or(after);
            let stride = STRIDE.min(limit.saturating_sub(items.len()));
            let read = self.shared.view.range(prefix, after, stride);
            let (next, follows) = read.map_err(|failure| self.report(failure))?;
            items.extend(next);
            more = follows;
        }
        Ok(Page {
            items,
            revision,
            more,
        })
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        txn.check()?;
        self.shared.view.check()?;
        let kib = u32::try_from(txn.bytes() / 1024)
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let places = Arc::clone(&self.places);
        let place = places.acquire_many_owned(kib).await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let job = Job {
            txn,
            answer,
            _place: place,
        };
        let inbox = self.inbox.as_ref().ok_or_else(closed)?;
        inbox.send(Message::Commit(job)).map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, WatchError> {
        self.shared.feed.watch(prefix, from)
    }

    fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    fn revision(&self) -> Revision {
        self.shared.feed.revision()
    }
}

/// Opens the files; damaged ones are left as they were found.
fn open_disk(config: &SledConfig, faults: &Faults) -> Result<Disk, KvError> {
    let stand_by = StandBy::make(&config.dir);
    let opened = Disk::open(config, faults);
    if let Some(stand_by) = stand_by {
        match &opened {
            Err(KvError::Corrupt { .. }) => stand_by.put_back(),
            _ => stand_by.discard(),
        }
    }
    opened
}

fn closed() -> KvError {
    KvError::Unavailable {
        cause: "the writer of the store has stopped".to_owned(),
        way_out: "start the server again".to_owned(),
    }
}
