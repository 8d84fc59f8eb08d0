//! A connection of the public socket and the process that made it.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::transport::server::Connected;
use vane_chassis::h2_authority::AuthorityPatch;
use vane_chassis::unix_listener::{Accepted, Refusal};

use super::end::End;
use crate::counters::Refused;
use crate::limits::{ConnectionGuard, Limits, StreamGuard};
use crate::peer::{PeerPidfd, PeerProcess, ProcessFacts};

/// The process that connected, as it was then. A descriptor that it passed on speaks for it
/// while it lives unchanged (P7).
#[derive(Debug)]
pub(crate) struct Connector {
    /// The process.
    pub(crate) peer: PeerProcess,
    /// What it was when it connected.
    pub(crate) facts: ProcessFacts,
    /// Counts the connection and its streams.
    pub(crate) guard: ConnectionGuard,
}

impl Connector {
    /// Checks that the process is still what connected (P7).
    pub(crate) fn recheck(&self) -> Result<(), End> {
        self.peer.recheck(&self.facts).map_err(|difference| {
            End::changed(format!(
                "the process is no longer what connected: {difference}"
            ))
        })
    }

    /// Takes a place for a stream or a call of this connection.
    pub(crate) fn place(&self) -> Result<StreamGuard, End> {
        self.guard.stream().map_err(|over| End {
            reason: Refused::Limit,
            status: Status::resource_exhausted(over.reason()),
        })
    }
}

/// Admits a connection: its process is known and under its limits.
pub(crate) fn admit(
    stream: &UnixStream,
    limits: &Limits,
    mode: PeerPidfd,
) -> Result<Arc<Connector>, Refusal> {
    let unknown = |_| Refusal {
        reason: "the process cannot be told",
    };
    let peer = PeerProcess::from_socket(stream, mode).map_err(unknown)?;
    let facts = peer.attest_facts().map_err(unknown)?;
    let guard = limits.connect(peer.key(), &facts).map_err(|over| Refusal {
        reason: over.reason(),
    })?;
    Ok(Arc::new(Connector { peer, facts, guard }))
}

/// A connection as the gRPC server takes it; its calls see what it was admitted as.
pub(crate) struct Connection<T = Arc<Connector>> {
    stream: AuthorityPatch<UnixStream>,
    admitted: T,
    /// Until the first request, of one that is watched.
    silent: Option<oneshot::Sender<Infallible>>,
}

impl<T> From<Accepted<T>> for Connection<T> {
    fn from(accepted: Accepted<T>) -> Self {
        Self {
            stream: accepted.stream,
            admitted: accepted.guard,
            silent: None,
        }
    }
}

impl<T> Connection<T> {
    /// With a receiver that ends at the first request, or with the connection.
    pub(crate) fn watched(accepted: Accepted<T>) -> (Self, oneshot::Receiver<Infallible>) {
        let (silent, asks) = oneshot::channel();
        let connection = Self {
            silent: Some(silent),
            ..Self::from(accepted)
        };
        (connection, asks)
    }
}

impl<T: Clone + Send + Sync + 'static> Connected for Connection<T> {
    type ConnectInfo = T;

    fn connect_info(&self) -> T {
        self.admitted.clone()
    }
}

impl<T: Unpin> AsyncRead for Connection<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.silent.is_some() && self.stream.has_asked() {
            self.silent = None;
        }
        read
    }
}

impl<T: Unpin> AsyncWrite for Connection<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
