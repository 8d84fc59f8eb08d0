//! Channels: to a server over TLS with a hot identity, and to a Unix socket.
//!
//! A channel connects when it is first used and again when its connection broke; HTTP/2 pings
//! find a dead peer. The identity is the one at the time of the handshake.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tower::service_fn;

/// A connection to a server, made again when it breaks. Who only hands one on names it here.
pub use tonic::transport::Channel;

/// How long a connection may take to be made, TLS included.
pub const CONNECT: Duration = Duration::from_secs(10);
/// How often an idle connection is pinged.
const PING: Duration = Duration::from_secs(10);
/// How long an answer to a ping may take.
const PONG: Duration = Duration::from_secs(20);

/// A channel to the server at `host:port`. Nothing is connected yet.
#[must_use]
pub fn server(host: &str, port: u16, tls: Arc<ClientConfig>) -> Channel {
    let address: Arc<str> = host.into();
    let connector = service_fn(move |_| {
        let (address, tls) = (Arc::clone(&address), Arc::clone(&tls));
        async move {
            let stream = TcpStream::connect((&*address, port)).await?;
            stream.set_nodelay(true)?;
            let stream = vane_chassis::mtls::connect(stream, tls).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    // The URI only fills `:authority`; the connector knows where to go.
    Endpoint::from_static("http://vane-server")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector)
}

/// Connects to a Unix socket.
///
/// # Errors
/// Nobody listens there, or it may not be used.
pub async fn unix(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Endpoint::from_shared(format!("unix://{}", absolute.display()))?
        .connect_timeout(CONNECT)
        .connect()
        .await
}

/// Connects to a Workload API.
///
/// # Errors
/// Nobody listens there, or it may not be used.
pub async fn workload_api(
    address: &crate::endpoint::Endpoint,
) -> Result<Channel, tonic::transport::Error> {
    match address {
        crate::endpoint::Endpoint::Unix(path) => unix(path).await,
        crate::endpoint::Endpoint::Tcp(address) => {
            Endpoint::from_shared(format!("http://{address}"))?
                .connect_timeout(CONNECT)
                .connect()
                .await
        }
    }
}
