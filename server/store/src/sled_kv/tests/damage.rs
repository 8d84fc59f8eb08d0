//! Damaged files: never a panic, never an acknowledged write lost in silence.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::*;

/// A closed store of 2,000 items, as files in memory, and what it holds.
struct Original {
    files: Files,
    items: Vec<Item>,
}

async fn original() -> Original {
    let dir = TempDir::new().unwrap();
    let kv = open(dir.path());
    for batch in 0..40 {
        let put = |txn: Txn, n: u32| txn.put(format!("e/{batch}-{n}"), vec![7; 300]);
        kv.commit((0..50).fold(Txn::new(), put)).await.unwrap();
    }
    let items = all(&kv).await.unwrap();
    drop(kv);
    // Otherwise it would make good most of what is damaged here.
    fs::write(dir.path().join("journal"), "").unwrap();
    let files = files_in(dir.path());
    Original { files, items }
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A folder with `files`.
fn folder(files: &Files) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// The files of a store; beside them is an empty folder of sled's at most.
fn files_in(dir: &Path) -> Files {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = PathBuf::from(entry.file_name());
        if entry.file_type().unwrap().is_file() {
            files.insert(name, fs::read(entry.path()).unwrap());
        } else {
            assert_eq!(
                (name.as_path(), fs::read_dir(entry.path()).unwrap().count()),
                (Path::new("blobs"), 0)
            );
        }
    }
    files
}

async fn all(kv: &SledKv) -> Result<Vec<Item>, KvError> {
    Ok(kv.scan(b"", None, 10_000).await?.items)
}

impl Original {
    /// Opens a copy that `damage` changed, and reads it whole.
    async fn with(&self, damage: impl FnOnce(&mut Files)) -> Outcome {
        let mut files = self.files.clone();
        damage(&mut files);
        let dir = folder(&files);
        let kv = match SledKv::open(SledConfig::new(dir.path())) {
            Ok(kv) => kv,
            Err(error) => {
                assert_eq!(
                    files_in(dir.path()),
                    files,
                    "{error}: the files were changed"
                );
                return Outcome::Refused(error);
            }
        };
        match all(&kv).await {
            Ok(items) if items == self.items => Outcome::Whole,
            Ok(items) => Outcome::Different(items.len()),
            Err(error) => Outcome::Refused(error),
        }
    }
}

#[derive(Debug)]
enum Outcome {
    Whole,
    Refused(KvError),
    Different(usize),
}

