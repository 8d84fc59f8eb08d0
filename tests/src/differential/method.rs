//! What the table's `Service/Method` means.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MessageDescriptor, MethodDescriptor};
use vane_wire::descriptor_pool;

/// A method as it is called.
pub struct Method {
    /// `/package.Service/Method`.
    pub path: String,
    /// Its messages; none when nobody knows it.
    descriptor: Option<MethodDescriptor>,
}

/// The health service is not of the wire crate.
static HEALTH: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(tonic_health::pb::FILE_DESCRIPTOR_SET).expect("descriptors of health")
});

impl Method {
    /// Finds `Service/Method`: of the server's packages when it is named without one.
    pub fn find(name: &str) -> Self {
        let (service, method) = name.split_once('/').expect("Service/Method");
        let pools = [descriptor_pool(), &*HEALTH];
        let mut services = pools.into_iter().flat_map(DescriptorPool::services);
        let found = services.find(|one| {
            one.full_name() == service
                || one.name() == service && one.full_name().starts_with("spire.api.server.")
        });
        let full = found.as_ref().map_or(service, |one| one.full_name());
        Self {
            path: format!("/{full}/{method}"),
            descriptor: found
                .as_ref()
                .and_then(|one| one.methods().find(|one| one.name() == method)),
        }
    }

    /// What it takes.
    pub fn input(&self) -> Option<MessageDescriptor> {
        Some(self.descriptor.as_ref()?.input())
    }

    /// What it answers.
    pub fn output(&self) -> Option<MessageDescriptor> {
        Some(self.descriptor.as_ref()?.output())
    }

    /// Whether the answer does not end by itself.
    pub fn is_watch(&self) -> bool {
        self.path.ends_with("/Watch")
    }
}
