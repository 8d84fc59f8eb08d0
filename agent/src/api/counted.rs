//! Counts the calls of one service, by method and status.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;
use vane_chassis::clock::Clock;
use vane_chassis::metrics::Calls;

use crate::counters::WORKLOAD_API;

/// A service whose calls are counted.
#[derive(Clone)]
pub(super) struct Counted<S> {
    pub(super) inner: S,
    pub(super) calls: Calls,
    pub(super) clock: Arc<dyn Clock>,
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Counted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let at = WORKLOAD_API.iter().position(|known| *known == method);
        let at = at.unwrap_or(WORKLOAD_API.len());
        let (calls, clock) = (self.calls.clone(), Arc::clone(&self.clock));
        let started = clock.monotonic();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let elapsed = clock.monotonic().saturating_duration_since(started);
            calls.count(at, code(answer.headers()), elapsed);
            Ok(answer)
        })
    }
}

/// gRPC's status in the headers of an answer; one that begins well has none there.
fn code(headers: &http::HeaderMap) -> i32 {
    let status = headers.get("grpc-status");
    status.map_or(0, |status| {
        let text = status.to_str().ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(2)
    })
}
