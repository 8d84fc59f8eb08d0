//! A disk that fails: what callers, readers and watchers see, and how the
//! store comes back without a restart.

use std::io;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::*;
use crate::sled_kv::faults::Stage;

const DEADLINE: Duration = Duration::from_secs(30);

/// A store whose disk fails at `broken`, whenever that is set.
struct Fixture {
    _dir: TempDir,
    kv: SledKv,
    broken: Arc<Mutex<Option<Stage>>>,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let broken: Arc<Mutex<Option<Stage>>> = Arc::default();
        let now = Arc::clone(&broken);
        let faults = Faults::new(move |stage| match *now.lock().unwrap() {
            Some(broken) if broken == stage => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        });
        Self::with(dir, faults, broken)
    }

    /// One whose sled takes `batches` and then no more, until it is repaired: what is
    /// acknowledged may not be taken yet, so a test cannot say when it breaks.
    fn new_broken_after(batches: usize) -> Self {
        let dir = TempDir::new().unwrap();
        let broken = Arc::new(Mutex::new(Some(Stage::Apply)));
        let (now, taken) = (Arc::clone(&broken), AtomicUsize::new(0));
        let faults = Faults::new(move |stage| {
            let is_broken = now.lock().unwrap().is_some() && stage == Stage::Apply;
            if is_broken && taken.fetch_add(1, Ordering::SeqCst) >= batches {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        });
        Self::with(dir, faults, broken)
    }

    fn with(dir: TempDir, faults: Faults, broken: Arc<Mutex<Option<Stage>>>) -> Self {
        let config = SledConfig::new(dir.path());
        let kv = SledKv::open_with(config, faults, RingLimits::default()).unwrap();
        Self {
            _dir: dir,
            kv,
            broken,
        }
    }

    fn break_at(&self, stage: Stage) {
        *self.broken.lock().unwrap() = Some(stage);
    }

    fn repair(&self) {
        *self.broken.lock().unwrap() = None;
    }

    /// Waits for the store to come back.
    async fn up(&self) {
        let up = async {
            while self.kv.get(b"a").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, up).await.unwrap();
    }
}

