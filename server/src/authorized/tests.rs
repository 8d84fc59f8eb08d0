//! The graph against a naive crawl over a plain list of entries.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use vane_identity::digest::{Digest, Member};
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::selector::{Selector, SelectorSet};

use super::graph::Graph;
use super::log::Log;
use super::reach::Reach;

/// SPIFFE IDs that entries have: few, so that they meet.
const IDS: u8 = 5;
const AGENTS: u8 = 3;
const ENTRIES: u8 = 8;

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

pub(crate) fn id(path: &str) -> SpiffeId {
    trust_domain().with_path(path).unwrap()
}

pub(crate) fn agent(number: u8) -> SpiffeId {
    id(&format!("/spire/agent/x/{number}"))
}

pub(crate) fn workload(number: u8) -> SpiffeId {
    id(&format!("/workload/{number}"))
}

/// The selectors of the bits that are set.
pub(crate) fn selectors(bits: u8) -> SelectorSet {
    let set = (0..4).filter(|bit| bits & (1 << bit) != 0);
    set.map(|bit| Selector::new("node", &format!("label:{bit}")).unwrap())
        .collect()
}

/// An ID, of a UUID's form for even numbers.
pub(crate) fn entry_id(number: u8) -> EntryId {
    let text = if number.is_multiple_of(2) {
        format!("00000000-0000-0000-0000-0000000000{number:02x}")
    } else {
        format!("entry-{number}")
    };
    EntryId::parse(&text).unwrap()
}

/// An entry without anything rare.
pub(crate) fn entry(number: u8, spiffe_id: SpiffeId, parent_id: SpiffeId, bits: u8) -> Entry {
    Entry {
        id: entry_id(number),
        spiffe_id,
        parent_id,
        selectors: selectors(bits),
        x509_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: 0,
        dns_names: Vec::new(),
        revision_number: 0,
        store_svid: false,
        jwt_svid_ttl: 0,
        hint: String::new(),
        created_at: 1,
        additional_attributes: None,
    }
}

/// A parent by number: agents, then the server (aliases), then workloads.
pub(crate) fn parent(number: u8) -> SpiffeId {
    match number {
        0..AGENTS => agent(number),
        AGENTS => trust_domain().server_id().unwrap(),
        _ => workload(number - AGENTS - 1),
    }
}

/// How many parents there are.
pub(crate) const PARENTS: u8 = AGENTS + 1 + IDS;

/// The set of an agent by SPIRE's rules, looking at everything again and again.
pub(crate) fn naive<'e>(
    entries: impl Iterator<Item = &'e Entry> + Clone,
    agent: &SpiffeId,
    selectors: &SelectorSet,
    now: i64,
) -> BTreeSet<(EntryId, i64, i64)> {
    let server = trust_domain().server_id().unwrap();
    let counts = |entry: &&Entry| entry.expires_at == 0 || entry.expires_at > now;
    let entries: Vec<&Entry> = entries.filter(counts).collect();
    let mut reached = BTreeSet::from([agent.clone()]);
    for alias in entries.iter().filter(|entry| entry.parent_id == server) {
        if alias.selectors.is_subset(selectors) {
            reached.insert(alias.spiffe_id.clone());
        }
    }
    let mut set = BTreeSet::new();
    loop {
        let before = set.len();
        for entry in &entries {
            if entry.parent_id != server && reached.contains(&entry.parent_id) {
                set.insert((entry.id.clone(), entry.revision_number, entry.created_at));
                reached.insert(entry.spiffe_id.clone());
            }
        }
        if set.len() == before {
            return set;
        }
    }
}

#[derive(Debug, Clone)]
enum Change {
    Put {
        entry: u8,
        spiffe: u8,
        parent: u8,
        bits: u8,
        lives: u8,
    },
    Delete(u8),
    Pass(u8),
}

fn change() -> impl Strategy<Value = Change> {
    let put = (0..ENTRIES, 0..IDS, 0..PARENTS, 1..16_u8, 0..6_u8);
    let put = put.prop_map(|(entry, spiffe, parent, bits, lives)| Change::Put {
        entry,
        spiffe,
        parent,
        bits,
        lives,
    });
    prop_oneof![
        6 => put,
        2 => (0..ENTRIES).prop_map(Change::Delete),
        1 => (0..3_u8).prop_map(Change::Pass),
    ]
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<EntryId, Entry>,
    revision: u64,
    now: i64,
}

