//! How one of our processes starts, logs, listens and stops.
//!
//! A module enters chassis only when two binaries use it; it knows nothing of
//! SPIFFE except `mtls`. Groups of modules are layers, bottom first.

pub mod backoff;
pub mod clock;
pub mod config;
pub mod entropy;
pub mod files;
pub mod notify;
pub mod panics;
pub mod ready;
pub mod signals;
pub mod tasks;

pub mod telemetry;

pub mod builtin;
pub mod given;
pub mod metrics;

pub mod health;

pub mod h2_authority;

pub mod unix_listener;

pub mod mtls;
pub mod ops;

pub mod kubernetes;
