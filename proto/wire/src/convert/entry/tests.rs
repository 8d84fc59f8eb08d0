use proptest::prelude::*;
use vane_identity::entry::{MAX_ENTRY_ID_BYTES, MAX_SELECTORS};
use vane_identity::selector::{Selector, SelectorSet};

use super::*;

fn own() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid {
        trust_domain: "example.org".into(),
        path: path.into(),
    })
}

fn full() -> types::Entry {
    types::Entry {
        id: "e-1".into(),
        spiffe_id: id("/web"),
        parent_id: id("/spire/agent/x"),
        selectors: vec![types::Selector {
            r#type: "unix".into(),
            value: "uid:1000".into(),
        }],
        x509_svid_ttl: 60,
        federates_with: vec!["other.org".into()],
        admin: true,
        downstream: true,
        expires_at: 1_900_000_000,
        dns_names: vec!["web.example.org".into()],
        revision_number: 4,
        store_svid: true,
        jwt_svid_ttl: 30,
        hint: "internal".into(),
        created_at: 1_800_000_000,
        additional_attributes: Some(types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: true,
        }),
    }
}

fn stored() -> Entry {
    Entry::try_from(&full()).unwrap()
}

fn never() -> EntryId {
    panic!("an ID was given")
}

fn refused(change: impl FnOnce(&mut types::Entry)) -> String {
    let mut wire = full();
    change(&mut wire);
    create(&wire, &own(), 0, never).unwrap_err().to_string()
}

#[test]
fn every_field_comes_back_from_an_identity_value() {
    assert_eq!(types::Entry::from(&stored()), full());
}

#[test]
fn a_created_entry_is_revision_zero_of_now_with_the_id_that_was_given() {
    let entry = create(&full(), &own(), 5, never).unwrap();
    assert_eq!(
        (entry.id.as_str(), entry.revision_number, entry.created_at),
        ("e-1", 0, 5)
    );
}

#[test]
fn a_created_entry_without_an_id_gets_a_fresh_one() {
    let mut wire = full();
    wire.id.clear();
    let entry = create(&wire, &own(), 5, || EntryId::parse("fresh").unwrap()).unwrap();
    assert_eq!(entry.id.as_str(), "fresh");
}

#[test]
fn a_foreign_id_is_refused_in_the_recorded_words() {
    let text = refused(|wire| wire.spiffe_id.as_mut().unwrap().trust_domain = "other.org".into());
    assert_eq!(
        text,
        r#"invalid spiffe ID: "spiffe://other.org/web" is not a member of trust domain "example.org""#
    );
}

