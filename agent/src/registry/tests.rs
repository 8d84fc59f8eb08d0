use vane_identity::selector::SelectorSet;
use vane_wire::vane::sync::v1::{Heartbeat, Renew, list};

use super::*;

fn own() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn entry(id: &str, revision_number: i64) -> Entry {
    Entry {
        id: EntryId::parse(id).unwrap(),
        spiffe_id: own().with_path("/w").unwrap(),
        parent_id: own().with_path("/spire/agent/x").unwrap(),
        selectors: SelectorSet::from_iter(["unix:uid:1".parse().unwrap()]),
        x509_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: 0,
        dns_names: Vec::new(),
        revision_number,
        store_svid: false,
        jwt_svid_ttl: 0,
        hint: String::new(),
        created_at: 7,
        additional_attributes: None,
    }
}

fn item(id: &str, revision_number: i64) -> list::Item {
    list::Item {
        id: id.to_owned(),
        revision_number,
        created_at: 7,
    }
}

fn digest(entries: &[Entry]) -> Vec<u8> {
    entries
        .iter()
        .map(member)
        .collect::<Digest>()
        .to_bytes()
        .to_vec()
}

fn delta(upserts: &[Entry], removed: &[&str], revision: u64) -> Option<Response> {
    Some(Response::Delta(Delta {
        revision,
        upserts: upserts.iter().map(types::Entry::from).collect(),
        removed: removed.iter().map(|id| (*id).to_owned()).collect(),
    }))
}

fn list(items: Vec<list::Item>, last: bool) -> Option<Response> {
    Some(Response::List(List { items, last }))
}

fn in_sync(registry: &Registry, entries: &[Entry]) -> Option<Response> {
    Some(Response::InSync(InSync {
        revision: 9,
        set_digest: digest(entries).into(),
        epoch: vec![1; 16].into(),
        bundle_digest: registry.bundle_digest().to_bytes().to_vec().into(),
    }))
}

fn ids(registry: &Registry) -> Vec<&str> {
    registry.entries().keys().map(EntryId::as_str).collect()
}

fn needed(reaction: &Reaction) -> Vec<Vec<String>> {
    let needs = reaction.answers.iter().filter_map(|request| match request {
        Request::Need(need) => Some(need.entry_ids.clone()),
        _ => None,
    });
    needs.collect()
}

#[test]
fn a_list_drops_what_it_does_not_name_and_asks_for_what_is_missing_or_old() {
    let mut registry = Registry::new(own());
    registry.apply(delta(
        &[entry("a", 0), entry("b", 0), entry("c", 0)],
        &[],
        1,
    ));
    registry.apply(list(Vec::new(), false));
    let reaction = registry.apply(list(vec![item("b", 0), item("c", 1), item("d", 0)], true));
    assert_eq!(ids(&registry), ["b", "c"]);
    assert!(reaction.changed);
    assert_eq!(
        needed(&reaction),
        [vec!["c".to_owned(), "d".to_owned()], Vec::new()]
    );
    registry.apply(delta(&[entry("c", 1), entry("d", 0)], &[], 2));
    let end = in_sync(&registry, &[entry("b", 0), entry("c", 1), entry("d", 0)]);
    assert!(registry.apply(end).in_sync);
    let hello = registry.hello("v");
    assert_eq!((hello.revision, hello.epoch.len()), (9, 16));
}

#[test]
fn a_change_between_the_chunks_of_a_list_is_part_of_it() {
    let mut registry = Registry::new(own());
    registry.apply(delta(&[entry("a", 0), entry("b", 0)], &[], 1));
    registry.apply(list(Vec::new(), false));
    registry.apply(list(vec![item("a", 0), item("b", 0)], false));
    registry.apply(delta(&[entry("n", 0)], &["a"], 2));
    registry.apply(list(Vec::new(), true));
    assert_eq!(ids(&registry), ["b", "n"]);
}

#[test]
fn a_list_that_starts_again_forgets_what_the_first_had_named() {
    let mut registry = Registry::new(own());
    registry.apply(delta(&[entry("a", 0), entry("b", 0)], &[], 1));
    registry.apply(list(Vec::new(), false));
    registry.apply(list(vec![item("a", 0)], false));
    registry.apply(list(Vec::new(), false));
    registry.apply(list(vec![item("b", 0)], true));
    assert_eq!(ids(&registry), ["b"]);
}