impl Model {
    fn apply(&mut self, graph: &mut Graph, change: &Change) {
        self.revision += 1;
        let mut log = Log::default();
        match change {
            Change::Put {
                entry: number,
                spiffe,
                parent: above,
                bits,
                lives,
            } => {
                let mut next = entry(*number, workload(*spiffe), parent(*above), *bits);
                next.revision_number = i64::try_from(self.revision).unwrap();
                if *lives > 0 {
                    next.expires_at = self.now + i64::from(*lives) - 1;
                    next.hint = "a hint".to_owned();
                }
                graph.put(&next, self.revision, self.now, &mut log);
                self.entries.insert(next.id.clone(), next);
            }
            Change::Delete(number) => {
                graph.delete(&entry_id(*number), self.revision, &mut log);
                self.entries.remove(&entry_id(*number));
            }
            Change::Pass(seconds) => {
                self.now += i64::from(*seconds);
                graph.expire(self.now, &mut log);
            }
        }
        graph.sweep();
    }

    fn check(&self, graph: &Graph) {
        for number in 0..AGENTS {
            let (agent, selectors) = (agent(number), selectors(5 + number));
            let reach = graph.reach_of(&agent, &selectors);
            let expected = naive(self.entries.values(), &agent, &selectors, self.now);
            let set = graph.members(&reach, None).map(|(_, entry)| entry.listed());
            let set: Vec<_> = set.collect();
            assert_eq!(graph.size(&reach), set.len());
            let digest = set
                .iter()
                .map(|it| Member::of_entry(it.id.as_str(), it.revision_number, it.created_at));
            assert_eq!(graph.digest(&reach), digest.collect::<Digest>());
            let set = set
                .into_iter()
                .map(|it| (it.id, it.revision_number, it.created_at));
            assert_eq!(set.collect::<BTreeSet<_>>(), expected);
        }
        for (id, entry) in &self.entries {
            let slot = graph.find(id).unwrap();
            assert_eq!(graph.entry(slot).as_ref(), Some(entry));
        }
        assert_eq!(graph.len(), self.entries.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn sets_and_digests_are_those_of_a_naive_crawl(
        changes in proptest::collection::vec(change(), 1..60),
    ) {
        let mut graph = Graph::new(&trust_domain().server_id().unwrap());
        let mut model = Model::default();
        for change in &changes {
            model.apply(&mut graph, change);
            model.check(&graph);
        }
        // Nothing is left behind when everything is gone, but the server's own ID.
        for number in 0..ENTRIES {
            model.apply(&mut graph, &Change::Delete(number));
        }
        model.check(&graph);
        prop_assert_eq!(graph.footprint(), (0, 1, 0));
    }
}

#[test]
fn older_revisions_of_an_entry_are_ignored() {
    let mut graph = Graph::new(&trust_domain().server_id().unwrap());
    let mut log = Log::default();
    let old = entry(1, workload(1), agent(1), 1);
    let mut new = old.clone();
    new.revision_number = 7;
    graph.put(&new, 9, 0, &mut log);
    graph.put(&old, 8, 0, &mut log);
    graph.delete(&old.id, 8, &mut log);
    let slot = graph.find(&old.id).unwrap();
    assert_eq!(graph.entry(slot), Some(new));
    assert_eq!(log.touched.len(), 1);
}

#[test]
fn an_update_that_moves_nothing_shakes_nobody() {
    let mut graph = Graph::new(&trust_domain().server_id().unwrap());
    let mut log = Log::default();
    graph.put(&entry(1, workload(1), agent(1), 1), 1, 0, &mut log);
    graph.put(&entry(2, workload(2), workload(1), 1), 2, 0, &mut log);
    let mut log = Log::default();
    let mut changed = entry(1, workload(1), agent(1), 3);
    changed.revision_number = 1;
    graph.put(&changed, 3, 0, &mut log);
    graph.put(&entry(3, workload(3), workload(1), 1), 4, 0, &mut log);
    assert!(log.shaken.is_empty(), "{:?}", log.shaken);
    assert_eq!(log.touched.len(), 2);
}

#[test]
fn a_walk_through_a_set_goes_on_where_it_stopped_whatever_happened_meanwhile() {
    let mut graph = Graph::new(&trust_domain().server_id().unwrap());
    let mut log = Log::default();
    for number in 0..6 {
        let parent = if number < 3 { agent(0) } else { workload(0) };
        graph.put(&entry(number, workload(number), parent, 1), 1, 0, &mut log);
    }
    let reach: Reach = graph.reach_of(&agent(0), &selectors(0));
    let (cursor, first) = graph.members(&reach, None).next().unwrap();
    let first = first.key.id();
    graph.delete(&first, 2, &mut log);
    let rest = graph.members(&reach, Some(cursor)).count();
    assert_eq!(rest, 5);
}
