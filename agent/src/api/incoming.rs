//! The connections of one listener, as the gRPC server takes them.
//!
//! When a listener retires the gRPC server tells every connection to go away. A client that has
//! connected and not asked yet would have its first request refused by its own HTTP/2 library:
//! so the end of the listener is told only once each connection has asked something, has closed,
//! or has had its time.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream};
use tokio::time::timeout;
use vane_chassis::unix_listener::{PREFACE_TIMEOUT, UnixListener};

use super::connection::{Connection, Connector};

/// A stream of connections that ends behind their first requests.
pub(crate) struct Incoming {
    listener: UnixListener<Arc<Connector>>,
    has_ended: bool,
    /// Connections that have asked nothing yet and are younger than [`PREFACE_TIMEOUT`].
    silent: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Incoming {
    pub(crate) fn new(listener: UnixListener<Arc<Connector>>) -> Self {
        Self {
            listener,
            has_ended: false,
            silent: FuturesUnordered::new(),
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Poll::Ready(Some(())) = self.silent.poll_next_unpin(cx) {}
        if !self.has_ended {
            if let Some(accepted) = ready!(self.listener.poll_next_unpin(cx)) {
                let (connection, asks) = Connection::watched(accepted);
                // Whether it asked, closed or is late: it is not waited for any longer.
                let silent = async { drop(timeout(PREFACE_TIMEOUT, asks).await) };
                self.silent.push(Box::pin(silent));
                return Poll::Ready(Some(Ok(connection)));
            }
            self.has_ended = true;
        }
        match self.silent.is_empty() {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }
}
