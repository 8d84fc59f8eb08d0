//! `vane`: the registration and diagnosis CLI. One file a noun.
//!
//! A command asks the server over its admin socket (or the agent over the Workload API) and
//! prints a table for people or, with `-o json`, SPIRE's form for scripts. Exit status 0, 1
//! when something failed, 2 for a wrong command line. A failure names the field, the value
//! seen and the next command ([`failure::Failure`]).

mod failure;

mod flags;
mod output;

mod api;

mod agent_socket;
mod status;

mod agent;
mod completion;
mod entry;
mod jwt;
mod server;
mod svid;
mod token;

mod bundle;
mod health;
mod logger;

mod dev;

mod cli;

pub use cli::main_entry;
