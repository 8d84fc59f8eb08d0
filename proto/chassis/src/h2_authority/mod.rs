//! Lets foreign gRPC clients in on a Unix socket: makes their `:authority` one that h2 takes.
//!
//! gRPC C-core (Python, C++, Ruby, PHP) sends the percent-encoded socket path
//! as `:authority`, grpc-java the raw path; h2 parses it as a URI authority
//! and resets the call before any handler runs. [`AuthorityPatch`] wraps the
//! accepted stream and replaces `%` and `/` in that one header by `-`.
//!
//! Invariant: as many bytes come out as went in, all equal but these octets,
//! so frames, lengths and both HPACK tables stay in step. Nothing is hidden
//! from h2: what is malformed is passed on as it came and refused there, and
//! what this module will not hold (a block > 64 KiB or > 16 frames) ends the
//! connection. Nobody may decide anything by `:authority` on such a socket.

mod block;
mod frames;
mod huffman;

#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use block::patch;
use frames::Scanner;
pub use frames::{MAX_BLOCK, MAX_BLOCK_FRAMES, PREFACE, Refused};
pub use huffman::Malformed;

/// Octets read at once while a header block is held.
const STEP: usize = 2048;

/// A stream whose reads have `:authority` patched; writes pass as they are.
///
/// Reads end with [`Refused`] inside an [`io::Error`] of kind `InvalidData`
/// when the client does not begin with the HTTP/2 preface, or sends a header
/// block over [`MAX_BLOCK`] or [`MAX_BLOCK_FRAMES`].
#[derive(Debug)]
pub struct AuthorityPatch<S> {
    inner: S,
    scanner: Scanner,
    /// Read from `inner` and not handed out; empty (and without memory) but inside a header block.
    held: Vec<u8>,
    /// So many octets at the front of `held` are scanned and may go out.
    passed: usize,
    /// `inner` has ended; what is held goes out as it is.
    ended: bool,
}

impl<S> AuthorityPatch<S> {
    /// Wraps a stream of which nothing was read.
    pub fn new(inner: S) -> Self {
        Self::with_read(inner, Vec::new())
    }

    /// Wraps a stream of which `read` was already read.
    pub fn with_read(inner: S, read: Vec<u8>) -> Self {
        Self {
            inner,
            scanner: Scanner::new(),
            held: read,
            passed: 0,
            ended: false,
        }
    }

    /// The wrapped stream.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Whether the headers of a first request have come.
    pub fn has_asked(&self) -> bool {
        self.scanner.has_asked()
    }

    /// Hands out what may pass of `held`; true when there was something.
    fn hand_out(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let now = self.passed.min(buf.remaining());
        let Some(ready) = self.held.get(..now).filter(|ready| !ready.is_empty()) else {
            return false;
        };
        buf.put_slice(ready);
        self.held.drain(..now);
        self.passed -= now;
        if self.held.is_empty() {
            self.held = Vec::new();
        }
        true
    }

    /// Scans what is held and not yet passed.
    fn scan_held(&mut self) -> io::Result<()> {
        if self.passed == 0 && !self.held.is_empty() {
            self.passed = self.scanner.scan(&mut self.held).map_err(refused)?;
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AuthorityPatch<S> {
    /// Reads straight into the caller's buffer and takes back only what must be held.
    fn poll_direct(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let new = buf.filled_mut().get_mut(before..).unwrap_or_default();
        self.ended = new.is_empty();
        let passed = self.scanner.scan(new).map_err(refused)?;
        self.held
            .extend_from_slice(new.get(passed..).unwrap_or_default());
        buf.set_filled(before + passed);
        Poll::Ready(Ok(()))
    }

    /// Reads behind what is held.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut step = [0; STEP];
        let mut buf = ReadBuf::new(&mut step);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
        if buf.filled().is_empty() {
            self.ended = true;
            self.passed = self.held.len();
        }
        self.held.extend_from_slice(buf.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityPatch<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            self.scan_held()?;
            if self.hand_out(buf) || self.ended || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if self.held.is_empty() {
                ready!(self.poll_direct(cx, buf))?;
            } else {
                ready!(self.poll_more(cx))?;
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthorityPatch<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

fn refused(refused: Refused) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, refused)
}
