//! Agents that keep to the rules, against a state that changes under them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;
use vane_chassis::metrics::Metrics;
use vane_chassis::tasks::Tasks;
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::digest::{Digest, Member};
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::x509_svid::Certificate;
use vane_store::kv::{Epoch, Kv as _, Txn};
use vane_store::tables::{agents, bundles, entries};

use super::{Hello, Outgoing, Push, Session};
use crate::authorized::tests::{
    PARENTS, agent, entry, entry_id, naive, parent, selectors, trust_domain, workload,
};
use crate::state::tests::{
    World, bundle_of, delete_entry, put_agent, put_bundle, put_entry, record_of,
};
use crate::state::{CHUNK_BYTES, Listed, Message};

/// An agent: what it holds, and the stream it has.
struct Agent {
    id: SpiffeId,
    entries: BTreeMap<EntryId, Entry>,
    bundles: BTreeMap<TrustDomain, Bundle>,
    epoch: Option<Epoch>,
    revision: u64,
    /// What the list under way has shown.
    seen: Option<BTreeSet<EntryId>>,
    /// What the set of bundles under way has shown.
    named: Option<BTreeSet<TrustDomain>>,
    session: Option<Session>,
    in_syncs: usize,
    lists: usize,
    renewals: Vec<String>,
}

impl Agent {
    fn new(id: SpiffeId) -> Self {
        Self {
            id,
            entries: BTreeMap::new(),
            bundles: BTreeMap::new(),
            epoch: None,
            revision: 0,
            seen: None,
            named: None,
            session: None,
            in_syncs: 0,
            lists: 0,
            renewals: Vec::new(),
        }
    }

    fn set_digest(&self) -> Digest {
        let entries = self.entries.values();
        entries
            .map(|it| Member::of_entry(it.id.as_str(), it.revision_number, it.created_at))
            .collect()
    }

    fn bundle_digest(&self) -> Digest {
        self.bundles.values().map(Member::of_bundle).collect()
    }

    async fn connect(&mut self, push: &Arc<Push>) {
        self.disconnect();
        let hello = Hello {
            epoch: self.epoch,
            revision: self.revision,
            set: self.set_digest(),
            bundles: self.bundle_digest(),
        };
        self.session = Some(push.open(&self.id, &hello).await.unwrap());
    }

    fn disconnect(&mut self) {
        self.session = None;
        self.seen = None;
        self.named = None;
    }

    /// Reads at most `count` messages; whether there were so many.
    fn read(&mut self, count: usize) -> bool {
        for _ in 0..count {
            let Some(mut session) = self.session.take() else {
                return false;
            };
            let message = session.next_message();
            self.session = Some(session);
            let Some(message) = message else {
                return false;
            };
            match &message {
                Outgoing::Own(message) => self.apply(message),
                Outgoing::Shared(shared) => self.apply(shared.message()),
            }
        }
        true
    }

    fn read_all(&mut self) {
        while self.read(1) {}
    }

    fn session(&mut self) -> &mut Session {
        self.session.as_mut().unwrap()
    }

    fn apply(&mut self, message: &Message) {
        match message {
            Message::Bundles {
                bundles,
                removed,
                revision,
                full,
                last,
            } => {
                self.bundles_came(bundles, removed, (*full, *last));
                if *last {
                    self.session().acknowledged(*revision);
                }
            }
            Message::List { items, last } => self.list_came(items, *last),
            Message::Delta {
                revision,
                upserts,
                removed,
            } => {
                assert!(message.weight() <= CHUNK_BYTES || upserts.len() == 1);
                assert!(self.named.is_none(), "entries before bundles");
                let ids: BTreeSet<&EntryId> = upserts.iter().map(|it| &it.id).collect();
                assert_eq!(ids.len(), upserts.len(), "an entry twice in a message");
                self.revision = *revision;
                for id in removed {
                    self.entries.remove(id);
                    if let Some(seen) = &mut self.seen {
                        seen.remove(id);
                    }
                }
                for entry in upserts {
                    let held = self.entries.get(&entry.id).map(|it| it.revision_number);
                    assert!(held <= Some(entry.revision_number), "an entry goes back");
                    self.entries.insert(entry.id.clone(), Entry::clone(entry));
                    let id = &entry.id;
                    if let Some(seen) = &mut self.seen {
                        seen.insert(id.clone());
                    }
                }
            }
            Message::Renew { authorities, .. } => self.renewals.extend(authorities.clone()),
            Message::Heartbeat { revision, .. } => self.revision = *revision,
            Message::InSync {
                revision,
                set,
                bundles,
                epoch,
            } => {
                assert_eq!(*set, self.set_digest());
                assert_eq!(*bundles, self.bundle_digest());
                self.revision = *revision;
                self.epoch = Some(*epoch);
                assert!(self.seen.is_none() && self.named.is_none());
                self.in_syncs += 1;
            }
        }
    }

