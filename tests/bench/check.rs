//! The gates, for CI: counters and ratios only.

use std::process::ExitCode;

use crate::machine;
use crate::measure;
use crate::options::{Bench, Scale};

/// Runs the gates of `only`, or of all.
pub(crate) async fn run(only: &[Bench], scale: &Scale) -> ExitCode {
    let benches = if only.is_empty() {
        &Bench::ALL[..]
    } else {
        only
    };
    let optimised = machine::profile() != "debug";
    // What is divided by a loop of assembly has no meaning in a build without optimisation.
    if !optimised && benches.iter().any(|one| *one != Bench::Propagation) {
        eprintln!("build with --release or --profile dist: these gates are for optimised code");
        return ExitCode::from(2);
    }
    let scale = scale.of_check();
    let (mut gates, mut missed) = (0, 0);
    for bench in benches {
        let report = measure(*bench, &scale).await;
        report.print(scale.json);
        let (all, short) = report.gates();
        gates += all;
        missed += short;
    }
    eprintln!("{} gates met, {missed} short", gates - missed);
    match missed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
