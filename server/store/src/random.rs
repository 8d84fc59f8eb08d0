//! Random numbers from the kernel, which has them at once: aws-lc's own generator takes some 30 ms to begin
//! (`vane_chassis::entropy`), and opening a store waits for no other use of it.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Fills `bytes`, of which the kernel gives 256 whole (getrandom(2)).
pub(crate) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    if getrandom(&mut *bytes, GetRandomFlags::empty())? == bytes.len() {
        return Ok(());
    }
    Err(io::Error::other("fewer than asked for"))
}
