//! The same requests to two servers: what SPIRE answered is on file, what ours answers must be
//! the same.
//!
//! `tests/differential/requests.txt` is the table ([`table`]), `answers.txt` what a real SPIRE
//! server answered to it ([`answers`]), `differences.txt` what may differ and why
//! ([`compare`]). Answers are kept in a normal form ([`normal`]): what differs between any two
//! runs (IDs, times, serials, keys) is replaced by the order of its first occurrence in a
//! section; everything else counts, which fields are there as well. `vane-differential` records
//! and compares by hand, a story compares in CI.

mod relaxed;

pub mod table;

mod inputs;
mod shapes;

pub mod answers;
pub mod normal;

pub mod method;

pub mod compare;
pub mod run;
