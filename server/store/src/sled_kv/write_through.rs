//! sled's log, written through to the disk.
//!
//! sled takes for durable what the kernel has, and uses the room of what that replaced again. Were
//! the power to fail between its writes and our `fdatasync`, the new place could be lost and the
//! old one be written over, for changes that the journal forgot long ago. So every write to its
//! file is a synchronous one (the inode's `S` flag, chattr(1)): they are few, large, and made by
//! sled's threads, which nobody waits for.

use std::fs::File;
use std::io;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

/// Makes writes to `log` synchronous, whoever makes them.
///
/// # Errors
/// The file system cannot (tmpfs, some network and stacked ones).
pub(super) fn enable(log: &File) -> io::Result<()> {
    let flags = ioctl_getflags(log)?;
    if !flags.contains(IFlags::SYNC) {
        ioctl_setflags(log, flags | IFlags::SYNC)?;
    }
    Ok(())
}
