//! `vane`: the registration and diagnosis CLI. One file a noun.
//!
//! A command asks the server over its admin socket (or the agent over the Workload API) and
//! prints a table for people or, with `-o json`, SPIRE's form for scripts. Exit status 0, 1
//! when something failed, 2 for a wrong command line. A failure names the field, the value
//! seen and the next command ([`failure::Failure`]).

mod failure;
mod output;

mod api;

mod agent;
mod bundle;
mod completion;
mod entry;
mod health;
mod svid;
mod token;

mod dev;

mod cli;

pub use cli::main_entry;
