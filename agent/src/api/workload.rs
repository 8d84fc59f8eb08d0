//! The Workload API (SPIFFE_Workload_API.md). The three streams send bytes that a snapshot
//! encoded; the two calls of the JWT profile are in `jwt`. WIT-SVIDs are UNIMPLEMENTED, after
//! the check of the security header.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use prost::Message;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};
use tower::{Service, service_fn};
use vane_wire::workload::{JwtBundlesRequest, X509BundlesRequest, X509svidRequest};

use super::codec::Encoded;
use super::connection::Connector;
use super::end::End;
use super::jwt;
use super::updates::{self, Source};
use crate::snapshot::Kind;

const HEADER: &str = "workload.spiffe.io";
/// Requests of streams are empty; a token or a list of audiences is no larger. More only costs memory.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The service.
#[derive(Clone)]
pub(crate) struct WorkloadApi {
    source: Arc<Source>,
}

impl WorkloadApi {
    pub(crate) fn new(source: Arc<Source>) -> Self {
        Self { source }
    }
}

impl NamedService for WorkloadApi {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for WorkloadApi {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let headers = MetadataMap::from_headers(request.headers().clone());
        if let Err(status) = check_header(&headers) {
            return Box::pin(async move { Ok(status.into_http()) });
        }
        let source = Arc::clone(&self.source);
        match request.uri().path().rsplit('/').next().unwrap_or_default() {
            "FetchX509SVID" => serve::<X509svidRequest>(source, Kind::X509Svid, request),
            "FetchX509Bundles" => serve::<X509BundlesRequest>(source, Kind::X509Bundles, request),
            "FetchJWTBundles" => serve::<JwtBundlesRequest>(source, Kind::JwtBundles, request),
            "FetchJWTSVID" => call(source, request, jwt::fetch),
            "ValidateJWTSVID" => call(source, request, jwt::validate),
            other => {
                let status =
                    Status::unimplemented(format!("{other} is not implemented by this agent"));
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

/// Exactly one value, and that `true` (SPIFFE_Workload_Endpoint.md section 3; WEP-08, WEP-09).
fn check_header(headers: &MetadataMap) -> Result<(), Status> {
    let mut values = headers.get_all(HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_encoded_bytes() == b"true" => Ok(()),
        _ => Err(Status::invalid_argument(
            "security header missing from request",
        )),
    }
}

fn serve<T: Message + Default + Send + Sync + 'static>(
    source: Arc<Source>,
    kind: Kind,
    request: http::Request<Body>,
) -> Answer {
    Box::pin(async move {
        let grpc = Grpc::new(Encoded::<T>::default());
        let mut grpc = grpc.max_decoding_message_size(MAX_REQUEST_BYTES);
        Ok(grpc.server_streaming(Fetch { source, kind }, request).await)
    })
}

/// One request, one answer, encoded by `answer`.
fn call<T, A>(
    source: Arc<Source>,
    request: http::Request<Body>,
    answer: fn(Arc<Source>, Arc<Connector>, T) -> A,
) -> Answer
where
    T: Message + Default + Send + Sync + 'static,
    A: Future<Output = Result<Bytes, End>> + Send + 'static,
{
    let service = service_fn(move |request: Request<T>| {
        let source = Arc::clone(&source);
        async move {
            let connector = connector(&request)?;
            let answered = answer(Arc::clone(&source), connector, request.into_inner()).await;
            answered
                .map(Response::new)
                .map_err(|end| end.count(&source.counters))
        }
    });
    Box::pin(async move {
        let grpc = Grpc::new(Encoded::<T>::default());
        let mut grpc = grpc.max_decoding_message_size(MAX_REQUEST_BYTES);
        Ok(grpc.unary(service, request).await)
    })
}

/// The process behind the connection of a request.
fn connector<T>(request: &Request<T>) -> Result<Arc<Connector>, Status> {
    let connector = request.extensions().get::<Arc<Connector>>().cloned();
    connector.ok_or_else(|| Status::internal("the connection has no process"))
}

struct Fetch {
    source: Arc<Source>,
    kind: Kind,
}

impl<T: Send + Sync + 'static> ServerStreamingService<T> for Fetch {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<T>) -> Self::Future {
        let (source, kind) = (Arc::clone(&self.source), self.kind);
        Box::pin(async move {
            let stream = updates::open(source, connector(&request)?, kind).await?;
            Ok(Response::new(Box::pin(stream) as BoxStream<'static, _>))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves: WEP-08, WEP-09.
    #[test]
    fn the_security_header_is_exactly_one_true() {
        let check = |values: &[&'static str]| {
            let mut headers = MetadataMap::new();
            values
                .iter()
                .for_each(|value| _ = headers.append(HEADER, value.parse().unwrap()));
            check_header(&headers).map_err(|status| status.code())
        };
        assert_eq!(check(&["true"]), Ok(()));
        for bad in [
            &[][..],
            &["false"],
            &["True"],
            &["TRUE"],
            &["1"],
            &[""],
            &[" true "],
            &["true,true"],
            &["true", "true"],
        ] {
            assert_eq!(check(bad), Err(tonic::Code::InvalidArgument), "{bad:?}");
        }
    }
}
