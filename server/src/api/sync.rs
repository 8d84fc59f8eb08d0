//! `vane.sync.v1.Sync/Watch`: drives a [`Session`] over one stream; the rules are those of
//! [`crate::push`].
//!
//! The stream is pulled: while the transport has no room nothing is made, read or waited for,
//! and what is pushed meanwhile runs over after 64 KiB. The agent was admitted by the guard;
//! whenever its record changes, and when its certificate ends, it is admitted again.

mod codec;
mod encode;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};
use tower::Service;
use vane_chassis::clock::{Clock, sleep_until};
use vane_chassis::mtls::PeerSvid;
use vane_identity::digest::Digest;
use vane_identity::entry::EntryId;
use vane_store::kv::Epoch;
use vane_wire::status::Refusal;
use vane_wire::vane::sync::v1::watch_request::Request as Kind;
use vane_wire::vane::sync::v1::{self as wire, WatchRequest};

use super::Parts;
use super::parts;
use crate::caller::{Caller, Method};
use crate::push::{HEARTBEAT, Hello, MAX_REQUEST_BYTES, Outgoing, Push, Session, age_of};

use codec::Raw;

const PATH: &str = "/vane.sync.v1.Sync/Watch";

/// A stream on which no Hello comes for so long is ended.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// The service. Written by hand because its messages are encoded once for many streams.
#[derive(Clone)]
pub(super) struct SyncService {
    push: Arc<Push>,
    clock: Arc<dyn Clock>,
    gate: Gate,
}

/// Decides whether an agent with a stream may still be served.
type Gate = Arc<dyn Fn(Caller) -> BoxFuture<'static, Result<(), Refusal>> + Send + Sync>;

impl SyncService {
    /// The service; agents stand before the same roles as at the guard.
    pub(super) fn new(parts: &Arc<Parts>) -> Self {
        let roles = Arc::clone(parts);
        let gate = move |caller: Caller| -> BoxFuture<'static, Result<(), Refusal>> {
            let parts = Arc::clone(&roles);
            Box::pin(async move {
                let unknown = || Refusal::new(Code::Unimplemented, PATH);
                let method = Method::find(PATH).ok_or_else(unknown)?;
                parts.roles.caller(method, caller.transport).await?;
                Ok(())
            })
        };
        Self {
            push: Arc::clone(&parts.push),
            clock: Arc::clone(&parts.clock),
            gate: Arc::new(gate),
        }
    }
}

impl NamedService for SyncService {
    const NAME: &'static str = "vane.sync.v1.Sync";
}

impl Service<http::Request<Body>> for SyncService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let watch = Watch(self.clone());
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("unknown method of vane.sync.v1.Sync").into_http());
            }
            let mut grpc = Grpc::new(Raw).max_decoding_message_size(MAX_REQUEST_BYTES);
            Ok(grpc.streaming(watch, request).await)
        })
    }
}

struct Watch(SyncService);

impl StreamingService<WatchRequest> for Watch {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { Ok(Response::new(service.watch(request)?)) })
    }
}

impl SyncService {
    fn watch(
        self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
        let caller = parts::caller(&request)?;
        parts::agent(&caller)?;
        let certificate = caller.svid().cloned();
        let certificate = certificate
            .ok_or_else(|| Refusal::new(Code::Internal, "agent without a certificate"))?;
        let door = Door {
            service: self,
            caller,
            certificate,
            requests: request.into_inner(),
        };
        Ok(drive(door).boxed())
    }
}

/// The messages of a stream: first it is opened, then driven; an error is the last item.
fn drive(door: Door) -> impl stream::Stream<Item = Result<Bytes, Status>> {
    enum Stage {
        Door(Box<Door>),
        Open(Box<Driver>),
        Over,
    }
    stream::unfold(Stage::Door(Box::new(door)), |stage| async move {
        let mut driver = match stage {
            Stage::Over => return None,
            Stage::Open(driver) => driver,
            Stage::Door(door) => match door.open().await {
                Ok(driver) => Box::new(driver?),
                Err(status) => return Some((Err(status), Stage::Over)),
            },
        };
        match driver.next().await {
            Ok(message) => Some((Ok(message?), Stage::Open(driver))),
            Err(status) => Some((Err(status), Stage::Over)),
        }
    })
}

/// A stream before its Hello.
struct Door {
    service: SyncService,
    caller: Caller,
    certificate: Arc<PeerSvid>,
    requests: Streaming<WatchRequest>,
}

