use std::time::Duration;

use rcgen::{CertificateParams, IsCa, KeyPair, SanType};
use vane_identity::bundle::X509Authority;
use vane_identity::key::PrivateKey;
use vane_identity::lifetime::Jitter;
use vane_identity::selector::SelectorSet;
use vane_identity::x509_svid::Certificate;

use super::*;
use crate::workload::{Attested, Unknown};

fn own() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn certificate(id: &str) -> (Certificate, PrivateKey) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap();
    (
        Certificate::from_der(der.der()),
        PrivateKey::from_pkcs8(key.serialize_der()),
    )
}

fn entry(id: &str, selectors: &[&str], edit: impl FnOnce(&mut Entry)) -> Served {
    let mut entry = Entry {
        id: EntryId::parse(id).unwrap(),
        spiffe_id: own().with_path(&format!("/{id}")).unwrap(),
        parent_id: own().with_path("/spire/agent/x").unwrap(),
        selectors: selectors
            .iter()
            .map(|text| text.parse::<Selector>().unwrap())
            .collect::<SelectorSet>(),
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
        created_at: 7,
        additional_attributes: None,
    };
    edit(&mut entry);
    let (leaf, key) = certificate(entry.spiffe_id.as_str());
    let svid = Svid::received(&entry, vec![leaf], key, now(), Jitter::NONE).unwrap();
    Served {
        entry: Arc::new(entry),
        svid: State::Ready(Arc::new(svid)),
    }
}

fn snapshot(entries: Vec<Served>) -> Snapshot {
    let mut bundles = BTreeMap::new();
    for name in ["example.org", "other.org", "third.org"] {
        let mut bundle = Bundle::empty(TrustDomain::parse(name).unwrap());
        let (ca, _) = certificate(&format!("spiffe://{name}/ca"));
        bundle.x509_authorities = vec![X509Authority::new(ca)];
        bundles.insert(bundle.trust_domain.clone(), Arc::new(bundle));
    }
    Snapshot::new(own(), entries, bundles)
}

fn outcome(selectors: &[&str]) -> Outcome {
    let known = Attested {
        selectors: selectors.iter().map(|text| text.parse().unwrap()).collect(),
        ..Attested::default()
    };
    [known].into_iter().collect()
}

fn ids(snapshot: &Snapshot, outcome: &Outcome) -> Vec<String> {
    let matches = snapshot.matches(outcome);
    snapshot
        .served(&matches)
        .map(|served| served.entry.id.to_string())
        .collect()
}

#[test]
fn an_entry_matches_when_all_its_selectors_are_known() {
    let none = |_: &mut Entry| {};
    let all = vec![
        entry("a", &["unix:uid:1"], none),
        entry("b", &["unix:gid:2", "unix:uid:1"], none),
        entry("c", &["unix:uid:2"], none),
    ];
    let snapshot = snapshot(all);
    assert_eq!(ids(&snapshot, &outcome(&["unix:uid:1"])), ["a"]);
    assert_eq!(
        ids(&snapshot, &outcome(&["unix:uid:1", "unix:gid:2"])),
        ["a", "b"]
    );
    assert!(snapshot.matches(&outcome(&["unix:gid:2"])).is_empty());
}

/// Proves: WAPI-29.
#[test]
fn of_entries_with_the_same_hint_the_oldest_is_served() {
    let hinted = |hint: &'static str, created_at: i64| {
        move |entry: &mut Entry| {
            entry.hint = hint.to_owned();
            entry.created_at = created_at;
        }
    };
    let all = vec![
        entry("a", &["unix:uid:1"], hinted("x", 9)),
        entry("b", &["unix:uid:1"], hinted("x", 8)),
        entry("c", &["unix:uid:1"], hinted("x", 8)),
        entry("d", &["unix:uid:1"], hinted("", 1)),
        entry("e", &["unix:uid:1"], hinted("", 1)),
    ];
    assert_eq!(
        ids(&snapshot(all), &outcome(&["unix:uid:1"])),
        ["b", "d", "e"]
    );
}

