use proptest::prelude::*;

use super::*;

fn ok(text: &str) {
    let id = SpiffeId::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(id.as_str(), text, "echoed byte for byte");
}

fn refused(text: &str) {
    assert!(SpiffeId::parse(text).is_err(), "{text:?} was accepted");
}

/// Proves: ID-01, ID-02.
#[test]
fn an_id_has_the_scheme_spiffe_and_a_trust_domain() {
    ok("spiffe://td/a");
    for bad in [
        "",
        "http://td/a",
        "spiffe:/td/a",
        "spiffe:td/a",
        "//td/a",
        "td/a",
        "SPIFFE://td/a",
        "spiffe://",
        "spiffe:///a",
    ] {
        refused(bad);
    }
}

/// Proves: ID-03, ID-04, ID-05, ID-06.
#[test]
fn query_fragment_userinfo_and_port_are_refused() {
    for bad in [
        "spiffe://td/a?x=1",
        "spiffe://td?x",
        "spiffe://td/a?",
        "spiffe://td?",
        "spiffe://td/a#f",
        "spiffe://td/a#",
        "spiffe://td#",
        "spiffe://u@td/a",
        "spiffe://u:p@td/a",
        "spiffe://@td/a",
        "spiffe://td:8080/a",
        "spiffe://td:/a",
    ] {
        refused(bad);
    }
}

/// Proves: ID-07, ID-08, ID-09, ID-24, ID-25.
#[test]
fn a_trust_domain_is_lower_case_letters_digits_dot_dash_underscore() {
    ok("spiffe://abcdefghijklmnopqrstuvwxyz0123456789.-_/a");
    for bad in [
        "spiffe://Example.org/a",
        "spiffe://t$d/a",
        "spiffe://t d/a",
        "spiffe://t~d/a",
        "spiffe://[::1]/a",
        "spiffe://t\u{e9}d/a",
        "spiffe://t*d/a",
        "spiffe://t%64/a",
        "spiffe://t\0d/a",
    ] {
        refused(bad);
    }
}

/// Proves: ID-10, ID-11.
#[test]
fn names_that_look_like_addresses_or_hosts_get_no_special_handling() {
    for good in [
        "spiffe://10.0.0.1/a",
        "spiffe://-",
        "spiffe://_",
        "spiffe://a..b",
        "spiffe://.",
        "spiffe://1.2.3",
        "spiffe://010.0.0.1",
    ] {
        ok(good);
    }
}

/// Proves: ID-13, ID-14, ID-15, ID-16, ID-17, ID-18.
#[test]
fn a_path_has_plain_segments_and_no_trailing_slash() {
    for good in ["/a/b/c", "/...", "/.a", "/a..", "/A-b_c.9"] {
        ok(&format!("spiffe://td{good}"));
    }
    for bad in [
        "/%41", "/a%2Fb", "//a", "/a//b", "/a/./b", "/a/../b", "/..", "/.", "/a/", "/", "/a!b",
        "/a b", "/a:b", "/a@b", "/a+b", "/a;b", "/\u{e9}", "/a\0b",
    ] {
        refused(&format!("spiffe://td{bad}"));
    }
}

/// Proves: ID-19.
#[test]
fn an_id_without_a_path_names_the_trust_domain() {
    let id = SpiffeId::parse("spiffe://td").unwrap();
    assert_eq!((id.path(), id.trust_domain_name()), ("", "td"));
    assert_eq!(id, TrustDomain::parse("td").unwrap().id());
}

/// Proves: ID-21, ID-22, ID-23.
#[test]
fn lengths_are_counted_over_the_whole_text() {
    let of_length = |len: usize| format!("spiffe://td/{}", "a".repeat(len - 12));
    ok(&of_length(2047));
    ok(&of_length(2048));
    assert_eq!(
        SpiffeId::parse(&of_length(2049)),
        Err(IdError::Length(2049))
    );
    let td = TrustDomain::parse("td").unwrap();
    assert_eq!(
        td.with_path(&format!("/{}", "a".repeat(2037))),
        Err(IdError::Length(2049))
    );
    assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
    assert_eq!(
        TrustDomain::parse(&"a".repeat(256)),
        Err(IdError::TrustDomainLength(256))
    );
}

#[test]
fn the_reserved_part_of_a_trust_domain_is_recognised() {
    for (text, reserved, agent) in [
        ("spiffe://td/spire", true, false),
        ("spiffe://td/spire/server", true, false),
        ("spiffe://td/spire/agent/x", true, true),
        ("spiffe://td/spirex", false, false),
        ("spiffe://td/a/spire", false, false),
    ] {
        let id = SpiffeId::parse(text).unwrap();
        assert_eq!(
            (id.is_reserved(), id.is_agent()),
            (reserved, agent),
            "{text}"
        );
    }
}

proptest! {
    /// rust-spiffe, written by others, agrees on every text, but for upper case in the
    /// scheme or the trust domain, which it lower-cases and we refuse.
    #[test]
    fn another_parser_agrees_with_ours(
        text in r"(spiffe://|spiffe:/|http://|)[a-z0-9.\-_%A\[:]{0,8}(/[a-zA-Z0-9.\-_%?#é/]{0,12}){0,3}",
    ) {
        let theirs = spiffe::SpiffeId::new(&text);
        let ours = SpiffeId::parse(&text);
        let host = text.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
        if host.is_none_or(|host| !host.bytes().any(|b| b.is_ascii_uppercase())) {
            prop_assert_eq!(theirs.is_ok(), ours.is_ok(), "{}", text);
        }
    }
}
