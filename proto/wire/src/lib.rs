//! The wire: every protobuf message and gRPC service that Vane speaks, and the one place
//! where a message becomes a [`vane_identity`] value or bytes on disk.
//!
//! The `.proto` files under `protos/` are the only source; build.rs compiles them. Modules
//! are named as the protobuf packages: [`spire::api::types`], [`spire::api::server::entry::v1`],
//! [`vane::sync::v1`]; the Workload API, which has no package, is [`workload`]. Keys and tokens
//! are never `Bytes` and never in `Debug`.

mod generated;

mod redacted;

pub mod descriptor;
pub mod limits;
pub mod record;

pub mod convert;

pub mod status;

pub mod json;

pub use descriptor::{FILE_DESCRIPTOR_SET, descriptor_pool};
pub use generated::{csi, envoy, google, pluginregistration, runtime, spire, vane, workload};
