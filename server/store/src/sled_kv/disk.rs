//! One opened sled database and its journal: reads, and batches that are durable before sled
//! takes them.
//!
//! Invariant: [`Disk::append`] returns `Ok` only after `fdatasync` of the journal returned, and the
//! journal forgets a batch only after `fdatasync` of sled's log and of the files that sled put
//! beside it (sled's own flush is no fsync). After an error the handle must be dropped: what it
//! shows in memory may not be on disk.
//! sled panics on some kinds of damage: every call into it is caught.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use vane_chassis::panics;

use super::blobs::Blobs;
use super::changes::{Changes, Write};
use super::failure::{Fault, corrupt, is_locked, panic_text, unavailable};
use super::faults::{Faults, Stage};
use super::journal::{self, Journal, Record};
use super::layout::{self, Fingerprint, Stored, Totals};
use super::write_through;
use crate::kv::{Epoch, Item, KvError, RESERVED_FROM, Revision, is_reserved};
use crate::record::{self, FrameError};

/// Where the store is and what it may use.
#[derive(Debug, Clone)]
pub struct SledConfig {
    /// The folder of the store, made when it is not there (0700).
    pub dir: PathBuf,
    /// Bytes that sled may keep of the tree in memory.
    pub cache_bytes: u64,
}

impl SledConfig {
    /// The store in `dir` with a cache of 64 MB (measured: 154 MB resident at
    /// 1,000,000 entries).
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            cache_bytes: 64_000_000,
        }
    }
}

#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    db: sled::Db,
    log: File,
    mark: File,
    blobs: Blobs,
    faults: Faults,
    epoch: Epoch,
    written: Mutex<Written>,
}

/// What the last write left.
#[derive(Debug)]
struct Written {
    revision: Revision,
    totals: Totals,
    journal: Journal,
}

impl Disk {
    /// Opens or makes the store; waits up to a second for its lock.
    pub(super) fn open(config: &SledConfig, faults: &Faults) -> Result<Self, KvError> {
        let dir = &config.dir;
        let io_error = |error: io::Error| unavailable(dir, "open", &error);
        faults.at(Stage::Open).map_err(io_error)?;
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(dir).map_err(io_error)?;
        let db = open_db(config)?;
        let mark = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(dir.join("acknowledged"))
            .map_err(io_error)?;
        let log = File::open(dir.join("db")).map_err(io_error)?;
        let written = Written {
            revision: 0,
            totals: Totals::default(),
            journal: Journal::open(dir, room(&log, dir)).map_err(io_error)?,
        };
        let mut disk = Self {
            dir: dir.clone(),
            db,
            log,
            mark,
            blobs: Blobs::new(dir.join("blobs")),
            faults: faults.clone(),
            epoch: Epoch([0; 16]),
            written: Mutex::new(written),
        };
        disk.load_meta()?;
        disk.verify()?;
        Ok(disk)
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The revision of what is on disk.
    pub(super) fn revision(&self) -> Revision {
        self.written().revision
    }

    /// Reads one user key.
    pub(super) fn read(&self, key: &[u8]) -> Result<Option<Stored>, KvError> {
        self.guarded("read", || match self.db.get(key)? {
            Some(raw) => self.decode(key, &raw).map(Some),
            None => Ok(None),
        })
    }

    /// Reads at most `limit` user keys after `after` under `prefix` that
    /// `skip` does not leave out.
    pub(super) fn read_range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        skip: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Item>, KvError> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = match after {
            Some(after) if after >= prefix => Excluded(after),
            _ => Included(prefix),
        };
        self.guarded("read", || {
            let mut items = Vec::new();
            for pair in self.db.range::<&[u8], _>((start, Unbounded)) {
                let (key, raw) = pair?;
                let over = !key.starts_with(prefix) || key.first() >= Some(&RESERVED_FROM);
                if items.len() >= limit || over {
                    break;
                }
                if !is_reserved(&key) && !skip(&key) {
                    items.push(self.decode(&key, &raw)?.item);
                }
            }
            Ok(items)
        })
    }

