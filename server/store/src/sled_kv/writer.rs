//! The one thread that writes: it drains the queue into batches, and brings
//! the store back after a failed sync.
//!
//! Order of a batch: plan against durable state, append to the journal and sync, show, publish,
//! acknowledge, give it to sled. (Publishing comes before the answer so that a caller can watch
//! from the revision it was given; sled comes last because nobody waits for it.)
//! After a failure the handle is never used again: callers get the cause and
//! the way out, the writer reopens with back-off, finds out whether the batch
//! in doubt became durable, proves by a write that the disk takes writes, and
//! goes on. It stays down when acknowledged writes are missing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use vane_chassis::panics;

use super::changes::Write;
use super::disk::{Disk, SledConfig};
use super::faults::Faults;
use super::plan::{Job, Plan, plan};
use super::view::{Ahead, View};
use crate::kv::{Change, ChangeOp, Epoch, Feed, Item, KvError, Op, Revision};
use crate::record::RESTORE;

/// Most messages that are taken from the queue at once.
const MAX_DRAIN: usize = 4_096;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(5);

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Message {
    Commit(Job),
    /// A read of this generation failed.
    Suspect(u64, KvError),
}

/// What the writer shares with the readers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) view: View,
    pub(super) feed: Feed,
    pub(super) epoch: Epoch,
}

/// The state of the writing thread.
#[derive(Debug)]
pub(super) struct Writer {
    config: SledConfig,
    faults: Faults,
    shared: Arc<Shared>,
    inbox: Receiver<Message>,
    queue: VecDeque<Job>,
    /// The last revision given to a batch, acknowledged or not.
    tried: Revision,
    /// A batch whose sync failed: durable or not, nobody knows yet.
    in_doubt: Option<Change>,
    backoff: Duration,
}

/// The inbox is closed: the store goes down for good.
struct Closed;

impl Writer {
    pub(super) fn new(
        config: SledConfig,
        faults: Faults,
        shared: Arc<Shared>,
        inbox: Receiver<Message>,
    ) -> Self {
        let tried = shared.feed.revision();
        Self {
            config,
            faults,
            shared,
            inbox,
            queue: VecDeque::new(),
            tried,
            in_doubt: None,
            backoff: FIRST_BACKOFF,
        }
    }

    /// Works until every sender of the inbox is gone.
    pub(super) fn run(mut self) {
        while self.step().is_ok() {}
        let closed = KvError::Unavailable {
            cause: "the store was closed".to_owned(),
            way_out: "start the server again".to_owned(),
        };
        if let Some(disk) = self.shared.view.take_down(closed)
            && let Err(error) = disk.rest()
        {
            tracing::warn!(%error, "store closed; what its journal has is done again at the next start");
        }
    }

    fn step(&mut self) -> Result<(), Closed> {
        let suspect = self.receive()?;
        let failure = match suspect {
            Some(error) => Err(error),
            None => self.commit_next(),
        };
        match failure {
            Ok(()) => Ok(()),
            Err(error) => self.recover(error),
        }
    }

    /// Fills the queue; waits only when it is empty.
    fn receive(&mut self) -> Result<Option<KvError>, Closed> {
        if self.queue.is_empty() {
            let message = self.inbox.recv().map_err(|_| Closed)?;
            if let Some(error) = self.sort(message) {
                return Ok(Some(error));
            }
        }
        while self.queue.len() < MAX_DRAIN {
            let Ok(message) = self.inbox.try_recv() else {
                break;
            };
            if let Some(error) = self.sort(message) {
                return Ok(Some(error));
            }
        }
        Ok(None)
    }

    fn sort(&mut self, message: Message) -> Option<KvError> {
        match message {
            Message::Commit(job) => self.queue.push_back(job),
            Message::Suspect(generation, error) => {
                return (generation == self.shared.view.generation()).then_some(error);
            }
        }
        None
    }

