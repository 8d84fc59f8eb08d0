//! The command line of `vane`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::agent::Agent;
use crate::bundle::Bundle;
use crate::completion::Completion;
use crate::dev::Dev;
use crate::entry::Entry;
use crate::failure::Failure;
use crate::health::Health;
use crate::jwt::Jwt;
use crate::logger::Logger;
use crate::server::Server;
use crate::svid::Svid;
use crate::token::Token;

/// Gives workloads SPIFFE identities: registration, diagnosis, and a whole system for trying.
#[derive(Debug, Parser)]
#[command(
    name = "vane",
    version,
    propagate_version = true,
    after_help = "Start here:\n  vane dev"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(subcommand)]
    Entry(Entry),
    #[command(subcommand)]
    Agent(Agent),
    #[command(subcommand)]
    Token(Token),
    #[command(subcommand)]
    Bundle(Bundle),
    #[command(subcommand)]
    Svid(Svid),
    #[command(subcommand)]
    Jwt(Jwt),
    #[command(subcommand)]
    Logger(Logger),
    #[command(subcommand)]
    Server(Server),
    Health(Health),
    Dev(Dev),
    Completion(Completion),
}

/// Reads the command line and carries it out; 0, 1 failed, 2 usage.
#[must_use]
pub fn main_entry() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "{failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let start = |error| Failure::new(format!("cannot start: {error}"));
    if let Command::Dev(dev) = command {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(start)?;
        return runtime.block_on(dev.run());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(start)?;
    runtime.block_on(async {
        match command {
            Command::Entry(entry) => entry.run().await,
            Command::Agent(agent) => agent.run().await,
            Command::Token(token) => token.run().await,
            Command::Bundle(bundle) => bundle.run().await,
            Command::Svid(svid) => svid.run().await,
            Command::Jwt(jwt) => jwt.run().await,
            Command::Logger(logger) => logger.run().await,
            Command::Server(server) => server.run().await,
            Command::Health(health) => health.run().await,
            Command::Completion(completion) => completion.run::<Cli>(),
            Command::Dev(dev) => dev.run().await,
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
