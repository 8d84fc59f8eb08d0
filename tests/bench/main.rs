//! `vane-bench`: the promises of DESIGN section 1, measured on real processes.
//!
//! `vane-bench NAME [--json]` prints what it measured beside its bar and its conditions.
//! `vane-bench check` runs smaller sizes and ends with 1 when a gate is not met; gates are
//! counters and ratios of two figures of the same run, never milliseconds, because the machines
//! that run it are noisy. The server and the agent are those that were built beside this
//! program, so they have its profile.

mod cpu;
mod report;
mod stats;

mod bare;
mod bare_signer;
mod machine;
mod options;

mod floor;
mod node;

mod entries;
mod flood;
mod issuance;
mod propagation;
mod restart;
mod size;
mod workload_api;

mod check;

use std::process::ExitCode;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use options::{Bench, Command, Options};
use report::Report;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    raise_descriptors();
    let Options { command, scale } = Options::parse();
    let benches: &[Bench] = match command {
        Command::FloorServer { socket } => {
            floor::serve(&socket).await;
            &[]
        }
        Command::Check { only } => return check::run(&only, &scale).await,
        Command::All => &Bench::ALL,
        Command::Propagation => &[Bench::Propagation],
        Command::Issuance => &[Bench::Issuance],
        Command::Entries => &[Bench::Entries],
        Command::WorkloadApi => &[Bench::WorkloadApi],
        Command::Flood => &[Bench::Flood],
        Command::Restart => &[Bench::Restart],
        Command::Size => &[Bench::Size],
    };
    for bench in benches {
        measure(*bench, &scale).await.print(scale.json);
    }
    ExitCode::SUCCESS
}

async fn measure(bench: Bench, scale: &options::Scale) -> Report {
    match bench {
        Bench::Propagation => propagation::run(scale).await,
        Bench::Issuance => issuance::run(scale).await,
        Bench::Entries => entries::run(scale).await,
        Bench::WorkloadApi => workload_api::run(scale).await,
        Bench::Flood => flood::run(scale).await,
        Bench::Restart => restart::run(scale).await,
        Bench::Size => size::run(scale).await,
    }
}

fn raise_descriptors() {
    let most = getrlimit(Resource::RLIMIT_NOFILE).unwrap().1;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}
