//! The client's side of the APIs: channels, and the address of the Workload API.

pub mod endpoint;

pub mod channel;
