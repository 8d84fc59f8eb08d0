//! The change feed: order, wholeness, prefixes, its ends, and the snapshot
//! that it completes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{all, ok, put};
use crate::kv::{Change, ChangeOp, Item, Kv, Revision, Txn, Watch, WatchError};

/// Every watcher gets every commit once, in order, and never half of one.
pub(super) async fn whole_commits(kv: Arc<dyn Kv>) {
    let mut watches = [ok(kv.watch(b"", 0)), ok(kv.watch(b"", 0))];
    let mut tasks = JoinSet::new();
    for task in 0..8_u32 {
        let kv = Arc::clone(&kv);
        tasks.spawn(async move {
            for n in 0..25_u32 {
                let pair = format!("{task}-{n}");
                let txn = Txn::new().put(format!("e/{task}"), pair.clone());
                ok(kv.commit(txn.put(format!("u/{task}"), pair)).await);
            }
        });
    }
    tasks.join_all().await;
    let last = kv.revision();
    let first = collect(&mut watches[0], last).await;
    let second = collect(&mut watches[1], last).await;
    assert_eq!(first, second, "watchers differ");
    assert!(first.is_sorted_by(|a, b| a.revision < b.revision));
    let mut seen = 0;
    for change in &first {
        let state = apply(BTreeMap::new(), change);
        for (key, item) in &state {
            assert_eq!(item.mod_revision, change.revision);
            let twin = match key.strip_prefix(b"e/") {
                Some(task) => [b"u/", task].concat(),
                None => [b"e/", &key[2..]].concat(),
            };
            assert_eq!(state[&Bytes::from(twin)].value, item.value, "half a commit");
        }
        assert_eq!(state.len(), change.ops.len(), "a key stands twice");
        seen += change.ops.len();
    }
    assert_eq!(seen, 8 * 25 * 2, "a commit is missing or stands twice");
}

/// A watcher sees its prefix only, and is not woken by others for nothing.
pub(super) async fn watched_prefix(kv: Arc<dyn Kv>) {
    let mut watch = ok(kv.watch(b"e/", 0));
    put(&*kv, "f/1", "v").await;
    put(&*kv, "e", "v").await;
    let both = Txn::new().put("e/1", "v").put("f/2", "v");
    let revision = ok(kv.commit(both).await);
    let change = ok(watch.next().await);
    assert_eq!(change.revision, revision);
    assert_eq!(keys(&change), ["e/1"]);
    let deleted = ok(kv.commit(Txn::new().delete("e/1").delete("f/1")).await);
    let change = ok(watch.next().await);
    assert_eq!(change.revision, deleted);
    assert_eq!(change.ops, [ChangeOp::Delete("e/1".into())]);
    assert_eq!(ok(watch.try_next()), None);
    assert_eq!(watch.revision(), deleted);
}

/// A watch starts behind `from`; the future and a forgotten past are refused.
pub(super) async fn ends_of_history(kv: Arc<dyn Kv>) {
    let first = put(&*kv, "a", "1").await;
    let second = put(&*kv, "a", "2").await;
    let mut behind = ok(kv.watch(b"", first));
    assert_eq!(ok(behind.next().await).revision, second);
    let mut now = ok(kv.watch(b"", second));
    assert_eq!(ok(now.try_next()), None);
    let refused = kv.watch(b"", second + 1).err();
    assert_eq!(refused, Some(WatchError::Future { revision: second }));
    let third = put(&*kv, "a", "3").await;
    assert_eq!(ok(now.next().await).revision, third);
}

/// A watcher that does not keep up is told so, costs no memory without end,
/// and can start again from a snapshot.
pub(super) async fn slow_watcher(kv: Arc<dyn Kv>) {
    let mut slow = ok(kv.watch(b"", 0));
    let first = put(&*kv, "a", "v").await;
    let mut writes = 0_u32;
    while slow_is_served(&*kv, first) {
        writes += 1;
        assert!(writes < 200, "history of 100 MB is still kept");
        let mut value = vec![7; 500_000];
        value[..4].copy_from_slice(&writes.to_be_bytes());
        put(&*kv, "b", value).await;
    }
    let Err(WatchError::Gone { oldest }) = slow.next().await else {
        panic!("a slow watcher is told Gone");
    };
    assert!(oldest > first);
    assert!(
        matches!(slow.try_next(), Err(WatchError::Gone { .. })),
        "and stays so"
    );
    let refused = kv.watch(b"", first).err();
    assert_eq!(refused, Some(WatchError::Gone { oldest }));
    ok(kv.watch(b"", oldest));
}

