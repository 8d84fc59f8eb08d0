//! Connections to one server: made, lent to one call at a time, kept a while.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::access::Access;
use super::error::Error;
use super::tls;
use crate::tasks::TaskSet;

/// The most connections that are kept while nobody uses them.
const MAX_IDLE: usize = 4;
/// How long one is kept so.
const IDLE: Duration = Duration::from_secs(30);

/// A connection that one call has.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Full<Bytes>>,
    /// It has served a call before, so that the server may be closing it.
    pub(super) used: bool,
    /// With which TLS; none without.
    tls: Option<Arc<ClientConfig>>,
}

/// The connections to one server.
pub(super) struct Connections {
    tls: tls::Cached,
    idle: Mutex<Vec<(Connection, Instant)>>,
    /// What moves their bytes; ends with this.
    drivers: TaskSet,
}

impl Connections {
    pub(super) fn new() -> Self {
        Self {
            tls: tls::Cached::default(),
            idle: Mutex::default(),
            drivers: TaskSet::new("connection to Kubernetes"),
        }
    }

    /// A connection as `access` has it now: one that is kept, or a new one.
    ///
    /// # Errors
    /// [`Error::Access`], [`Error::Connect`], [`Error::Tls`].
    pub(super) async fn take(&self, access: &Access) -> Result<Connection, Error> {
        let tls = match access.endpoint.tls {
            true => Some(self.tls.of(access)?),
            false => None,
        };
        while let Some(mut connection) = self.kept(tls.as_ref()) {
            if connection.sender.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        self.dial(access, tls).await
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn put(&self, mut connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        connection.used = true;
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push((connection, Instant::now()));
        }
    }

    /// The youngest that is fresh and has the TLS of today; the others are closed.
    fn kept(&self, tls: Option<&Arc<ClientConfig>>) -> Option<Connection> {
        let mut idle = self.idle();
        idle.retain(|(connection, since)| {
            let same = match (&connection.tls, tls) {
                (Some(its), Some(now)) => Arc::ptr_eq(its, now),
                (None, None) => true,
                _ => false,
            };
            same && since.elapsed() < IDLE && !connection.sender.is_closed()
        });
        idle.pop().map(|(connection, _)| connection)
    }

    async fn dial(
        &self,
        access: &Access,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Connection, Error> {
        let endpoint = &access.endpoint;
        let connect = |source| Error::Connect {
            server: endpoint.to_string(),
            source,
        };
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(connect)?;
        tcp.set_nodelay(true).map_err(connect)?;
        let sender = match &tls {
            None => self.speak(access, tcp).await?,
            Some(config) => {
                let name = tls::server_name(access)?;
                let stream = TlsConnector::from(Arc::clone(config))
                    .connect(name, tcp)
                    .await
                    .map_err(|source: io::Error| Error::Tls {
                        server: endpoint.to_string(),
                        source,
                    })?;
                self.speak(access, stream).await?
            }
        };
        Ok(Connection {
            sender,
            used: false,
            tls,
        })
    }

    async fn speak<S>(&self, access: &Access, stream: S) -> Result<SendRequest<Full<Bytes>>, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) =
            handshake(TokioIo::new(stream))
                .await
                .map_err(|error| Error::Broken {
                    server: access.endpoint.to_string(),
                    source: error.into(),
                })?;
        self.drivers.spawn(async move {
            // Whoever has the connection hears of its end by himself.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to Kubernetes ended");
            }
        });
        Ok(sender)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(Connection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections")
            .field("idle", &self.idle().len())
            .finish_non_exhaustive()
    }
}