#[test]
fn each_broken_rule_is_named_in_spires_words_where_it_has_some() {
    type Change = fn(&mut types::Entry);
    let table: [(Change, &str); 18] = [
        (
            |e| e.parent_id = None,
            "invalid parent ID: request must specify SPIFFE ID",
        ),
        (
            |e| e.parent_id = id(""),
            r#"invalid parent ID: "spiffe://example.org" is not a member of trust domain "example.org"; path is empty"#,
        ),
        (
            |e| e.spiffe_id = None,
            "invalid spiffe ID: request must specify SPIFFE ID",
        ),
        (
            |e| e.spiffe_id = id(""),
            r#"invalid spiffe ID: "spiffe://example.org" is not a workload in trust domain "example.org"; path is empty"#,
        ),
        (
            |e| e.spiffe_id = id("/spire/web"),
            r#"invalid spiffe ID: "spiffe://example.org/spire/web" is not a workload in trust domain "example.org"; path is in the reserved namespace"#,
        ),
        (
            |e| e.spiffe_id = id("/web/"),
            "invalid spiffe ID: path cannot have a trailing slash",
        ),
        (|e| e.selectors.clear(), "selector list is empty"),
        (|e| e.selectors[0].r#type.clear(), "missing selector type"),
        (
            |e| e.selectors[0].r#type = "a:b".into(),
            "selector type contains ':'",
        ),
        (|e| e.selectors[0].value.clear(), "missing selector value"),
        (
            |e| e.federates_with[0] = "No".into(),
            "invalid federated trust domain: trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
        ),
        (
            |e| e.hint = "x".repeat(MAX_HINT_BYTES + 1),
            "hint is too long, max length is 1024 characters",
        ),
        (|e| e.x509_svid_ttl = -1, "x509_svid_ttl is negative: -1"),
        (
            |e| e.jwt_svid_ttl = i32::MIN,
            "jwt_svid_ttl is negative: -2147483648",
        ),
        (|e| e.expires_at = -1, "expires_at is negative: -1"),
        (
            |e| e.dns_names = vec!["a".into(); MAX_DNS_NAMES + 1],
            "too many DNS names: 129, 128 are allowed",
        ),
        (
            |e| e.federates_with = vec!["a.org".into(); MAX_FEDERATES_WITH + 1],
            "too many federated trust domains: 257, 256 are allowed",
        ),
        (
            |e| e.selectors = vec![e.selectors[0].clone(); MAX_SELECTORS + 1],
            "too many selectors: 257, 256 are allowed",
        ),
    ];
    for (change, text) in table {
        assert_eq!(refused(change), text);
    }
}

#[test]
fn rules_with_words_of_our_own_are_enforced_too() {
    type Change = fn(&mut types::Entry);
    let table: [Change; 6] = [
        |e| e.id = "a b".into(),
        |e| e.id = "a".repeat(MAX_ENTRY_ID_BYTES + 1),
        |e| e.dns_names[0] = "a.*.org".into(),
        |e| e.federates_with[0] = "example.org".into(),
        |e| {
            e.selectors.push(types::Selector {
                r#type: "k8s".into(),
                value: "x".into(),
            });
        },
        |e| {
            e.additional_attributes
                .as_mut()
                .unwrap()
                .disable_x509_svid_prefetch = true;
        },
    ];
    for change in table {
        assert!(!refused(change).is_empty());
    }
}

#[test]
fn the_first_error_is_that_of_the_parent_as_in_spire() {
    let text = refused(|wire| {
        wire.parent_id = None;
        wire.spiffe_id = None;
        wire.selectors.clear();
    });
    assert_eq!(text, "invalid parent ID: request must specify SPIFFE ID");
}

#[test]
fn an_entry_from_a_server_need_not_obey_the_rules_for_storing() {
    let mut wire = full();
    wire.dns_names = vec!["not a name".into()];
    wire.spiffe_id = id("/spire/admin");
    assert!(Entry::try_from(&wire).is_ok());
    wire.dns_names = vec![String::new(); MAX_DNS_NAMES + 1];
    assert!(Entry::try_from(&wire).is_err());
}

#[test]
fn an_entry_from_a_server_must_be_of_its_trust_domain() {
    assert_eq!(from_wire(&full(), &own()).unwrap(), stored());
    let other = TrustDomain::parse("other.org").unwrap();
    let refused = from_wire(&full(), &other).unwrap_err();
    assert_eq!(
        refused.to_string(),
        r#"invalid parent ID: "spiffe://example.org/spire/agent/x" is not a member of trust domain "other.org""#
    );
}

#[test]
fn an_update_without_a_mask_replaces_everything_but_id_revision_and_creation() {
    let wire = types::Entry {
        id: "other".into(),
        spiffe_id: id("/api"),
        parent_id: id("/spire/server"),
        selectors: full().selectors,
        revision_number: 99,
        created_at: 99,
        ..Default::default()
    };
    let merged = merge(&stored(), &wire, None, &own()).unwrap();
    let expected = types::Entry {
        id: "e-1".into(),
        revision_number: 5,
        created_at: 1_800_000_000,
        ..wire
    };
    assert_eq!(types::Entry::from(&merged), expected);
}

/// Sets the field of an [`EntryMask`] that has this name.
macro_rules! mask {
    ($($field:ident)*) => {
        {
            let mut mask = EntryMask::default();
            $(mask.$field = true;)*
            mask
        }
    };
}

#[test]
fn an_update_with_a_mask_takes_and_checks_only_what_it_names() {
    let wire = types::Entry {
        hint: "new".into(),
        x509_svid_ttl: -5,
        ..Default::default()
    };
    let merged = merge(&stored(), &wire, Some(&mask!(hint)), &own()).unwrap();
    let expected = types::Entry {
        hint: "new".into(),
        revision_number: 5,
        ..full()
    };
    assert_eq!(types::Entry::from(&merged), expected);
    let refused = merge(&stored(), &wire, Some(&mask!(x509_svid_ttl)), &own()).unwrap_err();
    assert_eq!(refused.to_string(), "x509_svid_ttl is negative: -5");
}

#[test]
fn an_update_that_names_each_field_changes_each_field() {
    let wire = types::Entry {
        spiffe_id: id("/new"),
        parent_id: id("/parent"),
        selectors: vec![types::Selector {
            r#type: "k8s".into(),
            value: "ns:a".into(),
        }],
        dns_names: vec!["new.org".into()],
        federates_with: vec!["c.org".into()],
        hint: "new".into(),
        x509_svid_ttl: 1,
        jwt_svid_ttl: 2,
        expires_at: 3,
        ..Default::default()
    };
    let everything = mask!(spiffe_id parent_id selectors x509_svid_ttl federates_with admin
        downstream expires_at dns_names store_svid jwt_svid_ttl hint additional_attributes);
    assert_eq!(
        merge(&stored(), &wire, Some(&everything), &own()).unwrap(),
        merge(&stored(), &wire, None, &own()).unwrap()
    );
    let nothing = mask!(revision_number created_at);
    let same = merge(&stored(), &wire, Some(&nothing), &own()).unwrap();
    let expected = types::Entry {
        revision_number: 5,
        ..full()
    };
    assert_eq!(types::Entry::from(&same), expected);
}

#[test]
fn an_update_is_checked_as_a_whole() {
    let selector = types::Selector {
        r#type: "k8s".into(),
        value: "x".into(),
    };
    let mut wire = full();
    wire.selectors.push(selector);
    // The existing entry has store_svid, which wants one type only.
    assert!(merge(&stored(), &wire, Some(&mask!(selectors)), &own()).is_err());
}

#[test]
fn a_mask_keeps_what_it_names_and_always_the_id() {
    assert_eq!(apply_mask(full(), None), full());
    let bare = types::Entry {
        id: "e-1".into(),
        ..Default::default()
    };
    assert_eq!(apply_mask(full(), Some(&EntryMask::default())), bare);
    let everything = mask!(spiffe_id parent_id selectors x509_svid_ttl federates_with admin
        downstream expires_at dns_names revision_number store_svid jwt_svid_ttl hint created_at
        additional_attributes);
    assert_eq!(apply_mask(full(), Some(&everything)), full());
    let one = types::Entry {
        id: "e-1".into(),
        hint: full().hint,
        ..Default::default()
    };
    assert_eq!(apply_mask(full(), Some(&mask!(hint))), one);
}

fn any_id() -> impl Strategy<Value = Option<types::Spiffeid>> {
    "(/[a-zA-Z0-9._-]{1,8}x){1,3}".prop_map(|path| id(&path))
}

fn any_selector() -> impl Strategy<Value = types::Selector> {
    ("[a-z0-9_]{1,8}", ".{1,20}").prop_map(|(r#type, value)| types::Selector { r#type, value })
}

prop_compose! {
    fn any_entry()(
        (id, spiffe_id, parent_id) in ("[-._A-Za-z0-9]{1,40}", any_id(), any_id()),
        selectors in prop::collection::vec(any_selector(), 1..6),
        (x509_svid_ttl, jwt_svid_ttl) in (0..=i32::MAX, 0..=i32::MAX),
        federates_with in prop::collection::btree_set("[a-z0-9]{1,10}\\.net", 0..4),
        (admin, downstream) in any::<(bool, bool)>(),
        expires_at in 0..=i64::MAX,
        dns_names in prop::collection::vec("(\\*\\.)?[a-z0-9]{1,9}(\\.[a-z0-9]{1,9}){0,3}", 0..4),
        (revision_number, created_at) in any::<(i64, i64)>(),
        hint in ".{0,30}",
        attributes in any::<Option<bool>>(),
    ) -> types::Entry {
        types::Entry {
            id, spiffe_id, parent_id, selectors, x509_svid_ttl,
            federates_with: federates_with.into_iter().collect(),
            admin, downstream, expires_at, dns_names, revision_number,
            store_svid: false,
            jwt_svid_ttl, hint, created_at,
            additional_attributes: attributes.map(|jti| types::entry::AdditionalAttributes {
                jwt_svid_include_jti: jti,
                ..Default::default()
            }),
        }
    }
}

/// Selectors are a set: sorted, each once. Attributes of which none is set are none.
fn canonical(mut wire: types::Entry) -> types::Entry {
    let read = wire.selectors.iter().map(Selector::try_from);
    let set: SelectorSet = read.collect::<Result<_, _>>().unwrap();
    wire.selectors = selector::to_wire(&set);
    let none = types::entry::AdditionalAttributes::default();
    if wire.additional_attributes == Some(none) {
        wire.additional_attributes = None;
    }
    wire
}

proptest! {
    #[test]
    fn any_valid_entry_survives_wire_identity_and_disk(wire in any_entry()) {
        use crate::record::Record as _;
        let expected = canonical(wire.clone());
        let entry = Entry::try_from(&wire).unwrap();
        prop_assert_eq!(types::Entry::from(&entry), expected);
        prop_assert_eq!(&Entry::decode(&entry.encode()).unwrap(), &entry);
    }

    #[test]
    fn what_is_created_reads_back_as_itself(wire in any_entry()) {
        if let Ok(entry) = create(&wire, &own(), wire.created_at, never) {
            let again = create(&types::Entry::from(&entry), &own(), wire.created_at, never);
            prop_assert_eq!(again.unwrap(), entry);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        use prost::Message as _;
        if let Ok(wire) = types::Entry::decode(bytes.as_slice()) {
            let _ = Entry::try_from(&wire);
            let _ = create(&wire, &own(), 0, || EntryId::parse("x").unwrap());
            let _ = merge(&stored(), &wire, None, &own());
        }
    }
}
