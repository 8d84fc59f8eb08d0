//! Rotations that are interrupted at every commit, before and after it was applied.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use vane_store::kv::{Epoch, Item, Page, Txn, Watch, WatchError};

use super::*;

/// A store whose commit number `at` fails, applied or not.
#[derive(Debug)]
struct Faulty {
    inner: Arc<MemoryKv>,
    commits: AtomicUsize,
    at: usize,
    applied: bool,
}

#[async_trait]
impl Kv for Faulty {
    async fn get(&self, key: &[u8]) -> Result<Option<Item>, KvError> {
        self.inner.get(key).await
    }

    async fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page, KvError> {
        self.inner.scan(prefix, after, limit).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let is_fault = self.commits.fetch_add(1, Ordering::Relaxed) == self.at;
        if !is_fault || self.applied {
            let revision = self.inner.commit(txn).await?;
            if !is_fault {
                return Ok(revision);
            }
        }
        Err(CommitError::Kv(KvError::Unavailable {
            cause: "a fault".to_owned(),
            way_out: "none".to_owned(),
        }))
    }

    fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, WatchError> {
        self.inner.watch(prefix, from)
    }

    fn epoch(&self) -> Epoch {
        self.inner.epoch()
    }

    fn revision(&self) -> Revision {
        self.inner.revision()
    }
}

/// Opens and rotates two days; what happens on the way may fail.
async fn live(world: &World, faulty: &Arc<Faulty>, issued: &mut Vec<X509Svid>) -> Option<()> {
    let deps = Deps {
        kv: faulty.clone(),
        ..world.deps()
    };
    let authority = Authority::open(&config(), deps).await.ok()?;
    for _ in 0..12 {
        world.clock.advance(Duration::from_secs(4 * 3_600 + 1));
        let caught_up = authority.catch_up().await;
        // Also after a failure what signs must be what the store and the bundle say.
        issued.extend(issue_one(&authority).await);
        check_memory_follows_the_store(world, &authority).await;
        caught_up.ok()?;
    }
    Some(())
}

async fn issue_one(authority: &Arc<Authority>) -> Option<X509Svid> {
    let mut issued = authority.issue_x509(vec![request("/w", workload())]).await;
    issued.remove(0).ok()
}

async fn check_memory_follows_the_store(world: &World, authority: &Arc<Authority>) {
    let issuer = authority.active.load_full().unwrap();
    let stored = authorities::get(&*world.kv, &issuer.authority_id).await;
    let state = stored.unwrap().unwrap().value.state;
    assert!(
        matches!(state, AuthorityState::Active | AuthorityState::Old),
        "signs with an authority that was never active in the store: {state:?}"
    );
}

#[tokio::test]
async fn a_rotation_that_is_interrupted_anywhere_resumes_at_the_next_start() {
    let mut completed = 0;
    for at in 0..40 {
        for applied in [false, true] {
            let world = World::new();
            let faulty = Arc::new(Faulty {
                inner: world.kv.clone(),
                commits: AtomicUsize::new(0),
                at,
                applied,
            });
            let mut issued = Vec::new();
            if live(&world, &faulty, &mut issued).await.is_some() {
                completed += 1;
            }
            let again = world.open().await;
            issued.extend(issue_one(&again).await);
            check_end(&world, &again, issued).await;
        }
    }
    assert!(completed > 0, "the last faults lie behind the last commit");
}

async fn check_end(world: &World, authority: &Arc<Authority>, issued: Vec<X509Svid>) {
    let bundle = world.bundle().await;
    for (kind, published) in [
        (Kind::X509, bundle.x509_authorities.len()),
        (Kind::Jwt, bundle.jwt_authorities.len()),
    ] {
        let all = states_of(authority, kind);
        let count = |state| all.iter().filter(|one| **one == state).count();
        assert_eq!(count(AuthorityState::Active), 1);
        assert!(count(AuthorityState::Prepared) <= 1);
        assert_eq!(published, all.len(), "one for one");
    }
    let now = world.clock.now();
    assert!(!issued.is_empty());
    for svid in issued {
        if svid.leaf().validity.contains(now) {
            bundle.anchors().verify(svid, Role::Client, now).unwrap();
        }
    }
}

#[tokio::test]
async fn a_server_that_lost_the_answer_of_the_store_goes_on_without_a_restart() {
    for at in 0..6 {
        for applied in [false, true] {
            let world = World::new();
            world.open().await;
            let faulty = Arc::new(Faulty {
                inner: world.kv.clone(),
                commits: AtomicUsize::new(0),
                at,
                applied,
            });
            let deps = Deps {
                kv: faulty.clone(),
                ..world.deps()
            };
            let authority = Authority::open(&config(), deps).await.unwrap();
            let mut issued = Vec::new();
            for _ in 0..24 {
                world.clock.advance(Duration::from_secs(2 * 3_600 + 1));
                if authority.catch_up().await.is_err() {
                    authority.catch_up().await.unwrap();
                }
                issued.extend(issue_one(&authority).await);
                check_memory_follows_the_store(&world, &authority).await;
            }
            assert_eq!(issued.len(), 24);
            check_end(&world, &authority, issued).await;
        }
    }
}
