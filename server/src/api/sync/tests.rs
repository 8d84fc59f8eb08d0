//! The service over real HTTP/2, in memory.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Endpoint, Server};
use tower::service_fn;
use vane_chassis::metrics::Metrics;
use vane_chassis::mtls::Peer;
use vane_chassis::tasks::TaskSet;
use vane_identity::entry::{AdditionalAttributes, Entry};
use vane_identity::id::TrustDomain;
use vane_identity::lifetime::from_unix;
use vane_identity::x509_svid::Certificate;
use vane_wire::spire::api::types;
use vane_wire::status::{Reason, denial_reason};
use vane_wire::vane::sync::v1::sync_client::SyncClient;
use vane_wire::vane::sync::v1::watch_response::Response as Answer;
use vane_wire::vane::sync::v1::{Ack, Need, WatchResponse};

use super::*;
use crate::authorized::tests::{agent, entry, entry_id, selectors, workload};
use crate::caller::{AgentIdentity, Transport};
use crate::push::MAX_AGE;
use crate::state::tests::{World, bundle_of, put_agent, put_bundle, record_of};
use crate::state::{Listed, Message};

/// A server with one agent, `agent(0)`, whose certificate has the serial 1.
struct Net {
    world: World,
    push: Arc<Push>,
    denies: Arc<AtomicBool>,
    tasks: TaskSet,
}

/// The agent's end of a stream.
struct Client {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

const CERTIFICATE_ENDS: i64 = 1_500_000;

impl Net {
    async fn new() -> Self {
        let world = World::new().await;
        world.attest(&agent(0), selectors(0)).await;
        let metrics = Metrics::new("vane_server", "test");
        Self {
            push: Push::new(Arc::clone(&world.state), &metrics),
            world,
            denies: Arc::default(),
            tasks: TaskSet::new("connection"),
        }
    }

    fn service(&self) -> SyncService {
        let denies = Arc::clone(&self.denies);
        let gate = move |_: Caller| -> BoxFuture<'static, Result<(), Refusal>> {
            let denied = denies.load(Ordering::SeqCst);
            let refusal = Refusal::denied(Reason::AgentBanned, "banned");
            Box::pin(async move { if denied { Err(refusal) } else { Ok(()) } })
        };
        SyncService {
            push: Arc::clone(&self.push),
            clock: Arc::clone(&self.world.clock) as Arc<dyn Clock>,
            gate: Arc::new(gate),
        }
    }

    /// Opens a stream on a connection of its own.
    async fn watch(&self) -> Client {
        let (theirs, ours) = tokio::io::duplex(4096);
        let service = self.service();
        self.tasks.spawn(async move {
            let admitted = tower::layer::layer_fn(Admitted);
            let incoming = tokio_stream::once(Ok::<_, std::io::Error>(ours));
            let server = Server::builder().layer(admitted).add_service(service);
            let _ = server.serve_with_incoming(incoming).await;
        });
        let mut theirs = Some(TokioIo::new(theirs));
        let connector = service_fn(move |_| {
            let stream = theirs.take();
            async move { stream.ok_or_else(|| std::io::Error::other("connected once")) }
        });
        let channel = Endpoint::from_static("http://server");
        let channel = channel.connect_with_connector(connector).await.unwrap();
        let (requests, outgoing) = mpsc::channel(16);
        let outgoing = ReceiverStream::new(outgoing);
        let answers = SyncClient::new(channel).watch(outgoing).await.unwrap();
        Client {
            requests,
            answers: answers.into_inner(),
        }
    }

    /// A stream that is in sync.
    async fn in_sync(&self) -> Client {
        let mut client = self.watch().await;
        client.send(Kind::Hello(wire::Hello::default())).await;
        loop {
            match client.next().await {
                Answer::List(list) if list.last => client.send(Kind::Need(Need::default())).await,
                Answer::InSync(_) => return client,
                _ => {}
            }
        }
    }
}

/// Puts the caller into the request, as the guard does.
#[derive(Clone)]
struct Admitted<S>(S);

impl<S: Service<http::Request<B>>, B> Service<http::Request<B>> for Admitted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> S::Future {
        let svid = PeerSvid {
            spiffe_id: agent(0),
            serial: "1".to_owned(),
            not_after: from_unix(CERTIFICATE_ENDS),
            leaf: Certificate::from_der(&[1]),
            intermediates: Vec::new(),
        };
        let mut caller = Caller::new(Transport::Tls(Peer {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            svid: Some(Arc::new(svid)),
        }));
        caller.agent = Some(AgentIdentity {
            id: agent(0),
            serial: "1".into(),
        });
        request.extensions_mut().insert(caller);
        self.0.call(request)
    }
}

impl Client {
    async fn send(&mut self, kind: Kind) {
        let request = Some(kind);
        self.requests.send(WatchRequest { request }).await.unwrap();
    }

    async fn next(&mut self) -> Answer {
        self.message().await.unwrap().expect("the stream ended")
    }

