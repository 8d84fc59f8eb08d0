//! The first random number of a process.
//!
//! aws-lc seeds itself at its first use from the jitter of the CPU, which takes some 30 ms: most of
//! the time in which one of our processes starts.

use std::thread;

/// Seeds it on a thread of its own, so that who needs a random number first waits for what is left.
pub fn prepare() {
    let seed = || {
        // Who needs one is told by his own call when there are none.
        let _ = aws_lc_rs::rand::fill(&mut [0]);
    };
    if let Err(error) = thread::Builder::new()
        .name("entropy".to_owned())
        .spawn(seed)
    {
        tracing::debug!(%error, "random numbers are prepared by who needs the first");
    }
}
