//! The tables: what each keeps, under which keys, and which writes belong
//! together.
//!
//! | prefix | table | key | value |
//! |---|---|---|---|
//! | `e/` | [`entries`] | entry ID | the entry |
//! | `u/` | [`entries`] | SHA-256 of SPIFFE ID, parent, selectors | the entry's ID |
//! | `a/` | [`agents`] | path of the agent's ID | the agent |
//! | `b/` | [`bundles`] | trust domain | the bundle |
//! | `j/` | [`join_tokens`] | SHA-256 of the token | the token's record |
//! | `f/` | [`federation`] | marks | what entries and bundles compare |
//! | `c/` | [`authorities`] | authority ID | the authority |
//!
//! A table is functions over a [`crate::kv::Kv`]. Those that return a
//! [`crate::kv::Txn`] are pure: joined with [`crate::kv::Txn::and`] they make
//! one commit over several tables. Not here: indexes and rules of the domain.

pub mod row;

pub mod agents;
pub mod authorities;
pub mod bundles;
pub mod entries;
pub mod federation;
pub mod join_tokens;
pub mod pending;

#[cfg(test)]
mod tests;