    /// Brings one batch of the queue to disk. After an error the queue has the
    /// jobs that are to be refused.
    fn commit_next(&mut self) -> Result<(), KvError> {
        let disk = self.shared.view.disk()?;
        let current = self.shared.feed.revision();
        let Plan { writes, jobs, .. } = plan(&mut self.queue, current, |key| disk.read(key))?;
        if writes.is_empty() {
            return Ok(());
        }
        let revision = self.tried.saturating_add(1);
        self.tried = revision;
        self.in_doubt = Some(change(&writes, revision));
        let changes = match disk.append(&writes, revision) {
            Ok(changes) => changes,
            Err(error) => {
                self.queue.extend(jobs);
                return Err(error);
            }
        };
        disk.mark(revision);
        if let Some(change) = self.in_doubt.take() {
            self.shared.view.show(ahead(&change));
            self.shared.feed.publish(change);
        }
        self.backoff = FIRST_BACKOFF;
        jobs.into_iter().for_each(|job| job.answer(Ok(revision)));
        disk.apply(changes)?;
        self.shared.view.taken();
        Ok(())
    }

    /// Refuses callers with the cause and reopens until the store works.
    fn recover(&mut self, cause: KvError) -> Result<(), Closed> {
        tracing::error!(error = %cause, "store down");
        let mut cause = cause;
        let mut handle = self.shared.view.take_down(cause.clone());
        for job in self.queue.drain(..) {
            job.answer(Err(cause.clone().into()));
        }
        loop {
            // sled writes what it can when the handle goes; it may also panic.
            let _ = panics::catch(|| drop(handle.take()));
            self.wait(&cause)?;
            match self.reopen() {
                Ok(disk) => {
                    self.shared.view.put_up(disk);
                    tracing::info!(revision = self.shared.feed.revision(), "store up again");
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(%error, "store still down");
                    self.shared.view.take_down(error.clone());
                    cause = error;
                }
            }
        }
    }

    /// Lets the back-off pass, refusing what comes in meanwhile.
    fn wait(&mut self, cause: &KvError) -> Result<(), Closed> {
        const SLICE: Duration = Duration::from_millis(10);
        let mut left = self.backoff;
        self.backoff = self.backoff.saturating_mul(2).min(LAST_BACKOFF);
        while !left.is_zero() {
            match self.inbox.recv_timeout(SLICE) {
                Ok(Message::Commit(job)) => job.answer(Err(cause.clone().into())),
                Ok(Message::Suspect(..)) => {}
                Err(RecvTimeoutError::Timeout) => left = left.saturating_sub(SLICE),
                Err(RecvTimeoutError::Disconnected) => return Err(Closed),
            }
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<Arc<Disk>, KvError> {
        let disk = Disk::open(&self.config, &self.faults)?;
        let found = disk.revision();
        let acknowledged = self.shared.feed.revision();
        let in_doubt = self.in_doubt.as_ref().map(|change| change.revision);
        if disk.epoch() != self.shared.epoch {
            return Err(changed(
                "it has another epoch: it was replaced under the running server",
            ));
        }
        if found != acknowledged && Some(found) != in_doubt {
            return Err(changed(&format!(
                "it is at revision {found}, but {acknowledged} was acknowledged"
            )));
        }
        disk.prove()?;
        if let Some(change) = self
            .in_doubt
            .take()
            .filter(|change| change.revision == found)
        {
            self.shared.feed.publish(change);
        }
        disk.mark(found);
        Ok(Arc::new(disk))
    }
}

fn change(writes: &[Write], revision: Revision) -> Change {
    let ops = writes.iter().map(|write| match &write.op {
        Op::Put(key, value) => ChangeOp::Put(Item {
            key: key.clone(),
            value: value.clone(),
            mod_revision: revision,
        }),
        Op::Delete(key) => ChangeOp::Delete(key.clone()),
    });
    let ops = ops.collect();
    Change { revision, ops }
}

/// What readers see of `change` until sled has it.
fn ahead(change: &Change) -> Ahead {
    let item = |op: &ChangeOp| match op {
        ChangeOp::Put(item) => (item.key.clone(), Some(item.clone())),
        ChangeOp::Delete(key) => (key.clone(), None),
    };
    change.ops.iter().map(item).collect()
}

fn changed(what: &str) -> KvError {
    KvError::Corrupt {
        what: what.to_owned(),
        way_out: RESTORE.to_owned(),
    }
}
