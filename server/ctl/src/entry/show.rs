//! How an entry is printed for people.

use std::time::SystemTime;

use vane_identity::lifetime::to_unix;
use vane_wire::spire::api::types;

use crate::failure::Failure;
use crate::output;

pub(super) fn ttl(seconds: i32) -> String {
    if seconds == 0 {
        return "default".to_owned();
    }
    let seconds = u64::try_from(seconds).unwrap_or_default();
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

pub(super) fn selectors(entry: &types::Entry) -> Vec<String> {
    entry
        .selectors
        .iter()
        .map(|one| format!("{}:{}", one.r#type, one.value))
        .collect()
}

/// A line of a table.
pub(super) fn row(entry: &types::Entry) -> Vec<String> {
    vec![
        entry.id.clone(),
        output::id(entry.spiffe_id.as_ref()),
        output::id(entry.parent_id.as_ref()),
        selectors(entry).join(" "),
        ttl(entry.x509_svid_ttl),
    ]
}

/// Every field that says something.
pub(super) fn print_entry(entry: &types::Entry, now: SystemTime) -> Result<(), Failure> {
    let yes = |set: bool| if set { "yes".to_owned() } else { String::new() };
    let expiry = match entry.expires_at {
        0 => String::new(),
        at if at <= to_unix(now) => format!("{} (expired)", output::time(at)),
        at => format!("{} ({})", output::time(at), output::distance(at, now)),
    };
    let attributes = entry.additional_attributes.unwrap_or_default();
    output::fields(&[
        ("Entry ID", entry.id.clone()),
        ("SPIFFE ID", output::id(entry.spiffe_id.as_ref())),
        ("Parent ID", output::id(entry.parent_id.as_ref())),
        ("Selectors", selectors(entry).join(" ")),
        ("Revision", entry.revision_number.to_string()),
        ("Created", output::time(entry.created_at)),
        ("X.509 TTL", ttl(entry.x509_svid_ttl)),
        ("JWT TTL", ttl(entry.jwt_svid_ttl)),
        ("DNS names", entry.dns_names.join(" ")),
        ("Federates with", entry.federates_with.join(" ")),
        ("Hint", entry.hint.clone()),
        ("Expires", expiry),
        ("Admin", yes(entry.admin)),
        ("Downstream", yes(entry.downstream)),
        ("Stored SVID", yes(entry.store_svid)),
        ("No prefetch", yes(attributes.disable_x509_svid_prefetch)),
        ("JWT with jti", yes(attributes.jwt_svid_include_jti)),
    ])
}