    /// Makes `writes` durable as `revision`; what it returns must be applied before the next.
    pub(super) fn append(&self, writes: &[Write], revision: Revision) -> Result<Changes, KvError> {
        self.guarded("write", || {
            let written = &mut *self.written();
            let mut totals = written.totals;
            self.faults.at(Stage::Append)?;
            let record = Record {
                on: written.revision,
                changes: Changes::of(writes, revision, &mut totals),
            };
            let encoded = written.journal.encode(&record);
            if !written.journal.has_room(&encoded) {
                self.settle(&mut written.journal)?;
            }
            written.journal.append(&encoded)?;
            self.faults.at(Stage::Sync)?;
            written.journal.sync()?;
            self.faults.at(Stage::Synced)?;
            written.revision = revision;
            written.totals = totals;
            Ok(record.changes)
        })
    }

    /// Gives sled what [`Self::append`] made durable.
    pub(super) fn apply(&self, changes: Changes) -> Result<(), KvError> {
        self.guarded("write", || {
            self.faults.at(Stage::Apply)?;
            Ok(changes.apply(&self.db)?)
        })
    }

    /// Writes, to see that journal and sled can, and changes nothing.
    pub(super) fn prove(&self) -> Result<(), KvError> {
        self.apply(self.append(&[], self.revision())?)?;
        self.rest()
    }

    /// Brings all to the disk, so that the next opening has nothing to do again.
    pub(super) fn rest(&self) -> Result<(), KvError> {
        self.guarded("write", || self.settle(&mut self.written().journal))
    }

    /// Brings sled to the disk, as far as it is in memory, and starts the journal again.
    fn settle(&self, journal: &mut Journal) -> Result<(), Fault> {
        self.db.flush()?;
        self.blobs.sync()?;
        self.log.sync_data()?;
        Ok(journal.start_again()?)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `revision` was acknowledged, so that a store that lost it
    /// is noticed at the next start. Not synced: it may be late, never early.
    pub(super) fn mark(&self, revision: Revision) {
        let mut mark = BytesMut::with_capacity(24);
        mark.put_slice(&self.epoch.0);
        mark.put_u64(revision);
        if let Err(error) = self.mark.write_all_at(&record::frame(&mark), 0) {
            tracing::debug!(%error, "acknowledged revision not noted");
        }
    }

    /// The acknowledged revision that [`Self::mark`] noted for this epoch.
    fn marked(&self) -> Option<Revision> {
        let mut raw = [0; 29];
        self.mark.read_exact_at(&mut raw, 0).ok()?;
        let mark = record::unframe(&raw).ok()?;
        let mut revision = mark.strip_prefix(&self.epoch.0)?;
        revision.try_get_u64().ok()
    }

    fn decode(&self, key: &[u8], raw: &[u8]) -> Result<Stored, Fault> {
        let fetch = |key: &[u8], value: &mut BytesMut| {
            let chunk = self.db.get(key)?.ok_or(FrameError::Parts)?;
            value.put_slice(&chunk);
            Ok(())
        };
        layout::decode(key, raw, fetch).map_err(|fault: Fault| fault.of_key(key))
    }

    /// Reads format, epoch and revision, or writes them into a new store.
    fn load_meta(&mut self) -> Result<(), KvError> {
        let format = self.meta(layout::FORMAT_KEY)?;
        if format.is_none() {
            self.create_meta()?;
        }
        let epoch = self.meta(layout::EPOCH_KEY)?;
        let epoch = epoch.and_then(|epoch| epoch.as_ref().try_into().ok());
        let missing = || corrupt(&self.dir, "its epoch or revision is missing");
        let (Some(epoch), Some((found, _))) = (epoch, self.stored_revision()?) else {
            return Err(missing());
        };
        self.guarded("write", || self.replay(found))?;
        let (revision, totals) = self.stored_revision()?.ok_or_else(missing)?;
        self.epoch = Epoch(epoch);
        let written = self.written.get_mut();
        let written = written.unwrap_or_else(PoisonError::into_inner);
        written.revision = revision;
        written.totals = totals;
        let acknowledged = self.marked().unwrap_or(0);
        if acknowledged > revision {
            let what = format!("it is at revision {revision}, {acknowledged} was acknowledged");
            return Err(corrupt(&self.dir, &what));
        }
        Ok(())
    }

    /// Does again what the journal has and sled, which was `found` on the disk, has not.
    fn replay(&self, found: Revision) -> Result<(), Fault> {
        let written = &mut *self.written();
        let mut at = found;
        for Record { on, changes } in written.journal.records()? {
            if changes.revision() <= found {
                continue;
            }
            if on != at {
                let what = format!("its journal goes on from revision {on}, it is at {at}");
                return Err(Fault::Damaged(what));
            }
            at = changes.revision();
            changes.apply(&self.db)?;
        }
        self.settle(&mut written.journal)
    }

    fn stored_revision(&self) -> Result<Option<(Revision, Totals)>, KvError> {
        let revision = self.meta(layout::REVISION_KEY)?;
        Ok(revision.and_then(|revision| layout::decode_revision(&revision)))
    }

    /// Counts the keys: damage may have taken some without a trace.
    fn verify(&self) -> Result<(), KvError> {
        let expected = self.written().totals;
        let found = self.guarded("read", || {
            let mut found = Totals::default();
            for pair in self.db.iter() {
                let (key, raw) = pair?;
                if key.first() >= Some(&RESERVED_FROM) {
                    break;
                }
                if !is_reserved(&key) {
                    let print = Fingerprint::of_raw(&key, &raw);
                    found.add(print.map_err(|error| Fault::from(error).of_key(&key))?);
                }
            }
            Ok(found)
        })?;
        if found != expected {
            let (found, expected) = (found.count, expected.count);
            let what = format!("its {found} keys are not the {expected} that were written");
            return Err(corrupt(&self.dir, &what));
        }
        Ok(())
    }

    fn meta(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.guarded("read", || {
            let Some(raw) = self.db.get(key)? else {
                return Ok(None);
            };
            let payload = record::unframe(&raw).map_err(|e| Fault::from(e).of_key(key))?;
            Ok(Some(Bytes::copy_from_slice(payload)))
        })
    }

    fn create_meta(&self) -> Result<(), KvError> {
        if self.marked_at_all() {
            return Err(corrupt(&self.dir, "its contents are gone"));
        }
        let epoch = Epoch::random()?;
        self.guarded("create", || {
            if !self.db.is_empty() {
                return Err(Fault::Damaged("it is not a store of Vane".to_owned()));
            }
            let mut batch = sled::Batch::default();
            batch.insert(layout::FORMAT_KEY, record::frame(&[1]).as_ref());
            batch.insert(layout::EPOCH_KEY, record::frame(&epoch.0).as_ref());
            batch.insert(
                layout::REVISION_KEY,
                layout::encode_revision(0, Totals::default()).as_ref(),
            );
            self.db.apply_batch(batch)?;
            self.db.flush()?;
            self.log.sync_all()?;
            File::open(&self.dir)?.sync_all()?;
            let parent = self.dir.parent().filter(|p| !p.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
            Ok(())
        })
    }

    /// Whether this store ever acknowledged a write, in whatever epoch.
    fn marked_at_all(&self) -> bool {
        let mut raw = [0; 29];
        self.mark.read_exact_at(&mut raw, 0).is_ok() && record::unframe(&raw).is_ok()
    }

    /// Runs `f`; turns its error or panic into one that names the way out.
    fn guarded<T>(
        &self,
        doing: &'static str,
        f: impl FnOnce() -> Result<T, Fault>,
    ) -> Result<T, KvError> {
        match panics::catch(f) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(fault)) => Err(fault.explain(&self.dir, doing)),
            Err(panic) => Err(corrupt(&self.dir, &panic_text(&*panic))),
        }
    }
}

