//! The command line of `vane-agent`. Exit status 0, 1 when it could not start or go on, 2 for
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

use crate::app::{self, Ready};
use crate::config::Config;
use crate::csi;
use crate::front::Surroundings;
use crate::upgrade;

/// Threads for mounts, which are made one at a time.
const CSI_BLOCKING: usize = 2;

/// Attests the processes of this node and serves them rotating SPIFFE identities.
#[derive(Debug, Parser)]
#[command(
    name = "vane-agent",
    version,
    after_help = "Examples:\n  vane-agent check -c agent.toml\n  vane-agent run -c agent.toml\n  vane-agent csi --workload-api-socket-dir /run/vane/public"
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
    /// Give pods the agent's socket as a volume of csi.spiffe.io, until SIGTERM or Ctrl-C.
    ///
    /// Runs beside an agent in its DaemonSet, privileged because Kubernetes asks that of who
    /// mounts for the host; it gives up all capabilities but CAP_SYS_ADMIN.
    Csi(csi::Options),
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
        Command::Csi(options) => drive(options),
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

/// One thread serves: a fetch from cache is then as fast as it can be (the hop to another
/// thread costs more than the work); keys of many SVIDs are made on the blocking pool.
fn run(file: &File) -> anyhow::Result<()> {
    entropy::prepare();
    let config = load(file)?;
    telemetry::init(&telemetry::Log {
        level: config.agent.log_level.clone(),
        format: config.agent.log_format,
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = Signals::install().context("cannot handle signals")?;
        let hangups = upgrade::signals().context("cannot handle signals")?;
        let surroundings = Surroundings {
            given: Given::from_systemd()?,
            notify: Notify::from_env().context("NOTIFY_SOCKET")?,
        };
        let notify = surroundings.notify.clone();
        let told = notify.clone();
        let on_ready = move |ready: Ready| {
            print(&ready);
            told.ready(&format!("serving as {}", ready.agent_id));
        };
        let (agent, (), (), ()) = tokio::join!(
            async {
                let ended = app::run_in(surroundings, config, stop.clone(), on_ready).await;
                stop.cancel();
                ended
            },
            signals.cancel(stop.clone()),
            upgrade::follow(hangups, notify.clone(), stop.clone()),
            async {
                stop.cancelled().await;
                notify.stopping();
            },
        );
        agent
    })
}

/// Mounts for the pods of this node. What it may do is given up while it is one thread.
fn drive(options: csi::Options) -> anyhow::Result<()> {
    let log = telemetry::Log {
        level: options.log_level.clone(),
        format: options.log_format(),
    };
    let settings = options.check(|name| std::env::var_os(name))?;
    telemetry::init(&log)?;
    csi::keep_mounting_only()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(CSI_BLOCKING)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = Signals::install().context("cannot handle signals")?;
        let on_ready = |ready: csi::Ready| {
            let socket = ready.socket.display();
            say(&format!(
                "ready csi_socket=unix://{socket} plugin_name={}\n",
                ready.name
            ));
        };
        let (driver, ()) = tokio::join!(
            async {
                let ended = csi::run(settings, stop.clone(), on_ready).await;
                stop.cancel();
                ended
            },
            signals.cancel(stop.clone()),
        );
        driver
    })
}

fn print(ready: &Ready) {
    say(&format!(
        "ready workload_api=unix://{} agent_id={}\n",
        ready.workload_api.display(),
        ready.agent_id
    ));
}

fn say(line: &str) {
    // Whoever started it without reading its output does not wait for the line.
    let _ = std::io::stdout().write_all(line.as_bytes());
}
