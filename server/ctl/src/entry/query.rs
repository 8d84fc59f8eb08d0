//! Showing, listing and counting entries.

use clap::Args;
use vane_chassis::clock::{Clock as _, System};
use vane_wire::spire::api::server::entry::v1 as wire;
use vane_wire::spire::api::types;

use super::entries;
use super::show::{print_entry, row};
use crate::api::{Server, answer, request, wire_id};
use crate::failure::{self, Failure};
use crate::flags::{Match, selectors as wire_selectors};
use crate::output;

/// Entries of one page of a list.
const PAGE: i32 = 1000;

#[derive(Debug, Args)]
pub(super) struct Filter {
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
    pub(super) filter: Filter,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(super) filter: Filter,
    #[command(flatten)]
    server: Server,
}

impl Filter {
    pub(super) fn wire(&self) -> Result<wire::list_entries_request::Filter, Failure> {
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
            all.entries.sort_by(|a, b| order(a).cmp(&order(b)));
            return Ok(all);
        }
        all.next_page_token = page.next_page_token;
    }
}

/// The order in which SPIRE's CLI shows entries.
fn order(entry: &types::Entry) -> impl Ord + '_ {
    fn id(id: &Option<types::Spiffeid>) -> Option<(&str, &str)> {
        let id = id.as_ref()?;
        Some((id.trust_domain.as_str(), id.path.as_str()))
    }
    let selectors = entry.selectors.iter();
    let selectors: Vec<_> = selectors
        .map(|one| (one.r#type.as_str(), one.value.as_str()))
        .collect();
    let (spiffe, parent) = (id(&entry.spiffe_id), id(&entry.parent_id));
    (spiffe, parent, selectors.len(), selectors)
}

impl Show {
    pub(super) async fn run(self) -> Result<(), Failure> {
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
            // As SPIRE's: a list in both cases.
            return output::json(&wire::ListEntriesResponse {
                entries: vec![entry],
                next_page_token: String::new(),
            });
        }
        print_entry(&entry, System.now())
    }
}

impl List {
    pub(super) async fn run(self) -> Result<(), Failure> {
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

    pub(super) async fn count(self) -> Result<(), Failure> {
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
