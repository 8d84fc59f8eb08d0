//! Reading: single keys, pages, prefixes, long values.

use std::sync::Arc;

use bytes::Bytes;

use super::{all, ok, put, value};
use crate::kv::{Kv, MAX_TXN_BYTES, Txn};

/// A new store has nothing and stands at revision 0.
pub(super) async fn empty_store(kv: Arc<dyn Kv>) {
    assert_eq!(kv.revision(), 0);
    assert_eq!(ok(kv.get(b"e/1").await), None);
    let page = ok(kv.scan(b"", None, 10).await);
    assert_eq!((page.items, page.revision, page.more), (vec![], 0, false));
}

/// What was put is read with the revision that put it, what was deleted is gone.
pub(super) async fn read_back(kv: Arc<dyn Kv>) {
    let first = put(&*kv, "e/1", "one").await;
    assert!(first > 0);
    assert!(kv.revision() >= first);
    let second = put(&*kv, "e/1", "two").await;
    assert!(second > first, "revisions increase strictly");
    let item = ok(kv.get(b"e/1").await).expect("the item is there");
    assert_eq!(
        (item.key.as_ref(), item.value.as_ref()),
        (&b"e/1"[..], &b"two"[..])
    );
    assert_eq!(item.mod_revision, second);
    let third = ok(kv.commit(Txn::new().delete("e/1")).await);
    assert!(third > second);
    assert_eq!(ok(kv.get(b"e/1").await), None);
}

/// Pages of any size make up the same whole, in key order, without repeats.
pub(super) async fn pages(kv: Arc<dyn Kv>) {
    for n in 0..600_u32 {
        let txn = Txn::new().put(format!("e/{n:04}"), n.to_be_bytes().to_vec());
        ok(kv.commit(txn.put(format!("u/{n:04}"), "x")).await);
    }
    let (whole, _) = all(&*kv, b"e/", 10_000).await;
    assert_eq!(whole.len(), 600);
    assert!(whole.is_sorted_by(|a, b| a.key < b.key));
    for limit in [1, 7, 255, 256, 257, 599, 600] {
        assert_eq!(all(&*kv, b"e/", limit).await.0, whole, "pages of {limit}");
    }
    let exact = ok(kv.scan(b"e/", None, 600).await);
    assert!(
        !exact.more,
        "a page that ends with the last item has no more"
    );
    let zero = ok(kv.scan(b"e/", None, 0).await);
    assert_eq!(zero.items.len(), 1, "a limit of 0 is 1");
    let before = ok(kv.scan(b"e/", Some(b"a"), 1).await);
    assert_eq!(before.items, whole[..1], "`after` before the prefix");
    let behind = ok(kv.scan(b"e/", Some(b"f"), 1).await);
    assert!(behind.items.is_empty(), "`after` behind the prefix");
    let gap = ok(kv.scan(b"e/", Some(b"e/0001x"), 1).await);
    assert_eq!(gap.items, whole[2..3], "`after` need not exist");
}

/// A scan sees its prefix only, and never the engine's own keys.
pub(super) async fn prefixes(kv: Arc<dyn Kv>) {
    for key in ["e", "e/", "e/1", "e0", "f/1", "}"] {
        put(&*kv, key, "v").await;
    }
    put(&*kv, "n/big", vec![7; 20_000]).await;
    let keys = async |prefix: &'static [u8]| -> Vec<Bytes> {
        let (items, _) = all(&*kv, prefix, 2).await;
        items.into_iter().map(|item| item.key).collect()
    };
    assert_eq!(keys(b"e/").await, ["e/", "e/1"]);
    assert_eq!(keys(b"e").await, ["e", "e/", "e/1", "e0"]);
    assert_eq!(
        keys(b"").await,
        ["e", "e/", "e/1", "e0", "f/1", "n/big", "}"]
    );
    assert!(keys(b"m/").await.is_empty());
    assert!(keys(b"~").await.is_empty());
    assert!(keys(b"x").await.is_empty());
}

/// Values up to a transaction's limit come back whole from get, scan and
/// watch, also when they grow, shrink and go.
pub(super) async fn long_values(kv: Arc<dyn Kv>) {
    let most = MAX_TXN_BYTES - "b/0".len();
    let lengths = [
        0, 1, 6_999, 7_000, 7_001, 14_000, 65_536, 100, 64_000, 7_168, most, 3,
    ];
    let mut watch = ok(kv.watch(b"b/", 0));
    for (n, length) in (1_u8..).zip(lengths) {
        let long: Bytes = pattern(n, length);
        let revision = put(&*kv, "b/0", long.clone()).await;
        assert_eq!(
            value(&*kv, "b/0").await,
            Some(long.clone()),
            "{length} bytes"
        );
        let page = ok(kv.scan(b"b/", None, 10).await);
        assert_eq!(page.items[0].value, long, "{length} bytes scanned");
        assert_eq!(page.items.len(), 1);
        let change = ok(watch.next().await);
        assert_eq!(change.revision, revision);
        let crate::kv::ChangeOp::Put(item) = &change.ops[0] else {
            panic!("a put is watched as a put");
        };
        assert_eq!(item.value, long, "{length} bytes watched");
    }
    put(&*kv, "b/0", pattern(99, 30_000)).await;
    put(&*kv, "b/1", pattern(98, 30_000)).await;
    ok(kv.commit(Txn::new().delete("b/0")).await);
    assert_eq!(value(&*kv, "b/0").await, None);
    assert_eq!(value(&*kv, "b/1").await, Some(pattern(98, 30_000)));
}

fn pattern(seed: u8, length: usize) -> Bytes {
    (0..length)
        .map(|n| seed.wrapping_mul(31).wrapping_add(n.to_le_bytes()[0]))
        .collect()
}
