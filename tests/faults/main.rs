//! `vane-faults`: what is too long for `cargo test`, or needs root.
//!
//! Each subcommand ends with `N passed, N failed, N skipped`; a check that cannot run here says
//! why. Exit status 1 when one failed. The programs that it starts are built beside it:
//! `cargo build -p vane-tests --bins`.

mod clock;
mod csi;
mod full_disk;
mod namespace;
mod peer_storm;
mod pods;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use vane_tests::kill_storm::Storm;
use vane_tests::{fetches, handshakes};

#[derive(Parser)]
#[command(name = "vane-faults", version, about = "Faults that need time or root")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kill the server with entries being created and agents connected.
    KillServer {
        /// How often.
        #[arg(long, default_value_t = 200)]
        times: usize,
        /// Agents.
        #[arg(long, default_value_t = 20)]
        agents: usize,
    },
    /// Fill the disk under the server, and under an agent, and give it space again; root only.
    FullDisk {
        /// In the mount namespace that this was started again in.
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// The CSI driver with real mounts; root only.
    Csi {
        /// In the mount namespace that this was started again in.
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// The attestor of pods with real cgroups and a double of the kubelet; root only.
    Pods,
    /// Replace an agent that a workload asks a hundred times a second.
    TakeOver {
        /// How often.
        #[arg(long, default_value_t = 10)]
        times: usize,
    },
    /// Clients do mutual TLS while agent and server are killed, replaced and away.
    Handshakes {
        /// Clients, each of which greets the next every 50 ms.
        #[arg(long, default_value_t = 20)]
        clients: usize,
        /// Seconds without a server.
        #[arg(long, default_value_t = 60)]
        outage: u64,
        /// Take-overs.
        #[arg(long, default_value_t = 10)]
        take_overs: usize,
    },
    /// Set the clock of the server or the agent while it runs; needs libfaketime.
    Clock {
        /// Only the rows of the table with this text in their names.
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Fork, exec, exit, setuid and pass descriptors against the attestation of processes.
    PeerStorm {
        /// How many tries.
        #[arg(long, default_value_t = 1_000_000)]
        tries: u64,
    },
}

/// What became of a check.
enum Outcome {
    Passed(String),
    Skipped(String),
}

/// The checks that were made.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    /// Makes a check; one that panics failed, and the next is made all the same.
    async fn check<F>(&mut self, what: &str, check: F)
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut alone = tokio::task::JoinSet::new();
        alone.spawn(check);
        match alone.join_next().await.expect("it was spawned") {
            Ok(Outcome::Passed(note)) => {
                println!("passed: {what}: {note}");
                self.passed += 1;
            }
            Ok(Outcome::Skipped(why)) => {
                println!("skipped: {what}: {why}");
                self.skipped += 1;
            }
            Err(error) => {
                println!("failed: {what}: {error}");
                self.failed += 1;
            }
        }
    }

    fn end(&self) -> ExitCode {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        ExitCode::from(u8::from(*failed > 0))
    }
}

async fn kill_server(storm: Storm) -> Outcome {
    let acknowledged = storm.rage().await;
    Outcome::Passed(format!(
        "{acknowledged} acknowledged entries through {} kills",
        storm.kills
    ))
}

async fn take_overs(times: usize) -> Outcome {
    let (fetched, failed) = fetches::through_take_overs(times).await;
    assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
    Outcome::Passed(format!("{fetched} fetches through {times} take-overs"))
}

async fn handshakes(storm: handshakes::Storm) -> Outcome {
    let report = storm.rage().await;
    let failed = report.failed;
    assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
    Outcome::Passed(format!(
        "{} handshakes through agent kill, {} take-overs, server restart and {:?} without a server",
        report.handshakes, storm.take_overs, storm.outage
    ))
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut tally = Tally::default();
    match Cli::parse().command {
        Command::KillServer { times, agents } => {
            let storm = Storm {
                kills: times,
                agents,
            };
            tally
                .check("kill -9 of the server", kill_server(storm))
                .await;
        }
        Command::FullDisk { inside: false } => {
            if let Some(why) = namespace::cannot() {
                let skip = async { Outcome::Skipped(why) };
                tally.check("a full disk at commit", skip).await;
            } else {
                return namespace::inside("full-disk");
            }
        }
        Command::FullDisk { inside: true } => {
            tally
                .check("a full disk at commit", full_disk::commit())
                .await;
            tally
                .check("a full disk at start", full_disk::start())
                .await;
            tally
                .check("a full disk while sealing", full_disk::sealing())
                .await;
        }
        Command::Csi { inside: false } => {
            if let Some(why) = namespace::cannot() {
                let skip = async { Outcome::Skipped(why) };
                tally.check("the CSI driver", skip).await;
            } else {
                return namespace::inside("csi");
            }
        }
        Command::Csi { inside: true } => {
            tally.check("a volume from pod to pod", csi::life()).await;
            tally.check("what is hostile", csi::hostile()).await;
            tally.check("a folder made anew", csi::made_anew()).await;
            tally.check("the start of the driver", csi::start()).await;
        }
        Command::Pods => {
            tally.check("the life of a pod", pods::life()).await;
            tally
                .check("hostile names of cgroups", pods::hostile())
                .await;
        }
        Command::TakeOver { times } => {
            tally.check("no fetch fails", take_overs(times)).await;
        }
        Command::Handshakes {
            clients,
            outage,
            take_overs,
        } => {
            let storm = handshakes::Storm {
                clients,
                every: Duration::from_millis(50),
                outage: Duration::from_secs(outage),
                take_overs,
            };
            tally.check("no handshake fails", handshakes(storm)).await;
        }
        Command::Clock { only } => {
            for (whose, by, fault, keeps_stream) in clock::TABLE {
                let what = format!("the clock of the {whose:?} is set by {by:+} s");
                if !what.contains(&only) {
                    continue;
                }
                match clock::cannot() {
                    Some(why) => tally.check(&what, async { Outcome::Skipped(why) }).await,
                    None => {
                        let check = clock::run(whose, by, fault, keeps_stream);
                        tally.check(&what, check).await;
                    }
                }
            }
        }
        Command::PeerStorm { tries } => {
            tally
                .check("attestation under fire", peer_storm::run(tries))
                .await;
        }
    }
    tally.end()
}
