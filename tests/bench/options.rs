//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(about = "Measures the promises of DESIGN section 1", version)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) scale: Scale,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the gates; ends with 1 when one is not met.
    Check {
        /// Only these benches.
        #[arg(long, value_enum)]
        only: Vec<Bench>,
    },
    /// Run every bench.
    All,
    /// P1: from an admin's change to the message on an open stream.
    Propagation,
    /// P2: X.509-SVIDs per CPU second against a bare loop.
    Issuance,
    /// Entries created a second while many exist.
    Entries,
    /// P5: cached fetches, and the agent's memory.
    #[command(name = "workload_api")]
    WorkloadApi,
    /// The agent's memory after a flood of idle connections.
    Flood,
    /// P6: an agent that is killed while the server is down.
    Restart,
    /// Sizes of the binaries, start and memory at start.
    Size,
    /// The least that a Workload API can be, for comparison.
    #[command(hide = true)]
    FloorServer { socket: PathBuf },
}

/// A bench.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Bench {
    Propagation,
    Issuance,
    Entries,
    WorkloadApi,
    Flood,
    Restart,
    Size,
}

impl Bench {
    pub(crate) const ALL: [Self; 7] = [
        Self::Propagation,
        Self::Issuance,
        Self::Entries,
        Self::WorkloadApi,
        Self::Flood,
        Self::Restart,
        Self::Size,
    ];
}

/// How much is measured.
#[derive(Args, Clone)]
pub(crate) struct Scale {
    /// One JSON object a line for each bench.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Shorter waits and sizes: same figures, less certain.
    #[arg(long, global = true)]
    pub(crate) fast: bool,
    /// Changes of `propagation`.
    #[arg(long, global = true, default_value_t = 1_000)]
    pub(crate) changes: usize,
    /// Entries that exist already in `entries`.
    #[arg(long, global = true, default_value_t = 100_000)]
    pub(crate) existing: usize,
    /// Seconds of each phase of `issuance`.
    #[arg(long, global = true, default_value_t = 4)]
    pub(crate) seconds: u64,
    /// Only batches of this size in `issuance`.
    #[arg(long, global = true)]
    pub(crate) batch: Option<usize>,
    /// Calls under way at once in `issuance`.
    #[arg(long, global = true, default_value_t = 4)]
    pub(crate) at_once: usize,
    /// Fresh connections of `workload_api`.
    #[arg(long, global = true, default_value_t = 2_000)]
    pub(crate) fetches: usize,
    /// A delay in every measured call: shows that a gate can fail.
    #[arg(long, global = true, hide = true, value_parser = milliseconds, default_value = "0ms")]
    pub(crate) stall: Duration,
}

impl Scale {
    /// The sizes of `check`.
    pub(crate) fn of_check(&self) -> Self {
        Self {
            fast: true,
            changes: self.changes.min(200),
            existing: self.existing.min(10_000),
            seconds: self.seconds.min(2),
            fetches: self.fetches.min(400),
            ..self.clone()
        }
    }

    /// The deliberate delay.
    pub(crate) async fn stall(&self) {
        if !self.stall.is_zero() {
            tokio::time::sleep(self.stall).await;
        }
    }
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix("ms").ok_or("write it as 50ms")?;
    let number = number.parse().map_err(|_| "write it as 50ms")?;
    Ok(Duration::from_millis(number))
}