fn assert_unavailable(error: &KvError) {
    let text = error.to_string();
    assert!(matches!(error, KvError::Unavailable { .. }), "{text}");
    assert!(text.contains("no storage space"), "{text}");
    assert!(text.contains("free space on its file system"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_flush_is_answered_with_cause_and_way_out_and_recovers() {
    for stage in [Stage::Append, Stage::Sync, Stage::Synced] {
        let store = Fixture::new();
        let before = put(&store.kv, "a", "before").await;
        let mut watch = store.kv.watch(b"", before).unwrap();
        store.break_at(stage);
        let failed = store.kv.commit(Txn::new().put("a", "doubt")).await;
        let Err(CommitError::Kv(error)) = failed else {
            panic!("{stage:?}: {failed:?}");
        };
        assert_unavailable(&error);
        assert_eq!(store.kv.revision(), before, "{stage:?}: published");
        assert_eq!(watch.try_next(), Ok(None), "{stage:?}: published");
        assert_unavailable(&store.kv.get(b"a").await.unwrap_err());
        assert_unavailable(&store.kv.scan(b"", None, 1).await.unwrap_err());
        let again = store.kv.commit(Txn::new().put("a", "again")).await;
        assert!(matches!(
            again,
            Err(CommitError::Kv(KvError::Unavailable { .. }))
        ));
        store.repair();
        store.up().await;

        // What is in doubt is there wholly, with its event, or not at all.
        let found = store.kv.get(b"a").await.unwrap().unwrap();
        if found.value == "doubt" {
            let change = tokio::time::timeout(DEADLINE, watch.next())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(change.revision, found.mod_revision);
        } else {
            assert_eq!((found.value, found.mod_revision), ("before".into(), before));
        }
        if stage == Stage::Append {
            assert_eq!(value(&store.kv, "a").await, Some("before".into()));
        }
        let after = put(&store.kv, "a", "after").await;
        assert!(after > before);
        let change = tokio::time::timeout(DEADLINE, watch.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(change.revision, after);
        assert_eq!(value(&store.kv, "a").await, Some("after".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_in_doubt_that_became_durable_is_published_once() {
    let store = Fixture::new();
    let before = put(&store.kv, "a", "before").await;
    let mut watch = store.kv.watch(b"", before).unwrap();
    store.break_at(Stage::Synced);
    store
        .kv
        .commit(Txn::new().put("a", "doubt"))
        .await
        .unwrap_err();
    store.repair();
    store.up().await;
    assert_eq!(value(&store.kv, "a").await, Some("doubt".into()));
    let change = tokio::time::timeout(DEADLINE, watch.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(store.kv.revision(), change.revision);
    assert_eq!(watch.try_next(), Ok(None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sled_could_not_take_is_acknowledged_and_there_again_once_it_can() {
    let store = Fixture::new_broken_after(1);
    let before = put(&store.kv, "a", "before").await;
    let mut watch = store.kv.watch(b"", before).unwrap();
    let acknowledged = put(&store.kv, "a", "acknowledged").await;
    let change = watch.try_next().unwrap().unwrap();
    assert_eq!(change.revision, acknowledged);
    let refused = store.kv.commit(Txn::new().put("a", "refused")).await;
    assert!(matches!(
        refused,
        Err(CommitError::Kv(KvError::Unavailable { .. }))
    ));
    store.repair();
    store.up().await;
    let found = store.kv.get(b"a").await.unwrap().unwrap();
    assert_eq!(found.value, "acknowledged");
    assert_eq!(found.mod_revision, acknowledged);
    assert_eq!(watch.try_next(), Ok(None), "published twice");
    assert!(put(&store.kv, "a", "after").await > acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_read_whole_while_sled_takes_it() {
    let dir = TempDir::new().unwrap();
    let (go_on, gate) = channel::<()>();
    let gate: Mutex<Receiver<()>> = Mutex::new(gate);
    let faults = Faults::new(move |stage| {
        if stage == Stage::Apply {
            let _ = gate.lock().unwrap().recv_timeout(DEADLINE);
        }
        Ok(())
    });
    let config = SledConfig::new(dir.path());
    let kv = SledKv::open_with(config, faults, RingLimits::default()).unwrap();
    go_on.send(()).unwrap();
    let old = Txn::new().put("e/1", "old").put("e/2", "old");
    kv.commit(old).await.unwrap();
    let new = Txn::new().put("e/1", "new").delete("e/2").put("e/3", "new");
    let revision = kv.commit(new).await.unwrap();
    assert_eq!(value(&kv, "e/1").await, Some("new".into()));
    assert_eq!(value(&kv, "e/2").await, None);
    let ahead = kv.scan(b"e/", None, 10).await.unwrap();
    let keys = |page: &Page| -> Vec<Bytes> { page.items.iter().map(|i| i.key.clone()).collect() };
    assert_eq!(
        (keys(&ahead), ahead.revision),
        (vec!["e/1".into(), "e/3".into()], revision)
    );
    go_on.send(()).unwrap();
    go_on.send(()).unwrap();
    put(&kv, "a", "the next batch").await;
    assert_eq!(kv.scan(b"e/", None, 10).await.unwrap().items, ahead.items);
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_in_a_failed_batch_and_behind_it_gets_an_answer() {
    let store = Fixture::new();
    put(&store.kv, "a", "before").await;
    store.break_at(Stage::Sync);
    let kv = Arc::new(store.kv);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let kv = Arc::clone(&kv);
        tasks.spawn(async move { kv.commit(Txn::new().put(format!("e/{n}"), "v")).await });
    }
    let all = tokio::time::timeout(DEADLINE, tasks.join_all())
        .await
        .unwrap();
    for outcome in all {
        let Err(CommitError::Kv(error)) = outcome else {
            panic!("{outcome:?}");
        };
        assert_unavailable(&error);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_opened_again_stays_down_until_it_can() {
    let store = Fixture::new();
    put(&store.kv, "a", "before").await;
    store.break_at(Stage::Append);
    store
        .kv
        .commit(Txn::new().put("a", "doubt"))
        .await
        .unwrap_err();
    store.break_at(Stage::Open);
    let down = async {
        loop {
            let error = store.kv.get(b"a").await.unwrap_err();
            if error.to_string().contains("open of") {
                return error;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_unavailable(&tokio::time::timeout(DEADLINE, down).await.unwrap());
    store.repair();
    store.up().await;
    put(&store.kv, "a", "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_can_be_dropped() {
    let store = Fixture::new();
    put(&store.kv, "a", "before").await;
    store.break_at(Stage::Append);
    store
        .kv
        .commit(Txn::new().put("a", "doubt"))
        .await
        .unwrap_err();
    let dropped = tokio::task::spawn_blocking(move || drop(store.kv));
    tokio::time::timeout(DEADLINE, dropped)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_before_it_is_durable() {
    let dir = TempDir::new().unwrap();
    let (entered, at_sync) = channel();
    let (go_on, gate) = channel::<()>();
    let gate: Mutex<Receiver<()>> = Mutex::new(gate);
    let faults = Faults::new(move |stage| {
        if stage == Stage::Sync {
            entered.send(()).unwrap();
            let _ = gate.lock().unwrap().recv_timeout(DEADLINE);
        }
        Ok(())
    });
    let config = SledConfig::new(dir.path());
    let kv = SledKv::open_with(config, faults, RingLimits::default()).unwrap();
    let kv = Arc::new(kv);
    go_on.send(()).unwrap();
    kv.commit(
        Txn::new()
            .put("e/1", "old")
            .put("e/2", "old")
            .put("e/4", "old"),
    )
    .await
    .unwrap();
    at_sync.recv_timeout(DEADLINE).unwrap();
    let before = kv.scan(b"e/", None, 10).await.unwrap();

    let writer = Arc::clone(&kv);
    let mut commit = tokio::task::JoinSet::new();
    commit.spawn(async move {
        let txn = Txn::new().put("e/1", "new").delete("e/2").put("e/3", "new");
        writer.commit(txn).await.unwrap()
    });
    tokio::task::spawn_blocking(move || at_sync.recv_timeout(DEADLINE).unwrap())
        .await
        .unwrap();
    assert_eq!(value(&kv, "e/1").await, Some("old".into()));
    assert_eq!(value(&kv, "e/2").await, Some("old".into()));
    assert_eq!(value(&kv, "e/3").await, None);
    for limit in 1..5 {
        let mut items = Vec::new();
        let mut after: Option<Bytes> = None;
        loop {
            let page = kv.scan(b"e/", after.as_deref(), limit).await.unwrap();
            after = page.items.last().map(|item| item.key.clone());
            items.extend(page.items);
            if !page.more {
                break;
            }
        }
        assert_eq!(items, before.items, "pages of {limit}");
    }
    assert_eq!(kv.revision(), before.revision);
    go_on.send(()).unwrap();
    let revision = commit.join_next().await.unwrap().unwrap();
    assert_eq!(kv.revision(), revision);
    assert_eq!(value(&kv, "e/1").await, Some("new".into()));
    assert_eq!(value(&kv, "e/2").await, None);
}
