//! The values of a SPIFFE trust domain: identities, selectors, entries, bundles,
//! X.509-SVIDs, JWT-SVIDs, keys and lifetimes.
//!
//! Everything here is valid by construction and pure: no I/O, no tasks, no clock
//! (`now` is an argument). Texts of the standard are cited where a rule is applied.

pub mod id;
pub mod key;
pub mod lifetime;
mod spki;

pub mod selector;

pub mod entry;
pub mod x509_svid;

pub mod bundle;

pub mod chain;

pub mod jwks;
pub mod jwt_svid;

pub mod digest;
