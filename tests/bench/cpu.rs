//! CPU time of processes, user and system together.

use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// What a process has used so far, in steps of a clock tick (10 ms).
pub(crate) fn used(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name of the program may have blanks; what follows it is numbers.
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let ticks = |at: usize| -> u64 { rest.split(' ').nth(at).unwrap().parse().unwrap() };
    // utime and stime are fields 14 and 15 of proc_pid_stat(5); `rest` begins with field 3.
    let ticks = ticks(11) + ticks(12);
    let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

/// What this process has used.
pub(crate) fn own() -> Duration {
    used(std::process::id())
}
