//! Transactions: conditions, limits, and many at once.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{all, ok, put, value};
use crate::kv::{
    CommitError, Compare, Kv, Limit, MAX_COMPARES, MAX_KEY_BYTES, MAX_OPS, MAX_TXN_BYTES, Refusal,
    Txn,
};

/// Each kind of compare holds and fails as it should; the first that fails is
/// named and nothing is written.
pub(super) async fn compares(kv: Arc<dyn Kv>) {
    let at = put(&*kv, "a", "1").await;
    let cases = [
        (Compare::Absent("z".into()), true),
        (Compare::Absent("a".into()), false),
        (Compare::Present("a".into()), true),
        (Compare::Present("z".into()), false),
        (Compare::ModRevision("a".into(), at), true),
        (Compare::ModRevision("a".into(), at + 1), false),
        (Compare::ModRevision("z".into(), 0), false),
        (Compare::Value("a".into(), "1".into()), true),
        (Compare::Value("a".into(), "2".into()), false),
        (Compare::Value("z".into(), "".into()), false),
    ];
    for (n, (compare, holds)) in cases.into_iter().enumerate() {
        let key = format!("n/{n}");
        let txn = Txn::new()
            .when(Compare::Present("a".into()))
            .when(compare.clone());
        let outcome = kv
            .commit(txn.put(key.clone(), "v").put("n/", n.to_string()))
            .await;
        let written = value(&*kv, &key).await.is_some();
        assert_eq!(written, holds, "{compare:?}");
        if !holds {
            let revision = kv.revision();
            let expected = CommitError::Conflict {
                compare: 1,
                revision,
            };
            assert_eq!(outcome, Err(expected), "{compare:?}");
        }
    }
    let check = Txn::new().when(Compare::Present("a".into()));
    assert_eq!(
        kv.commit(check).await,
        Ok(kv.revision()),
        "no writes: a read"
    );
    let check = Txn::new().when(Compare::Absent("a".into()));
    assert!(matches!(
        kv.commit(check).await,
        Err(CommitError::Conflict { compare: 0, .. })
    ));
}

/// A write that changes nothing makes no revision and no event; in a mixed
/// transaction the unchanged key keeps its revision.
pub(super) async fn no_op_writes(kv: Arc<dyn Kv>) {
    let first = put(&*kv, "a", "1").await;
    let mut watch = ok(kv.watch(b"", first));
    assert_eq!(put(&*kv, "a", "1").await, first);
    assert_eq!(kv.commit(Txn::new().delete("z")).await, Ok(first));
    assert_eq!(kv.commit(Txn::new()).await, Ok(first));
    assert_eq!(kv.revision(), first);
    let mixed = Txn::new().put("a", "1").put("b", "2").delete("z");
    let second = ok(kv.commit(mixed).await);
    assert!(second > first);
    let a = ok(kv.get(b"a").await).expect("a is there");
    assert_eq!(a.mod_revision, first);
    let change = ok(watch.next().await);
    assert_eq!(change.revision, second);
    assert_eq!(change.ops.len(), 1, "only b changed: {change:?}");
    assert_eq!(ok(watch.try_next()), None);
}

/// 100 operations, 100 compares and 512 KiB pass, one more does not.
pub(super) async fn limits(kv: Arc<dyn Kv>) {
    let ops = |n: usize| (0..n).fold(Txn::new(), |txn, n| txn.put(format!("o/{n}"), "v"));
    ok(kv.commit(ops(MAX_OPS)).await);
    assert_eq!(all(&*kv, b"o/", 1000).await.0.len(), MAX_OPS);
    too_large(&*kv, ops(MAX_OPS + 1), Limit::Ops, MAX_OPS + 1).await;

    let compares = |n: usize| {
        let absent = |n| Compare::Absent(format!("c/{n}").into());
        (0..n).fold(Txn::new(), |txn, n| txn.when(absent(n)))
    };
    ok(kv.commit(compares(MAX_COMPARES).put("c", "v")).await);
    let over = compares(MAX_COMPARES + 1).put("d", "v");
    too_large(&*kv, over, Limit::Compares, MAX_COMPARES + 1).await;

    let half = MAX_TXN_BYTES / 2;
    let bytes = |extra: usize| {
        let compare = Compare::Value("v".into(), vec![1; half - 1].into());
        Txn::new().when(compare).put("k", vec![2; half - 1 + extra])
    };
    put(&*kv, "v", vec![1; half - 1]).await;
    ok(kv.commit(bytes(0)).await);
    too_large(&*kv, bytes(1), Limit::Bytes, MAX_TXN_BYTES + 1).await;
}

async fn too_large(kv: &dyn Kv, txn: Txn, what: Limit, size: usize) {
    let before = kv.revision();
    match kv.commit(txn).await {
        Err(CommitError::TooLarge {
            what: w, size: s, ..
        }) => assert_eq!((w, s), (what, size)),
        other => panic!("over the limit of {what}: {other:?}"),
    }
    assert_eq!(kv.revision(), before);
}

