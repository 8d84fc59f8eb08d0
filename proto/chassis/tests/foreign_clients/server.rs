//! A gRPC server on a Unix socket with one answer for every method, which notes who called.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::StreamExt as _;
use http::{HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use vane_chassis::h2_authority::AuthorityPatch;
use vane_chassis::unix_listener::{Socket, UnixListener};

/// Calls that reached the handler, by (authority, path).
pub(crate) type Calls = Arc<Mutex<BTreeMap<(String, String), u64>>>;

/// Answers each call with `status` and no message.
#[derive(Clone)]
struct Answer {
    status: &'static str,
    calls: Calls,
}

impl NamedService for Answer {
    // tonic routes by "/<name>/": these are the two services that are called.
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

impl Service<Request<Body>> for Answer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let authority = request
            .uri()
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        *self
            .calls
            .lock()
            .unwrap()
            .entry((authority, request.uri().path().to_owned()))
            .or_default() += 1;
        let mut response = Response::new(Body::empty());
        response
            .headers_mut()
            .insert("content-type", HeaderValue::from_static("application/grpc"));
        response
            .headers_mut()
            .insert("grpc-status", HeaderValue::from_static(self.status));
        Box::pin(std::future::ready(Ok(response)))
    }
}

struct Io(AuthorityPatch<UnixStream>);

impl Connected for Io {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Serves at `path` until `stop`; `status` is the gRPC status code of every answer.
pub(crate) async fn serve(
    path: &Path,
    status: &'static str,
    calls: Calls,
    stop: CancellationToken,
) {
    let socket = Socket {
        path: path.to_owned(),
        mode: 0o600,
        group: None,
    };
    let listener = UnixListener::bind(&socket, |_| Ok(()), stop.clone()).unwrap();
    let incoming = listener.map(|accepted| Ok::<_, Infallible>(Io(accepted.stream)));
    Server::builder()
        .add_service(Answer { status, calls })
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
        .unwrap();
}
