//! The state over a store in memory, stepped by hand.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use vane_chassis::clock::{Clock, Manual};
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::entry::Entry;
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::selector::SelectorSet;
use vane_identity::x509_svid::Certificate;
use vane_store::kv::{Kv, Txn};
use vane_store::memory::MemoryKv;
use vane_store::tables::{agents, bundles, entries};
use vane_store::{kv, record};
use vane_wire::convert::selector::{SelectorFilter, SetMatch};
use vane_wire::record::AgentRecord;

use super::*;
use crate::authorized::tests::{agent, entry, entry_id, parent, selectors, trust_domain, workload};

/// A store, the state that follows it, and the clock of both.
pub(crate) struct World {
    pub(crate) kv: Arc<MemoryKv>,
    pub(crate) clock: Arc<Manual>,
    pub(crate) state: Arc<State>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let kv = Arc::new(MemoryKv::new().unwrap());
        Self::over(kv).await
    }

    async fn over(kv: Arc<MemoryKv>) -> Self {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let clock = Arc::new(Manual::new(start));
        let state = State::load(
            Arc::clone(&kv) as Arc<dyn Kv>,
            Arc::clone(&clock) as Arc<dyn Clock>,
            trust_domain(),
        );
        Self {
            state: state.await.unwrap(),
            kv,
            clock,
        }
    }

    /// Commits without conditions and lets the state see it.
    pub(crate) async fn commit(&self, txn: Txn) -> kv::Revision {
        let revision = self.kv.commit(txn).await.unwrap();
        self.state.pump();
        revision
    }

    pub(crate) async fn put(&self, entry: &Entry) {
        self.commit(put_entry(entry)).await;
    }

    pub(crate) async fn delete(&self, number: u8) {
        self.commit(delete_entry(number)).await;
    }

    pub(crate) async fn attest(&self, id: &SpiffeId, selectors: SelectorSet) {
        self.commit(put_agent(&record_of(id, selectors))).await;
    }

    /// Lets time pass, and expire what does.
    pub(crate) fn pass(&self, time: Duration) {
        self.clock.advance(time);
        self.state.expire();
    }

    pub(crate) fn now(&self) -> i64 {
        vane_identity::lifetime::to_unix(self.clock.now())
    }
}

impl State {
    /// Applies what the store has for it.
    pub(crate) fn pump(&self) {
        let mut watch = self.watch.lock().unwrap();
        while let Some(change) = watch.as_mut().unwrap().try_next().unwrap() {
            let batch = rows::Batch::of_change(&change, &self.trust_domain);
            self.apply(batch.unwrap());
        }
    }
}

pub(crate) fn put_entry(entry: &Entry) -> Txn {
    Txn::new().put(entries::key(&entry.id), record::seal(entry))
}

pub(crate) fn delete_entry(number: u8) -> Txn {
    Txn::new().delete(entries::key(&entry_id(number)))
}

pub(crate) fn put_agent(agent: &AgentRecord) -> Txn {
    Txn::new().put(agents::key(&agent.spiffe_id), record::seal(agent))
}

pub(crate) fn put_bundle(bundle: &Bundle) -> Txn {
    Txn::new().put(bundles::key(&bundle.trust_domain), record::seal(bundle))
}

pub(crate) fn record_of(id: &SpiffeId, selectors: SelectorSet) -> AgentRecord {
    AgentRecord {
        spiffe_id: id.clone(),
        attestation_type: "join_token".to_owned(),
        serial: "1".to_owned(),
        new_serial: None,
        not_after: 2_000_000,
        new_not_after: 0,
        selectors,
        banned: false,
        can_reattest: false,
        agent_version: String::new(),
        csr_key_sha256: None,
        previous: None,
    }
}

