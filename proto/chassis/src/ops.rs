//! The HTTP listener for those who operate the process:
//! `/live`, `/ready` and `/metrics`.
//!
//! It has no authentication and tells no secrets; by default it listens on the
//! loopback address. `/live` answers 503 when a restart helps, `/ready` when no
//! work should be sent; both bodies name each fault and the way out.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::metrics::{CONTENT_TYPE, Metrics};

/// The bound listener.
#[derive(Debug)]
pub struct Ops {
    listener: TcpListener,
    address: SocketAddr,
    state: Shown,
}

#[derive(Clone, Debug)]
struct Shown {
    metrics: Metrics,
    health: Health,
}

impl Ops {
    /// Binds; port 0 takes a free one.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn bind(address: SocketAddr, metrics: Metrics, health: Health) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            state: Shown { metrics, health },
        })
    }

    /// As [`bind`](Self::bind), on a socket that somebody else opened.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn over(
        listener: std::net::TcpListener,
        metrics: Metrics,
        health: Health,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener: TcpListener::from_std(listener)?,
            address,
            state: Shown { metrics, health },
        })
    }

    /// The socket, for a successor.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn to_pass(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled.
    ///
    /// # Errors
    /// What axum says; it does not end for a failed accept.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let router = Router::new()
            .route("/live", get(show_live))
            .route("/ready", get(show_ready))
            .route("/metrics", get(show_metrics))
            .with_state(self.state);
        axum::serve(self.listener, router)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
    }
}

async fn show_live(State(shown): State<Shown>) -> Response {
    let report = shown.health.report();
    verdict(report.is_live(), report.body(report.is_live()))
}

async fn show_ready(State(shown): State<Shown>) -> Response {
    let report = shown.health.report();
    verdict(report.is_ready(), report.body(report.is_ready()))
}

fn verdict(ok: bool, body: String) -> Response {
    let status = match ok {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let json = [(header::CONTENT_TYPE, "application/json")];
    (status, json, body).into_response()
}

async fn show_metrics(State(shown): State<Shown>) -> Response {
    match shown.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::health::{Fault, Finding, Harm};
    use crate::ready::Ready;
    use crate::tasks::Tasks;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_three_pages_say_what_they_should() {
        let ready = Ready::new();
        let store = ready.register("store");
        let metrics = Metrics::new("vane_test", "1.2.3");
        let any = "127.0.0.1:0".parse().unwrap();
        let health = Health::new(ready);
        let ops = Ops::bind(any, metrics, health.clone()).await.unwrap();
        let address = ops.address();
        let mut tasks = Tasks::new();
        tasks.spawn("ops", ops.run(tasks.token()));

        assert!(ask(address, "/live").await.starts_with("HTTP/1.1 200"));
        let waiting = ask(address, "/ready").await;
        assert!(waiting.starts_with("HTTP/1.1 503"), "{waiting}");
        assert!(
            waiting.contains("\"detail\":\"waiting for: store\""),
            "{waiting}"
        );
        store.done();
        let ready = ask(address, "/ready").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        assert!(ready.ends_with("{\"ok\":true,\"faults\":[]}\n"), "{ready}");
        health.attach(|| vec![Finding::new(Fault::LogStuck, Harm::Dead, "d", "n")]);
        let dead = ask(address, "/live").await;
        assert!(dead.starts_with("HTTP/1.1 503"), "{dead}");
        assert!(dead.contains("\"fault\":\"log_stuck\""), "{dead}");
        let metrics = ask(address, "/metrics").await;
        assert!(metrics.contains(CONTENT_TYPE), "{metrics}");
        assert!(metrics.contains("vane_test_build_info"), "{metrics}");
        assert!(ask(address, "/").await.starts_with("HTTP/1.1 404"));

        tasks.token().cancel();
        tasks.join(Duration::from_secs(10)).await.unwrap();
    }
}