    async fn message(&mut self) -> Result<Option<Answer>, Status> {
        let within = Duration::from_secs(3600);
        let message = tokio::time::timeout(within, self.answers.message());
        let message = message.await.expect("a message or the end")?;
        Ok(message.map(|message| message.response.unwrap()))
    }

    /// How the stream ends; None = well.
    async fn end(&mut self) -> Option<Status> {
        loop {
            match self.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    }
}

#[tokio::test]
async fn a_stream_is_opened_filled_and_followed() {
    let net = Net::new().await;
    net.world
        .commit(put_bundle(&bundle_of("example.org", 4, &[1], false)))
        .await;
    let held = entry(1, workload(1), agent(0), 1);
    net.world.put(&held).await;
    let mut client = net.watch().await;
    client.send(Kind::Hello(wire::Hello::default())).await;

    let Answer::Bundles(bundles) = client.next().await else {
        panic!("bundles come first");
    };
    assert!(bundles.full && bundles.last);
    assert_eq!(bundles.bundles[0].sequence_number, 4);
    let ack = Ack {
        revision: 0,
        bundle_revision: bundles.bundle_revision,
    };
    client.send(Kind::Ack(ack)).await;
    assert!(matches!(client.next().await, Answer::List(list) if list.items.is_empty()));
    assert!(matches!(client.next().await, Answer::List(list) if list.last));
    let entry_ids = vec![entry_id(1).to_string()];
    client.send(Kind::Need(Need { entry_ids })).await;
    client.send(Kind::Need(Need::default())).await;
    let Answer::Delta(delta) = client.next().await else {
        panic!("the body was asked for");
    };
    assert_eq!(delta.upserts, [types::Entry::from(&held)]);
    let Answer::InSync(in_sync) = client.next().await else {
        panic!("the resume is over");
    };
    assert_eq!(in_sync.epoch.as_ref(), net.world.state.epoch().0);
    let digest = net.world.state.authorized_digest(&agent(0));
    assert_eq!(in_sync.set_digest.as_ref(), digest.to_bytes());

    net.world.put(&entry(2, workload(2), agent(0), 1)).await;
    assert!(matches!(client.next().await, Answer::Delta(delta) if delta.upserts.len() == 1));
    net.world.delete(1).await;
    let Answer::Delta(delta) = client.next().await else {
        panic!("the entry is gone");
    };
    assert_eq!(delta.removed, [entry_id(1).to_string()]);
    assert_eq!(
        *net.push.acks().lowest().borrow(),
        Some(bundles.bundle_revision)
    );
}

#[tokio::test]
async fn an_agent_that_breaks_the_rules_is_told_which() {
    let net = Net::new().await;
    let hello = || Kind::Hello(wire::Hello::default());
    let short = wire::Hello {
        set_digest: Bytes::from_static(b"short"),
        ..wire::Hello::default()
    };
    let bad_id = Need {
        entry_ids: vec!["a/b".to_owned()],
    };
    let table = [
        (
            vec![Kind::Ack(Ack::default())],
            "the first request must be Hello",
        ),
        (
            vec![Kind::Hello(short)],
            "set_digest of Hello has 5 bytes, 0 or 16 are needed",
        ),
        (vec![hello(), hello()], "Hello was sent twice"),
        (
            vec![hello(), Kind::Need(bad_id)],
            "entry ID must be 1 to 255 characters of [-._A-Za-z0-9], got \"a/b\"",
        ),
    ];
    for (requests, text) in table {
        let mut client = net.watch().await;
        for request in requests {
            client.send(request).await;
        }
        let status = client.end().await.unwrap();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), text);
    }
}

#[tokio::test]
async fn a_request_of_an_unknown_kind_is_ignored() {
    let net = Net::new().await;
    let mut client = net.in_sync().await;
    let unknown = WatchRequest { request: None };
    client.requests.send(unknown).await.unwrap();
    net.world.put(&entry(1, workload(1), agent(0), 1)).await;
    assert!(matches!(client.next().await, Answer::Delta(_)));
}

#[tokio::test]
async fn a_banned_agent_loses_its_stream_and_is_told_why() {
    let net = Net::new().await;
    let mut client = net.in_sync().await;
    net.denies.store(true, Ordering::SeqCst);
    let mut record = record_of(&agent(0), selectors(0));
    record.banned = true;
    net.world.commit(put_agent(&record)).await;
    let status = client.end().await.unwrap();
    assert_eq!(denial_reason(&status), Some(Reason::AgentBanned));
}

#[tokio::test]
async fn an_agent_whose_record_changed_harmlessly_keeps_its_stream() {
    let net = Net::new().await;
    let mut client = net.in_sync().await;
    let mut record = record_of(&agent(0), selectors(0));
    record.agent_version = "2".to_owned();
    record.new_serial = Some("2".to_owned());
    net.world.commit(put_agent(&record)).await;
    net.world.put(&entry(1, workload(1), agent(0), 1)).await;
    assert!(matches!(client.next().await, Answer::Delta(_)));
}

