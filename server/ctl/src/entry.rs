//! `vane entry`: registration entries. Flags are SPIRE's in kebab-case (NAMES 7).

use std::io::Read as _;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use tonic::transport::Channel;
use vane_chassis::clock::{Clock as _, System};
use vane_identity::entry::MAX_HINT_BYTES;
use vane_identity::lifetime::to_unix;
use vane_wire::spire::api::server::entry::v1 as wire;
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::types;

use crate::api::{Server, answer, client, request, wire_id};
use crate::failure::{self, Failure};
use crate::flags::{Match, seconds, selectors as wire_selectors};
use crate::output;

/// The most bytes of a `--data` file.
const MAX_DATA_BYTES: u64 = 64 * 1024 * 1024;
/// Entries of one page of a list.
const PAGE: i32 = 1000;
/// Entries of one call that creates, updates or deletes.
const BATCH: usize = 500;

/// Registration entries: which process gets which identity.
#[derive(Debug, Subcommand)]
pub(crate) enum Entry {
    /// Create an entry, or those of a file.
    #[command(after_help = "Examples:
  vane entry create --spiffe-id spiffe://example.org/web --parent-id spiffe://example.org/spire/agent/join_token/… --selector unix:uid:1000
  vane entry create --node --spiffe-id spiffe://example.org/nodes --selector k8s_psat:cluster:c1
  vane entry create --data entries.json")]
    Create(Box<Create>),
    /// Replace an entry, or those of a file.
    #[command(after_help = "Examples:
  vane entry update --entry-id ID --spiffe-id spiffe://example.org/web --parent-id … --selector unix:uid:1001 --x509-svid-ttl 10m")]
    Update(Box<Update>),
    /// Show one entry by its ID, or those that match.
    #[command(
        after_help = "Examples:\n  vane entry show --entry-id ID\n  vane entry show --spiffe-id spiffe://example.org/web"
    )]
    Show(Box<Show>),
    /// List the entries that match, all without a filter.
    #[command(
        after_help = "Examples:\n  vane entry list\n  vane entry list --selector unix:uid:1000 -o json"
    )]
    List(Box<List>),
    /// Count the entries that match, all without a filter.
    #[command(after_help = "Examples:\n  vane entry count\n  vane entry count --downstream")]
    Count(Box<List>),
    /// Delete entries.
    #[command(
        after_help = "Examples:\n  vane entry delete --entry-id ID\n  vane entry list -o json | vane entry delete --file -"
    )]
    Delete(Delete),
}

/// What an entry says; shared by create and update.
#[derive(Debug, Args)]
struct Fields {
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

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    fields: Fields,
    /// The entry names nodes: its parent is the server.
    #[arg(long, conflicts_with = "parent_id")]
    node: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    fields: Fields,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
struct Filter {
    /// Those with this SPIFFE ID.
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// Those under this parent.
    #[arg(long, value_name = "ID")]
    parent_id: Option<String>,
    /// Those with these selectors; may be repeated.
    #[arg(long, value_name = "TYPE:VALUE")]
    selector: Vec<String>,
    /// How --selector is compared.
    #[arg(long, value_enum, default_value = "superset")]
    match_selectors_on: Match,
    /// Those that federate with this trust domain; may be repeated.
    #[arg(long, value_name = "TRUST_DOMAIN")]
    federates_with: Vec<String>,
    /// How --federates-with is compared.
    #[arg(long, value_enum, default_value = "superset")]
    match_federates_with_on: Match,
    /// Those of downstream servers.
    #[arg(long)]
    downstream: bool,
    /// Those with this hint.
    #[arg(long)]
    hint: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The one with this ID.
    #[arg(long, value_name = "ID", conflicts_with_all = ["spiffe_id", "parent_id", "selector"])]
    entry_id: Option<String>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The ID of an entry; may be repeated.
    #[arg(long, value_name = "ID", required_unless_present = "file")]
    entry_id: Vec<String>,
    /// A JSON file with entries or {"ids": […]}, - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "entry_id")]
    file: Option<String>,
    #[command(flatten)]
    server: Server,
}

impl Entry {
    /// Carries the command out.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run().await,
            Self::Update(update) => update.run().await,
            Self::Show(show) => show.run().await,
            Self::List(list) => list.run().await,
            Self::Count(count) => count.count().await,
            Self::Delete(delete) => delete.run().await,
        }
    }
}

