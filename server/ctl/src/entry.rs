//! `vane entry`: registration entries. Flags are SPIRE's in kebab-case (NAMES 7).

mod change;
mod fields;
mod query;
mod show;

#[cfg(test)]
mod tests;

use clap::Subcommand;
use tonic::transport::Channel;
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;

use crate::api::client;
use crate::failure::Failure;

use change::{Create, Delete, Update};
use query::{List, Show};

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
