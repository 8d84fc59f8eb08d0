//! Whether what is mounted here appears on the host, from `/proc/self/mountinfo` (proc(5)).
//!
//! Without `mountPropagation: Bidirectional` every call would succeed and every pod would find
//! an empty folder; that is refused at the start.

use std::io;

use super::folder::look;
use super::target::Pods;

/// Why mounts would stay here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PropagationError {
    /// They would not appear on the host.
    #[error(
        "what is mounted below {0} here does not appear on the host: give the volumeMount mountPropagation: Bidirectional"
    )]
    Private(String),
    /// It could not be told.
    #[error("cannot tell how {0} is mounted: {1}")]
    System(String, #[source] io::Error),
}

/// Checks that mounts below the folder of pods propagate.
///
/// # Errors
/// [`PropagationError`].
pub(crate) fn check_shared(pods: &Pods) -> Result<(), PropagationError> {
    let path = || pods.path().display().to_string();
    let failed = |error: io::Error| PropagationError::System(path(), error);
    let seen = look(pods.fd()).map_err(|errno| failed(errno.into()))?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
    if is_shared(&table, seen.mount_id) {
        return Ok(());
    }
    Err(PropagationError::Private(path()))
}

/// Whether the mount with this number is shared with a peer group.
fn is_shared(table: &str, mount_id: u64) -> bool {
    let of_mount = |line: &&str| {
        let first = line.split(' ').next();
        first.and_then(|id| id.parse().ok()) == Some(mount_id)
    };
    let mount = table.lines().find(of_mount);
    // Six fields, then optional ones up to a dash.
    let mut options = mount
        .into_iter()
        .flat_map(|line| line.split(' ').skip(6).take_while(|field| *field != "-"));
    options.any(|field| field.starts_with("shared:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
36 22 0:32 / /var/lib/kubelet/pods rw shared:9 master:1 - tmpfs shared:7 rw
37 22 0:32 / /private rw - tmpfs shared:7 rw
38 22 0:32 /shared:1 /slave rw master:1 - tmpfs tmpfs rw
";

    #[test]
    fn only_a_shared_mount_propagates() {
        assert!(is_shared(TABLE, 22));
        assert!(is_shared(TABLE, 36), "shared and a slave");
        assert!(!is_shared(TABLE, 37), "a source named like the option");
        assert!(!is_shared(TABLE, 38), "a slave only receives");
        assert!(!is_shared(TABLE, 3), "no such mount");
    }
}
