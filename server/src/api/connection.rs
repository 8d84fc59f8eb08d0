//! Connections as tonic takes them: a stream that knows over what it came.

use std::convert::Infallible;
use std::future::{Future as _, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use vane_chassis::metrics::Metrics;
use vane_chassis::mtls;
use vane_chassis::unix_listener::{Refusal, UnixListener};

use crate::caller::Transport;

/// Within so long a client must have sent what begins an HTTP/2 connection.
const PREFACE_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of the preface (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;

/// An accepted connection. Its [`Transport`] is in the extensions of its requests.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    transport: Transport,
    /// Its place in the limit of the listener.
    _place: Option<OwnedSemaphorePermit>,
    opening: Option<Opening>,
}

/// A connection that has not shown yet that it means HTTP/2.
#[derive(Debug)]
struct Opening {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

/// How many connections a listener serves at once; one more is closed at accept.
#[derive(Debug, Clone)]
pub struct Places {
    free: Arc<Semaphore>,
    all: usize,
}

/// How many places are taken, for Prometheus.
#[derive(Debug)]
struct Taken(Places);

impl Collector for Taken {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let Self(places) = self;
        for (name, help, value) in [
            ("connections", "Open connections over TLS.", places.taken()),
            ("connections_allowed", "The most of them.", places.all),
        ] {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode_gauge(&value)?;
        }
        Ok(())
    }
}

impl Places {
    /// Room for `count` connections.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let all = count.min(Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(all)),
            all,
        }
    }

    fn taken(&self) -> usize {
        self.all.saturating_sub(self.free.available_permits())
    }

    /// Shows in `metrics` how many are taken.
    pub fn register(&self, metrics: &Metrics) {
        let taken = Box::new(Taken(self.clone()));
        metrics.register(|registry| registry.register_collector(taken));
    }

    fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }

    /// Admits a connection to an admin socket: who may open the socket is the file's business,
    /// so only the credentials are read.
    ///
    /// # Errors
    /// A [`Refusal`] when all places are taken or the kernel does not say who connects.
    pub fn admit(&self, stream: &UnixStream) -> Result<Admitted, Refusal> {
        let refusal = |reason| Refusal { reason };
        let place = self.take();
        let place = place.ok_or(refusal("too many connections"))?;
        let who = getsockopt(stream, PeerCredentials);
        let who = who.map_err(|_| refusal("no credentials"))?;
        Ok(Admitted {
            transport: Transport::Local {
                uid: who.uid(),
                gid: who.gid(),
                pid: Some(who.pid()).filter(|pid| *pid > 0),
            },
            place,
        })
    }
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
            opening: Some(Opening::new()),
        }
    }
}

/// The connections of the TLS listener.
pub fn tls(
    incoming: mtls::Incoming,
    places: Places,
) -> impl Stream<Item = Result<Connection<mtls::TlsStream>, Infallible>> {
    ReceiverStream::new(incoming).filter_map(move |stream| {
        let place = places.take();
        if place.is_none() {
            tracing::debug!(peer = %stream.peer().address, "too many connections");
        }
        ready(place.map(|place| {
            Ok(Connection {
                transport: Transport::Tls(stream.peer().clone()),
                stream,
                _place: Some(place),
                opening: Some(Opening::new()),
            })
        }))
    })
}

/// The connections of an admin socket; they have sent the preface already.
pub fn local(
    listener: UnixListener<Admitted>,
) -> impl Stream<Item = Result<Connection<impl AsyncRead + AsyncWrite + Unpin + Send>, Infallible>>
{
    listener.map(|accepted| {
        Ok(Connection {
            stream: accepted.stream,
            transport: accepted.guard.transport,
            _place: Some(accepted.guard.place),
            opening: None,
        })
    })
}

impl Opening {
    fn new() -> Self {
        Self {
            missing: PREFACE_BYTES,
            deadline: Box::pin(sleep(PREFACE_WITHIN)),
        }
    }
}

impl<S: AsyncRead + Unpin> Connection<S> {
    /// Counts what was read of the preface, or ends a connection that does not send it.
    fn poll_opening(&mut self, read: usize, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(opening) = &mut self.opening else {
            return Poll::Pending;
        };
        opening.missing = opening.missing.saturating_sub(read);
        if opening.missing == 0 {
            self.opening = None;
            return Poll::Pending;
        }
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 preface came");
        opening.deadline.as_mut().poll(cx).map(|()| late())
    }
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
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        match self.poll_opening(read, cx) {
            Poll::Ready(late) if polled.is_pending() => Poll::Ready(Err(late)),
            _ => polled,
        }
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::api::testing::tls as anonymous;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_send_the_preface_is_ended() {
        let (mut client, ours) = tokio::io::duplex(64);
        let mut connection = Connection::in_memory(ours, anonymous(None));
        client.write_all(b"PRI * HTTP").await.unwrap();
        let started = tokio::time::Instant::now();
        let mut read = Vec::new();
        let error = connection.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(
            (read.as_slice(), started.elapsed()),
            (&b"PRI * HTTP"[..], PREFACE_WITHIN)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_preface_a_connection_may_be_silent() {
        let (mut client, ours) = tokio::io::duplex(64);
        let mut connection = Connection::in_memory(ours, anonymous(None));
        client
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut read = [0; PREFACE_BYTES];
        connection.read_exact(&mut read).await.unwrap();
        let silent = tokio::time::timeout(10 * PREFACE_WITHIN, connection.read_u8());
        assert!(silent.await.is_err());
    }

    #[test]
    fn places_are_given_back() {
        let places = Places::new(1);
        let taken = places.take();
        assert!(taken.is_some() && places.take().is_none());
        drop(taken);
        assert!(places.take().is_some());
    }
}
