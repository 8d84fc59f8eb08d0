//! Sizes that both ends of a connection keep to. Limits of single fields stand beside their
//! converters.

/// The most bytes of a gRPC message, in and out (gRPC's default).
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// The most bytes of a page of a list that we ask for ourselves.
pub const MAX_PAGE_BYTES: usize = 1024 * 1024;

/// The most bytes of one chunk of `vane.sync.v1`.
pub const MAX_SYNC_CHUNK_BYTES: usize = 64 * 1024;