fn slow_is_served(kv: &dyn Kv, from: Revision) -> bool {
    kv.watch(b"", from).is_ok()
}

/// Pages read while writes go on, with the watch from their lowest revision
/// on top, make up exactly the final state.
pub(super) async fn snapshot_and_watch(kv: Arc<dyn Kv>) {
    for n in 0..200 {
        put(&*kv, format!("e/{n:03}"), "old").await;
    }
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for seed in 1..=4 {
        let (kv, done) = (Arc::clone(&kv), Arc::clone(&done));
        writers.spawn(async move { churn(&*kv, seed, &done).await });
    }
    for round in 0..20 {
        let (items, revision) = all(&*kv, b"e/", 1 + round * 3).await;
        let mut watch = ok(kv.watch(b"e/", revision));
        let mut state: BTreeMap<Bytes, Item> = index(items);
        put(&*kv, "z", round.to_string()).await;
        if round == 19 {
            done.store(true, Ordering::SeqCst);
            while writers.join_next().await.is_some() {}
        }
        for change in collect(&mut watch, kv.revision()).await {
            state = apply(state, &change);
        }
        if round == 19 {
            let (final_items, _) = all(&*kv, b"e/", 1000).await;
            assert_eq!(state, index(final_items));
        }
    }
}

/// A watch ends when its store does.
pub(super) async fn closed(kv: Arc<dyn Kv>) {
    let mut watch = ok(kv.watch(b"", 0));
    let revision = put(&*kv, "a", "v").await;
    drop(kv);
    assert_eq!(ok(watch.next().await).revision, revision);
    assert_eq!(watch.next().await, Err(WatchError::Closed));
}

/// Puts and deletes keys at random until `done`.
async fn churn(kv: &dyn Kv, seed: u64, done: &AtomicBool) {
    let mut random = seed;
    while !done.load(Ordering::SeqCst) {
        let mut txn = Txn::new();
        for slot in 0..3 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let key = format!("e/{:03}", (random >> 33) % 80 * 3 + slot);
            txn = match (random >> 20) % 3 {
                0 => txn.delete(key),
                _ => txn.put(key, random.to_string()),
            };
        }
        ok(kv.commit(txn).await);
        tokio::task::yield_now().await;
    }
}

/// The changes up to `last`; the watched prefix may end before it.
async fn collect(watch: &mut Watch, last: Revision) -> Vec<Change> {
    let mut changes = Vec::new();
    while watch.revision() < last {
        match ok(watch.try_next()) {
            Some(change) => changes.push(change),
            None => tokio::task::yield_now().await,
        }
    }
    changes
}

fn apply(mut state: BTreeMap<Bytes, Item>, change: &Change) -> BTreeMap<Bytes, Item> {
    for op in &change.ops {
        match op {
            ChangeOp::Put(item) => {
                let newer = state
                    .get(&item.key)
                    .is_none_or(|old| old.mod_revision < item.mod_revision);
                if newer {
                    state.insert(item.key.clone(), item.clone());
                }
            }
            ChangeOp::Delete(key) => {
                let newer = state
                    .get(key)
                    .is_some_and(|old| old.mod_revision < change.revision);
                if newer {
                    state.remove(key);
                }
            }
        }
    }
    state
}

fn index(items: Vec<Item>) -> BTreeMap<Bytes, Item> {
    items
        .into_iter()
        .map(|item| (item.key.clone(), item))
        .collect()
}

fn keys(change: &Change) -> Vec<Bytes> {
    change.ops.iter().map(|op| op.key().clone()).collect()
}
