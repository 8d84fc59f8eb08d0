//! What is written and printed of this process's SVIDs.

use vane_chassis::clock::{Clock as _, System};
use vane_client::workload::{Identity, X509Context};
use vane_identity::lifetime::to_unix;
use vane_identity::x509_svid::{Certificate, serial_decimal};

use super::generation::File;
use super::pem;
use crate::output;

/// The files of `context`: of its default identity, or of all, numbered.
pub(super) fn files(context: &X509Context, all: bool) -> Vec<File> {
    let wanted = if all { context.svids.len() } else { 1 };
    let numbered = context.svids.iter().take(wanted).enumerate();
    numbered
        .flat_map(|(n, identity)| {
            let number = if all { format!(".{n}") } else { String::new() };
            let roots = identity.bundle.x509_authorities.iter();
            [
                File::public(
                    format!("svid{number}.pem"),
                    chain_pem(identity.svid.chain()).into_bytes(),
                ),
                File::secret(
                    format!("svid{number}.key"),
                    pem("PRIVATE KEY", identity.key.pkcs8()).into_bytes(),
                ),
                File::public(
                    format!("bundle{number}.pem"),
                    chain_pem(roots.map(|one| &one.certificate)).into_bytes(),
                ),
            ]
        })
        .collect()
}

fn chain_pem<'a>(chain: impl IntoIterator<Item = &'a Certificate>) -> String {
    chain
        .into_iter()
        .map(|one| pem("CERTIFICATE", one.der()))
        .collect()
}

/// SPIFFE ID, serial and lifetime of an SVID.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) spiffe_id: String,
    pub(crate) serial: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

/// What is shown of an identity; its leaf is read, not verified.
pub(crate) fn shown(identity: &Identity) -> Shown {
    let leaf = identity.svid.leaf();
    Shown {
        spiffe_id: identity.svid.id().to_string(),
        serial: serial_decimal(&leaf.serial),
        not_before: to_unix(leaf.validity.not_before),
        not_after: to_unix(leaf.validity.not_after),
    }
}

/// An identity as a line for people.
pub(super) fn describe(identity: &Identity) -> String {
    let it = shown(identity);
    let hint = if identity.hint.is_empty() {
        String::new()
    } else {
        format!("  hint {}", identity.hint)
    };
    let left = output::distance(it.not_after, System.now());
    format!(
        "{}  serial {}  expires {} ({left}){hint}",
        it.spiffe_id,
        it.serial,
        output::time(it.not_after)
    )
}

/// The context without keys: scripts that want keys take files.
pub(super) fn json(context: &X509Context) -> serde_json::Value {
    let svids = context.svids.iter().map(|identity| {
        let it = shown(identity);
        serde_json::json!({
            "spiffe_id": it.spiffe_id, "serial": it.serial, "hint": identity.hint,
            "not_before": it.not_before.to_string(), "expires_at": it.not_after.to_string(),
        })
    });
    serde_json::json!({ "svids": svids.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests;
