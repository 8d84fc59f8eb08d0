//! Placeholder until the first slice of this crate lands.

pub mod peer;

pub mod limits;
pub mod workload;
