//! The one layer in front of every service: who calls, may he, and is it his turn.
//!
//! Invariant: a handler runs only for a method of the caller table whose roles the caller
//! holds, with the [`Caller`] and its [`Patience`] in the request's extensions.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use vane_wire::status::Refusal;

use super::Parts;
use super::patience::{self, Patience};
use super::telemetry;
use super::unserved;
use crate::caller::{self, Caller, LOCAL, Method, Transport};

/// Puts [`Guard`] in front of a service.
#[derive(Clone)]
pub(super) struct GuardLayer(pub(super) Arc<Parts>);

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard {
            inner,
            parts: Arc::clone(&self.0),
        }
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Guard<S> {
    inner: S,
    parts: Arc<Parts>,
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The clone that was polled ready makes the call.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let parts = Arc::clone(&self.parts);
        Box::pin(async move {
            let started = parts.clock.monotonic();
            let path = request.uri().path().to_owned();
            let transport = request.extensions().get::<Transport>().cloned();
            let response = match admit(&parts, &mut request).await {
                Ok(()) => inner.call(request).await?,
                Err(refusal) => {
                    let (code, error) = (refusal.code(), refusal.message());
                    tracing::debug!(path, ?code, error, "refused");
                    tonic::Status::from(refusal).into_http()
                }
            };
            let elapsed = parts.clock.monotonic().saturating_duration_since(started);
            parts.calls.count(&path, response.headers(), elapsed);
            if let Some(refused) = Status::from_header_map(response.headers()) {
                note(&parts, &path, &refused, transport);
            }
            Ok(response)
        })
    }
}

/// Writes down a call that was refused; what only failed is no refusal.
fn note(parts: &Parts, path: &str, refused: &Status, transport: Option<Transport>) {
    let method = Method::find(path).map_or("unknown", |method| method.path);
    let caller = || transport.map_or_else(String::new, |one| Caller::new(one).to_string());
    if telemetry::is_refusal(refused.code()) {
        let code = telemetry::name(refused.code());
        parts.refusals.note(method, code, refused.message(), caller);
    }
}

async fn admit(parts: &Parts, request: &mut Request<Body>) -> Result<(), Refusal> {
    let transport = request.extensions().get::<Transport>().cloned();
    let transport = transport
        .ok_or_else(|| Refusal::new(Code::Internal, "connection without transport information"))?;
    let method = method(request.uri().path(), &transport)?;
    let patience = Patience::of(request.headers(), parts.clock.monotonic());
    let caller = parts.roles.caller(method, transport).await?;
    if let Some(refusal) = unserved::find(method.path) {
        return Err(refusal);
    }
    turn(parts, method, &caller, patience).await?;
    request.extensions_mut().insert(patience);
    request.extensions_mut().insert(caller);
    Ok(())
}

/// The method at `path`. Services for the admin socket alone are unknown to TLS callers, as in
/// SPIRE, and so is whatever stands in no table.
fn method(path: &str, transport: &Transport) -> Result<Method, Refusal> {
    let unknown = |text: String| Refusal::new(Code::Unimplemented, text);
    let remote = matches!(transport, Transport::Tls(_));
    let (service, name) =
        caller::split(path).ok_or_else(|| unknown(format!("malformed method name: {path:?}")))?;
    match Method::find(path) {
        Some(method) if remote && method.allowed.only(LOCAL) => {
            Err(unknown(format!("unknown service {}", method.service())))
        }
        Some(method) => Ok(method),
        None if caller::is_service(service) => Err(unknown(format!(
            "unknown method {name} for service {service}"
        ))),
        None => Err(unknown(format!("unknown service {service}"))),
    }
}

const ATTEST: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";

/// Waits for the turn of an attestation, or of a caller without a certificate, by its address.
async fn turn(
    parts: &Parts,
    method: Method,
    caller: &Caller,
    patience: Patience,
) -> Result<(), Refusal> {
    let Transport::Tls(peer) = &caller.transport else {
        return Ok(());
    };
    let what = match &peer.svid {
        _ if method.path == ATTEST => "attest agent",
        None => "anonymous call",
        Some(_) => return Ok(()),
    };
    let now = parts.clock.monotonic();
    let address = peer.address.ip();
    let reserved = parts.limits.anonymous(address, now, patience.left(now));
    patience::turn(what, reserved).await
}

impl fmt::Debug for GuardLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardLayer").finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for Guard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use vane_chassis::mtls::Peer;

    use super::*;

    fn remote() -> Transport {
        Transport::Tls(Peer {
            address: "192.0.2.1:7".parse().unwrap(),
            svid: None,
        })
    }

    fn local() -> Transport {
        Transport::Local {
            uid: 0,
            gid: 0,
            pid: None,
        }
    }

    fn refused(path: &str, transport: &Transport) -> String {
        let refusal = method(path, transport).unwrap_err();
        assert_eq!(refusal.code(), Code::Unimplemented);
        refusal.message().to_owned()
    }

    #[test]
    fn what_is_not_in_the_table_is_unknown_in_the_words_of_grpc() {
        let table = [
            ("/x.Y/Z", "unknown service x.Y"),
            (
                "/spire.api.server.entry.v1.Entry/Drop",
                "unknown method Drop for service spire.api.server.entry.v1.Entry",
            ),
            ("/x", "malformed method name: \"/x\""),
        ];
        for (path, text) in table {
            assert_eq!(refused(path, &local()), text);
        }
    }

    #[test]
    fn services_of_the_admin_socket_are_unknown_over_tls() {
        let info = "/spire.api.server.debug.v1.Debug/GetInfo";
        assert!(method(info, &local()).is_ok());
        assert_eq!(
            refused(info, &remote()),
            "unknown service spire.api.server.debug.v1.Debug"
        );
        let bundle = "/spire.api.server.bundle.v1.Bundle/GetBundle";
        assert!(method(bundle, &remote()).is_ok());
    }
}