    fn bundles_came(
        &mut self,
        bundles: &[Arc<Bundle>],
        removed: &[TrustDomain],
        (full, last): (bool, bool),
    ) {
        if full && (self.named.is_none() || (bundles.is_empty() && !last)) {
            self.named = Some(BTreeSet::new());
        }
        for name in removed {
            self.bundles.remove(name);
            if let Some(named) = &mut self.named {
                named.remove(name);
            }
        }
        for bundle in bundles {
            let name = &bundle.trust_domain;
            let held = self.bundles.get(name).map(|it| it.sequence_number);
            assert!(held <= Some(bundle.sequence_number), "a bundle goes back");
            self.bundles.insert(name.clone(), Bundle::clone(bundle));
            if let Some(named) = &mut self.named {
                named.insert(name.clone());
            }
        }
        if full && last {
            let named = self.named.take().unwrap();
            self.bundles.retain(|name, _| named.contains(name));
        }
    }

    fn list_came(&mut self, items: &[Listed], last: bool) {
        assert!(self.named.is_none(), "a list before bundles");
        if items.is_empty() && !last {
            self.seen = Some(BTreeSet::new());
            return;
        }
        let seen = self
            .seen
            .as_mut()
            .expect("a list begins with an empty chunk");
        let mut needs = Vec::new();
        for item in items {
            seen.insert(item.id.clone());
            let same = |held: &&Entry| {
                (held.revision_number, held.created_at) == (item.revision_number, item.created_at)
            };
            if self.entries.get(&item.id).filter(same).is_none() {
                needs.push(item.id.clone());
            }
        }
        if !needs.is_empty() {
            self.session().need(needs);
        }
        if last {
            let seen = self.seen.take().unwrap();
            self.entries.retain(|id, _| seen.contains(id));
            self.session().need(Vec::new());
            self.lists += 1;
        }
    }
}

const AGENTS: u8 = 3;
const ENTRIES: u8 = 14;
const BUNDLES: [&str; 4] = ["example.org", "a.org", "b.org", "c.org"];

#[derive(Debug, Clone)]
struct Put {
    entry: u8,
    spiffe: u8,
    parent: u8,
    bits: u8,
    lives: u8,
}

#[derive(Debug, Clone)]
enum Step {
    /// Puts and deletions in one commit.
    Commit(Vec<Put>, Vec<u8>, Option<(usize, u8)>),
    Bundle(usize, u8, bool),
    NoBundle(usize),
    Attest(u8, u8),
    Ban(u8),
    Evict(u8),
    Connect(u8),
    Disconnect(u8),
    Read(u8, usize),
    Pass(u8),
}

