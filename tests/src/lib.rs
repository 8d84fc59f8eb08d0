//! The harness of the stories, benches and fault tests: real processes, real sockets.
//!
//! [`world::World`] is one server with its agents; [`admin::Admin`] speaks the server API over
//! the admin socket; [`workload::Workload`] is this process as a workload. Nothing here sleeps
//! for a result: everything waits for an event with a deadline.

pub mod process;

pub mod admin;
pub mod workload;

pub mod world;

pub mod greedy;
pub mod half_call;
pub mod pod;
pub mod raw;
pub mod remote;
pub mod sample;
pub mod variants;

pub mod fetches;
pub mod handshakes;
pub mod kill_storm;

pub mod differential;