impl Door {
    /// Waits for Hello. None when the agent went away before.
    async fn open(mut self) -> Result<Option<Driver>, Status> {
        let first = tokio::time::timeout(HELLO_WITHIN, self.requests.message());
        let first = first
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello came"))??;
        let Some(first) = first else {
            return Ok(None);
        };
        let Some(Kind::Hello(hello)) = first.request else {
            return Err(Status::invalid_argument("the first request must be Hello"));
        };
        let hello = read_hello(&hello)?;
        let agent = &self.certificate.spiffe_id;
        let session = self.service.push.open(agent, &hello).await;
        let session = session.map_err(|error| {
            Refusal::because(Code::Unavailable, "the registry cannot be read", error)
        })?;
        Ok(Some(Driver::new(self, session)))
    }
}

/// A stream after its Hello.
struct Driver {
    door: Door,
    session: Session,
    heartbeat: Interval,
    age: Pin<Box<Sleep>>,
}

impl Driver {
    fn new(door: Door, session: Session) -> Self {
        let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            door,
            session,
            heartbeat,
            age: Box::pin(tokio::time::sleep(age_of(fastrand::f64()))),
        }
    }

    /// The next message; None ends the stream well. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if self.session.is_replaced() {
                let text = "newer streams of this agent took the place of this one";
                return Err(Status::unavailable(text));
            }
            if self.session.take_doubt() {
                self.admit_again().await?;
            }
            if let Some(message) = self.session.next_message() {
                return Ok(Some(bytes_of(message)));
            }
            let clock = &self.door.service.clock;
            tokio::select! {
                () = self.session.woken() => {}
                request = self.door.requests.message(), if self.session.wants_requests() => {
                    match request? {
                        Some(request) => self.request(request)?,
                        None => return Ok(None),
                    }
                }
                _ = self.heartbeat.tick() => self.session.beat(clock.now()),
                () = sleep_until(&**clock, self.door.certificate.not_after) => {
                    self.admit_again().await?;
                }
                () = &mut self.age => return Ok(None),
                () = self.door.service.push.closed() => {
                    return Err(Status::unavailable("the server is stopping"));
                }
            }
        }
    }

    fn request(&mut self, request: WatchRequest) -> Result<(), Status> {
        match request.request {
            Some(Kind::Hello(_)) => {
                return Err(Status::invalid_argument("Hello was sent twice"));
            }
            Some(Kind::Need(need)) => self.session.need(read_ids(&need)?),
            Some(Kind::Ack(ack)) => self.session.acknowledged(ack.bundle_revision),
            None => self.door.service.push.count_unknown(),
        }
        Ok(())
    }

    /// Whether the agent may still be served. A certificate that the agent itself replaced is
    /// no denial: it comes back with the new one and drops nothing.
    async fn admit_again(&self) -> Result<(), Status> {
        let Door {
            service,
            caller,
            certificate,
            ..
        } = &self.door;
        let record = service.push.state().agent(&certificate.spiffe_id);
        let replaced = record.is_some_and(|record| {
            let is_known = record.serial == certificate.serial
                || record.new_serial.as_deref() == Some(certificate.serial.as_str());
            !record.banned && !record.serial.is_empty() && !is_known
        });
        if replaced {
            let text = "the certificate of this stream was replaced";
            return Err(Status::unavailable(text));
        }
        (service.gate)(caller.clone()).await?;
        Ok(())
    }
}

fn bytes_of(message: Outgoing) -> Bytes {
    match message {
        Outgoing::Shared(shared) => shared.encoded(encode::message),
        Outgoing::Own(message) => encode::message(&message),
    }
}

fn read_hello(hello: &wire::Hello) -> Result<Hello, Status> {
    let refuse = |what: &str, len: usize| {
        let text = format!("{what} of Hello has {len} bytes, 0 or 16 are needed");
        Status::invalid_argument(text)
    };
    let digest =
        |what, bytes: &Bytes| Digest::from_bytes(bytes).ok_or_else(|| refuse(what, bytes.len()));
    let epoch = match hello.epoch.len() {
        0 => None,
        len => {
            let epoch = <[u8; 16]>::try_from(hello.epoch.as_ref());
            Some(Epoch(epoch.map_err(|_| refuse("epoch", len))?))
        }
    };
    Ok(Hello {
        epoch,
        revision: hello.revision,
        set: digest("set_digest", &hello.set_digest)?,
        bundles: digest("bundle_digest", &hello.bundle_digest)?,
    })
}

fn read_ids(need: &wire::Need) -> Result<Vec<EntryId>, Status> {
    let read = |id: &String| EntryId::parse(id);
    let ids = need.entry_ids.iter().map(read).collect::<Result<_, _>>();
    ids.map_err(|error| Status::invalid_argument(error.to_string()))
}
