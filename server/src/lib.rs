//! The signing server: who may call, what it answers, and how its parts are put together.
//!
//! Groups of modules are layers, bottom first. `api` and `api/sync.rs` are the only places
//! that name a generated type; `app` is the only one that knows all parts.

pub mod authorized;

pub mod state;

pub mod push;

pub mod publish;

pub mod caller;
pub mod config;
pub mod rate_limit;

pub mod audit;
pub mod health;

pub mod prune;
pub mod vitals;

pub mod api;

pub mod own_svid;

pub mod app;

mod cli;

pub use cli::main_entry;
