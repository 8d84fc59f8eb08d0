//! A small HTTP/1.1 client for Kubernetes: its API server and its kubelets.
//!
//! [`Client`] asks one server: JSON in and out, every call with a deadline and a bound on the
//! answer, connections kept and used again. [`Access`] says where the server is and what both
//! sides show each other; it comes from a pod's own files, a kubeconfig or the caller. Files with
//! tokens, certificates and CAs are read anew whenever they are used, because kubelet rotates them.
//!
//! Invariant: nothing is sent to a server whose certificate was not verified, unless the access
//! says [`Trust::Nothing`] by name; no token or key is ever in an error or a log.
//!
//! Types of Kubernetes objects are the callers' own: serde structs with the fields that they
//! need. Redirects are not followed. TLS 1.2 is allowed here and only here, for old clusters.

mod access;
mod error;
mod path;
mod yaml;

mod kubeconfig;
mod tls;

mod connection;

mod client;

mod watch;

#[cfg(any(test, feature = "testing"))]
pub mod double;

pub use access::{Access, Credentials, Endpoint, Name, Pem, Token, Trust};
pub use client::{Bounds, Client};
pub use error::{AccessError, Error, Status};
pub use path::Path;
pub use watch::{Event, Watch};

#[cfg(test)]
mod tests;
