//! The least that a thing can cost on this machine, measured in the same run: what figures in
//! milliseconds are divided by, so that a gate does not depend on the machine.

use std::convert::Infallible;
use std::fs::File;
use std::future::{Ready, ready};
use std::io::Write as _;
use std::path::Path;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use prost::Message as _;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tower::Service;
use vane_chassis::clock::{Clock, System};
use vane_identity::id::SpiffeId;
use vane_tests::admin::Admin;
use vane_tests::raw::RawCodec;
use vane_tests::remote::Key;
use vane_tests::world::World;
use vane_wire::workload::{X509svid, X509svidResponse};

use crate::bare::BareCa;
use crate::stats::Latencies;

const ROUNDS: usize = 200;

/// The parts of which every way of a change to a workload is made.
pub(crate) struct Floor {
    /// A unary call over a Unix socket that changes nothing, in milliseconds.
    pub(crate) call: f64,
    /// 512 bytes appended to a file and on disk.
    pub(crate) durable: f64,
    /// A key, a CSR, and the leaf for it.
    pub(crate) issue: f64,
}

impl Floor {
    /// Measures the medians beside `world`.
    pub(crate) async fn measure(world: &World, admin: &Admin) -> Self {
        Self {
            call: calls(admin).await.ms(0.5),
            durable: writes(&world.path("floor")).ms(0.5),
            issue: issues().ms(0.5),
        }
    }

    /// The way of a creation: four calls (admin to server, server to agent, agent to server
    /// and back, agent to workload), two durable writes (the entry, the SVID's record), one
    /// issuance.
    pub(crate) fn creation(&self) -> f64 {
        4.0 * self.call + 2.0 * self.durable + self.issue
    }
}

async fn calls(admin: &Admin) -> Latencies {
    let mut all = Latencies::default();
    for _ in 0..ROUNDS {
        let begun = System.monotonic();
        admin.count_agents().await;
        all.add(System.monotonic() - begun);
    }
    all
}

fn writes(path: &Path) -> Latencies {
    let mut file = File::create(path).unwrap();
    let mut write = || {
        let begun = System.monotonic();
        file.write_all(&[7; 512]).unwrap();
        file.sync_data().unwrap();
        System.monotonic() - begun
    };
    (0..ROUNDS).map(|_| write()).collect()
}

fn issues() -> Latencies {
    let (ca, id) = (
        BareCa::new(),
        SpiffeId::parse("spiffe://example.org/floor").unwrap(),
    );
    let issue = || {
        let begun = System.monotonic();
        let csr = Key::generate().csr(Some(id.as_str()));
        std::hint::black_box(ca.issue(&csr, &id, System.now()));
        System.monotonic() - begun
    };
    (0..ROUNDS).map(|_| issue()).collect()
}

/// Serves one message of FetchX509SVID to everybody, without looking at anything.
pub(crate) async fn serve(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    println!("ready socket={}", socket.display());
    let service = Canned(message());
    let incoming = UnixListenerStream::new(listener);
    Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}

/// A message of the size that one SVID has.
fn message() -> Bytes {
    let mut svid = X509svid::default();
    svid.spiffe_id = "spiffe://example.org/workload".to_owned();
    svid.x509_svid = vec![7; 560].into();
    svid.x509_svid_key = vec![7; 138];
    svid.bundle = vec![7; 480].into();
    let mut message = X509svidResponse::default();
    message.svids.push(svid);
    message.encode_to_vec().into()
}

#[derive(Clone)]
struct Canned(Bytes);

impl NamedService for Canned {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

impl Service<http::Request<Body>> for Canned {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(Grpc::new(RawCodec).server_streaming(this, request).await) })
    }
}

impl ServerStreamingService<Bytes> for Canned {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        let one = stream::iter([Ok(self.0.clone())]);
        ready(Ok(Response::new(one.chain(stream::pending()).boxed())))
    }
}
