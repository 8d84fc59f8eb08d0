//! Accepts on a Unix socket for gRPC: an accept loop that cannot end by an error.
//!
//! Owns the socket file and the connections that have not yet shown the
//! HTTP/2 preface. Invariants: [`UnixListener::next`] yields connections until
//! `stop` is cancelled, never an error (out of descriptors is a pause of 50 ms
//! that is counted); no idle connection holds up another; a connection over a
//! limit is closed at accept and counted. Who may connect is the caller's
//! closure. It does not serve: server and agent wrap what it yields.
//! A successor may get the socket ([`UnixListener::handle`]); then this one
//! retires: it accepts no more, and yields who was accepted before.

mod socket_file;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::given::GivenUnix;
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

/// What is needed to go on with a socket elsewhere.
#[derive(Debug)]
pub struct Handle {
    /// The socket.
    pub fd: OwnedFd,
    /// Its path.
    pub path: PathBuf,
    kept: Arc<AtomicBool>,
}

impl Handle {
    /// Whether the file is left at the end, since it is somebody else's.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// Leaves the file in place at the end: a successor has taken the socket over.
    pub fn keep_file(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }
}

/// A connection that began with another preface than HTTP/2's.
#[derive(Debug)]
pub struct Other<T> {
    /// The connection, after its preface.
    pub stream: UnixStream,
    /// What the admission closure returned.
    pub guard: T,
}

/// The preface of another protocol, and who takes its connections.
struct Aside<T> {
    preface: [u8; PREFACE.len()],
    taker: mpsc::Sender<Other<T>>,
}

/// What a connection began with.
enum Begun<T> {
    Http2(Accepted<T>),
    Other(Other<T>),
}

type Admit<T> = Box<dyn Fn(&UnixStream) -> Result<T, Refusal> + Send + Sync>;

/// The accept loop; a [`Stream`] of [`Accepted`] that ends when `stop` is cancelled.
pub struct UnixListener<T> {
    socket: tokio::net::UnixListener,
    file: SocketFile,
    admit: Admit<T>,
    /// Admitted connections without a preface yet. No task each: 8,000 idle ones cost some memory only.
    waiting: FuturesUnordered<BoxFuture<'static, Option<Begun<T>>>>,
    aside: Option<Aside<T>>,
    /// Once cancelled, nothing more is accepted.
    retired: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Dropped with this.
    _gone: Option<mpsc::Sender<Infallible>>,
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
        Self::over(listener, file, Box::new(admit), stop)
    }

    /// Accepts on a socket that somebody else bound at `path`, as [`bind`](Self::bind) does.
    ///
    /// # Errors
    /// [`BindError::Listen`].
    pub fn adopt(
        given: GivenUnix,
        path: PathBuf,
        admit: impl Fn(&UnixStream) -> Result<T, Refusal> + Send + Sync + 'static,
        stop: CancellationToken,
    ) -> Result<Self, BindError> {
        let file = SocketFile::adopt(path, given.is_kept);
        Self::over(given.listener, file, Box::new(admit), stop)
    }

    fn over(
        listener: std::os::unix::net::UnixListener,
        file: SocketFile,
        admit: Admit<T>,
        stop: CancellationToken,
    ) -> Result<Self, BindError> {
        listener.set_nonblocking(true).map_err(BindError::Listen)?;
        Ok(Self {
            socket: tokio::net::UnixListener::from_std(listener).map_err(BindError::Listen)?,
            file,
            admit,
            waiting: FuturesUnordered::new(),
            aside: None,
            retired: None,
            _gone: None,
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

    /// What a successor needs to go on with the socket.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn handle(&self) -> io::Result<Handle> {
        Ok(Handle {
            fd: self.socket.as_fd().try_clone_to_owned()?,
            path: self.file.path().to_owned(),
            kept: self.file.kept(),
        })
    }

    /// Ends by itself once `retired` is cancelled and who was accepted before has been yielded:
    /// nobody who could connect is lost. `gone` is dropped then. Without it connections that have
    /// not sent a preface are closed at `stop`.
    #[must_use]
    pub fn retiring(mut self, retired: CancellationToken, gone: mpsc::Sender<Infallible>) -> Self {
        self.retired = Some(Box::pin(retired.cancelled_owned()));
        self._gone = Some(gone);
        self
    }

    /// Gives connections that begin with `preface` to `taker`; when it has no room they are closed.
    #[must_use]
    pub fn aside(mut self, preface: [u8; PREFACE.len()], taker: mpsc::Sender<Other<T>>) -> Self {
        self.aside = Some(Aside { preface, taker });
        self
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
                let aside = self.aside.as_ref().map(|aside| aside.preface);
                self.waiting
                    .push(Box::pin(with_preface(stream, guard, aside)));
            }
            Err(refusal) => {
                count(&self.counts.refused);
                tracing::debug!(path = %self.path().display(), reason = refusal.reason, "connection refused");
            }
        }
    }

    /// Whether nothing more is accepted.
    fn is_retired(&mut self, cx: &mut Context<'_>) -> bool {
        let retired = self.retired.as_mut();
        retired.is_some_and(|retired| retired.as_mut().poll(cx).is_ready())
    }

    fn give_aside(&self, other: Other<T>) {
        let given = self
            .aside
            .as_ref()
            .map(|aside| aside.taker.try_send(other).is_ok());
        if given != Some(true) {
            count(&self.counts.refused);
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
        let retired = self.is_retired(cx);
        // Bounded, so that those who wait have their turn however many connect.
        let most = if retired { 0 } else { ACCEPTS_IN_A_ROW };
        let accepts = (0..most).take_while(|_| self.poll_accept(cx).is_ready());
        if accepts.count() == ACCEPTS_IN_A_ROW {
            cx.waker().wake_by_ref();
        }
        while let Poll::Ready(Some(outcome)) = self.waiting.poll_next_unpin(cx) {
            match outcome {
                Some(Begun::Http2(accepted)) => return Poll::Ready(Some(accepted)),
                Some(Begun::Other(other)) => self.give_aside(other),
                None => count(&self.counts.no_preface),
            }
        }
        if retired && self.waiting.is_empty() {
            return Poll::Ready(None);
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
async fn with_preface<T>(
    stream: UnixStream,
    guard: T,
    aside: Option<[u8; PREFACE.len()]>,
) -> Option<Begun<T>> {
    let preface = timeout(PREFACE_TIMEOUT, read_preface(&stream, aside.as_ref()))
        .await
        .ok()?
        .ok()?;
    if preface != PREFACE {
        return Some(Begun::Other(Other { stream, guard }));
    }
    Some(Begun::Http2(Accepted {
        stream: AuthorityPatch::with_read(stream, preface),
        guard,
    }))
}

async fn read_preface(
    stream: &UnixStream,
    aside: Option<&[u8; PREFACE.len()]>,
) -> io::Result<Vec<u8>> {
    let (mut read, mut length) = ([0; PREFACE.len()], 0);
    while let Some(rest) = read.get_mut(length..).filter(|rest| !rest.is_empty()) {
        stream.readable().await?;
        length += match stream.try_read(rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        let read = read.get(..length).unwrap_or_default();
        if !PREFACE.starts_with(read) && !aside.is_some_and(|other| other.starts_with(read)) {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(read.to_vec())
}