fn put() -> impl Strategy<Value = Put> {
    let fields = (0..ENTRIES, 0..5_u8, 0..PARENTS, 1..16_u8, 0..12_u8);
    fields.prop_map(|(entry, spiffe, parent, bits, lives)| Put {
        entry,
        spiffe,
        parent,
        bits,
        lives,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let puts = proptest::collection::vec(put(), 0..6);
    let deletions = proptest::collection::vec(0..ENTRIES, 0..3);
    let bundle = proptest::option::weighted(0.2, (0..BUNDLES.len(), 0..6_u8));
    let commit = (puts, deletions, bundle);
    prop_oneof![
        8 => commit.prop_map(|(puts, deletions, bundle)| Step::Commit(puts, deletions, bundle)),
        2 => (0..BUNDLES.len(), 0..6_u8, any::<bool>()).prop_map(|(a, b, c)| Step::Bundle(a, b, c)),
        1 => (0..BUNDLES.len()).prop_map(Step::NoBundle),
        2 => (0..AGENTS, 0..16_u8).prop_map(|(agent, bits)| Step::Attest(agent, bits)),
        1 => (0..AGENTS).prop_map(Step::Ban),
        1 => (0..AGENTS).prop_map(Step::Evict),
        3 => (0..AGENTS).prop_map(Step::Connect),
        1 => (0..AGENTS).prop_map(Step::Disconnect),
        6 => (0..AGENTS, 1..6_usize).prop_map(|(agent, count)| Step::Read(agent, count)),
        1 => (0..6_u8).prop_map(Step::Pass),
    ]
}

struct Story {
    world: World,
    push: Arc<Push>,
    agents: Vec<Agent>,
    sequence: u64,
}

impl Story {
    async fn new() -> Self {
        let world = World::new().await;
        let metrics = Metrics::new("vane_server", "test");
        let push = Push::new(Arc::clone(&world.state), &metrics);
        let mut agents = Vec::new();
        for number in 0..AGENTS {
            let id = agent(number);
            world.attest(&id, selectors(number)).await;
            agents.push(Agent::new(id));
        }
        Self {
            world,
            push,
            agents,
            sequence: 0,
        }
    }

    async fn step(&mut self, step: &Step) {
        self.sequence += 1;
        match step {
            Step::Commit(puts, deletions, bundle) => {
                let txn = self.txn(puts, deletions, *bundle);
                self.world.commit(txn).await;
            }
            Step::Bundle(name, size, tainted) => {
                let bundle = self.bundle(*name, *size, *tainted);
                self.world.commit(put_bundle(&bundle)).await;
            }
            Step::NoBundle(name) => {
                let name = TrustDomain::parse(BUNDLES[*name]).unwrap();
                self.world
                    .commit(Txn::new().delete(bundles::key(&name)))
                    .await;
            }
            Step::Attest(number, bits) => {
                self.world.attest(&agent(*number), selectors(*bits)).await;
            }
            Step::Ban(number) => {
                let mut record = record_of(&agent(*number), selectors(*number));
                record.banned = true;
                record.serial.clear();
                self.world.commit(put_agent(&record)).await;
            }
            Step::Evict(number) => {
                let key = agents::key(&agent(*number));
                self.world.commit(Txn::new().delete(key)).await;
            }
            Step::Connect(number) => self.connect(*number).await,
            Step::Disconnect(number) => self.agents[usize::from(*number)].disconnect(),
            Step::Read(number, count) => {
                self.agents[usize::from(*number)].read(*count);
            }
            Step::Pass(seconds) => self.world.pass(Duration::from_secs((*seconds).into())),
        }
        self.end_denied();
    }

    /// Each key once.
    fn txn(&self, puts: &[Put], deletions: &[u8], bundle: Option<(usize, u8)>) -> Txn {
        let mut txn = Txn::new();
        let mut named = BTreeSet::new();
        for put in puts {
            if !named.insert(put.entry) {
                continue;
            }
            let mut next = entry(
                put.entry,
                workload(put.spiffe),
                parent(put.parent),
                put.bits,
            );
            next.revision_number = i64::try_from(self.sequence).unwrap();
            if put.lives > 5 {
                next.expires_at = self.world.now() + i64::from(put.lives) - 6;
            }
            txn = txn.and(put_entry(&next));
        }
        for number in deletions {
            if named.insert(*number) {
                txn = txn.and(delete_entry(*number));
            }
        }
        if let Some((name, size)) = bundle {
            txn = txn.and(put_bundle(&self.bundle(name, size, false)));
        }
        txn
    }

    fn bundle(&self, name: usize, size: u8, tainted: bool) -> Bundle {
        let authorities: Vec<u8> = (0..size).collect();
        bundle_of(BUNDLES[name], self.sequence, &authorities, tainted)
    }

    fn may_connect(&self, number: u8) -> bool {
        let record = self.world.state.agent(&agent(number));
        record.is_some_and(|record| !record.banned)
    }

    async fn connect(&mut self, number: u8) {
        if self.may_connect(number) {
            self.agents[usize::from(number)].connect(&self.push).await;
        }
    }

    /// What the driver of a stream does when the agent's record changed.
    fn end_denied(&mut self) {
        for number in 0..AGENTS {
            let may = self.may_connect(number);
            let agent = &mut self.agents[usize::from(number)];
            if agent.session.as_ref().is_some_and(Session::take_doubt) && !may {
                agent.disconnect();
            }
            assert!(
                may || agent.session.is_none(),
                "a denied agent has a stream"
            );
        }
    }

    /// Everybody who may connects, reads all, and has what the store says.
    async fn end(&mut self) {
        let page = entries::page(&*self.world.kv, None, 1000).await.unwrap();
        let stored: Vec<Entry> = page.rows.into_iter().map(|row| row.value).collect();
        let page = bundles::page(&*self.world.kv, None, 1000).await.unwrap();
        let stored_bundles: Vec<Bundle> = page.rows.into_iter().map(|row| row.value).collect();
        for number in 0..AGENTS {
            if self.agents[usize::from(number)].session.is_none() {
                self.connect(number).await;
            }
            let agent = &mut self.agents[usize::from(number)];
            let Some(record) = self.world.state.agent(&agent.id) else {
                continue;
            };
            if record.banned {
                continue;
            }
            agent.read_all();
            let now = self.world.now();
            let expected = naive(stored.iter(), &agent.id, &record.selectors, now);
            let server = self.world.state.authorized_set(&agent.id);
            let server = server
                .into_iter()
                .map(|it| (it.id, it.revision_number, it.created_at));
            assert_eq!(server.collect::<BTreeSet<_>>(), expected, "{}", agent.id);
            let held: Vec<&Entry> = agent.entries.values().collect();
            let wanted = stored.iter().filter(|entry| {
                expected.contains(&(entry.id.clone(), entry.revision_number, entry.created_at))
            });
            let mut wanted: Vec<&Entry> = wanted.collect();
            wanted.sort_by(|a, b| a.id.cmp(&b.id));
            assert_eq!(held, wanted, "{}", agent.id);
            let held: Vec<&Bundle> = agent.bundles.values().collect();
            assert_eq!(held, stored_bundles.iter().collect::<Vec<_>>());
        }
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().unwrap();
    runtime.block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Nothing is lost and nothing kept too long, whatever changes, whoever goes and comes.
    #[test]
    fn agents_have_what_the_server_has_and_a_naive_crawl_finds(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        block_on(async {
            let mut story = Story::new().await;
            for step in &steps {
                story.step(step).await;
            }
            story.end().await;
            // Once more, after changes that everybody follows on a live stream.
            for step in &steps {
                if !matches!(step, Step::Connect(_) | Step::Disconnect(_) | Step::Read(..)) {
                    story.step(step).await;
                    story.agents.iter_mut().for_each(Agent::read_all);
                }
            }
            story.end().await;
        });
    }
}

/// A bundle with a real CA certificate, so that it has an authority ID.
fn bundle_with_ca(sequence: u64, tainted: bool, ca: &Certificate) -> Bundle {
    let mut bundle = bundle_of("example.org", sequence, &[], false);
    bundle.x509_authorities.push(X509Authority {
        certificate: ca.clone(),
        tainted,
    });
    bundle
}

fn ca() -> Certificate {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    Certificate::from_der(params.self_signed(&key).unwrap().der())
}

/// What the next message is, in short.
fn next(session: &mut Session) -> Option<&'static str> {
    let kind = |message: &Message| match message {
        Message::Bundles { .. } => "bundles",
        Message::List { .. } => "list",
        Message::Delta { .. } => "delta",
        Message::Renew { .. } => "renew",
        Message::Heartbeat { .. } => "heartbeat",
        Message::InSync { .. } => "in sync",
    };
    session.next_message().map(|message| match message {
        Outgoing::Own(message) => kind(&message),
        Outgoing::Shared(shared) => kind(shared.message()),
    })
}

fn rest(session: &mut Session) -> Vec<&'static str> {
    std::iter::from_fn(|| next(session)).collect()
}

#[tokio::test]
async fn an_agent_that_has_all_is_told_so_and_nothing_else() {
    let mut story = Story::new().await;
    story.world.put(&entry(1, workload(1), agent(0), 1)).await;
    story
        .world
        .commit(put_bundle(&bundle_of("a.org", 1, &[1], false)))
        .await;
    story.connect(0).await;
    story.agents[0].read_all();
    assert_eq!(story.agents[0].lists, 1);
    story.connect(0).await;
    assert_eq!(rest(story.agents[0].session()), ["in sync"]);
    story.agents[0].disconnect();
    story
        .world
        .commit(put_bundle(&bundle_of("a.org", 2, &[2], false)))
        .await;
    story.connect(0).await;
    assert_eq!(rest(story.agents[0].session()), ["bundles", "in sync"]);
}

#[tokio::test]
async fn bundles_come_before_the_entries_of_the_same_commit_and_of_later_ones() {
    let mut story = Story::new().await;
    for agent in 0..2 {
        story.connect(agent).await;
        story.agents[usize::from(agent)].read_all();
    }
    let txn = put_entry(&entry(1, workload(1), agent(0), 1));
    let txn = txn.and(put_bundle(&bundle_of("a.org", 1, &[1], false)));
    story.world.commit(txn).await;
    assert_eq!(rest(story.agents[0].session()), ["bundles", "delta"]);
    assert_eq!(rest(story.agents[1].session()), ["bundles"]);
    // An agent that comes now is told of a later entry after the bundles too.
    story.connect(2).await;
    story.world.put(&entry(2, workload(1), agent(2), 1)).await;
    assert_eq!(next(story.agents[2].session()), Some("bundles"));
    assert_eq!(next(story.agents[2].session()), Some("delta"));
}

#[tokio::test]
async fn agents_that_see_the_same_share_one_message_and_others_get_none() {
    let mut story = Story::new().await;
    let server = trust_domain().server_id().unwrap();
    story.world.put(&entry(1, workload(0), server, 2)).await;
    story
        .world
        .put(&entry(2, workload(1), workload(0), 1))
        .await;
    // The alias asks for bit 1.
    for (number, bits) in [(0, 2), (1, 3), (2, 1)] {
        story.step(&Step::Attest(number, bits)).await;
        story.connect(number).await;
        story.agents[usize::from(number)].read_all();
    }
    story
        .world
        .put(&entry(3, workload(2), workload(0), 1))
        .await;
    let shared: Vec<_> = (0..2)
        .map(
            |agent: usize| match story.agents[agent].session().next_message() {
                Some(Outgoing::Shared(shared)) => shared,
                other => panic!("{other:?}"),
            },
        )
        .collect();
    assert!(Arc::ptr_eq(&shared[0], &shared[1]));
    assert_eq!(next(story.agents[2].session()), None);
}

#[tokio::test]
async fn a_slow_agent_costs_its_outbox_and_lists_again() {
    let mut story = Story::new().await;
    story.connect(0).await;
    story.agents[0].read_all();
    for number in 0..ENTRIES {
        story
            .world
            .put(&entry(number, workload(1), agent(0), 1))
            .await;
    }
    story.agents[0].read_all();
    let agent = &story.agents[0];
    assert_eq!((agent.lists, agent.in_syncs), (1, 2));
    assert_eq!(agent.entries.len(), usize::from(ENTRIES));
}

#[tokio::test]
async fn a_long_list_comes_in_chunks_and_changes_between_them_belong_to_it() {
    let mut story = Story::new().await;
    for number in 0..100 {
        story
            .world
            .put(&entry(number, workload(1), agent(0), 1))
            .await;
    }
    story.connect(0).await;
    // The begin, then the first chunk.
    assert!(story.agents[0].read(2));
    let first = story.agents[0].seen.clone().unwrap();
    assert!((2..50).contains(&first.len()), "{}", first.len());
    for number in 0..100 {
        if number % 9 == 0 {
            story.world.delete(number).await;
            story
                .world
                .put(&entry(100 + number, workload(1), agent(0), 1))
                .await;
            story.agents[0].read(3);
        }
    }
    story.agents[0].read_all();
    story.end().await;
    assert_eq!(story.agents[0].entries.len(), 100);
    assert_eq!(story.agents[0].in_syncs, 1);
}

#[tokio::test]
async fn bodies_are_given_of_the_own_set_only() {
    let mut story = Story::new().await;
    story.world.put(&entry(1, workload(1), agent(0), 1)).await;
    story.world.put(&entry(2, workload(1), agent(1), 1)).await;
    story.connect(0).await;
    story.agents[0].read_all();
    let session = story.agents[0].session();
    session.need(vec![entry_id(2), entry_id(77), entry_id(1)]);
    match session.next_message() {
        Some(Outgoing::Own(Message::Delta { upserts, .. })) => {
            assert_eq!(upserts.len(), 1);
            assert_eq!(upserts[0].id, entry_id(1));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(next(session), None);
}

#[tokio::test]
async fn an_agent_that_asks_faster_than_it_reads_is_not_read_from() {
    let mut story = Story::new().await;
    story.connect(0).await;
    let session = story.agents[0].session();
    assert!(session.wants_requests());
    session.need(vec![entry_id(1); super::MAX_NEEDS + 1]);
    assert!(!session.wants_requests());
    rest(session);
    assert!(session.wants_requests());
}

#[tokio::test]
async fn a_tainted_authority_calls_for_new_svids_after_the_bundle() {
    let mut story = Story::new().await;
    let ca = ca();
    story
        .world
        .commit(put_bundle(&bundle_with_ca(1, false, &ca)))
        .await;
    story.connect(0).await;
    story.agents[0].read_all();
    let tainted = bundle_with_ca(2, true, &ca);
    story.world.commit(put_bundle(&tainted)).await;
    story.agents[0].read_all();
    let id = tainted.x509_authorities[0].authority_id().unwrap();
    assert_eq!(story.agents[0].renewals, std::slice::from_ref(&id));
    // What is tainted already is not told again.
    let again = bundle_with_ca(3, true, &ca);
    story.world.commit(put_bundle(&again)).await;
    story.agents[0].read_all();
    assert_eq!(story.agents[0].renewals, [id]);
}

#[tokio::test]
async fn the_lowest_acknowledgement_is_that_of_bundles_really_applied() {
    let mut story = Story::new().await;
    let lowest = story.push.acks().lowest();
    story
        .world
        .commit(put_bundle(&bundle_of("a.org", 1, &[1], false)))
        .await;
    let (_, first) = story.world.state.bundles();
    story.connect(0).await;
    story.connect(1).await;
    assert_eq!(*lowest.borrow(), Some(0));
    story.agents[0].session().acknowledged(99);
    assert_eq!(*lowest.borrow(), Some(0), "nothing was sent yet");
    story.agents[0].read_all();
    story.agents[1].read_all();
    assert_eq!(*lowest.borrow(), Some(first));
    story
        .world
        .commit(put_bundle(&bundle_of("a.org", 2, &[2], false)))
        .await;
    let (_, second) = story.world.state.bundles();
    story.agents[0].read_all();
    assert_eq!(*lowest.borrow(), Some(first));
    story.agents[1].read_all();
    assert_eq!(*lowest.borrow(), Some(second));
    // Who comes back with the same bundles has them.
    story.connect(0).await;
    assert_eq!(*lowest.borrow(), Some(second));
}

#[tokio::test]
async fn a_heartbeat_waits_until_all_else_was_said() {
    let mut story = Story::new().await;
    story.world.put(&entry(1, workload(1), agent(0), 1)).await;
    story.connect(0).await;
    let now = vane_identity::lifetime::from_unix(7);
    let session = story.agents[0].session();
    session.beat(now);
    assert_eq!(rest(session), ["list", "list", "heartbeat"]);
    session.need(Vec::new());
    assert_eq!(rest(session), ["in sync"]);
}

#[tokio::test]
async fn the_oldest_of_too_many_streams_of_an_agent_makes_room() {
    let story = Story::new().await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        let hello = Hello::default();
        sessions.push(story.push.open(&agent(0), &hello).await.unwrap());
    }
    let replaced = sessions.iter().map(Session::is_replaced);
    assert_eq!(
        replaced.collect::<Vec<_>>(),
        [true, false, false, false, false]
    );
    assert_eq!(story.world.state.counts().connected, 1);
    drop(sessions);
    assert_eq!(story.world.state.counts().connected, 0);
}

#[tokio::test]
async fn an_agent_that_knows_more_than_the_state_waits_for_it() {
    let story = Story::new().await;
    let stop = CancellationToken::new();
    // Not seen by the state yet:
    let ahead = put_entry(&entry(1, workload(1), agent(0), 1));
    let revision = story.world.kv.commit(ahead).await.unwrap();
    assert!(story.world.state.revision() < revision);
    let mut tasks = Tasks::with_token(stop.clone());
    let hello = Hello {
        epoch: Some(story.world.state.epoch()),
        revision,
        ..Hello::default()
    };
    let (push, agent) = (Arc::clone(&story.push), agent(0));
    let opened = async { push.open(&agent, &hello).await.unwrap() };
    let follow = async {
        let run = Arc::clone(&story.world.state).run(stop.clone());
        tasks.spawn("state", run);
    };
    let (session, ()) = tokio::join!(opened, follow);
    assert_eq!(story.world.state.revision(), revision);
    assert_eq!(story.world.state.authorized_set(session.agent()).len(), 1);
    stop.cancel();
    tasks.join(Duration::from_secs(10)).await.unwrap();
}

#[test]
fn streams_end_at_ages_that_spread() {
    let minutes = |draw| super::age_of(draw).as_secs_f64() / 60.0;
    assert!((minutes(0.0) - 24.0).abs() < 1e-6);
    assert!((minutes(1.0) - 36.0).abs() < 1e-6);
}