/// A bundle whose certificates are no certificates.
pub(crate) fn bundle_of(name: &str, sequence: u64, authorities: &[u8], tainted: bool) -> Bundle {
    let mut bundle = Bundle::empty(TrustDomain::parse(name).unwrap());
    bundle.sequence_number = sequence;
    for byte in authorities {
        let certificate = Certificate::from_der(&[*byte; 300]);
        let authority = X509Authority {
            certificate,
            tainted,
        };
        bundle.x509_authorities.push(authority);
    }
    bundle
}

fn ids(page: &Page<Entry>) -> Vec<String> {
    page.items
        .iter()
        .map(|entry| entry.id.to_string())
        .collect()
}

#[tokio::test]
async fn what_was_committed_before_and_after_the_load_is_there() {
    let kv = Arc::new(MemoryKv::new().unwrap());
    let mut first = entry(1, workload(1), agent(1), 1);
    first.dns_names = vec!["a.example.org".to_owned()];
    first.federates_with = vec![TrustDomain::parse("other.org").unwrap()];
    first.x509_svid_ttl = 60;
    kv.commit(put_entry(&first)).await.unwrap();
    let bundle = bundle_of("example.org", 3, &[1], false);
    kv.commit(put_bundle(&bundle)).await.unwrap();
    let world = World::over(kv).await;
    let second = entry(2, workload(1), agent(1), 1);
    world.put(&second).await;
    world.attest(&agent(1), selectors(1)).await;
    let state = &world.state;
    assert_eq!(state.entry(&first.id).as_deref(), Some(&first));
    assert_eq!(state.entry(&second.id).as_deref(), Some(&second));
    assert_eq!(state.bundle(&trust_domain()).as_deref(), Some(&bundle));
    assert!(state.agent(&agent(1)).is_some());
    assert_eq!(state.revision(), world.kv.revision());
    world.delete(1).await;
    let none = Txn::new().delete(agents::key(&agent(1)));
    world
        .commit(none.delete(bundles::key(&trust_domain())))
        .await;
    let counts = state.counts();
    assert_eq!((counts.entries, counts.agents, counts.bundles), (1, 0, 0));
}

#[tokio::test]
async fn a_second_reading_of_the_store_finds_what_the_feed_did_not_tell() {
    let world = World::new().await;
    for number in 0..30 {
        world.put(&entry(number, workload(0), agent(0), 1)).await;
    }
    world.attest(&agent(0), selectors(1)).await;
    world.attest(&agent(1), selectors(1)).await;
    world
        .commit(put_bundle(&bundle_of("a.org", 1, &[1], false)))
        .await;
    // Not seen by the state:
    for number in 0..15 {
        world.kv.commit(delete_entry(number * 2)).await.unwrap();
    }
    let gone = Txn::new().delete(agents::key(&agent(0)));
    let gone = gone.delete(bundles::key(&TrustDomain::parse("a.org").unwrap()));
    world.kv.commit(gone).await.unwrap();
    let mut changed = entry(1, workload(3), agent(1), 2);
    changed.revision_number = 1;
    world.kv.commit(put_entry(&changed)).await.unwrap();
    world
        .kv
        .commit(put_entry(&entry(40, workload(4), agent(1), 1)))
        .await
        .unwrap();

    world.state.read_again().await;
    let state = &world.state;
    let counts = state.counts();
    assert_eq!((counts.entries, counts.agents, counts.bundles), (16, 1, 0));
    assert_eq!(state.entry(&changed.id).as_deref(), Some(&changed));
    assert_eq!(state.revision(), world.kv.revision());
    assert_eq!(state.authorized_set(&agent(1)).len(), 2);
}

impl State {
    async fn read_again(&self) {
        let watch = self.snapshot().await.unwrap();
        *self.watch.lock().unwrap() = Some(watch);
    }
}

