//! Counts the calls of one service, by method and status.
//!
//! A call counts once, when its first message or its status leaves: a stream that is denied has
//! no status in its headers.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use http_body::Frame;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
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
            let count = move |code: Code| {
                let elapsed = clock.monotonic().saturating_duration_since(started);
                calls.count(at, i32::from(code), elapsed);
            };
            if let Some(code) = code(answer.headers()) {
                count(code);
                return Ok(answer);
            }
            Ok(answer.map(|inner| {
                Body::new(Answer {
                    inner,
                    count: Some(count),
                })
            }))
        })
    }
}

/// The messages of a call that is counted by the first of them.
struct Answer<F> {
    inner: Body,
    /// None once it is counted.
    count: Option<F>,
}

impl<F: FnOnce(Code) + Unpin> http_body::Body for Answer<F> {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(count) = self.count.take()
        {
            count(frame.trailers_ref().and_then(code).unwrap_or(Code::Ok));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

/// gRPC's status in headers or trailers, if one is there.
fn code(headers: &http::HeaderMap) -> Option<Code> {
    Status::from_header_map(headers).map(|status| status.code())
}
