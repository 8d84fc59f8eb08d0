//! The journal: a file that has every batch before sled has it.
//!
//! A batch is appended and synced here, which is one write in the thread that waits for it; then
//! sled takes its keys one by one and brings them to the disk when it likes. When there is no room
//! for the next one sled is brought to the disk whole, and the journal starts again at its front.
//! So what the disk has of sled's log lacks nothing but the end of what stands here, and opening
//! does all batches again that are missing.
//!
//! Every round has a random number, which nobody outside can know. Whoever reads from the front
//! stops at what is no record or has another number: there is what a crash tore, or what an
//! earlier round left, whose values are the callers' and could look like records.
//! Invariant: the records of a round are revisions without a gap, in order.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::changes::Changes;
use crate::kv::Revision;
use crate::random;
use crate::record;

/// Bytes of a round, as long as a larger batch does not make it longer.
pub(super) const ROOM: u64 = 4 * 1024 * 1024;
/// The file grows by so much at once, so that most appends change nothing but data.
const STEP: u64 = 128 * 1024;
/// Bytes of a frame's length, which stands before it.
const LENGTH: usize = size_of::<u32>();
pub(super) const NAME: &str = "journal";

/// The file.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    length: u64,
    room: u64,
    round: u64,
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
    /// Opens the file in `dir`, or makes it, without writing to it, for rounds of `room` bytes; a round has one batch at
    /// least.
    pub(super) fn open(dir: &Path, room: u64) -> io::Result<Self> {
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
        Ok(Self {
            file,
            length,
            room,
            round: new_round()?,
            end: 0,
        })
    }

    /// What the last round has, in order.
    pub(super) fn records(&self) -> io::Result<Vec<Record>> {
        let mut file = BufReader::new(&self.file);
        file.rewind()?;
        let mut records = Vec::new();
        let mut of = None;
        while let Some((round, record)) = Record::decode(&take_frame(&mut file)?) {
            if *of.get_or_insert(round) != round {
                break;
            }
            records.push(record);
        }
        Ok(records)
    }

    /// `record` as it is written in this round: the length of the frame, and the frame.
    pub(super) fn encode(&self, record: &Record) -> Bytes {
        let mut payload = BytesMut::new();
        payload.put_u64(self.round);
        payload.put_u64(record.on);
        record.changes.encode(&mut payload);
        let frame = record::frame(&payload);
        let mut out = BytesMut::with_capacity(frame.len().saturating_add(LENGTH));
        out.put_u32(u32::try_from(frame.len()).unwrap_or(u32::MAX));
        out.put_slice(&frame);
        out.freeze()
    }

    pub(super) fn has_room(&self, record: &Bytes) -> bool {
        self.end == 0 || self.end.saturating_add(length(record)) <= self.room
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

    /// Starts the next round: sled is on the disk with all that is here. What is done is not read at the next start,
    /// if that comes before another batch: the end stands at the front.
    pub(super) fn start_again(&mut self) -> io::Result<()> {
        self.round = new_round()?;
        self.end = 0;
        if self.length > 0 {
            self.file.write_all_at(&[0; LENGTH], 0)?;
        }
        Ok(())
    }
}

impl Record {
    /// What stands in `frame`, and its round; None when it is no record.
    fn decode(frame: &[u8]) -> Option<(u64, Self)> {
        let mut payload = record::unframe(frame).ok()?;
        let round = payload.try_get_u64().ok()?;
        let on = payload.try_get_u64().ok()?;
        let changes = Changes::decode(payload)?;
        Some((round, Self { on, changes }))
    }
}

/// Takes a frame off the front of `file`: less than a whole one, which is no record, where it ends.
fn take_frame(file: &mut impl Read) -> io::Result<Vec<u8>> {
    let (mut length, mut frame) = (Vec::new(), Vec::new());
    file.take(LENGTH as u64).read_to_end(&mut length)?;
    let length = length.as_slice().try_get_u32().unwrap_or(0);
    file.take(length.into()).read_to_end(&mut frame)?;
    Ok(frame)
}

fn new_round() -> io::Result<u64> {
    random::bytes().map(u64::from_be_bytes)
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

    fn put(journal: &mut Journal, record: &Record) {
        let encoded = journal.encode(record);
        journal.append(&encoded).unwrap();
    }

    #[test]
    fn a_round_is_read_back_and_what_an_earlier_one_left_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path(), ROOM).unwrap();
        assert_eq!(journal.records().unwrap(), []);
        let first: Vec<Record> = (1..9).map(|n| record(n - 1, n, 300)).collect();
        for record in &first {
            put(&mut journal, record);
        }
        assert_eq!(journal.records().unwrap(), first);
        // Of the same length, so that what is left behind them are whole records.
        // And they go on from the new ones' revisions.
        let second = [record(8, 0, 300), record(0, 2, 300)];
        journal.start_again().unwrap();
        for record in &second {
            put(&mut journal, record);
        }
        journal.sync().unwrap();
        let again = Journal::open(dir.path(), ROOM).unwrap();
        assert_eq!(again.records().unwrap(), second);
        journal.start_again().unwrap();
        assert_eq!(again.records().unwrap(), []);
    }

    #[test]
    fn a_torn_record_ends_the_round() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path(), ROOM).unwrap();
        let whole = record(6, 7, 900);
        for cut in 0..1_000 {
            journal.start_again().unwrap();
            put(&mut journal, &whole);
            let torn = journal.encode(&record(7, 8, 920));
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
        let mut journal = Journal::open(dir.path(), ROOM).unwrap();
        let large = record(1, 2, 5 * 1024 * 1024);
        assert!(journal.has_room(&journal.encode(&large)));
        put(&mut journal, &large);
        let small = journal.encode(&record(2, 3, 1));
        assert!(!journal.has_room(&small));
        assert_eq!(journal.records().unwrap(), [large]);
        let mut single = Journal::open(dir.path(), 0).unwrap();
        assert!(single.has_room(&small));
        single.append(&small).unwrap();
        assert!(!single.has_room(&small), "a round has one batch");
    }
}
