//! The stories: each module is one, read from top to bottom.

mod attest;
mod bad_input;
mod compat;
mod differential;
mod federate;
mod garbage;
mod health;
mod issue;
mod jwt;
mod kubernetes;
mod limits;
mod mistakes;
mod outage;
mod pods;
mod restart;
mod rotate;
mod store_faults;
mod takeover;
mod tokens;
