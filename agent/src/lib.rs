//! `vane-agent`: attests the processes of its node and serves them rotating identities.
//!
//! Groups of modules are layers, bottom first.

pub mod cgroup;
pub mod denial;
pub mod peer;
pub mod pem;

pub mod limits;
pub mod tenure;
pub mod workload;

pub mod config;
pub mod counters;
pub mod health;
pub mod svid;

pub mod bootstrap;
pub mod issue;
pub mod own_svid;
pub mod registry;
pub mod snapshot;

pub mod sealed;

pub mod node;

pub mod link;
pub mod obtain;

pub mod cache;
pub mod jwt;
pub mod renewal;

pub mod vitals;

#[cfg(test)]
mod testing;

mod api;

mod aliases;

mod sockets;
pub mod takeover;

mod front;

pub mod app;
mod csi;
mod upgrade;

mod cli;

pub use cli::main_entry;
