//! The store of a Vane server: one contract ([`kv::Kv`]), its engines, the
//! suite that every engine passes, and the tables that are kept in it.
//!
//! Invariant: what [`kv::Kv::commit`] acknowledged survives `kill -9` of the
//! process, and a power loss as far as `fdatasync` promises it.
//! Not here: indexes (the server's hot state builds its own from the change
//! feed), history (a watch reaches back only as far as memory does).

mod random;

pub mod kv;

pub mod conformance;
pub mod record;

pub mod memory;
pub mod sled_kv;

pub mod observed;

pub mod tables;
