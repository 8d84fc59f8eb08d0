//! Accepts on a Unix socket for gRPC: an accept loop that cannot end by an error.
//!
//! Owns the socket file and the connections that have not yet shown the
//! HTTP/2 preface. Invariants: [`UnixListener::next`] yields connections until
//! `stop` is cancelled, never an error (out of descriptors is a pause of 50 ms
//! that is counted); no idle connection holds up another; a connection over a
//! limit is closed at accept and counted. Who may connect is the caller's
//! closure. It does not serve: server and agent wrap what it yields.

mod socket_file;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::h2_authority::{AuthorityPatch, PREFACE};

use socket_file::SocketFile;
pub use socket_file::{BindError, MAX_PATH, Socket};

/// Within so long a client must have sent the HTTP/2 preface.
pub const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// So long nothing is accepted after `accept` failed (out of descriptors or memory).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts between two looks at the connections that wait.
const ACCEPTS_IN_A_ROW: usize = 32;

/// A connection that has sent the preface.
#[derive(Debug)]
pub struct Accepted<T> {
    /// The connection, preface included.
    pub stream: AuthorityPatch<UnixStream>,
    /// What the admission closure returned: holds the connection's place in the limits.
    pub guard: T,
}

/// The admission closure's no: the connection is closed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// One of a few constant texts, for the log.
    pub reason: &'static str,
}

/// What happened to connections so far. Read by whoever publishes metrics.
#[derive(Debug, Default)]
pub struct Counts {
    /// Admitted.
    pub admitted: AtomicU64,
    /// Refused by the admission closure.
    pub refused: AtomicU64,
    /// Closed because the preface was wrong, late or never sent.
    pub no_preface: AtomicU64,
    /// Failures of `accept`.
    pub accept_errors: AtomicU64,
}

type Admit<T> = Box<dyn Fn(&UnixStream) -> Result<T, Refusal> + Send + Sync>;

/// The accept loop; a [`Stream`] of [`Accepted`] that ends when `stop` is cancelled.
pub struct UnixListener<T> {
    socket: tokio::net::UnixListener,
    file: SocketFile,
    admit: Admit<T>,
    /// Admitted connections without a preface yet. No task each: 8,000 idle ones cost some memory only.
    waiting: FuturesUnordered<BoxFuture<'static, Option<Accepted<T>>>>,
    /// Until then nothing is accepted.
    pause: Option<Pin<Box<Sleep>>>,
    counts: Arc<Counts>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<T: Send + 'static> UnixListener<T> {
    /// Binds `socket`, replacing a socket that nobody answers. `admit` decides
    /// each connection at accept; it must not block.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(
        socket: &Socket,
        admit: impl Fn(&UnixStream) -> Result<T, Refusal> + Send + Sync + 'static,
        stop: CancellationToken,
    ) -> Result<Self, BindError> {
        let (listener, file) = SocketFile::bind(socket)?;
        listener.set_nonblocking(true).map_err(BindError::Listen)?;
        Ok(Self {
            socket: tokio::net::UnixListener::from_std(listener).map_err(BindError::Listen)?,
            file,
            admit: Box::new(admit),
            waiting: FuturesUnordered::new(),
            pause: None,
            counts: Arc::default(),
            stop: Box::pin(stop.cancelled_owned()),
        })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The counters, which live as long as anybody holds them.
    pub fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    /// Leaves the socket file in place when this is dropped: a successor has taken the socket over.
    pub fn keep_file(&mut self) {
        self.file.keep();
    }

    /// The next connection; None after `stop`. Cancel safe.
    pub async fn next(&mut self) -> Option<Accepted<T>> {
        std::future::poll_fn(|cx| self.poll_next_unpin(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(cx));
        }
        match std::task::ready!(self.socket.poll_accept(cx)) {
            Ok((stream, _)) => {
                if self.pause.take().is_some() {
                    tracing::info!(path = %self.path().display(), "accepting connections again");
                }
                self.admit(stream);
            }
            Err(error) => self.failed(&error),
        }
        Poll::Ready(())
    }

    fn admit(&mut self, stream: UnixStream) {
        match (self.admit)(&stream) {
            Ok(guard) => {
                count(&self.counts.admitted);
                self.waiting.push(Box::pin(with_preface(stream, guard)));
            }
            Err(refusal) => {
                count(&self.counts.refused);
                tracing::debug!(path = %self.path().display(), reason = refusal.reason, "connection refused");
            }
        }
    }

    /// Counts each failure, but logs only the first of a row.
    fn failed(&mut self, error: &io::Error) {
        count(&self.counts.accept_errors);
        if self.pause.is_none() {
            tracing::error!(path = %self.path().display(), %error, "cannot accept connections for now");
        }
        self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
    }
}

impl<T: Send + 'static> Stream for UnixListener<T> {
    type Item = Accepted<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Accepted<T>>> {
        if self.stop.as_mut().poll(cx).is_ready() {
            self.waiting.clear();
            return Poll::Ready(None);
        }
        // Bounded, so that those who wait have their turn however many connect.
        let accepts = (0..ACCEPTS_IN_A_ROW).take_while(|_| self.poll_accept(cx).is_ready());
        if accepts.count() == ACCEPTS_IN_A_ROW {
            cx.waker().wake_by_ref();
        }
        while let Poll::Ready(Some(outcome)) = self.waiting.poll_next_unpin(cx) {
            match outcome {
                Some(accepted) => return Poll::Ready(Some(accepted)),
                None => count(&self.counts.no_preface),
            }
        }
        Poll::Pending
    }
}

impl<T> Unpin for UnixListener<T> {}

impl<T> fmt::Debug for UnixListener<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnixListener")
            .field("file", &self.file)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Waits for the preface; None when it is wrong, late or never comes.
async fn with_preface<T>(stream: UnixStream, guard: T) -> Option<Accepted<T>> {
    let preface = timeout(PREFACE_TIMEOUT, read_preface(&stream))
        .await
        .ok()?
        .ok()?;
    Some(Accepted {
        stream: AuthorityPatch::with_read(stream, preface),
        guard,
    })
}

async fn read_preface(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let (mut read, mut length) = ([0; PREFACE.len()], 0);
    while let Some(rest) = read.get_mut(length..).filter(|rest| !rest.is_empty()) {
        stream.readable().await?;
        length += match stream.try_read(rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if !PREFACE.starts_with(read.get(..length).unwrap_or_default()) {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(read.to_vec())
}
