use clap::Parser;

use vane_wire::spire::api::server::entry::v1 as wire;
use vane_wire::spire::api::types;

use super::change::{Item, ids_of, report};
use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    entry: Entry,
}

/// The command of a line that clap takes.
fn entry(line: &str) -> Entry {
    let words = ["entry"].into_iter().chain(line.split_whitespace());
    Line::try_parse_from(words).unwrap().entry
}

fn is_refused(line: &str) -> bool {
    Line::try_parse_from(["entry"].into_iter().chain(line.split_whitespace())).is_err()
}

fn created(line: &str) -> Result<Vec<types::Entry>, Failure> {
    let Entry::Create(create) = entry(&format!("create {line}")) else {
        panic!("not a create");
    };
    create.fields.read(create.node)
}

fn id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid {
        trust_domain: "example.org".to_owned(),
        path: path.to_owned(),
    })
}

fn selector(value: &str) -> types::Selector {
    types::Selector {
        r#type: "unix".to_owned(),
        value: value.to_owned(),
    }
}

#[test]
fn flags_become_the_fields_of_the_entry() {
    let read = created(
        "--entry-id e1 --spiffe-id spiffe://example.org/web --parent-id spiffe://example.org/node \
         --selector unix:uid:1 --selector unix:path:/a:b --x509-svid-ttl 1h30m --jwt-svid-ttl 60 \
         --federates-with other.org --admin --downstream --store-svid --entry-expiry 9 --dns a.org --dns b.org \
         --hint h --disable-x509-svid-prefetch --jwt-svid-include-jti",
    );
    let want = types::Entry {
        id: "e1".to_owned(),
        spiffe_id: id("/web"),
        parent_id: id("/node"),
        selectors: vec![selector("uid:1"), selector("path:/a:b")],
        x509_svid_ttl: 5400,
        jwt_svid_ttl: 60,
        federates_with: vec!["other.org".to_owned()],
        admin: true,
        downstream: true,
        store_svid: true,
        expires_at: 9,
        dns_names: vec!["a.org".to_owned(), "b.org".to_owned()],
        hint: "h".to_owned(),
        additional_attributes: Some(types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: true,
        }),
        ..types::Entry::default()
    };
    assert_eq!(read, Ok(vec![want]));
}

#[test]
fn what_no_flag_says_is_left_to_the_server() {
    let read = created(
        "--spiffe-id spiffe://example.org/web --parent-id spiffe://example.org/node --selector unix:uid:1",
    );
    let want = types::Entry {
        spiffe_id: id("/web"),
        parent_id: id("/node"),
        selectors: vec![selector("uid:1")],
        ..types::Entry::default()
    };
    assert_eq!(read, Ok(vec![want]));
}

#[test]
fn a_node_entry_has_the_server_as_parent() {
    let read =
        created("--node --spiffe-id spiffe://example.org/nodes --selector k8s_psat:cluster:c1");
    assert_eq!(read.unwrap()[0].parent_id, id("/spire/server"));
}

#[test]
fn a_flag_that_is_missing_is_named_with_what_to_do() {
    let whole = "--spiffe-id spiffe://example.org/web";
    let cases = [
        ("", "--spiffe-id is missing", "next: "),
        (whole, "--parent-id is missing", "vane agent list"),
        (
            &format!("{whole} --node"),
            "--selector is missing",
            "--selector unix:uid:1000",
        ),
    ];
    for (line, what, next) in cases {
        let failure = created(line).unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.exit_code(), 2, "{text}");
        assert!(text.contains(what), "{text}");
        assert!(text.contains(next) || line.is_empty(), "{text}");
    }
}

#[test]
fn lines_that_contradict_themselves_are_refused() {
    for line in [
        "create --node --parent-id spiffe://example.org/a",
        "create --data f --spiffe-id spiffe://example.org/a",
        "create --x509-svid-ttl soon",
        "show --entry-id a --spiffe-id spiffe://example.org/a",
        "delete",
        "delete --entry-id a --file f",
        "list --match-selectors-on some",
        "list --spiffeID spiffe://example.org/a",
    ] {
        assert!(is_refused(line), "{line}");
    }
}

