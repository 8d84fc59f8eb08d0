//! What an entry says on the command line or in a file.

use std::io::Read as _;

use clap::Args;
use vane_identity::entry::MAX_HINT_BYTES;
use vane_wire::spire::api::types;

use crate::api::wire_id;
use crate::failure::{self, Failure};
use crate::flags::{seconds, selectors as wire_selectors};

/// The most bytes of a `--data` file.
const MAX_DATA_BYTES: u64 = 64 * 1024 * 1024;

/// What an entry says; shared by create and update.
#[derive(Debug, Args)]
pub(super) struct Fields {
    /// The ID of the entry; made by the server when a new one has none.
    #[arg(long, value_name = "ID")]
    entry_id: Option<String>,
    /// The SPIFFE ID that a matching process gets.
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// The agent, node alias or entry under which it is served.
    #[arg(long, value_name = "ID")]
    parent_id: Option<String>,
    /// What a process must show, as type:value; repeat for all that it must.
    #[arg(long, value_name = "TYPE:VALUE")]
    selector: Vec<String>,
    /// How long an X.509-SVID lives: seconds or like 1h30m; 0 = the server's default.
    #[arg(long, value_name = "TTL", default_value = "0", value_parser = seconds)]
    x509_svid_ttl: i32,
    /// How long a JWT-SVID lives; 0 = the server's default.
    #[arg(long, value_name = "TTL", default_value = "0", value_parser = seconds)]
    jwt_svid_ttl: i32,
    /// A trust domain whose bundle the process gets; may be repeated.
    #[arg(long, value_name = "TRUST_DOMAIN")]
    federates_with: Vec<String>,
    /// The ID may call the admin APIs.
    #[arg(long)]
    admin: bool,
    /// The ID may ask for an intermediate CA.
    #[arg(long)]
    downstream: bool,
    /// SVIDs are pushed to a store instead of served.
    #[arg(long)]
    store_svid: bool,
    /// When the entry stops counting, in seconds since 1970; 0 = never.
    #[arg(long, value_name = "UNIX", default_value_t = 0)]
    entry_expiry: i64,
    /// A DNS name of the X.509-SVIDs; may be repeated, the first becomes the common name.
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// What the workload may know the identity by.
    #[arg(long, default_value = "")]
    hint: String,
    /// Do not fetch the X.509-SVID before a process asks.
    #[arg(long)]
    disable_x509_svid_prefetch: bool,
    /// Put a jti into JWT-SVIDs.
    #[arg(long)]
    jwt_svid_include_jti: bool,
    /// A JSON file with entries, - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["spiffe_id", "parent_id", "selector", "entry_id"])]
    data: Option<String>,
}

impl Fields {
    /// The entries that the flags or the file describe; `node` makes the server their parent.
    pub(super) fn read(&self, node: bool) -> Result<Vec<types::Entry>, Failure> {
        match &self.data {
            Some(file) => from_file(file),
            None => Ok(vec![self.one(node)?]),
        }
    }

    fn one(&self, node: bool) -> Result<types::Entry, Failure> {
        let id = self.spiffe_id.as_deref().ok_or_else(|| {
            missing("--spiffe-id", "the ID that the process gets")
                .hint("for example --spiffe-id spiffe://example.org/web")
        })?;
        let id = failure::spiffe_id("--spiffe-id", id)?;
        let parent = match (&self.parent_id, node) {
            (Some(parent), _) => failure::spiffe_id("--parent-id", parent)?,
            (None, true) => id
                .trust_domain()
                .server_id()
                .map_err(|error| Failure::usage(error.to_string()))?,
            (None, false) => {
                return Err(
                    missing("--parent-id", "the agent under which it runs").hint(
                        "`vane agent list` shows the agents; --node registers a node alias instead",
                    ),
                );
            }
        };
        if self.selector.is_empty() {
            return Err(missing("--selector", "what a process must show")
                .hint("for example --selector unix:uid:1000"));
        }
        if self.hint.len() > MAX_HINT_BYTES {
            let seen = self.hint.len();
            return Err(Failure::usage(format!(
                "--hint has {seen} bytes, {MAX_HINT_BYTES} are allowed"
            ))
            .hint("shorten it"));
        }
        let attributes = types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: self.disable_x509_svid_prefetch,
            jwt_svid_include_jti: self.jwt_svid_include_jti,
        };
        Ok(types::Entry {
            id: self.entry_id.clone().unwrap_or_default(),
            spiffe_id: Some(wire_id(&id)),
            parent_id: Some(wire_id(&parent)),
            selectors: wire_selectors(&self.selector)?,
            x509_svid_ttl: self.x509_svid_ttl,
            jwt_svid_ttl: self.jwt_svid_ttl,
            federates_with: self.federates_with.clone(),
            admin: self.admin,
            downstream: self.downstream,
            store_svid: self.store_svid,
            expires_at: self.entry_expiry,
            dns_names: self.dns.clone(),
            hint: self.hint.clone(),
            additional_attributes: (attributes != types::entry::AdditionalAttributes::default())
                .then_some(attributes),
            ..types::Entry::default()
        })
    }
}

pub(super) fn missing(flag: &str, what: &str) -> Failure {
    Failure::usage(format!("{flag} is missing: {what}"))
}

fn from_file(file: &str) -> Result<Vec<types::Entry>, Failure> {
    let text = read_data(file)?;
    let refuse = |why: String| {
        Failure::usage(format!("--data {file}: {why}")).hint(
        "the form is {\"entries\":[{\"spiffe_id\":\"spiffe://…\",\"parent_id\":\"spiffe://…\",\"selectors\":[{\"type\":\"unix\",\"value\":\"uid:1000\"}]}]}",
    )
    };
    let entries = vane_wire::json::entries(&text).map_err(|error| refuse(error.to_string()))?;
    if entries.is_empty() {
        return Err(refuse("it has no entries".to_owned()));
    }
    Ok(entries)
}

/// A file, or standard input for -.
pub(super) fn read_data(file: &str) -> Result<String, Failure> {
    let open = || -> std::io::Result<Box<dyn std::io::Read>> {
        if file == "-" {
            return Ok(Box::new(std::io::stdin().lock()));
        }
        Ok(Box::new(std::fs::File::open(file)?))
    };
    let mut text = String::new();
    let read = open().and_then(|source| source.take(MAX_DATA_BYTES + 1).read_to_string(&mut text));
    read.map_err(|error| {
        Failure::usage(format!("cannot read {file}: {error}"))
            .hint("name a file, or - for standard input")
    })?;
    if text.len() as u64 > MAX_DATA_BYTES {
        return Err(
            Failure::usage(format!("{file} is larger than {MAX_DATA_BYTES} bytes"))
                .hint("split it"),
        );
    }
    Ok(text)
}
