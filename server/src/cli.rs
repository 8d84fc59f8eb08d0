//! The command line of `vane-server`. Exit status 0, 1 when it could not start or go on, 2 for
//! a wrong command line.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;
use vane_chassis::entropy;
use vane_chassis::given::Given;
use vane_chassis::notify::Notify;
use vane_chassis::signals::Signals;
use vane_chassis::{config as file, telemetry};

use crate::app::{self, Ready, Surroundings};
use crate::config::Config;

/// Signs SPIFFE identities for the agents of a trust domain.
#[derive(Debug, Parser)]
#[command(
    name = "vane-server",
    version,
    after_help = "Examples:\n  vane-server check -c server.toml\n  vane-server run -c server.toml"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGTERM or Ctrl-C.
    Run(File),
    /// Check a configuration, and print what is in force without secrets.
    Check(File),
}

#[derive(Debug, clap::Args)]
struct File {
    /// The configuration.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
}

/// Reads the command line and carries it out.
#[must_use]
pub fn main_entry() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(file) => run(&file),
        Command::Check(file) => check(&file),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(file: &File) -> anyhow::Result<Config> {
    let mut config = Config::load(&file.config)?;
    config.check()?;
    Ok(config)
}

fn check(file: &File) -> anyhow::Result<()> {
    let text = file::print(&load(file)?)?;
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot print")
}

fn run(file: &File) -> anyhow::Result<()> {
    entropy::prepare();
    let config = load(file)?;
    let log = telemetry::Log {
        level: config.server.log_level.clone(),
        format: config.server.log_format,
    };
    telemetry::init(&log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = Signals::install().context("cannot handle signals")?;
        let surroundings = Surroundings {
            given: Given::from_systemd()?,
            notify: Notify::from_env().context("NOTIFY_SOCKET")?,
        };
        let notify = surroundings.notify.clone();
        let on_ready = |ready: Ready| {
            print(&ready);
            notify.ready(&format!("serving {}", ready.trust_domain));
        };
        let (server, (), ()) = tokio::join!(
            async {
                let ended = app::run_in(surroundings, config, stop.clone(), on_ready).await;
                stop.cancel();
                ended
            },
            signals.cancel(stop.clone()),
            async {
                stop.cancelled().await;
                notify.stopping();
            },
        );
        server
    })
}

fn print(ready: &Ready) {
    let line = format!(
        "ready server_address={} admin_socket={} trust_domain={}\n",
        ready.server_address,
        ready.admin_socket.display(),
        ready.trust_domain
    );
    // Whoever started it without reading its output does not wait for the line.
    let _ = std::io::stdout().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_wrong_ones_exit_with_2() {
        Cli::command().debug_assert();
        for (args, code) in [
            (&["vane-server"][..], 2),
            (&["vane-server", "run"], 2),
            (&["vane-server", "run", "-c", "a", "b"], 2),
            (&["vane-server", "--version"], 0),
        ] {
            let refused = Cli::try_parse_from(args).unwrap_err();
            assert_eq!(refused.exit_code(), code, "{args:?}");
        }
        assert!(Cli::try_parse_from(["vane-server", "check", "-c", "a"]).is_ok());
    }

    #[test]
    fn a_configuration_that_is_wrong_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("server.toml");
        let load = |text: &str| {
            std::fs::write(&config, text).unwrap();
            let file = File {
                config: config.clone(),
            };
            load(&file).map(drop).map_err(|error| format!("{error:#}"))
        };
        assert!(load("[server]\ntrust_domain = \"example.org\"\n").is_ok());
        let text = load("[server]\ntrust_domain = \"example.org\"\nbind_port = \"x\"\n");
        let text = text.unwrap_err();
        assert!(text.contains("server.toml:3:13: "), "{text}");
        let text = load("[server]\ntrust_domain = \"example.org\"\nca_ttl = \"1s\"\n");
        assert!(text.unwrap_err().starts_with("server.ca_ttl is 1s"));
    }
}