#[tokio::test]
async fn entries_are_listed_in_order_of_id_page_by_page_with_each_filter() {
    let world = World::new().await;
    for number in 0..20 {
        let mut one = entry(
            number,
            workload(number % 3),
            parent(number % 2),
            1 + number % 3,
        );
        one.downstream = number % 5 == 0;
        if number % 4 == 0 {
            one.hint = "four".to_owned();
        }
        world.put(&one).await;
    }
    let state = &world.state;
    let all = EntryFilter::default();
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = state.entries_page(&all, after.as_ref(), 7).await;
        seen.extend(ids(&page));
        after = page.items.last().map(|entry| entry.id.clone());
        if !page.more {
            break;
        }
    }
    assert_eq!(seen.len(), 20);
    assert!(seen.is_sorted());

    let by_selectors = |bits, by| EntryFilter {
        selectors: Some(SelectorFilter {
            selectors: selectors(bits),
            by,
        }),
        ..EntryFilter::default()
    };
    let filters = [
        (all, 20),
        (
            EntryFilter {
                spiffe_id: Some(workload(0)),
                ..EntryFilter::default()
            },
            7,
        ),
        (
            EntryFilter {
                parent_id: Some(agent(1)),
                hint: Some(String::new()),
                ..EntryFilter::default()
            },
            10,
        ),
        (
            EntryFilter {
                spiffe_id: Some(workload(4)),
                ..EntryFilter::default()
            },
            0,
        ),
        (
            EntryFilter {
                downstream: Some(true),
                ..EntryFilter::default()
            },
            4,
        ),
        (
            EntryFilter {
                hint: Some("four".to_owned()),
                ..EntryFilter::default()
            },
            5,
        ),
        // Bits 1, 2 and 3 in turn: 7, 7 and 6 entries.
        (by_selectors(1, SetMatch::Exact), 7),
        (by_selectors(3, SetMatch::Subset), 20),
        (by_selectors(3, SetMatch::Superset), 6),
        (by_selectors(1, SetMatch::Any), 13),
        (by_selectors(9, SetMatch::Superset), 0),
        (by_selectors(8, SetMatch::Any), 0),
    ];
    for (filter, count) in filters {
        assert_eq!(state.entries_count(&filter).await, count, "{filter:?}");
        let page = state.entries_page(&filter, None, 100).await;
        assert_eq!(page.items.len(), count, "{filter:?}");
        assert!(ids(&page).is_sorted());
        let first = page.items.first().map(|entry| entry.id.clone());
        let rest = state.entries_page(&filter, first.as_ref(), 100).await;
        assert_eq!(rest.items.len(), count.saturating_sub(1));
    }
}

#[tokio::test]
async fn agents_are_listed_with_each_filter() {
    let world = World::new().await;
    for number in 0..6 {
        let mut record = record_of(&agent(number), selectors(number));
        record.banned = number == 1;
        record.can_reattest = number == 2;
        record.not_after = 100 + i64::from(number);
        world.commit(put_agent(&record)).await;
    }
    let state = &world.state;
    let filters = [
        (AgentFilter::default(), 6),
        (
            AgentFilter {
                banned: Some(false),
                ..AgentFilter::default()
            },
            5,
        ),
        (
            AgentFilter {
                can_reattest: Some(true),
                ..AgentFilter::default()
            },
            1,
        ),
        (
            AgentFilter {
                expires_before: Some(102),
                ..AgentFilter::default()
            },
            2,
        ),
        (
            AgentFilter {
                attestation_type: Some("x".to_owned()),
                ..AgentFilter::default()
            },
            0,
        ),
    ];
    for (filter, count) in filters {
        assert_eq!(state.agents_count(&filter).await, count, "{filter:?}");
    }
    let page = state
        .agents_page(&AgentFilter::default(), Some(&agent(1)), 2)
        .await;
    let found: Vec<_> = page.items.iter().map(|it| it.spiffe_id.clone()).collect();
    assert_eq!((found, page.more), (vec![agent(2), agent(3)], true));
}

