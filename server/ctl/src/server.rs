//! `vane server`: the server itself.

use clap::{Args, Subcommand};

use crate::api;
use crate::failure::Failure;
use crate::status;

/// The server itself.
#[derive(Debug, Subcommand)]
pub(crate) enum Server {
    /// How the server fares: faults with the way out, clock, rotations, store, log, counts.
    #[command(after_help = "Examples:\n  vane server status\n  vane server status -o json")]
    Status(Status),
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    server: api::Server,
}

impl Server {
    /// Carries the command out.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Self::Status(Status { server }) = self;
        status::show(server.connect().await?, server.output).await
    }
}
