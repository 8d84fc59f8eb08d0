//! The signing half of the server: keys, the slots of authorities and their rotation,
//! and the one function that every SVID passes on its way out.
//!
//! Invariants: an authority is persisted before it is active; what is signed is in the log
//! before and checked after; nothing here decides who may have an identity
//! (the caller authorized), only what a certificate may contain.

mod der;

pub mod key_manager;
pub mod log;
pub mod server_id;
pub mod subject;

pub mod csr;
pub mod kind;

pub mod profile;

pub mod x509;

pub mod jwt;

pub mod issue;
pub mod schedule;

pub mod authority;