/// How much may stand in the journal that sled's `log` has not: one batch where that cannot be
/// written through.
fn room(log: &File, dir: &Path) -> u64 {
    match write_through::enable(log) {
        Ok(()) => journal::ROOM,
        Err(error) => {
            let dir = dir.display();
            tracing::info!(%error, %dir, "no synchronous files here: every change waits for sled's log, too");
            0
        }
    }
}

pub(super) fn open_db(config: &SledConfig) -> Result<sled::Db, KvError> {
    let sled = sled::Config::new()
        .path(&config.dir)
        .cache_capacity(config.cache_bytes)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(Some(500));
    // A handle dropped a moment ago may still be closing in sled's threads.
    for _ in 0..50 {
        match panics::catch(|| sled.open()) {
            Ok(Ok(db)) => return Ok(db),
            Ok(Err(error)) if is_locked(&error) => std::thread::sleep(Duration::from_millis(20)),
            Ok(Err(error)) => return Err(Fault::Sled(error).explain(&config.dir, "open")),
            Err(panic) => return Err(corrupt(&config.dir, &panic_text(&*panic))),
        }
    }
    Err(KvError::Unavailable {
        cause: format!("another process has {} open", config.dir.display()),
        way_out: "stop the other vane-server or give this one a data_dir of its own".to_owned(),
    })
}
