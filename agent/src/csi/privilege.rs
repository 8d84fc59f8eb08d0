//! What the driver's process may do: mount, and nothing else that root can.
//!
//! Kubernetes lets only privileged containers mount for the host (`mountPropagation:
//! Bidirectional`), and those have every capability. All but CAP_SYS_ADMIN are given up before
//! anything is read from anybody. Capabilities belong to threads: this has to run before the
//! second one starts.

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Why the process does not have what it needs, and only that.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivilegeError {
    /// It cannot mount.
    #[error(
        "no CAP_SYS_ADMIN, so nothing can be mounted: the container needs securityContext.privileged: true"
    )]
    NoMounting,
    /// The kernel refused.
    #[error("cannot give up capabilities: {0}")]
    System(#[from] io::Error),
}

impl From<Errno> for PrivilegeError {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}

/// Gives up every capability but CAP_SYS_ADMIN, for good.
///
/// # Errors
/// [`PrivilegeError`].
pub(crate) fn keep_mounting_only() -> Result<(), PrivilegeError> {
    let held = capabilities(None)?.permitted;
    let kept = CapabilitySet::SYS_ADMIN;
    if !held.contains(kept) {
        return Err(PrivilegeError::NoMounting);
    }
    set_no_new_privs(true)?;
    // Who may not change the bounding set gains nothing by it either: there are no new privileges.
    if held.contains(CapabilitySet::SETPCAP) {
        // By number, so that those are given up, too, that have no name here yet.
        let all = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
        all.filter(|one| *one != kept).try_for_each(forget)?;
    }
    clear_ambient_capability_set()?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

fn forget(capability: CapabilitySet) -> Result<(), Errno> {
    match remove_capability_from_bounding_set(capability) {
        // A kernel that does not know it.
        Err(Errno::INVAL) => Ok(()),
        done => done,
    }
}
