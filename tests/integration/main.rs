//! The stories: each module is one, read from top to bottom.

mod issue;
mod restart;
mod rotate;
