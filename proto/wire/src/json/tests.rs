use super::*;
use crate::generated::spire::api::server::agent::v1::ListAgentsRequest;
use crate::generated::spire::api::server::debug::v1::GetInfoResponse;
use crate::generated::spire::api::server::entry::v1::{
    BatchCreateEntryResponse, batch_create_entry_response,
};
use crate::generated::vane::store::v1;

fn entry() -> types::Entry {
    types::Entry {
        id: "e-1".into(),
        spiffe_id: Some(types::Spiffeid {
            trust_domain: "example.org".into(),
            path: "/web".into(),
        }),
        selectors: vec![types::Selector {
            r#type: "unix".into(),
            value: "uid:1000".into(),
        }],
        created_at: 1_800_000_000,
        ..Default::default()
    }
}

#[test]
fn an_entry_is_printed_as_spires_cli_does() {
    let response = BatchCreateEntryResponse {
        results: vec![batch_create_entry_response::Result {
            status: Some(crate::status::ok()),
            entry: Some(entry()),
        }],
    };
    assert_eq!(
        to_string(&response).unwrap(),
        concat!(
            r#"{"results":[{"entry":{"admin":false,"created_at":"1800000000","dns_names":[],"#,
            r#""downstream":false,"expires_at":"0","federates_with":[],"hint":"","id":"e-1","#,
            r#""jwt_svid_ttl":0,"revision_number":"0","#,
            r#""selectors":[{"type":"unix","value":"uid:1000"}],"#,
            r#""spiffe_id":{"path":"/web","trust_domain":"example.org"},"store_svid":false,"#,
            r#""x509_svid_ttl":0},"status":{"code":0,"message":"OK"}}]}"#
        )
    );
}

#[test]
fn bytes_are_base64_and_unsigned_64_bit_integers_strings() {
    let bundle = types::Bundle {
        sequence_number: u64::MAX,
        x509_authorities: vec![types::X509Certificate {
            asn1: vec![0xfb, 0xff].into(),
            tainted: false,
        }],
        ..Default::default()
    };
    let json = to_value(&bundle).unwrap();
    assert_eq!(json["sequence_number"], "18446744073709551615");
    assert_eq!(json["x509_authorities"][0]["asn1"], "+/8=");
}

#[test]
fn an_empty_message_shows_its_scalars_and_lists() {
    assert_eq!(
        to_string(&GetInfoResponse::default()).unwrap(),
        r#"{"agents_count":0,"entries_count":0,"federated_bundles_count":0,"svid_chain":[],"uptime":0}"#
    );
}

#[test]
fn what_was_printed_is_read_again() {
    let text = to_string(&entry()).unwrap();
    assert_eq!(from_str::<types::Entry>(&text).unwrap(), entry());
}

#[test]
fn enums_are_names_and_wrappers_plain_values() {
    let text = r#"{"filter":{"by_banned":true,"by_selector_match":{"match":"MATCH_ANY"}}}"#;
    let request: ListAgentsRequest = from_str(text).unwrap();
    let filter = request.filter.unwrap();
    assert_eq!(filter.by_banned, Some(true));
    assert_eq!(filter.by_selector_match.unwrap().r#match, 3);
}

#[test]
fn unknown_keys_other_shapes_and_trailing_text_are_refused() {
    let refused = from_str::<types::Entry>(r#"{"spife_id": {}}"#).unwrap_err();
    assert!(refused.to_string().contains("spife_id"), "{refused}");
    for text in [
        "",
        "[]",
        "{",
        r#"{"id": 5}"#,
        "{} {}",
        r#"{"expires_at": "x"}"#,
    ] {
        assert!(from_str::<types::Entry>(text).is_err(), "{text}");
    }
}

#[test]
fn a_record_has_no_json_form() {
    let refused = to_string(&v1::Entry::default()).unwrap_err();
    assert_eq!(refused.to_string(), "vane.store.v1.Entry has no JSON form");
}

#[test]
fn a_file_for_spires_cli_is_read() {
    let text = r#"{"entries": [{
        "selectors": [{"type": "unix", "value": "uid:1000"}],
        "spiffe_id": "spiffe://example.org/web",
        "parent_id": "spiffe://example.org/spire/agent/x",
        "x509_svid_ttl": 60, "entry_id": "e-1", "entryExpiry": 99, "federates_with": ["b.org"]
    }]}"#;
    let read = entries(text).unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!(
        (
            read[0].id.as_str(),
            read[0].expires_at,
            read[0].x509_svid_ttl
        ),
        ("e-1", 99, 60)
    );
    assert_eq!(read[0].spiffe_id, entry().spiffe_id);
    assert_eq!(read[0].parent_id.as_ref().unwrap().path, "/spire/agent/x");
}

#[test]
fn what_a_list_printed_is_read_as_a_file() {
    let list = ListEntriesResponse {
        entries: vec![entry(), entry()],
        next_page_token: "t".into(),
    };
    assert_eq!(entries(&to_string(&list).unwrap()).unwrap(), list.entries);
}

#[test]
fn mistakes_in_a_file_name_the_entry_and_the_field() {
    let refused = entries(r#"{"entries":[{},{"spiffe_id":"spiffe://A/b"}]}"#).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "entry 2: invalid spiffe_id \"spiffe://A/b\": trust domain characters are limited to \
         lowercase letters, numbers, dots, dashes, and underscores"
    );
    for text in [
        r#"{"entries":[{"spiffeid":"x"}]}"#,
        r#"{"entries":[{"id":"a","entry_id":"b"}]}"#,
        r#"{"entry":[]}"#,
        r#"{"entries":{}}"#,
        r#"{"entries":[5]}"#,
        "[]",
    ] {
        assert!(entries(text).is_err(), "{text}");
    }
}
