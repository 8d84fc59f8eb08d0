//! Connections as tonic takes them: a stream that knows over what it came.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt as _};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use vane_chassis::mtls;
use vane_chassis::unix_listener::{Refusal, UnixListener};

use crate::caller::Transport;

/// An accepted connection. Its [`Transport`] is in the extensions of its requests.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    transport: Transport,
    /// Its place in the limit of the listener.
    _place: Option<OwnedSemaphorePermit>,
}

/// What the admin socket's admission keeps of a connection.
#[derive(Debug)]
pub struct Admitted {
    transport: Transport,
    place: OwnedSemaphorePermit,
}

#[cfg(test)]
impl<S> Connection<S> {
    /// A connection without a socket.
    pub(super) fn in_memory(stream: S, transport: Transport) -> Self {
        Self {
            stream,
            transport,
            _place: None,
        }
    }
}

/// The connections of the TLS listener.
pub fn tls(
    incoming: mtls::Incoming,
) -> impl Stream<Item = Result<Connection<mtls::TlsStream>, Infallible>> {
    ReceiverStream::new(incoming).map(|stream| {
        Ok(Connection {
            transport: Transport::Tls(stream.peer().clone()),
            stream,
            _place: None,
        })
    })
}

/// The connections of an admin socket.
pub fn local(
    listener: UnixListener<Admitted>,
) -> impl Stream<Item = Result<Connection<impl AsyncRead + AsyncWrite + Unpin + Send>, Infallible>>
{
    listener.map(|accepted| {
        Ok(Connection {
            stream: accepted.stream,
            transport: accepted.guard.transport,
            _place: Some(accepted.guard.place),
        })
    })
}

/// Admits a connection to an admin socket while there are places: who may open the socket is
/// the file's business, so only the credentials are read.
///
/// # Errors
/// A [`Refusal`] when all places are taken or the kernel does not say who connects.
pub fn admit(
    places: &std::sync::Arc<tokio::sync::Semaphore>,
    stream: &UnixStream,
) -> Result<Admitted, Refusal> {
    let refusal = |reason| Refusal { reason };
    let place = std::sync::Arc::clone(places)
        .try_acquire_owned()
        .map_err(|_| refusal("too many connections"))?;
    let who = getsockopt(stream, PeerCredentials).map_err(|_| refusal("no credentials"))?;
    Ok(Admitted {
        transport: Transport::Local {
            uid: who.uid(),
            gid: who.gid(),
            pid: Some(who.pid()).filter(|pid| *pid > 0),
        },
        place,
    })
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Transport;

    fn connect_info(&self) -> Transport {
        self.transport.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
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