#[tokio::test]
async fn an_expired_entry_leaves_the_sets_and_stays_listed() {
    let world = World::new().await;
    world.attest(&agent(0), selectors(0)).await;
    let mut short = entry(1, workload(1), agent(0), 1);
    short.expires_at = world.now() + 5;
    short.admin = true;
    world.put(&short).await;
    world.put(&entry(2, workload(2), workload(1), 1)).await;
    let state = &world.state;
    assert_eq!(state.authorized_set(&agent(0)).len(), 2);
    assert!(state.grants(&workload(1)).admin);
    world.pass(Duration::from_secs(5));
    assert_eq!(state.authorized_set(&agent(0)), []);
    assert!(state.authorized(&agent(0), &entry_id(2)).is_none());
    assert_eq!(state.grants(&workload(1)), Grants::default());
    assert!(state.entry(&short.id).is_some());
    // A clock that goes back does not bring it back.
    world.clock.set(world.clock.now() - Duration::from_secs(60));
    state.expire();
    assert_eq!(state.authorized_set(&agent(0)), []);
    // Nor does another change of it meanwhile, unless that gives it a later end.
    short.hint = "changed".to_owned();
    world.put(&short).await;
    assert_eq!(state.authorized_set(&agent(0)), []);
    short.expires_at += 1;
    world.put(&short).await;
    assert_eq!(state.authorized_set(&agent(0)).len(), 2);
}

#[tokio::test]
async fn the_running_task_follows_the_store_and_the_clock() {
    let world = World::new().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let mut tasks = vane_chassis::tasks::Tasks::with_token(stop.clone());
    tasks.spawn("state", Arc::clone(&world.state).run(stop.clone()));
    let deadline = Duration::from_secs(10);
    let mut short = entry(1, workload(1), agent(0), 1);
    short.expires_at = world.now() + 60;
    let revision = world.kv.commit(put_entry(&short)).await.unwrap();
    let wait = world.state.wait_for(revision);
    tokio::time::timeout(deadline, wait).await.unwrap();
    world
        .kv
        .commit(put_agent(&record_of(&agent(0), selectors(0))))
        .await
        .unwrap();
    tokio::time::timeout(deadline, world.state.confirm())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(world.state.authorized_set(&agent(0)).len(), 1);
    let opened = world.state.connect(&agent(0));
    world.clock.advance(Duration::from_secs(60));
    let woken = opened.connection.woken();
    tokio::time::timeout(deadline, woken).await.unwrap();
    assert_eq!(world.state.authorized_set(&agent(0)), []);
    stop.cancel();
    tasks.join(deadline).await.unwrap();
}

#[tokio::test]
async fn confirmation_has_an_age() {
    let world = World::new().await;
    world.clock.advance(Duration::from_secs(90));
    let now = world.clock.monotonic();
    assert_eq!(world.state.confirmed_age(now), Duration::from_secs(90));
    world.state.confirm().await.unwrap();
    assert_eq!(world.state.confirmed_age(now), Duration::ZERO);
}

#[tokio::test]
async fn an_entry_is_authorized_exactly_while_it_is_in_the_agents_set() {
    let world = World::new().await;
    let server = trust_domain().server_id().unwrap();
    world.put(&entry(1, workload(1), agent(0), 1)).await;
    world.put(&entry(2, workload(2), workload(1), 1)).await;
    world.put(&entry(3, workload(3), server, 2)).await;
    world.put(&entry(4, workload(4), workload(3), 1)).await;
    world.put(&entry(5, workload(1), agent(1), 1)).await;
    let served = || -> Vec<u8> {
        let state = &world.state;
        let is_served = |number: &u8| state.authorized(&agent(0), &entry_id(*number)).is_some();
        (0..7).filter(is_served).collect()
    };
    assert!(
        served().is_empty(),
        "an agent that is not attested has no set"
    );
    world.attest(&agent(0), selectors(1)).await;
    assert_eq!(served(), [1, 2]);
    world.attest(&agent(0), selectors(2)).await;
    assert_eq!(served(), [1, 2, 4]);
    let opened = world.state.connect(&agent(0));
    assert_eq!(served(), [1, 2, 4]);
    world.delete(1).await;
    assert_eq!(served(), [4]);
    drop(opened);
    assert_eq!(served(), [4]);
}
