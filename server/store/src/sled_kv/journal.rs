//! The journal: a file that has every batch before sled has it.
//!
//! A batch is appended and synced here, which is one write in the thread that waits for it; then
//! sled takes its keys one by one and brings them to the disk when it likes. When there is no room
//! for the next one sled is brought to the disk whole, and the journal starts again at its front.
//! So what the disk has of sled's log lacks nothing but the end of what stands here, and opening
//! does all batches again that are missing.
//!
//! A record names the revision before its own. Whoever reads from the front stops where a record
//! does not carry on with the one before it: there is what an earlier round left, or what a crash
//! tore.
//! Invariant: records are one round of revisions without a gap, in order.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::changes::Changes;
use crate::kv::Revision;
use crate::record;

/// Bytes of a round; one larger batch is a round of its own.
const ROOM: u64 = 4 * 1024 * 1024;
/// The file grows by so much at once, so that most appends change nothing but data.
const STEP: u64 = 128 * 1024;
const NAME: &str = "journal";

/// The file.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    length: u64,
    /// Where the next record goes.
    end: u64,
}

/// A batch, and the revision that it was made on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) on: Revision,
    pub(super) changes: Changes,
}

impl Journal {
    /// Opens the file in `dir`, or makes it.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(dir.join(NAME))?;
        let length = file.metadata()?.len();
        if length == 0 {
            File::open(dir)?.sync_all()?;
        }
        let end = 0;
        Ok(Self { file, length, end })
    }

    /// What the last round has, in order.
    pub(super) fn records(&self) -> io::Result<Vec<Record>> {
        let mut bytes = vec![0; usize::try_from(self.length).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, 0)?;
        let mut rest = bytes.as_slice();
        let mut records: Vec<Record> = Vec::new();
        while let Some(record) = Record::take(&mut rest) {
            if records
                .last()
                .is_some_and(|last| last.changes.revision() != record.on)
            {
                break;
            }
            records.push(record);
        }
        Ok(records)
    }

    pub(super) fn has_room(&self, record: &Bytes) -> bool {
        self.end == 0 || self.end.saturating_add(length(record)) <= ROOM
    }

    /// Writes `record` behind the last one; it is there after [`Self::sync`].
    pub(super) fn append(&mut self, record: &Bytes) -> io::Result<()> {
        let end = self.end.saturating_add(length(record));
        if end > self.length {
            self.grow(end)?;
        }
        self.file.write_all_at(record, self.end)?;
        self.end = end;
        Ok(())
    }

    fn grow(&mut self, end: u64) -> io::Result<()> {
        let length = end.next_multiple_of(STEP);
        let more = usize::try_from(length.saturating_sub(self.length)).unwrap_or(0);
        self.file.write_all_at(&vec![0; more], self.length)?;
        self.length = length;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Starts the next round: sled is on the disk with all that is here.
    pub(super) fn start_again(&mut self) {
        self.end = 0;
    }
}

impl Record {
    /// As it is written: the length of the frame, and the frame.
    pub(super) fn encode(&self) -> Bytes {
        let mut payload = BytesMut::new();
        payload.put_u64(self.on);
        self.changes.encode(&mut payload);
        let frame = record::frame(&payload);
        let mut out = BytesMut::with_capacity(frame.len().saturating_add(4));
        out.put_u32(u32::try_from(frame.len()).unwrap_or(u32::MAX));
        out.put_slice(&frame);
        out.freeze()
    }

    /// Takes one off the front; None when there is no whole one.
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
        let (frame, rest) = bytes.split_at_checked(length)?;
        let mut payload = record::unframe(frame).ok()?;
        let on = payload.try_get_u64().ok()?;
        let changes = Changes::decode(payload)?;
        *bytes = rest;
        Some(Self { on, changes })
    }
}

fn length(record: &Bytes) -> u64 {
    u64::try_from(record.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::Op;
    use crate::sled_kv::changes::Write;
    use crate::sled_kv::layout::Totals;

    fn record(on: Revision, revision: Revision, bytes: usize) -> Record {
        let put = Op::Put(format!("e/{revision}").into(), vec![7; bytes].into());
        let gone = Op::Delete("gone".into());
        let writes = [put, gone].map(|op| Write { op, before: None });
        let changes = Changes::of(&writes, revision, &mut Totals::default());
        Record { on, changes }
    }

    #[test]
    fn a_round_is_read_back_and_what_an_earlier_one_left_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.records().unwrap(), []);
        let first: Vec<Record> = (1..9).map(|n| record(n - 1, n, 300)).collect();
        for record in &first {
            journal.append(&record.encode()).unwrap();
        }
        assert_eq!(journal.records().unwrap(), first);
        // Of the same length, so that what is left behind them are whole records.
        let second = [record(8, 9, 300), record(9, 12, 300)];
        journal.start_again();
        for record in &second {
            journal.append(&record.encode()).unwrap();
        }
        journal.sync().unwrap();
        let again = Journal::open(dir.path()).unwrap();
        assert_eq!(again.records().unwrap(), second);
    }

    #[test]
    fn a_torn_record_ends_the_round() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let whole = record(6, 7, 900);
        let torn = record(7, 8, 900).encode();
        for cut in 0..torn.len() {
            journal.start_again();
            journal.append(&whole.encode()).unwrap();
            journal.append(&torn.slice(..cut)).unwrap();
            let zeros = vec![0; torn.len() - cut];
            journal.append(&zeros.into()).unwrap();
            let found = journal.records().unwrap();
            assert_eq!(found.len(), 1, "cut at {cut}");
            assert_eq!(found[0], whole);
        }
    }

    #[test]
    fn a_batch_larger_than_the_room_is_a_round_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let large = record(1, 2, 5 * 1024 * 1024);
        let encoded = large.encode();
        assert!(journal.has_room(&encoded));
        journal.append(&encoded).unwrap();
        assert!(!journal.has_room(&record(2, 3, 1).encode()));
        assert_eq!(journal.records().unwrap(), [large]);
    }
}