fn assert_sound(outcome: &Outcome, damage: &str) {
    match outcome {
        Outcome::Whole => {}
        Outcome::Refused(error) => {
            let text = error.to_string();
            assert!(text.contains("put back a copy"), "{damage}: {text}");
        }
        Outcome::Different(left) => panic!("{damage}: {left} items are read as if all was well"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_loses_nothing_in_silence() {
    let original = original().await;
    let length = original.files[Path::new("db")].len();
    for trial in 0..40 {
        let at = length / 40 * trial + trial * 37 % 512;
        let outcome = original
            .with(|files| files.get_mut(Path::new("db")).unwrap()[at] ^= 0x10)
            .await;
        assert_sound(&outcome, &format!("bit flipped at {at} of {length}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file_loses_nothing_in_silence() {
    let original = original().await;
    let length = original.files[Path::new("db")].len();
    for eighth in 0..8 {
        let left = length / 8 * eighth;
        let outcome = original
            .with(|files| files.get_mut(Path::new("db")).unwrap().truncate(left))
            .await;
        assert_sound(&outcome, &format!("truncated to {left} of {length}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zeroed_sector_loses_nothing_in_silence() {
    let original = original().await;
    let length = original.files[Path::new("db")].len();
    for trial in 0..20 {
        let at = length / 20 * trial / 512 * 512;
        let outcome = original
            .with(|files| files.get_mut(Path::new("db")).unwrap()[at..][..512].fill(0))
            .await;
        assert_sound(&outcome, &format!("512 bytes zeroed at {at} of {length}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_loses_nothing_in_silence() {
    let original = original().await;
    let names: Vec<PathBuf> = original.files.keys().cloned().collect();
    for name in names {
        let outcome = original.with(|files| drop(files.remove(&name))).await;
        assert_sound(&outcome, &format!("{} removed", name.display()));
    }
}

#[test]
fn another_programs_database_is_refused() {
    let dir = TempDir::new().unwrap();
    let db = raw(dir.path());
    db.insert("k", "v").unwrap();
    drop(db);
    let refused = SledKv::open(SledConfig::new(dir.path())).unwrap_err();
    assert!(
        refused.to_string().contains("not a store of Vane"),
        "{refused}"
    );
}

#[test]
fn a_store_of_a_newer_version_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()));
    let db = raw(dir.path());
    let mut newer = db.get(layout::FORMAT_KEY).unwrap().unwrap().to_vec();
    newer[0] += 1;
    db.insert(layout::FORMAT_KEY, newer).unwrap();
    drop(db);
    let refused = SledKv::open(SledConfig::new(dir.path())).unwrap_err();
    assert!(
        matches!(refused, KvError::NewerFormat { version: 2, .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn a_value_that_is_not_the_last_written_is_noticed() {
    let dir = TempDir::new().unwrap();
    let kv = open(dir.path());
    put(&kv, "a", "1").await;
    put(&kv, "b", "2").await;
    drop(kv);
    let db = raw(dir.path());
    let a = db.get("a").unwrap().unwrap();
    db.insert("b", a).unwrap();
    drop(db);
    let refused = SledKv::open(SledConfig::new(dir.path())).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("not the 2 that were written"), "{text}");
}

/// Power fails in the middle of a commit: the sectors that got to the disk are the first ones, or
/// the last ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_commit_is_there_wholly_or_not_at_all() {
    let dir = TempDir::new().unwrap();
    let kv = open(dir.path());
    for n in 0..30 {
        let txn = Txn::new().put(format!("e/{n}"), vec![n; 300]);
        let txn = txn.put(format!("u/{n}"), "x").put("l/1", vec![n; 800]);
        kv.commit(txn).await.unwrap();
    }
    let old = all(&kv).await.unwrap();
    drop(kv);
    let files = files_in(dir.path());
    let kv = open(dir.path());
    let txn = Txn::new().put("e/new", vec![1; 9_000]).put("l/1", "new");
    kv.commit(txn.put("u/new", "x").delete("e/7"))
        .await
        .unwrap();
    let new = all(&kv).await.unwrap();
    let journal = Path::new("journal");
    let (before, after) = (&files[journal], &files_in(dir.path())[journal]);
    drop(kv);
    let differ = |at: &usize| before[*at] != after[*at];
    let first = (0..after.len()).find(differ).unwrap();
    let end = (0..after.len()).rfind(differ).unwrap() + 1;
    let mut found = [0, 0];
    for at in (first..=end).step_by((end - first) / 40) {
        let torn = [&after[..at], &before[at..]].concat();
        let late = [&before[..at], &after[at..]].concat();
        for file in [torn, late] {
            let dir = folder(&files);
            fs::write(dir.path().join(journal), file).unwrap();
            let items = all(&open(dir.path())).await.unwrap();
            assert!(items == old || items == new, "torn at {at}");
            found[usize::from(items == new)] += 1;
        }
    }
    assert!(found[0] > 0 && found[1] > 0, "{found:?}");
}

/// Power fails and takes what sled had in memory: its file is that of the last start.
#[tokio::test(flavor = "multi_thread")]
async fn what_sled_had_not_written_yet_is_done_again() {
    let dir = TempDir::new().unwrap();
    let kv = open(dir.path());
    put(&kv, "a", "1").await;
    drop(kv);
    let closed = files_in(dir.path());
    let kv = open(dir.path());
    for n in 0..200 {
        let txn = Txn::new().put(format!("e/{n}"), vec![n; 20_000]);
        kv.commit(txn.put("last", n.to_string())).await.unwrap();
    }
    let items = all(&kv).await.unwrap();
    let crashed = files_in(dir.path());
    drop(kv);
    for lost in [&["db"][..], &["db", "acknowledged"]] {
        let mut files = crashed.clone();
        for name in lost {
            files.insert(name.into(), closed[Path::new(name)].clone());
        }
        let dir = folder(&files);
        let kv = open(dir.path());
        assert_eq!(all(&kv).await.unwrap(), items, "{lost:?} of before");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_does_not_follow_is_refused() {
    let dir = TempDir::new().unwrap();
    let kv = open(dir.path());
    put(&kv, "a", "1").await;
    drop(kv);
    let old = files_in(dir.path());
    let kv = open(dir.path());
    put(&kv, "a", "2").await;
    drop(kv);
    let kv = open(dir.path());
    put(&kv, "a", "3").await;
    let new = files_in(dir.path());
    drop(kv);
    let mut files = old;
    files.insert("journal".into(), new[Path::new("journal")].clone());
    let dir = folder(&files);
    let refused = SledKv::open(SledConfig::new(dir.path())).unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("its journal goes on from revision 2"),
        "{text}"
    );
    assert!(text.contains("put back a copy"), "{text}");
}
