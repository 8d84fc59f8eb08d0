//! `vane bundle`: the authorities of the server's trust domain, and those of the trust domains
//! that its workloads talk to.

mod change;
mod show;

#[cfg(test)]
mod tests;

use clap::{Subcommand, ValueEnum};
use tonic::transport::Channel;
use vane_wire::spire::api::server::bundle::v1::bundle_client::BundleClient;

use crate::api::client;
use crate::failure::Failure;

use change::{Delete, Set};
use show::{Count, List, Show};

/// The authorities of the server's trust domain, and of those that it federates with.
#[derive(Debug, Subcommand)]
pub(crate) enum Bundle {
    /// Print the bundle, for agents to be bootstrapped with.
    #[command(
        after_help = "Examples:\n  vane bundle show > bundle.pem\n  vane bundle show --format spiffe"
    )]
    Show(Show),
    /// Print the bundles of other trust domains, or that of one.
    #[command(
        after_help = "Examples:\n  vane bundle list\n  vane bundle list --id other.org --format spiffe"
    )]
    List(List),
    /// Count the bundles, the server's own among them.
    #[command(after_help = "Examples:\n  vane bundle count\n  vane bundle count -o json")]
    Count(Count),
    /// Keep the bundle of another trust domain, so that entries can federate with it.
    #[command(
        after_help = "Examples:\n  vane bundle set --id other.org --path other.pem\n  vane bundle set --id other.org --format spiffe < other.json"
    )]
    Set(Set),
    /// Forget the bundle of another trust domain.
    #[command(
        after_help = "Examples:\n  vane bundle delete --id other.org\n  vane bundle delete --id other.org --mode dissociate"
    )]
    Delete(Delete),
}

/// How a bundle is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// The CA certificates as PEM.
    Pem,
    /// A SPIFFE bundle: a JWK Set with JWT keys, sequence and refresh hint.
    Spiffe,
}

impl Bundle {
    /// Carries the command out.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Show(show) => show.run().await,
            Self::List(list) => list.run().await,
            Self::Count(count) => count.run().await,
            Self::Set(set) => set.run().await,
            Self::Delete(delete) => delete.run().await,
        }
    }
}

fn bundles(channel: Channel) -> BundleClient<Channel> {
    client!(BundleClient<_>, channel)
}