/// Proves: WAPI-20, WAPI-21, WAPI-24, WAPI-26, WAPI-27.
#[test]
fn a_message_is_complete_and_has_the_bundles_that_its_entries_federate_with() {
    let federated =
        |entry: &mut Entry| entry.federates_with = vec![TrustDomain::parse("other.org").unwrap()];
    let snapshot = snapshot(vec![
        entry("a", &["unix:uid:1"], federated),
        entry("b", &["unix:uid:2"], |_| {}),
    ]);
    let read = |selector: &str| {
        let matches = snapshot.matches(&outcome(&[selector]));
        let bytes = snapshot.message(Kind::X509Svid, &matches, now()).unwrap();
        X509svidResponse::decode(bytes).unwrap()
    };
    let message = read("unix:uid:1");
    assert_eq!(message.svids.len(), 1);
    let svid = &message.svids[0];
    assert_eq!(svid.spiffe_id, "spiffe://example.org/a");
    assert!(!svid.x509_svid.is_empty() && !svid.bundle.is_empty());
    assert_eq!(svid.x509_svid_key[0], 0x30, "PKCS#8 DER");
    assert!(message.crl.is_empty());
    assert_eq!(
        message.federated_bundles.keys().collect::<Vec<_>>(),
        ["spiffe://other.org"]
    );
    assert!(read("unix:uid:2").federated_bundles.is_empty());
}

/// Proves: WAPI-35, WAPI-36, WAPI-53.
#[test]
fn bundles_are_the_own_one_and_those_federated_with() {
    let federated =
        |entry: &mut Entry| entry.federates_with = vec![TrustDomain::parse("other.org").unwrap()];
    let snapshot = snapshot(vec![entry("a", &["unix:uid:1"], federated)]);
    let matches = snapshot.matches(&outcome(&["unix:uid:1"]));
    let wanted = ["spiffe://example.org", "spiffe://other.org"];
    let x509 = snapshot
        .message(Kind::X509Bundles, &matches, now())
        .unwrap();
    let x509 = X509BundlesResponse::decode(x509).unwrap();
    assert_eq!(x509.bundles.keys().collect::<Vec<_>>(), wanted);
    let jwt = snapshot.message(Kind::JwtBundles, &matches, now()).unwrap();
    let jwt = JwtBundlesResponse::decode(jwt).unwrap();
    assert_eq!(jwt.bundles.keys().collect::<Vec<_>>(), wanted);
    assert_eq!(jwt.bundles.values().next().unwrap(), &br#"{"keys":[]}"#[..]);
}

#[test]
fn a_message_is_encoded_once_for_all_who_match_the_same() {
    let snapshot = snapshot(vec![entry("a", &["unix:uid:1"], |_| {})]);
    let message = |selectors: &[&str]| {
        let matches = snapshot.matches(&outcome(selectors));
        snapshot.message(Kind::X509Svid, &matches, now()).unwrap()
    };
    let (one, two) = (
        message(&["unix:uid:1"]),
        message(&["unix:uid:1", "unix:gid:5"]),
    );
    assert_eq!(one.as_ptr(), two.as_ptr());
}

#[test]
fn an_expired_svid_is_not_served_and_one_for_a_store_never() {
    let mut old = entry("a", &["unix:uid:1"], |_| {});
    if let State::Ready(svid) = &old.svid {
        let again = Svid {
            chain: svid.chain.clone(),
            key: svid.key.clone(),
            not_after: now() - Duration::from_secs(1),
            received_at: svid.received_at,
            renew_at: now(),
            authority: String::new(),
            revision: svid.revision,
        };
        old.svid = State::Ready(Arc::new(again));
    }
    let stored = entry("b", &["unix:uid:1"], |entry| entry.store_svid = true);
    let snapshot = snapshot(vec![old, stored]);
    let matches = snapshot.matches(&outcome(&["unix:uid:1"]));
    assert_eq!(ids(&snapshot, &outcome(&["unix:uid:1"])), ["a"]);
    assert!(snapshot.message(Kind::X509Svid, &matches, now()).is_none());
}

#[test]
fn what_is_not_known_now_may_still_match() {
    let snapshot = snapshot(vec![entry("a", &["unix:uid:1", "unix:user:ann"], |_| {})]);
    let partly = Attested {
        selectors: vec!["unix:uid:1".parse().unwrap()],
        unknown: vec![Unknown {
            kind: "unix",
            prefix: "user:",
        }],
        ..Attested::default()
    };
    let partly: Outcome = [partly].into_iter().collect();
    assert!(snapshot.matches(&partly).is_empty());
    assert!(snapshot.may_match(&partly));
    assert!(!snapshot.may_match(&outcome(&["unix:uid:1"])));
}
