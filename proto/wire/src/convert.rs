//! Between protobuf messages and [`vane_identity`] values, both ways.
//!
//! Reading is total: a message is a valid value or an error that says what is wrong with it,
//! in SPIRE's words where SPIRE has some; lists are counted before anything of them is kept.
//! The texts are the inner part (`invalid spiffe ID: …`); the API prefixes what it was doing
//! (`failed to convert entry: …`). Writing cannot fail.

pub mod claims;
pub mod id;
pub mod selector;
#[cfg(test)]
pub(crate) mod test_ca;

pub mod entry;
pub mod svid;

pub mod agent;
pub mod bundle;