fn entries(channel: Channel) -> EntryClient<Channel> {
    client!(EntryClient<_>, channel)
}

impl Fields {
    /// The entries that the flags or the file describe; `node` makes the server their parent.
    fn read(&self, node: bool) -> Result<Vec<types::Entry>, Failure> {
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

fn missing(flag: &str, what: &str) -> Failure {
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

fn read_data(file: &str) -> Result<String, Failure> {
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

/// One item of a batch, as create and update answer it.
struct Item {
    status: Option<types::Status>,
    entry: Option<types::Entry>,
}

impl Create {
    async fn run(self) -> Result<(), Failure> {
        let wanted = self.fields.read(self.node)?;
        let mut client = entries(self.server.connect().await?);
        let mut all = wire::BatchCreateEntryResponse {
            results: Vec::new(),
        };
        for batch in wanted.chunks(BATCH) {
            let message = wire::BatchCreateEntryRequest {
                entries: batch.to_vec(),
                output_mask: None,
            };
            let answered = answer(client.batch_create_entry(request(message)).await)?;
            all.results.extend(answered.results);
            progress(all.results.len(), wanted.len());
        }
        if self.server.json() {
            output::json(&all)?;
        }
        let items = all.results.into_iter().map(|result| Item {
            status: result.status,
            entry: result.entry,
        });
        report("create", items, &wanted, self.server.json())
    }
}

impl Update {
    async fn run(self) -> Result<(), Failure> {
        let wanted = self.fields.read(false)?;
        if let Some(unnamed) = wanted.iter().find(|entry| entry.id.is_empty()) {
            let id = output::id(unnamed.spiffe_id.as_ref());
            return Err(missing("--entry-id", &format!("which entry becomes {id}"))
                .hint("`vane entry list` shows the IDs"));
        }
        let mut client = entries(self.server.connect().await?);
        let mut all = wire::BatchUpdateEntryResponse {
            results: Vec::new(),
        };
        for batch in wanted.chunks(BATCH) {
            let message = wire::BatchUpdateEntryRequest {
                entries: batch.to_vec(),
                input_mask: None,
                output_mask: None,
            };
            let answered = answer(client.batch_update_entry(request(message)).await)?;
            all.results.extend(answered.results);
            progress(all.results.len(), wanted.len());
        }
        if self.server.json() {
            output::json(&all)?;
        }
        let items = all.results.into_iter().map(|result| Item {
            status: result.status,
            entry: result.entry,
        });
        report("update", items, &wanted, self.server.json())
    }
}

/// Long work says how far it is, on standard error when people watch.
fn progress(done: usize, all: usize) {
    use std::io::{IsTerminal as _, Write as _};
    if all > BATCH && std::io::stderr().is_terminal() {
        let end = if done == all { "\n" } else { "" };
        let _ = write!(std::io::stderr(), "\r{done} of {all} entries{end}");
    }
}

/// Prints what became of each item; fails when one failed (SPIRE's CLI exits 0 there).
fn report(
    verb: &str,
    items: impl Iterator<Item = Item>,
    wanted: &[types::Entry],
    quiet: bool,
) -> Result<(), Failure> {
    let (mut failed, mut first) = (0, None);
    for (item, asked) in items.zip(wanted) {
        let status = item.status.unwrap_or_default();
        if status.code == 0 {
            if let (Some(entry), false) = (&item.entry, quiet) {
                print_entry(entry, System.now())?;
                output::line("")?;
            }
            continue;
        }
        failed += 1;
        let id = match (verb, output::id(asked.spiffe_id.as_ref())) {
            ("update", id) => format!("--entry-id {:?} ({id})", asked.id),
            (_, id) => id,
        };
        let existing = item.entry.map_or(asked.id.clone(), |entry| entry.id);
        first.get_or_insert((format!("{id}: {}", status.message), status.code, existing));
    }
    let Some((what, code, existing)) = first else {
        return Ok(());
    };
    let more = if failed > 1 {
        format!("; {} more failed", failed - 1)
    } else {
        String::new()
    };
    let next = next_step(code, &what, &existing);
    Err(Failure::new(format!("cannot {verb} {what}{more}")).hint(next))
}

/// What to do about an entry that was refused with `code` and `text`.
fn next_step(code: i32, text: &str, existing: &str) -> String {
    match code {
        3 if text.contains(failure::FOREIGN) => "write an ID of the trust domain that it names",
        3 if text.contains("own trust domain") => {
            "leave --federates-with away: every process gets the server's own bundle"
        }
        3 => "change the field that it names; `vane entry create --help` has examples",
        5 => "`vane entry list` shows the IDs that there are",
        6 => {
            return format!("`vane entry update --entry-id {existing} …` changes the one that is there");
        }
        13 if text.contains("federated bundle") => {
            "the server needs the bundle of that trust domain first; until then leave --federates-with away"
        }
        _ => "the server's log has the cause",
    }
    .to_owned()
}

impl Filter {
    fn wire(&self) -> Result<wire::list_entries_request::Filter, Failure> {
        let id = |flag, text: &Option<String>| {
            text.as_deref()
                .map(|text| failure::spiffe_id(flag, text).map(|id| wire_id(&id)))
                .transpose()
        };
        let selectors = wire_selectors(&self.selector)?;
        Ok(wire::list_entries_request::Filter {
            by_spiffe_id: id("--spiffe-id", &self.spiffe_id)?,
            by_parent_id: id("--parent-id", &self.parent_id)?,
            by_selectors: (!selectors.is_empty()).then(|| types::SelectorMatch {
                selectors,
                r#match: self.match_selectors_on.wire(),
            }),
            by_federates_with: (!self.federates_with.is_empty()).then(|| {
                types::FederatesWithMatch {
                    trust_domains: self.federates_with.clone(),
                    r#match: self.match_federates_with_on.wire(),
                }
            }),
            by_hint: self.hint.clone(),
            by_downstream: self.downstream.then_some(true),
        })
    }
}

async fn list_all(server: &Server, filter: &Filter) -> Result<wire::ListEntriesResponse, Failure> {
    let filter = filter.wire()?;
    let mut client = entries(server.connect().await?);
    let mut all = wire::ListEntriesResponse::default();
    loop {
        let message = wire::ListEntriesRequest {
            filter: Some(filter.clone()),
            output_mask: None,
            page_size: PAGE,
            page_token: std::mem::take(&mut all.next_page_token),
        };
        let page = answer(client.list_entries(request(message)).await)?;
        all.entries.extend(page.entries);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        all.next_page_token = page.next_page_token;
    }
}

impl Show {
    async fn run(self) -> Result<(), Failure> {
        let Some(id) = &self.entry_id else {
            let found = list_all(&self.server, &self.filter).await?;
            if self.server.json() {
                return output::json(&found);
            }
            let now = System.now();
            output::line(format!(
                "Found {} {}",
                found.entries.len(),
                if found.entries.len() == 1 {
                    "entry"
                } else {
                    "entries"
                }
            ))?;
            return found
                .entries
                .iter()
                .try_for_each(|entry| output::line("").and_then(|()| print_entry(entry, now)));
        };
        let mut client = entries(self.server.connect().await?);
        let message = wire::GetEntryRequest {
            id: id.clone(),
            output_mask: None,
        };
        let entry = answer(client.get_entry(request(message)).await)
            .map_err(|failure| failure.with(&format!("--entry-id {id:?}")))?;
        if self.server.json() {
            return output::json(&entry);
        }
        print_entry(&entry, System.now())
    }
}

impl List {
    async fn run(self) -> Result<(), Failure> {
        let found = list_all(&self.server, &self.filter).await?;
        if self.server.json() {
            return output::json(&found);
        }
        let rows = found.entries.iter().map(row).collect();
        output::table(
            &[
                "ENTRY ID",
                "SPIFFE ID",
                "PARENT ID",
                "SELECTORS",
                "X509 TTL",
            ],
            rows,
            "No entries.",
        )
    }

    async fn count(self) -> Result<(), Failure> {
        let filter = self.filter.wire()?;
        let filter = wire::count_entries_request::Filter {
            by_spiffe_id: filter.by_spiffe_id,
            by_parent_id: filter.by_parent_id,
            by_selectors: filter.by_selectors,
            by_federates_with: filter.by_federates_with,
            by_hint: filter.by_hint,
            by_downstream: filter.by_downstream,
        };
        let mut client = entries(self.server.connect().await?);
        let message = wire::CountEntriesRequest {
            filter: Some(filter),
        };
        let counted = answer(client.count_entries(request(message)).await)?;
        if self.server.json() {
            return output::json(&counted);
        }
        output::line(format!(
            "{} registration {}",
            counted.count,
            if counted.count == 1 {
                "entry"
            } else {
                "entries"
            }
        ))
    }
}

fn ttl(seconds: i32) -> String {
    if seconds == 0 {
        return "default".to_owned();
    }
    let seconds = u64::try_from(seconds).unwrap_or_default();
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

fn selectors(entry: &types::Entry) -> Vec<String> {
    entry
        .selectors
        .iter()
        .map(|one| format!("{}:{}", one.r#type, one.value))
        .collect()
}

fn row(entry: &types::Entry) -> Vec<String> {
    vec![
        entry.id.clone(),
        output::id(entry.spiffe_id.as_ref()),
        output::id(entry.parent_id.as_ref()),
        selectors(entry).join(" "),
        ttl(entry.x509_svid_ttl),
    ]
}

fn print_entry(entry: &types::Entry, now: SystemTime) -> Result<(), Failure> {
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

impl Delete {
    async fn run(self) -> Result<(), Failure> {
        let ids = match &self.file {
            Some(file) => ids_of(file, &read_data(file)?)?,
            None => self.entry_id.clone(),
        };
        let mut client = entries(self.server.connect().await?);
        let mut all = wire::BatchDeleteEntryResponse {
            results: Vec::new(),
        };
        for batch in ids.chunks(BATCH) {
            let message = wire::BatchDeleteEntryRequest {
                ids: batch.to_vec(),
            };
            let answered = answer(client.batch_delete_entry(request(message)).await)?;
            all.results.extend(answered.results);
            progress(all.results.len(), ids.len());
        }
        if self.server.json() {
            output::json(&all)?;
        }
        for result in &all.results {
            let status = result.status.clone().unwrap_or_default();
            if status.code != 0 {
                return Err(Failure::new(format!(
                    "cannot delete --entry-id {:?}: {}",
                    result.id, status.message
                ))
                .hint("`vane entry list` shows the IDs that there are"));
            }
            if !self.server.json() {
                output::line(format!("Deleted entry {}", result.id))?;
            }
        }
        Ok(())
    }
}

fn ids_of(file: &str, text: &str) -> Result<Vec<String>, Failure> {
    let ids =
        vane_wire::json::from_str::<wire::BatchDeleteEntryRequest>(text).map(|message| message.ids);
    let entries = || {
        vane_wire::json::entries(text)
            .map(|entries| entries.into_iter().map(|entry| entry.id).collect())
    };
    let ids: Vec<String> = ids.or_else(|_| entries()).map_err(|error| {
        Failure::usage(format!("--file {file}: {error}"))
            .hint("the form is {\"ids\":[\"…\"]}, or what `vane entry list -o json` prints")
    })?;
    if ids.is_empty() || ids.iter().any(String::is_empty) {
        return Err(Failure::usage(format!("--file {file}: an ID is missing"))
            .hint("each entry needs its `id`"));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests;
