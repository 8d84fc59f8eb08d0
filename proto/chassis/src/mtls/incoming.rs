//! TLS connections that others make: an accept loop that does not end.
//!
//! gRPC servers stop when their listener reports an error, and `accept`
//! reports one for a lack of descriptors that passes. So errors stay here:
//! what comes out of [`Incoming`] are established connections only.
//!
//! Handshakes run side by side, at most [`Limits::handshakes`] at once and
//! each at most [`Limits::deadline`] long; connections beyond wait in the
//! kernel. The connections themselves are not counted here.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, server};
use tokio_util::sync::CancellationToken;

use super::peer::{Peer, PeerSvid};
use crate::tasks::TaskSet;

/// How long to wait after `accept` failed.
const PAUSE: Duration = Duration::from_millis(50);
/// Connections that the kernel keeps for us; the system's own limit may be less.
const BACKLOG: u32 = 4096;
/// Established connections that the server above has not taken yet.
const READY: usize = 64;

/// Bounds of the accept loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Handshakes at once.
    pub handshakes: usize,
    /// The longest handshake.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: 1024,
            deadline: Duration::from_secs(5),
        }
    }
}

/// A bound TCP listener for TLS.
#[derive(Debug)]
pub struct TlsListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl TlsListener {
    /// Binds and listens; port 0 takes a free one.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// As [`bind`](Self::bind), on a socket that somebody else opened.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn over(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The loop to spawn, and what comes out of it.
    #[must_use]
    pub fn serve(self, config: Arc<ServerConfig>, limits: Limits) -> (Acceptor, Incoming) {
        let (ready, incoming) = mpsc::channel(READY);
        let handshakes = Arc::new(Semaphore::new(limits.handshakes));
        let handshaker = Handshaker {
            acceptor: config.into(),
            deadline: limits.deadline,
            ready,
        };
        let acceptor = Acceptor {
            listener: self.listener,
            handshakes,
            handshaker,
        };
        (acceptor, incoming)
    }
}

/// Established connections. Ends when the [`Acceptor`] has stopped.
pub type Incoming = mpsc::Receiver<TlsStream>;

/// The accept loop.
pub struct Acceptor {
    listener: TcpListener,
    handshakes: Arc<Semaphore>,
    handshaker: Handshaker,
}

impl Acceptor {
    /// Accepts until `stop` is cancelled or [`Incoming`] is dropped.
    ///
    /// # Errors
    /// None.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let Self {
            listener,
            handshakes,
            handshaker,
        } = self;
        let running = TaskSet::new("tls handshake");
        let accept = async {
            // The semaphore is never closed: this loop does not end here.
            while let Ok(slot) = Arc::clone(&handshakes).acquire_owned().await {
                let (tcp, address) = persistently(|| listener.accept()).await;
                running.spawn(handshaker.clone().run(tcp, address, slot));
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = handshaker.ready.closed() => {}
            () = accept => {}
        }
        Ok(())
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

/// Tries until it succeeds, with a pause after each failure. The first
/// failure in a row is logged.
async fn persistently<T, F>(mut accept: impl FnMut() -> F) -> T
where
    F: Future<Output = io::Result<T>>,
{
    let mut failed = false;
    loop {
        match accept().await {
            Ok(accepted) => return accepted,
            Err(error) if failed => tracing::trace!(%error, "accept failed again"),
            Err(error) => tracing::warn!(%error, "accept failed, trying again"),
        }
        failed = true;
        tokio::time::sleep(PAUSE).await;
    }
}

#[derive(Clone)]
struct Handshaker {
    acceptor: TlsAcceptor,
    deadline: Duration,
    ready: mpsc::Sender<TlsStream>,
}

impl Handshaker {
    async fn run(self, tcp: TcpStream, address: SocketAddr, _slot: OwnedSemaphorePermit) {
        // Boxed: the state of a handshake is large and most of a task's life
        // is spent in it.
        let handshake = Box::pin(establish(self.acceptor, tcp, address));
        match tokio::time::timeout(self.deadline, handshake).await {
            // Nobody takes it any more when the server above has stopped.
            Ok(Ok(stream)) => drop(self.ready.send(stream).await),
            Ok(Err(error)) => tracing::debug!(peer = %address, %error, "handshake failed"),
            Err(_) => tracing::debug!(peer = %address, "handshake took too long"),
        }
    }
}

async fn establish(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    address: SocketAddr,
) -> io::Result<TlsStream> {
    tcp.set_nodelay(true)?;
    let inner = acceptor.accept(tcp).await?;
    let svid = PeerSvid::from_chain(inner.get_ref().1.peer_certificates())
        .map_err(io::Error::other)?
        .map(Arc::new);
    let peer = Peer { address, svid };
    Ok(TlsStream { inner, peer })
}

/// An established connection whose peer is known.
#[derive(Debug)]
pub struct TlsStream {
    inner: server::TlsStream<TcpStream>,
    peer: Peer,
}

impl TlsStream {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn running_out_of_descriptors_is_waited_out() {
        let emfile = || Err(io::Error::from_raw_os_error(24));
        let mut answers = VecDeque::from([emfile(), emfile(), emfile(), Ok(7)]);
        let started = tokio::time::Instant::now();
        let accepted = persistently(|| {
            let answer = answers.pop_front().unwrap();
            async move { answer }
        })
        .await;
        assert_eq!(accepted, 7);
        assert_eq!(started.elapsed(), 3 * PAUSE);
    }
}
