//! What only sled has: reopening, damage, and a disk that fails.

mod damage;
mod failing;
mod kill;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::conformance;
use crate::kv::Op;

fn open(dir: &Path) -> SledKv {
    SledKv::open(SledConfig::new(dir)).unwrap()
}

/// The database alone, once nothing has it open any more.
fn raw(dir: &Path) -> sled::Db {
    disk::open_db(&SledConfig::new(dir)).unwrap()
}

async fn put(kv: &SledKv, key: &'static str, value: &'static str) -> Revision {
    kv.commit(Txn::new().put(key, value)).await.unwrap()
}

async fn value(kv: &SledKv, key: &str) -> Option<Bytes> {
    kv.get(key.as_bytes()).await.unwrap().map(|item| item.value)
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_keeps_the_contract() {
    let root = TempDir::new().unwrap();
    let next = AtomicUsize::new(0);
    conformance::suite(|| async {
        let n = next.fetch_add(1, Ordering::SeqCst);
        Arc::new(open(&root.path().join(n.to_string()))) as Arc<dyn Kv>
    })
    .await;
}

#[tokio::test]
async fn reopening_keeps_everything() {
    let dir = TempDir::new().unwrap();
    let long: Bytes = vec![9; 60_000].into();
    let kv = open(dir.path());
    let epoch = kv.epoch();
    let first = put(&kv, "a", "1").await;
    let second = kv.commit(Txn::new().put("b", long.clone())).await.unwrap();
    kv.commit(Txn::new().put("c", "3").delete("a"))
        .await
        .unwrap();
    let last = kv.revision();
    let items = kv.scan(b"", None, 10).await.unwrap().items;
    drop(kv);

    let kv = open(dir.path());
    assert_eq!(kv.epoch(), epoch);
    assert_eq!(kv.revision(), last);
    assert_eq!(kv.scan(b"", None, 10).await.unwrap().items, items);
    assert_eq!(kv.get(b"b").await.unwrap().unwrap().mod_revision, second);
    assert_eq!(value(&kv, "b").await, Some(long));
    let gone = kv.watch(b"", first).err();
    assert_eq!(gone, Some(WatchError::Gone { oldest: last }));
    assert!(kv.watch(b"", last).is_ok());
    assert!(put(&kv, "a", "1").await > last);
}

#[tokio::test]
async fn chunks_of_values_that_went_are_gone() {
    let dir = TempDir::new().unwrap();
    let kv = open(dir.path());
    for round in 0..20_u8 {
        kv.commit(Txn::new().put("b", vec![round; 60_000]))
            .await
            .unwrap();
    }
    kv.commit(Txn::new().put("b", "short")).await.unwrap();
    kv.commit(Txn::new().put("c", vec![1; 60_000]))
        .await
        .unwrap();
    kv.commit(Txn::new().delete("c")).await.unwrap();
    drop(kv);
    let db = raw(dir.path());
    assert_eq!(db.scan_prefix("~c/").count(), 0);
    assert_eq!(db.len(), 4, "b and the engine's three");
}

#[test]
fn a_second_opener_is_told_who_is_in_the_way() {
    let dir = TempDir::new().unwrap();
    let _first = open(dir.path());
    let refused = SledKv::open(SledConfig::new(dir.path())).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("another process has"), "{text}");
    assert!(text.contains("data_dir of its own"), "{text}");
}

#[test]
fn the_folder_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let root = TempDir::new().unwrap();
    let dir = root.path().join("data/store");
    drop(open(&dir));
    let mode = std::fs::metadata(&dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn sleds_log_is_written_through_where_the_file_system_can() {
    use std::fs::File;
    let dir = TempDir::new().unwrap();
    let _kv = open(dir.path());
    let can = super::write_through::enable(&File::create(dir.path().join("probe")).unwrap());
    let log = File::open(dir.path().join("db")).unwrap();
    let flags = rustix::fs::ioctl_getflags(&log);
    let is = flags.is_ok_and(|flags| flags.contains(rustix::fs::IFlags::SYNC));
    assert_eq!(is, can.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_store_finishes_what_was_handed_over() {
    let dir = TempDir::new().unwrap();
    let kv = open(dir.path());
    {
        let commit = kv.commit(Txn::new().put("a", "1"));
        let mut commit = std::pin::pin!(commit);
        // The first poll hands it over; then its caller goes away.
        let once =
            std::future::poll_fn(|cx| std::task::Poll::Ready(commit.as_mut().poll(cx).is_ready()));
        once.await;
    }
    drop(kv);
    assert_eq!(value(&open(dir.path()), "a").await, Some("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_commits_go_to_disk_together() {
    let dir = TempDir::new().unwrap();
    let syncs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&syncs);
    let faults = Faults::new(move |stage| {
        if stage == crate::sled_kv::faults::Stage::Synced {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    let kv = SledKv::open_with(SledConfig::new(dir.path()), faults, RingLimits::default());
    let kv = Arc::new(kv.unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..500 {
        let kv = Arc::clone(&kv);
        tasks.spawn(async move { kv.commit(Txn::new().put(format!("e/{n}"), "v")).await });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome.unwrap().unwrap();
    }
    let syncs = syncs.load(Ordering::SeqCst);
    assert!(syncs <= 250, "{syncs} flushes for 500 commits");
}

#[test]
fn a_plan_writes_no_key_twice_and_keeps_the_rest_in_order() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let places = Arc::new(Semaphore::new(10));
    let mut answers = Vec::new();
    let mut queue = std::collections::VecDeque::new();
    let txns = [
        Txn::new().put("a", "1"),
        Txn::new().put("a", "2"),
        Txn::new().put("b", "1"),
        Txn::new()
            .when(crate::kv::Compare::Absent("a".into()))
            .put("c", "1"),
        Txn::new()
            .when(crate::kv::Compare::Present("z".into()))
            .put("d", "1"),
    ];
    for txn in txns {
        let (answer, answered) = oneshot::channel();
        answers.push(answered);
        let place = Arc::clone(&places).try_acquire_owned().unwrap();
        queue.push_back(Job {
            txn,
            answer,
            _place: place,
        });
    }
    let first = plan::plan(&mut queue, 7, |_| Ok(None)).unwrap();
    let keys = |plan: &plan::Plan| -> Vec<Op> {
        plan.writes.iter().map(|write| write.op.clone()).collect()
    };
    let put = |key: &'static str, value: &'static str| Op::Put(key.into(), value.into());
    assert_eq!(keys(&first), [put("a", "1"), put("b", "1")]);
    let conflict = runtime.block_on(answers.pop().unwrap()).unwrap();
    let expected = CommitError::Conflict {
        compare: 0,
        revision: 7,
    };
    assert_eq!(conflict, Err(expected));
    let second = plan::plan(&mut queue, 8, |_| Ok(None)).unwrap();
    assert_eq!(keys(&second), [put("a", "2"), put("c", "1")][..1]);
    assert_eq!(
        queue.len(),
        1,
        "what compares a waits for the batch that writes it"
    );
}
