//! Random numbers from the kernel, which has them at once. aws-lc's own generator takes some 30 ms to begin
//! (`vane_chassis::entropy`), and opening a store needs it for nothing else.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// `N` random bytes, of which the kernel gives up to 256 at once (getrandom(2)).
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    if getrandom(&mut bytes, GetRandomFlags::empty())? == N {
        return Ok(bytes);
    }
    Err(io::Error::other("fewer than asked for"))
}
