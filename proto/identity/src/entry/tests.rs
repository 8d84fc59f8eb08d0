use super::*;
use crate::lifetime::from_unix;
use crate::selector::Selector;

fn own() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn selectors(all: &[&str]) -> SelectorSet {
    all.iter()
        .map(|text| text.parse::<Selector>().unwrap())
        .collect()
}

fn entry() -> Entry {
    Entry {
        id: EntryId::parse("one").unwrap(),
        spiffe_id: id("spiffe://example.org/web"),
        parent_id: id("spiffe://example.org/spire/agent/join_token/t"),
        selectors: selectors(&["unix:uid:1000"]),
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

fn refusal(edit: impl FnOnce(&mut Entry)) -> String {
    let mut entry = entry();
    edit(&mut entry);
    entry.check(&own()).unwrap_err().to_string()
}

/// Proves: ID-35, X509-06.
#[test]
fn ids_lie_in_the_trust_domain_and_outside_the_reserved_part() {
    entry().check(&own()).unwrap();
    assert_eq!(
        refusal(|entry| entry.spiffe_id = id("spiffe://other.org/six")),
        r#"invalid spiffe ID: "spiffe://other.org/six" is not a member of trust domain "example.org""#
    );
    for bad in [
        "spiffe://example.org",
        "spiffe://example.org/spire",
        "spiffe://example.org/spire/x",
    ] {
        assert!(
            refusal(|entry| entry.spiffe_id = id(bad)).starts_with("invalid spiffe ID"),
            "{bad}"
        );
    }
    for bad in ["spiffe://example.org", "spiffe://other.org/a"] {
        assert!(
            refusal(|entry| entry.parent_id = id(bad)).starts_with("invalid parent ID"),
            "{bad}"
        );
    }
    let mut alias = entry();
    alias.parent_id = own().server_id().unwrap();
    alias.check(&own()).unwrap();
}

/// Proves: WAPI-40.
#[test]
fn a_hint_has_at_most_1024_bytes() {
    let mut entry = entry();
    entry.hint = "h".repeat(1024);
    entry.check(&own()).unwrap();
    entry.hint.push('h');
    assert!(entry.check(&own()).is_err());
    entry.hint = "\u{e9}".repeat(513);
    assert!(entry.check(&own()).is_err(), "bytes count, not characters");
}

#[test]
fn dns_names_are_ascii_labels_with_a_wildcard_only_in_front() {
    for good in [
        "a",
        "a.b",
        "*.a.b",
        "web-1.example.org",
        "xn--bcher-kva.example",
    ] {
        check_dns_name(good).unwrap_or_else(|error| panic!("{error}"));
    }
    let long = "a".repeat(64);
    for bad in [
        "",
        ".",
        "a..b",
        "a.",
        "-a",
        "a-",
        "a.*.b",
        "*",
        "**.a",
        "a*.b",
        "b\u{fc}cher.example",
        "a b",
        long.as_str(),
    ] {
        assert!(check_dns_name(bad).is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn lists_are_bounded_and_selectors_needed() {
    assert_eq!(
        refusal(|entry| entry.selectors = SelectorSet::default()),
        "selector list is empty"
    );
    let many: Vec<String> = (0..=MAX_SELECTORS)
        .map(|n| format!("unix:uid:{n}"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(refusal(|entry| entry.selectors = selectors(&many)).contains("too many selectors"));
    assert!(
        refusal(|entry| entry.dns_names = vec!["a".into(); MAX_DNS_NAMES + 1]).contains("too many")
    );
    assert!(refusal(|entry| entry.federates_with = vec![own()]).contains("own trust domain"));
}

#[test]
fn a_stored_svid_wants_selectors_of_one_type_and_prefetching() {
    let mixed = |entry: &mut Entry| {
        entry.store_svid = true;
        entry.selectors = selectors(&["a:b", "c:d"]);
    };
    assert!(refusal(mixed).contains("selector types must be the same"));
    let lazy = |entry: &mut Entry| {
        entry.store_svid = true;
        entry.additional_attributes = Some(AdditionalAttributes {
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: false,
        });
    };
    assert!(refusal(lazy).contains("prefetch"));
}

#[test]
fn entry_ids_are_short_and_plain() {
    assert!(EntryId::parse(&"a".repeat(255)).is_ok());
    for bad in ["", "a b", "a/b", "\u{e9}", &"a".repeat(256)] {
        assert!(EntryId::parse(bad).is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn an_entry_expires_at_its_second() {
    let mut entry = entry();
    assert!(!entry.is_expired(from_unix(i64::from(u32::MAX))));
    entry.expires_at = 100;
    assert!(!entry.is_expired(from_unix(99)));
    assert!(entry.is_expired(from_unix(100)));
}
