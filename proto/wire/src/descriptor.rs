//! The descriptors of everything that travels, for reflection, JSON and tests that walk
//! every method and field. The records of `vane.store` are not among them.

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

/// An encoded `google.protobuf.FileDescriptorSet` with its imports.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/wire.bin"));

/// The same, decoded once per process.
#[must_use]
pub fn descriptor_pool() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        #[expect(
            clippy::expect_used,
            reason = "the bytes are a constant of the build, decoded by a test"
        )]
        DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("descriptor set of this build")
    });
    &POOL
}

#[cfg(test)]
mod tests;
