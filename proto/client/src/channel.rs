//! Channels: to a server over TLS with a hot identity, and to a Unix socket.
//!
//! A channel connects when it is first used and again when its connection broke; HTTP/2 pings
//! find a dead peer. The identity is the one at the time of the handshake.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::{TcpStream, UnixStream};
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
    endpoint(host, port)
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector)
}

/// The URI only fills `:authority`, from which a SPIRE server tells its attestors where it was
/// called; the connector knows where to go.
fn endpoint(host: &str, port: u16) -> Endpoint {
    let uri = match host.parse::<Ipv6Addr>() {
        Ok(address) => format!("http://[{address}]:{port}"),
        Err(_) => format!("http://{host}:{port}"),
    };
    let plain = || Endpoint::from_static("http://vane-server");
    Endpoint::from_shared(uri).unwrap_or_else(|_| plain())
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

/// A channel to a Unix socket, which is connected when it is first used.
#[must_use]
pub fn unix_lazy(path: PathBuf) -> Channel {
    let connector = service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT)
        .connect_with_connector_lazy(connector)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_host_and_port_where_that_can_be_said() {
        let table = [
            ("server.example.org", "server.example.org:8081"),
            ("192.0.2.1", "192.0.2.1:8081"),
            ("2001:db8::1", "[2001:db8::1]:8081"),
            ("no host", "vane-server"),
        ];
        for (host, authority) in table {
            let uri = endpoint(host, 8081).uri().clone();
            assert_eq!(uri.authority().unwrap().as_str(), authority);
        }
    }
}
