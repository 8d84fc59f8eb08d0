//! Which queued transactions go into one batch: a pure function of the queue
//! and of what is durable.
//!
//! Invariant: every transaction is judged against durable state only, and no
//! key is written twice in a batch. A transaction that looks at or writes a
//! key which the batch writes already waits for the next batch; so batches
//! are serial histories, and one revision per batch is enough for
//! [`crate::kv::Compare::ModRevision`].

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::changes::Write;
use super::layout::Stored;
use crate::kv::{CommitError, KvError, Op, Revision, Txn};

/// Most operations of a batch (a whole batch is in memory).
const MAX_BATCH_OPS: usize = 1_024;
/// Bytes after which a batch takes no further transaction.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// A transaction in the queue, with who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) txn: Txn,
    pub(super) answer: oneshot::Sender<Result<Revision, CommitError>>,
    /// The place in the queue, given back when the job is done.
    pub(super) _place: OwnedSemaphorePermit,
}

impl Job {
    /// Tells the waiter; one that went away does not matter.
    pub(super) fn answer(self, result: Result<Revision, CommitError>) {
        let _ = self.answer.send(result);
    }
}

/// What goes to disk together.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) writes: Vec<Write>,
    pub(super) jobs: Vec<Job>,
    /// The keys that `writes` changes.
    keys: HashSet<Bytes>,
    bytes: usize,
}

impl Plan {
    fn is_full(&self) -> bool {
        self.writes.len() >= MAX_BATCH_OPS || self.bytes >= MAX_BATCH_BYTES
    }

    fn touches(&self, txn: &Txn) -> bool {
        let compared = txn.compares.iter().map(|compare| compare.key());
        let written = txn.ops.iter().map(Op::key);
        !self.keys.is_empty() && compared.chain(written).any(|key| self.keys.contains(key))
    }

    fn add(&mut self, job: Job, ops: Vec<Op>, found: &Found) {
        self.bytes = self.bytes.saturating_add(job.txn.bytes());
        for op in ops {
            let before = found.get(op.key());
            self.keys.insert(op.key().clone());
            self.writes.push(Write { op, before });
        }
        self.jobs.push(job);
    }
}

/// Takes from `queue` what fits into one batch on top of `current`, answers
/// what needs no write, and leaves the rest in order.
///
/// # Errors
/// [`KvError::Unavailable`] when a read fails: the queue has all jobs then, to
/// be refused. A key that is damaged refuses its own transactions only.
pub(super) fn plan(
    queue: &mut VecDeque<Job>,
    current: Revision,
    read: impl Fn(&[u8]) -> Result<Option<Stored>, KvError>,
) -> Result<Plan, KvError> {
    let mut plan = Plan::default();
    let mut later = VecDeque::new();
    let mut failed = None;
    while !plan.is_full() && failed.is_none() {
        let Some(job) = queue.pop_front() else { break };
        if plan.touches(&job.txn) {
            later.push_back(job);
            continue;
        }
        match Found::read(&job.txn, &read) {
            Ok(found) => decide(&mut plan, job, &found, current),
            Err(error @ KvError::Unavailable { .. }) => {
                later.push_back(job);
                failed = Some(error);
            }
            Err(error) => job.answer(Err(error.into())),
        }
    }
    later.append(queue);
    *queue = later;
    match failed {
        None => Ok(plan),
        Some(error) => {
            queue.extend(plan.jobs);
            Err(error)
        }
    }
}

fn decide(plan: &mut Plan, mut job: Job, found: &Found, current: Revision) {
    if let Some(compare) = found.first_conflict(&job.txn) {
        let revision = current;
        return job.answer(Err(CommitError::Conflict { compare, revision }));
    }
    let changes = |op: &Op| !op.is_noop(found.value(op.key()));
    let ops: Vec<Op> = std::mem::take(&mut job.txn.ops)
        .into_iter()
        .filter(changes)
        .collect();
    if ops.is_empty() {
        return job.answer(Ok(current));
    }
    plan.add(job, ops, found);
}

/// What the keys of one transaction have now.
struct Found(HashMap<Bytes, Option<Stored>>);

impl Found {
    fn read(
        txn: &Txn,
        read: impl Fn(&[u8]) -> Result<Option<Stored>, KvError>,
    ) -> Result<Self, KvError> {
        let compared = txn.compares.iter().map(|compare| compare.key());
        let written = txn.ops.iter().map(Op::key);
        let mut found = HashMap::new();
        for key in compared.chain(written) {
            if !found.contains_key(key) {
                found.insert(key.clone(), read(key)?);
            }
        }
        Ok(Self(found))
    }

    fn get(&self, key: &Bytes) -> Option<Stored> {
        self.0.get(key).cloned().flatten()
    }

    fn value(&self, key: &Bytes) -> Option<&[u8]> {
        let stored = self.0.get(key)?.as_ref()?;
        Some(stored.item.value.as_ref())
    }

    fn first_conflict(&self, txn: &Txn) -> Option<usize> {
        txn.compares.iter().position(|compare| {
            let stored = self.0.get(compare.key()).and_then(Option::as_ref);
            let item = stored.map(|stored| &stored.item);
            !compare.holds(item.map(|item| (item.value.as_ref(), item.mod_revision)))
        })
    }
}