/// Keys that no engine can keep, and keys of the engine, are refused.
pub(super) async fn refused_keys(kv: Arc<dyn Kv>) {
    let longest = Bytes::from(vec![b'k'; MAX_KEY_BYTES]);
    put(&*kv, longest.clone(), "v").await;
    assert_eq!(value(&*kv, &longest).await, Some("v".into()));
    let cases: [(Vec<u8>, Refusal); 5] = [
        (vec![], Refusal::Empty),
        (vec![b'k'; MAX_KEY_BYTES + 1], Refusal::TooLong),
        (b"m/epoch".to_vec(), Refusal::Reserved),
        (b"~c/1".to_vec(), Refusal::Reserved),
        (vec![0xff], Refusal::Reserved),
    ];
    for (key, want) in cases {
        for txn in [
            Txn::new().put(key.clone(), "v"),
            Txn::new().delete(key.clone()),
            Txn::new().when(Compare::Absent(key.clone().into())),
        ] {
            let outcome = kv.commit(txn).await;
            let refused =
                matches!(&outcome, Err(CommitError::Refused { reason, .. }) if *reason == want);
            assert!(refused, "{want:?}: {outcome:?}");
        }
    }
    let twice = kv.commit(Txn::new().put("a", "1").delete("a")).await;
    assert!(matches!(
        twice,
        Err(CommitError::Refused {
            reason: Refusal::Twice,
            ..
        })
    ));
    assert_eq!(
        ok(kv.get(b"m/epoch").await),
        None,
        "the engine's keys are not readable"
    );
}

/// Commits of many tasks at once all arrive; each task sees its own at once
/// and its revisions increase.
pub(super) async fn concurrent(kv: Arc<dyn Kv>) {
    let mut tasks = JoinSet::new();
    for task in 0..32 {
        let kv = Arc::clone(&kv);
        tasks.spawn(async move {
            let mut last = 0;
            for n in 0..20 {
                let key = format!("e/{task}-{n}");
                let txn = Txn::new().when(Compare::Absent(key.clone().into()));
                let txn = txn
                    .put(key.clone(), "v")
                    .put(format!("u/{task}-{n}"), key.clone());
                let revision = ok(kv.commit(txn).await);
                assert!(revision > last, "{revision} after {last}");
                assert!(kv.revision() >= revision);
                last = revision;
                let item = ok(kv.get(key.as_bytes()).await).expect("own write is read");
                assert_eq!(item.mod_revision, revision);
            }
        });
    }
    finish(tasks).await;
    assert_eq!(all(&*kv, b"e/", 100).await.0.len(), 640);
    assert_eq!(all(&*kv, b"u/", 100).await.0.len(), 640);
}

/// Of many commits that create one key one wins; the losers are told which
/// compare failed, wrote nothing, and disturb nobody else.
pub(super) async fn single_use(kv: Arc<dyn Kv>) {
    let mut racers = JoinSet::new();
    let mut bystanders = JoinSet::new();
    for n in 0..50 {
        let (racer, bystander) = (Arc::clone(&kv), Arc::clone(&kv));
        racers.spawn(async move { race(&*racer, n).await });
        bystanders.spawn(async move {
            put(&*bystander, format!("b/{n}"), "v").await;
        });
    }
    let outcomes = racers.join_all().await;
    finish(bystanders).await;
    let winners: Vec<u32> = outcomes.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1, "one winner, not {winners:?}");
    let token = value(&*kv, "j/token").await;
    assert_eq!(token, Some(winners[0].to_string().into()));
    assert_eq!(all(&*kv, b"a/", 100).await.0.len(), 1, "a loser wrote");
    assert_eq!(all(&*kv, b"b/", 100).await.0.len(), 50);
}

async fn race(kv: &dyn Kv, n: u32) -> Option<u32> {
    let txn = Txn::new()
        .when(Compare::Absent(format!("a/{n}").into()))
        .when(Compare::Absent("j/token".into()))
        .put("j/token", n.to_string())
        .put(format!("a/{n}"), "v");
    match kv.commit(txn).await {
        Ok(_) => Some(n),
        Err(CommitError::Conflict { compare: 1, .. }) => None,
        Err(other) => panic!("a loser gets a conflict: {other:?}"),
    }
}

/// No increment of a counter kept by compare-and-commit is lost.
pub(super) async fn counter(kv: Arc<dyn Kv>) {
    put(&*kv, "n", "0").await;
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let kv = Arc::clone(&kv);
        tasks.spawn(async move {
            for _ in 0..10 {
                while !increment(&*kv).await {}
            }
        });
    }
    finish(tasks).await;
    assert_eq!(value(&*kv, "n").await, Some("80".into()));
}

async fn increment(kv: &dyn Kv) -> bool {
    let item = ok(kv.get(b"n").await).expect("the counter is there");
    let count: u32 = std::str::from_utf8(&item.value).unwrap().parse().unwrap();
    let unchanged = Compare::ModRevision(item.key, item.mod_revision);
    let txn = Txn::new().when(unchanged).put("n", (count + 1).to_string());
    match kv.commit(txn).await {
        Ok(_) => true,
        Err(CommitError::Conflict { .. }) => false,
        Err(other) => panic!("{other:?}"),
    }
}

async fn finish(tasks: JoinSet<()>) {
    let mut tasks = tasks;
    while let Some(outcome) = tasks.join_next().await {
        outcome.expect("a task of the case failed");
    }
}
