//! JWT-SVIDs of this node: one task owns them, readers look them up without a lock.
//!
//! A token is cached by the revision of its entry and the sorted audiences. It is served while
//! it is valid; one that was used is replaced in the background around half of its life, so
//! that who asks regularly never waits and an outage of the server is not noticed before a
//! token ends. Callers of one key share one call to the server. A token goes when its entry
//! changes or goes, and when its key is tainted or leaves the bundle.
//!
//! Everything is bounded: tokens by number and bytes, calls under way in all and per entry, new
//! tokens per customer and second.
//! Who is to go is the least recently used token of the entry that holds most, so that nobody
//! pushes out what others use. Entries whose tokens carry a `jti` are never cached: each of
//! those tokens is there once.

mod held;
mod key;
mod pace;

mod table;

mod owner;
mod reader;

pub use held::Held;
pub use key::{Audience, AudienceError};
pub use owner::{Deps, JwtCache};
pub use reader::{Refusal, Tokens, Wish};
pub use table::Bounds;

#[cfg(test)]
mod tests;
