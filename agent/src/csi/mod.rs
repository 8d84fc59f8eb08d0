//! `vane-agent csi`: a CSI driver that gives pods the folder with the agent's public socket, so
//! that they need no hostPath. Speaks as `csi.spiffe.io` does: ephemeral inline volumes, read
//! only; the same checks, codes and texts. A process of its own beside the agent.
//!
//! Invariants: what a pod gets holds sockets that everybody may use and nothing else; a mount is
//! made and undone only below the kubelet's folder of pods, through no symbolic link; it is a
//! clone of a read-only mount, and so read-only wherever it appears. What is published is known
//! from the mounts themselves: there is no state, and a restart loses nothing.
//!
//! It does not attest: who connects through the folder is told by the agent as everybody else.
//! Container Storage Interface 1.x; kubelet plugin registration v1.

mod options;
mod privilege;
mod target;

mod folder;
mod mountinfo;

mod volumes;

mod request;

mod service;

mod serve;

pub(crate) use options::Options;
pub(crate) use privilege::keep_mounting_only;
pub(crate) use serve::{Ready, run};
