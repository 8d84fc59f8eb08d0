//! The gRPC services of the server: SPIRE's, health, and [`vane.sync.v1`](sync).
//!
//! A message becomes a value at the door (`vane_wire::convert`) and a refusal a status on its
//! way out (`vane_wire::status`); one layer ([`guard`]) decides who may call. Every change is
//! stored, then logged, then seen in hot state, then acknowledged.

mod connection;
mod patience;
mod recent;
mod telemetry;
mod unserved;

mod roles;

mod parts;

mod guard;

mod agent;
mod bundle;
mod debug;
mod entry;
mod logger;
mod status;
mod svid;
mod sync;

mod serve;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use connection::{Admitted, Connection, Places, local, tls};
pub use parts::{Parts, PartsDeps, Settings};
pub use serve::{ServeError, Services};

/// The most bytes of a message, in and out (NAMES 21).
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