#[test]
fn filters_of_a_list_become_those_of_the_wire() {
    let Entry::List(list) = entry(
        "list --spiffe-id spiffe://example.org/web --parent-id spiffe://example.org/node --selector unix:uid:1 \
         --match-selectors-on any --federates-with other.org --hint h --downstream",
    ) else {
        panic!("not a list");
    };
    let want = wire::list_entries_request::Filter {
        by_spiffe_id: id("/web"),
        by_parent_id: id("/node"),
        by_selectors: Some(types::SelectorMatch {
            selectors: vec![selector("uid:1")],
            r#match: types::selector_match::MatchBehavior::MatchAny.into(),
        }),
        by_federates_with: Some(types::FederatesWithMatch {
            trust_domains: vec!["other.org".to_owned()],
            r#match: types::federates_with_match::MatchBehavior::MatchSuperset.into(),
        }),
        by_hint: Some("h".to_owned()),
        by_downstream: Some(true),
    };
    assert_eq!(list.filter.wire(), Ok(want));
    let Entry::List(all) = entry("list") else {
        panic!("not a list");
    };
    assert_eq!(
        all.filter.wire(),
        Ok(wire::list_entries_request::Filter::default())
    );
}

/// A `--data` file with `text`.
fn data(text: &str) -> Result<Vec<types::Entry>, Failure> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    created(&format!("--data {}", file.path().display()))
}

#[test]
fn entries_are_read_from_the_file_that_spire_takes() {
    let read = data(
        r#"{"entries":[
            {"spiffe_id":"spiffe://example.org/a","parent_id":"spiffe://example.org/node",
             "selectors":[{"type":"unix","value":"uid:1"}],"x509_svid_ttl":60,"entryExpiry":7},
            {"entry_id":"second","spiffe_id":"spiffe://example.org/b","parent_id":"spiffe://example.org/node","selectors":[]}
        ]}"#,
    )
    .unwrap();
    assert_eq!(read.len(), 2);
    assert_eq!((read[0].x509_svid_ttl, read[0].expires_at), (60, 7));
    assert_eq!(read[0].selectors, [selector("uid:1")]);
    assert_eq!(read[1].id, "second");
}

#[test]
fn a_file_that_says_nothing_usable_is_refused_with_the_form() {
    for text in [
        "",
        "[]",
        "{}",
        r#"{"entries":[]}"#,
        r#"{"entries":[{"spiffeID":"x"}]}"#,
    ] {
        let failure = data(text).unwrap_err();
        assert_eq!(failure.exit_code(), 2, "{text}");
        assert!(
            failure.to_string().contains("the form is {\"entries\""),
            "{text}: {failure}"
        );
    }
    let missing = created("--data /nowhere/entries.json")
        .unwrap_err()
        .to_string();
    assert!(missing.contains("/nowhere/entries.json"), "{missing}");
}

#[test]
fn ids_to_delete_are_read_from_a_list_of_ids_or_of_entries() {
    let read = |text| ids_of("f", text);
    assert_eq!(read(r#"{"ids":["a","b"]}"#).unwrap(), ["a", "b"]);
    assert_eq!(read(r#"{"entries":[{"id":"a"}]}"#).unwrap(), ["a"]);
    for bad in [
        "",
        r#"{"ids":[]}"#,
        r#"{"ids":[""]}"#,
        r#"{"entries":[{}]}"#,
        "[1]",
    ] {
        assert_eq!(read(bad).unwrap_err().exit_code(), 2, "{bad}");
    }
}

#[test]
fn one_entry_that_was_refused_fails_the_command_and_is_named() {
    let item = |code, message: &str| Item {
        status: Some(types::Status {
            code,
            message: message.to_owned(),
        }),
        entry: None,
    };
    let asked = |path| types::Entry {
        spiffe_id: id(path),
        ..types::Entry::default()
    };
    let wanted = [asked("/a"), asked("/b")];
    let good = [item(0, "OK"), item(0, "OK")];
    assert_eq!(report("create", good.into_iter(), &wanted, true), Ok(()));
    let half = [item(0, "OK"), item(3, "selector is bad")];
    let failure = report("create", half.into_iter(), &wanted, true).unwrap_err();
    let text = failure.to_string();
    assert_eq!(failure.exit_code(), 1);
    assert!(text.contains("cannot create"), "{text}");
    assert!(text.contains("spiffe://example.org/b"), "{text}");
    assert!(text.contains("selector is bad"), "{text}");
}