#[test]
fn digests_that_differ_at_the_end_start_everything_over() {
    let mut registry = Registry::new(own());
    registry.apply(delta(&[entry("a", 0)], &[], 1));
    let end = in_sync(&registry, &[entry("a", 0)]);
    assert!(registry.apply(end).in_sync);
    let wrong = in_sync(&registry, &[entry("a", 1)]);
    let reaction = registry.apply(wrong);
    assert!(reaction.diverged && !reaction.in_sync);
    assert_eq!(registry.hello("v").epoch.len(), 0, "nothing is claimed");
    assert_eq!(ids(&registry), ["a"], "what is held is served on");
}

fn bundles(names: &[&str], removed: &[&str], (full, last): (bool, bool)) -> Option<Response> {
    let bundle = |name: &&str| types::Bundle {
        trust_domain: (*name).to_owned(),
        ..types::Bundle::default()
    };
    Some(Response::Bundles(Bundles {
        bundles: names.iter().map(bundle).collect(),
        removed: removed.iter().map(|name| (*name).to_owned()).collect(),
        bundle_revision: 3,
        full,
        last,
    }))
}

fn trust_domains(registry: &Registry) -> Vec<&str> {
    registry.bundles().keys().map(TrustDomain::as_str).collect()
}

const CHUNK: (bool, bool) = (true, false);
const LAST: (bool, bool) = (true, true);
const CHANGE: (bool, bool) = (false, true);

#[test]
fn a_change_of_bundles_between_the_chunks_of_a_full_set_is_part_of_it() {
    let mut registry = Registry::new(own());
    registry.apply(bundles(&["b.org"], &[], CHUNK));
    registry.apply(bundles(&["c.org", "d.org"], &[], CHUNK));
    registry.apply(bundles(&["a.org"], &["c.org"], CHANGE));
    registry.apply(bundles(&["example.org"], &[], LAST));
    let names = ["a.org", "b.org", "d.org", "example.org"];
    assert_eq!(trust_domains(&registry), names);
}

#[test]
fn a_full_set_of_bundles_that_starts_again_forgets_what_the_first_had_named() {
    let mut registry = Registry::new(own());
    registry.apply(bundles(&["a.org"], &[], CHUNK));
    registry.apply(bundles(&[], &[], CHUNK));
    registry.apply(bundles(&["b.org"], &[], LAST));
    assert_eq!(trust_domains(&registry), ["b.org"]);
}

#[test]
fn a_bundle_that_cannot_be_read_changes_nothing_and_keeps_nothing_from_being_served() {
    let mut registry = Registry::new(own());
    registry.apply(bundles(&["a.org"], &[], LAST));
    let mut broken = bundles(&["a.org"], &[], LAST);
    if let Some(Response::Bundles(message)) = &mut broken {
        message.bundles[0].refresh_hint = -1;
    }
    let reaction = registry.apply(broken);
    assert_eq!((reaction.ignored, reaction.changed), (1, false));
    assert_eq!(trust_domains(&registry), ["a.org"]);
    let other = in_sync(&registry, &[entry("z", 0)]);
    assert!(registry.apply(other.clone()).in_sync);
    let _ = registry.hello("v");
    assert!(
        registry.apply(other).diverged,
        "the next stream is read whole"
    );
}

#[test]
fn a_full_set_of_bundles_forgets_the_trust_domains_that_it_does_not_name() {
    let mut registry = Registry::new(own());
    registry.apply(bundles(&["a.org", "b.org"], &[], CHANGE));
    assert!(
        registry
            .apply(bundles(&["b.org"], &[], CHUNK))
            .answers
            .is_empty()
    );
    let reaction = registry.apply(bundles(&["example.org"], &[], LAST));
    assert_eq!(trust_domains(&registry), ["b.org", "example.org"]);
    assert!(matches!(
        reaction.answers[..],
        [Request::Ack(Ack {
            bundle_revision: 3,
            ..
        })]
    ));
}

#[test]
fn what_is_not_understood_is_counted_and_left_out() {
    let mut registry = Registry::new(own());
    assert_eq!(registry.apply(None).ignored, 1);
    let mut foreign = entry("f", 0);
    foreign.spiffe_id = TrustDomain::parse("other.org")
        .unwrap()
        .with_path("/x")
        .unwrap();
    assert_eq!(registry.apply(delta(&[foreign], &[], 1)).ignored, 1);
    assert!(ids(&registry).is_empty());
    let renew = Response::Renew(Renew {
        entry_ids: vec!["a".into()],
        authority_ids: vec!["0f".into()],
    });
    let reaction = registry.apply(Some(renew));
    assert_eq!(
        (
            reaction.renew_entries.len(),
            reaction.renew_authorities.len()
        ),
        (1, 1)
    );
    let beat = registry.apply(Some(Response::Heartbeat(Heartbeat {
        revision: 4,
        time: 1,
    })));
    assert_eq!(beat.server_time, Some(1));
}