#[tokio::test]
async fn a_replaced_certificate_ends_the_stream_without_a_denial() {
    let net = Net::new().await;
    let mut client = net.in_sync().await;
    net.denies.store(true, Ordering::SeqCst);
    let mut record = record_of(&agent(0), selectors(0));
    record.serial = "2".to_owned();
    net.world.commit(put_agent(&record)).await;
    let status = client.end().await.unwrap();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn the_end_of_the_certificate_is_noticed_on_the_live_stream() {
    let net = Net::new().await;
    let mut client = net.in_sync().await;
    net.denies.store(true, Ordering::SeqCst);
    net.world.clock.set(from_unix(CERTIFICATE_ENDS));
    let status = client.end().await.unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_server_that_stops_ends_its_streams() {
    let net = Net::new().await;
    let mut client = net.in_sync().await;
    net.push.close();
    let status = client.end().await.unwrap();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn an_agent_that_does_not_read_lists_again_when_it_does() {
    let net = Net::new().await;
    let mut client = net.in_sync().await;
    let mut big = entry(1, workload(1), agent(0), 1);
    big.hint = "x".repeat(1000);
    for revision in 0..400 {
        big.revision_number = revision;
        net.world.put(&big).await;
    }
    let mut last = -1;
    let mut lists = 0;
    while last < 399 {
        match client.next().await {
            Answer::List(list) if list.last => {
                lists += 1;
                let entry_ids = list.items.into_iter().map(|item| item.id).collect();
                client.send(Kind::Need(Need { entry_ids })).await;
                client.send(Kind::Need(Need::default())).await;
            }
            Answer::Delta(delta) => last = delta.upserts[0].revision_number,
            _ => {}
        }
    }
    assert!(lists >= 1, "the outbox ran over");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_come_and_a_stream_ends_well_at_its_age() {
    let net = Net::new().await;
    let mut client = net.in_sync().await;
    let started = Instant::now();
    let Answer::Heartbeat(heartbeat) = client.next().await else {
        panic!("nothing else happens");
    };
    assert_eq!(started.elapsed().as_secs(), HEARTBEAT.as_secs());
    assert_eq!(heartbeat.time, 1_000_000_000);
    assert_eq!(heartbeat.revision, net.world.state.revision());
    assert!(client.end().await.is_none());
    let age = started.elapsed();
    assert!(
        age > MAX_AGE.mul_f64(0.79) && age < MAX_AGE.mul_f64(1.21),
        "{age:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_hello_is_ended() {
    let net = Net::new().await;
    let mut client = net.watch().await;
    let status = client.end().await.unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

fn full_entry(text: usize) -> Entry {
    let mut entry = entry(1, workload(1), agent(0), 15);
    entry.x509_svid_ttl = u32::MAX >> 1;
    entry.jwt_svid_ttl = u32::MAX >> 1;
    entry.federates_with = vec![TrustDomain::parse(&"d".repeat(200)).unwrap(); 3];
    entry.admin = true;
    entry.downstream = true;
    entry.store_svid = true;
    entry.expires_at = i64::MAX;
    entry.created_at = i64::MIN;
    entry.revision_number = -1;
    entry.dns_names = vec!["n".repeat(text); 5];
    entry.hint = "h".repeat(text);
    entry.additional_attributes = Some(AdditionalAttributes {
        disable_x509_svid_prefetch: true,
        jwt_svid_include_jti: true,
    });
    entry
}

#[test]
fn no_message_is_heavier_on_the_wire_than_it_was_weighed() {
    let entries = [0, 1, 127, 128, 1000].map(|text| Arc::new(full_entry(text)));
    let certificates: Vec<u8> = (0..9).collect();
    let bundles = [0, 1, 9].map(|count| bundle_of("a.org", u64::MAX, &certificates[..count], true));
    let listed = Listed {
        id: entry_id(1),
        revision_number: -1,
        created_at: -1,
    };
    let messages = [
        Message::Delta {
            revision: u64::MAX,
            upserts: entries.to_vec(),
            removed: vec![entry_id(1); 300],
        },
        Message::List {
            items: vec![listed; 300],
            last: true,
        },
        Message::Bundles {
            bundles: bundles.map(Arc::new).to_vec(),
            removed: vec![TrustDomain::parse("b.org").unwrap(); 20],
            revision: u64::MAX,
            full: true,
            last: true,
        },
        Message::Renew {
            entries: vec![entry_id(2); 5],
            authorities: vec!["0".repeat(40); 5],
        },
        Message::Heartbeat {
            revision: u64::MAX,
            time: from_unix(i64::from(i32::MAX)),
        },
        Message::InSync {
            revision: u64::MAX,
            set: Digest::EMPTY,
            bundles: Digest::EMPTY,
            epoch: Epoch([7; 16]),
        },
    ];
    for message in messages {
        let bytes = encode::message(&message).len();
        let weight = message.weight();
        assert!(bytes <= weight, "{bytes} > {weight}: {message:?}");
    }
}
