//! The client's side of the APIs: channels, the address of the Workload API, and its stream
//! of X.509 contexts.

pub mod endpoint;

pub mod channel;

pub mod workload;
