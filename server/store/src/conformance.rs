//! What every engine must do: one suite that runs against each of them.
//!
//! A case gets a fresh, empty store and fails by panicking, as a test does.
//! Not here: what only some engines have (reopening, faults of the disk);
//! those tests stand beside the engine.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a suite of tests fails by panicking; no production code calls it"
)]

mod commits;
mod scans;
mod watches;

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::kv::{Item, Kv, Revision, Txn};

/// No case takes longer, however slow the machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Runs all cases, each against a store of its own from `fresh`.
///
/// # Panics
/// When the engine breaks the contract of [`Kv`].
pub async fn suite<F, Fut>(fresh: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Kv>>,
{
    let epochs = (fresh().await.epoch(), fresh().await.epoch());
    assert_ne!(epochs.0, epochs.1, "two stores have epochs of their own");

    case("empty store", scans::empty_store(fresh().await)).await;
    case("read back", scans::read_back(fresh().await)).await;
    case("pages", scans::pages(fresh().await)).await;
    case("prefixes", scans::prefixes(fresh().await)).await;
    case("long values", scans::long_values(fresh().await)).await;

    case("compares", commits::compares(fresh().await)).await;
    case("no-op writes", commits::no_op_writes(fresh().await)).await;
    case("limits", commits::limits(fresh().await)).await;
    case("refused keys", commits::refused_keys(fresh().await)).await;
    case("concurrent", commits::concurrent(fresh().await)).await;
    case("single use", commits::single_use(fresh().await)).await;
    case("counter", commits::counter(fresh().await)).await;

    case("whole commits", watches::whole_commits(fresh().await)).await;
    case("watched prefix", watches::watched_prefix(fresh().await)).await;
    case("ends of history", watches::ends_of_history(fresh().await)).await;
    case("slow watcher", watches::slow_watcher(fresh().await)).await;
    case("snapshot", watches::snapshot_and_watch(fresh().await)).await;
    case("closed", watches::closed(fresh().await)).await;
}

async fn case(name: &str, run: impl Future<Output = ()>) {
    let done = tokio::time::timeout(DEADLINE, run).await;
    assert!(done.is_ok(), "case \"{name}\" hangs");
}

async fn put(kv: &dyn Kv, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Revision {
    ok(kv.commit(Txn::new().put(key, value)).await)
}

async fn value(kv: &dyn Kv, key: impl AsRef<[u8]>) -> Option<Bytes> {
    let item = ok(kv.get(key.as_ref()).await);
    item.map(|item| item.value)
}

/// Every item under `prefix`, read in pages of `limit`, and the lowest
/// revision of the pages.
async fn all(kv: &dyn Kv, prefix: &[u8], limit: usize) -> (Vec<Item>, Revision) {
    let mut page = ok(kv.scan(prefix, None, limit).await);
    let mut items = page.items;
    let lowest = page.revision;
    while page.more {
        let last = items.last().expect("a page that has more has items");
        page = ok(kv.scan(prefix, Some(&last.key), limit).await);
        assert!(page.revision >= lowest, "revisions of pages go back");
        assert!(page.items.len() <= limit, "page is longer than its limit");
        items.append(&mut page.items);
    }
    (items, lowest)
}

fn ok<T, E: Debug>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("store failed: {error:?}"),
    }
}
