//! Creating, updating and deleting entries, in batches.

use clap::Args;
use vane_chassis::clock::{Clock as _, System};
use vane_wire::spire::api::server::entry::v1 as wire;
use vane_wire::spire::api::types;

use super::entries;
use super::fields::{Fields, missing, read_data};
use super::show::print_entry;
use crate::api::{Server, answer, request};
use crate::failure::{self, Failure};
use crate::output;

/// Entries of one call.
const BATCH: usize = 500;

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(super) fields: Fields,
    /// The entry names nodes: its parent is the server.
    #[arg(long, conflicts_with = "parent_id")]
    pub(super) node: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    pub(super) fields: Fields,
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

/// One item of a batch, as create and update answer it.
pub(super) struct Item {
    pub(super) status: Option<types::Status>,
    pub(super) entry: Option<types::Entry>,
}

impl Create {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let wanted = self.fields.read(self.node)?;
        let mut client = entries(self.server.connect().await?);
        let create = async |entries| {
            let message = wire::BatchCreateEntryRequest {
                entries,
                output_mask: None,
            };
            Ok(answer(client.batch_create_entry(request(message)).await)?.results)
        };
        let results = in_batches(&wanted, create).await?;
        let all = wire::BatchCreateEntryResponse { results };
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
    pub(super) async fn run(self) -> Result<(), Failure> {
        let wanted = self.fields.read(false)?;
        if let Some(unnamed) = wanted.iter().find(|entry| entry.id.is_empty()) {
            let id = output::id(unnamed.spiffe_id.as_ref());
            return Err(missing("--entry-id", &format!("which entry becomes {id}"))
                .hint("`vane entry list` shows the IDs"));
        }
        let mut client = entries(self.server.connect().await?);
        let update = async |entries| {
            let message = wire::BatchUpdateEntryRequest {
                entries,
                input_mask: None,
                output_mask: None,
            };
            Ok(answer(client.batch_update_entry(request(message)).await)?.results)
        };
        let results = in_batches(&wanted, update).await?;
        let all = wire::BatchUpdateEntryResponse { results };
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

/// Has `wanted` changed, [`BATCH`] at a time; what became of each.
async fn in_batches<T: Clone, R>(
    wanted: &[T],
    mut change: impl AsyncFnMut(Vec<T>) -> Result<Vec<R>, Failure>,
) -> Result<Vec<R>, Failure> {
    let mut results = Vec::with_capacity(wanted.len());
    for batch in wanted.chunks(BATCH) {
        results.extend(change(batch.to_vec()).await?);
        progress(results.len(), wanted.len());
    }
    Ok(results)
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
pub(super) fn report(
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
pub(super) fn next_step(code: i32, text: &str, existing: &str) -> String {
    match code {
        3 if text.contains(failure::FOREIGN) => "write an ID of the trust domain that it names",
        3 if text.contains("own trust domain") => {
            "leave --federates-with away: every process gets the server's own bundle"
        }
        3 => "change the field that it names; `vane entry create --help` has examples",
        5 => "`vane entry list` shows the IDs that there are",
        6 if text.contains("is there twice") => "leave the second one away",
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

impl Delete {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let ids = match &self.file {
            Some(file) => ids_of(file, &read_data(file)?)?,
            None => self.entry_id.clone(),
        };
        let mut client = entries(self.server.connect().await?);
        let delete = async |ids| {
            let message = wire::BatchDeleteEntryRequest { ids };
            Ok(answer(client.batch_delete_entry(request(message)).await)?.results)
        };
        let results = in_batches(&ids, delete).await?;
        let all = wire::BatchDeleteEntryResponse { results };
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

pub(super) fn ids_of(file: &str, text: &str) -> Result<Vec<String>, Failure> {
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
