//! Bytes that are no request: malformed certificate requests, broken frames, replayed tokens.
//! Each is refused on its own; who comes next is served as if nothing had been.

use std::sync::Arc;

use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tonic::Code;
use vane_authority::csr::MAX_CSR_BYTES;
use vane_tests::admin::entry;
use vane_tests::half_call::{Ended, call, framed};
use vane_tests::process::within;
use vane_tests::raw::Raw;
use vane_tests::remote::{self, Key, Node, attest_request};
use vane_tests::sample;
use vane_tests::world::{World, own_selector, spiffe_id};
use vane_wire::spire::api::server::agent::v1 as agent;
use vane_wire::spire::api::server::svid::v1 as svid;

/// What a call says to a CSR: nothing, or INVALID_ARGUMENT with a text that has this in it.
type Said = Option<&'static str>;

/// A CSR and what the calls say to it.
struct Request {
    what: &'static str,
    csr: Vec<u8>,
    /// AttestAgent and RenewAgent, which do not look at the signature.
    agent: Said,
    /// BatchNewX509SVID, which takes the key only.
    batch: Said,
    /// MintX509SVID, which takes everything.
    mint: Said,
}

impl Request {
    fn all(what: &'static str, csr: Vec<u8>, says: &'static str) -> Self {
        Self {
            what,
            csr,
            agent: Some(says),
            batch: Some(says),
            mint: Some(says),
        }
    }

    fn signed(what: &'static str, csr: Vec<u8>, says: &'static str) -> Self {
        Self {
            agent: None,
            ..Self::all(what, csr, says)
        }
    }

    fn minted(what: &'static str, csr: Vec<u8>, says: &'static str) -> Self {
        Self {
            batch: None,
            ..Self::signed(what, csr, says)
        }
    }
}

fn uri(params: &mut rcgen::CertificateParams, uri: &str) {
    params
        .subject_alt_names
        .push(rcgen::SanType::URI(uri.try_into().unwrap()));
}

fn dns(params: &mut rcgen::CertificateParams, names: impl IntoIterator<Item = String>) {
    let names = names
        .into_iter()
        .map(|name| rcgen::SanType::DnsName(name.as_str().try_into().unwrap()));
    params.subject_alt_names.extend(names);
}

/// A CSR of a key that is not P-256.
fn of_another_key(algorithm: &'static rcgen::SignatureAlgorithm, id: &str) -> Vec<u8> {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let mut params = rcgen::CertificateParams::default();
    uri(&mut params, id);
    params.serialize_request(&key).unwrap().der().to_vec()
}

fn requests() -> Vec<Request> {
    let own = spiffe_id("/minted");
    let key = Key::generate();
    let good = key.csr(Some(&own));
    let changed = |at: usize| {
        let mut csr = good.clone();
        csr[at] ^= 1;
        csr
    };
    let certificate = rcgen::generate_simple_self_signed(vec!["a.example.org".to_owned()]).unwrap();
    let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n", "A".repeat(64));
    let mint = |fill: &dyn Fn(&mut rcgen::CertificateParams)| key.request(|params| fill(params));
    vec![
        Request::all("nothing", Vec::new(), "missing CSR"),
        Request::all("zeros", vec![0; 64], "malformed CSR"),
        Request::all("0xff", vec![0xff; 64], "malformed CSR"),
        Request::all("an endless sequence", vec![0x30, 0x80], "malformed CSR"),
        Request::all(
            "a length of 4 GB",
            vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
            "malformed CSR",
        ),
        Request::all("deep nesting", [0x30, 0x80].repeat(10_000), "malformed CSR"),
        Request::all("PEM", pem.into_bytes(), "malformed CSR"),
        Request::all(
            "a certificate",
            certificate.cert.der().to_vec(),
            "malformed CSR",
        ),
        Request::all(
            "a private key",
            certificate.signing_key.serialize_der(),
            "malformed CSR",
        ),
        Request::all(
            "half of it",
            good[..good.len() / 2].to_vec(),
            "malformed CSR",
        ),
        Request::all(
            "all but one octet",
            good[..good.len() - 1].to_vec(),
            "malformed CSR",
        ),
        Request::all(
            "one octet more",
            [&good[..], &[0]].concat(),
            "malformed CSR",
        ),
        Request::all("two of it", good.repeat(2), "malformed CSR"),
        Request::all(
            "over the limit",
            vec![0x30; MAX_CSR_BYTES + 1],
            "malformed CSR",
        ),
        Request::all("a megabyte", vec![0x30; 1 << 20], "malformed CSR"),
        Request::all(
            "Ed25519",
            of_another_key(&rcgen::PKCS_ED25519, &own),
            "malformed CSR: unsupported public key",
        ),
        Request::all(
            "129 DNS names",
            mint(&|params| {
                uri(params, &own);
                dns(params, (0..129).map(|n| format!("n{n}.example.org")));
            }),
            "malformed CSR: 129 DNS SANs",
        ),
        Request::all(
            "17 URIs",
            mint(&|params| (0..17).for_each(|n| uri(params, &format!("{own}/{n}")))),
            "malformed CSR: 17 URI SANs",
        ),
        Request::signed(
            "a changed signature",
            changed(good.len() - 1),
            "CSR signature: verification failed",
        ),
        Request::minted("no URI", key.csr(None), "CSR URI SAN is required"),
        Request::minted(
            "two URIs",
            mint(&|params| {
                ["/a", "/b"]
                    .iter()
                    .for_each(|path| uri(params, &spiffe_id(path)))
            }),
            "only one URI SAN is expected",
        ),
        Request::minted(
            "a foreign ID",
            key.csr(Some("spiffe://other.org/x")),
            "other.org",
        ),
        Request::minted(
            "the trust domain",
            key.csr(Some("spiffe://example.org")),
            "path is empty",
        ),
        Request::minted(
            "a reserved path",
            key.csr(Some(&spiffe_id("/spire/x"))),
            "reserved",
        ),
        Request::minted(
            "the server",
            key.csr(Some(&spiffe_id("/spire/server"))),
            "reserved",
        ),
        Request::minted(
            "no SPIFFE ID",
            key.csr(Some("https://example.org/x")),
            "scheme is missing or invalid",
        ),
        Request::minted(
            "dots",
            key.csr(Some("spiffe://example.org/a/../b")),
            "dot segments",
        ),
        Request::minted(
            "a bad DNS name",
            mint(&|params| {
                uri(params, &own);
                dns(params, ["a..example.org".to_owned()]);
            }),
            "CSR DNS name is invalid",
        ),
        Request::minted(
            "a wildcard over another name",
            mint(&|params| {
                uri(params, &own);
                dns(
                    params,
                    ["*.example.org", "a.example.org"].map(str::to_owned),
                );
            }),
            "wildcard",
        ),
        Request {
            what: "a good one",
            csr: good,
            agent: None,
            batch: None,
            mint: None,
        },
        Request {
            what: "P-384",
            csr: of_another_key(&rcgen::PKCS_ECDSA_P384_SHA384, &own),
            agent: None,
            batch: None,
            mint: None,
        },
    ]
}

fn check(what: &str, said: Said, code: i32, text: &str) {
    match said {
        None => assert_eq!(code, 0, "{what}: {text}"),
        Some(part) => {
            assert_eq!(code, Code::InvalidArgument as i32, "{what}: {text}");
            assert!(text.contains(part), "{what}: {text:?} has no {part:?}");
        }
    }
}

/// Each malformed CSR to each call that takes one. The token of an attestation that was
/// refused for its CSR is still good.
#[tokio::test]
async fn a_malformed_certificate_request_is_refused_and_costs_nothing() {
    let world = World::start().await;
    let pid = world.server().pid();
    let admin = world.admin().await;
    let address = remote::local(world.port());
    let nobody = Raw::new(remote::channel(address, remote::nobody()).await.unwrap());
    let local = Raw::new(admin.channel());
    let node = Node::attest(address, &admin.token().await, &admin.bundle().await).await;
    let entry_id = admin
        .create(entry(&spiffe_id("/w"), &node.id, &[&own_selector()]))
        .await;
    let mut agents = 1;
    for request in requests() {
        let (what, csr) = (request.what, request.csr);
        let token = admin.token().await;
        let message = attest_request(&token, csr.clone()).encode_to_vec();
        let path = "/spire.api.server.agent.v1.Agent/AttestAgent";
        let answer = nobody.call(path, vec![message.into()]).await;
        let (code, text) = (answer.status.code() as i32, answer.status.message());
        check(&format!("AttestAgent {what}"), request.agent, code, text);
        if request.agent.is_some() {
            assert_eq!(admin.count_agents().await, agents, "{what}");
            remote::attest(&nobody, &token, &Key::generate())
                .await
                .unwrap_or_else(|status| panic!("{what} used the token up: {status}"));
        }
        agents += 1;
        assert_eq!(admin.count_agents().await, agents, "{what}");

        let params = Some(agent::AgentX509svidParams {
            csr: csr.clone().into(),
        });
        let message = agent::RenewAgentRequest { params }.encode_to_vec();
        let path = "/spire.api.server.agent.v1.Agent/RenewAgent";
        let answer = node.raw.call(path, vec![message.into()]).await;
        let (code, text) = (answer.status.code() as i32, answer.status.message());
        check(&format!("RenewAgent {what}"), request.agent, code, text);

        let params = vec![svid::NewX509svidParams {
            entry_id: entry_id.clone(),
            csr: csr.clone().into(),
        }];
        let message = svid::BatchNewX509svidRequest { params }.encode_to_vec();
        let path = "/spire.api.server.svid.v1.SVID/BatchNewX509SVID";
        let mut answer = node.raw.call(path, vec![message.into()]).await;
        assert_eq!(
            answer.status.code(),
            Code::Ok,
            "{what}: {:?}",
            answer.status
        );
        let answer = svid::BatchNewX509svidResponse::decode(answer.messages.remove(0)).unwrap();
        let item = answer.results.into_iter().next().unwrap();
        let status = item.status.unwrap();
        assert_eq!(item.svid.is_some(), status.code == 0, "{what}");
        check(
            &format!("BatchNewX509SVID {what}"),
            request.batch,
            status.code,
            &status.message,
        );

        let message = svid::MintX509svidRequest {
            csr: csr.into(),
            ttl: 0,
        }
        .encode_to_vec();
        let path = "/spire.api.server.svid.v1.SVID/MintX509SVID";
        let answer = local.call(path, vec![message.into()]).await;
        let (code, text) = (answer.status.code() as i32, answer.status.message());
        check(&format!("MintX509SVID {what}"), request.mint, code, text);
    }
    assert_eq!(world.server().pid(), pid);
    assert!(!world.server_log().contains("panicked"));
}

/// The beginnings of connections that go nowhere.
fn openings() -> Vec<(&'static str, Vec<u8>)> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let h2 = |frames: &[&[u8]]| [&[PREFACE], frames].concat().concat();
    let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut random = vec![0; 4096];
    aws_lc_rs::rand::fill(&mut random).unwrap();
    let headers = |flags: u8, stream: u8, block: &[u8]| {
        let length = u8::try_from(block.len()).unwrap();
        [&[0, 0, length, 1, flags, 0, 0, 0, stream], block].concat()
    };
    // :method POST, :scheme http, :path /, from the static table.
    let block: &[u8] = &[0x83, 0x86, 0x84];
    let rapid_reset: Vec<u8> = (0..1_000_u32)
        .flat_map(|n| {
            let id = (2 * n + 1).to_be_bytes();
            let open = [&[0, 0, 3, 1, 4], &id[..], block].concat();
            [open, [&[0, 0, 4, 3, 0], &id[..], &[0, 0, 0, 8]].concat()].concat()
        })
        .collect();
    let many_settings = [
        &[0, 0xea, 0x60, 4, 0, 0, 0, 0, 0][..],
        &[0, 3, 0, 0, 0, 1].repeat(10_000),
    ]
    .concat();
    vec![
        ("nothing", Vec::new()),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("zeros", vec![0; 4096]),
        ("random", random),
        (
            "half a TLS hello",
            vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
        ),
        (
            "a TLS record of 64 KiB",
            [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 1024]].concat(),
        ),
        ("half a preface", PREFACE[..10].to_vec()),
        ("a preface and no more", PREFACE.to_vec()),
        ("a preface and HTTP/1.1", h2(&[b"GET / HTTP/1.1\r\n\r\n"])),
        (
            "a frame of 16 MB",
            h2(&[settings, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]]),
        ),
        ("half a frame header", h2(&[settings, &[0, 0, 4]])),
        (
            "half a frame",
            h2(&[settings, &[0, 0, 100, 1, 4, 0, 0, 0, 1, 0x83]]),
        ),
        (
            "settings of 5 octets",
            h2(&[&[0, 0, 5, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]),
        ),
        ("10,000 settings", h2(&[&many_settings])),
        (
            "a broken header block",
            h2(&[settings, &headers(4, 1, &[0xff; 32])]),
        ),
        (
            "headers on stream 0",
            h2(&[settings, &headers(4, 0, block)]),
        ),
        (
            "headers on stream 2",
            h2(&[settings, &headers(4, 2, block)]),
        ),
        (
            "headers without an end",
            h2(&[settings, &headers(0, 1, block), settings]),
        ),
        (
            "data on stream 0",
            h2(&[settings, &[0, 0, 1, 0, 0, 0, 0, 0, 0, 0]]),
        ),
        (
            "data without headers",
            h2(&[settings, &[0, 0, 1, 0, 0, 0, 0, 0, 1, 0]]),
        ),
        (
            "a continuation of nothing",
            h2(&[settings, &[0, 0, 1, 9, 4, 0, 0, 0, 1, 0x83]]),
        ),
        (
            "a window of nothing",
            h2(&[settings, &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]]),
        ),
        (
            "a push promise",
            h2(&[settings, &[0, 0, 4, 5, 4, 0, 0, 0, 1, 0, 0, 0, 2]]),
        ),
        (
            "an unknown frame",
            h2(&[settings, &[0, 0, 1, 0xee, 0, 0, 0, 0, 0, 0]]),
        ),
        (
            "1,000 pings",
            h2(&[
                settings,
                &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(1_000),
            ]),
        ),
        (
            "1,000 streams opened and reset",
            h2(&[settings, &rapid_reset]),
        ),
    ]
}

/// Sends `bytes` and no more, and reads until the other side is done with it.
async fn throw<S>(mut stream: S, bytes: &[u8])
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    // Whether the other side closed in the middle is its business.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let mut rest = stream.take(1 << 20);
    let _ = within("the end of a connection", rest.read_to_end(&mut answer)).await;
}

/// The bodies of a call that takes one message of two octets.
fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    let message: &[u8] = &[];
    vec![
        ("no message", Vec::new()),
        ("half a frame header", vec![0, 0, 0]),
        (
            "a frame that ends early",
            [&[0, 0, 0, 3, 0xe8][..], &[0; 10]].concat(),
        ),
        (
            "a frame of 4 GB",
            [&[0, 0xff, 0xff, 0xff, 0xff][..], &[0; 10]].concat(),
        ),
        ("a compressed frame", vec![1, 0, 0, 0, 2, 0x1f, 0x8b]),
        ("an unknown flag", vec![7, 0, 0, 0, 0]),
        ("no protobuf", framed(&[0xff; 32])),
        (
            "octets after the message",
            [&framed(message)[..], &[0, 0]].concat(),
        ),
    ]
}

/// Garbage of every kind on the TLS port (before and after the handshake) and on both Unix
/// sockets. After each the next caller is served, and at the end nothing is left open.
#[tokio::test]
async fn garbage_on_a_socket_ends_its_connection_and_nothing_else() {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let pids = (world.server().pid(), agent.process.pid());
    let admin = world.admin().await;
    admin
        .create(entry(&spiffe_id("/w"), &agent.id, &[&own_selector()]))
        .await;
    agent.workload().await.served().await;
    let address = remote::local(world.port());
    let tls = async || {
        let tcp = TcpStream::connect(address).await.unwrap();
        vane_chassis::mtls::connect(tcp, remote::nobody())
            .await
            .unwrap()
    };
    let unix = async |path: &std::path::Path| UnixStream::connect(path).await.unwrap();
    let served = async |what: &str| {
        let bundles = "/spire.api.server.bundle.v1.Bundle/GetBundle";
        let channel = remote::channel(address, remote::nobody()).await.unwrap();
        let answer = Raw::new(channel)
            .call(bundles, vec![Default::default()])
            .await;
        assert_eq!(
            answer.status.code(),
            Code::Ok,
            "{what}: {:?}",
            answer.status
        );
        world.admin().await.bundle().await;
        let mut stream = agent.workload().await.watch().await.unwrap();
        stream.until(|ids| ids == [spiffe_id("/w")]).await.unwrap();
    };
    served("at first").await;
    let before = (world.server().descriptors(), agent.process.descriptors());
    for (what, bytes) in openings() {
        throw(TcpStream::connect(address).await.unwrap(), &bytes).await;
        throw(tls().await, &bytes).await;
        throw(unix(&world.admin_socket()).await, &bytes).await;
        throw(unix(&agent.socket).await, &bytes).await;
        served(what).await;
    }
    let count = "/spire.api.server.agent.v1.Agent/CountAgents";
    let bundle = "/spire.api.server.bundle.v1.Bundle/GetBundle";
    let check = "/grpc.health.v1.Health/Check";
    for (what, body) in bodies() {
        let ends = [
            call(tls().await, bundle, body.clone()).await,
            call(unix(&world.admin_socket()).await, count, body.clone()).await,
            call(unix(&agent.socket).await, check, body.clone()).await,
        ];
        for ended in ends {
            match &ended {
                Ended::Status(code, text) => {
                    assert!(*code != 0 && !text.is_empty(), "{what}: {ended:?}");
                }
                Ended::Reset(why) => panic!("{what}: {why}"),
            }
            println!("{what}: {ended:?}");
        }
        served(what).await;
    }
    sample::until("nothing is left open", || {
        let now = (world.server().descriptors(), agent.process.descriptors());
        now.0 <= before.0 && now.1 <= before.1
    })
    .await;
    assert_eq!((world.server().pid(), agent.process.pid()), pids);
    for log in [world.server_log(), agent.log()] {
        assert!(!log.contains("panicked"), "{log}");
    }
}

const REPLAYS: usize = 50;

/// Fifty keys, fifty connections, one token, all at once.
#[tokio::test]
async fn a_join_token_that_fifty_use_at_once_is_good_for_one() {
    let world = World::start().await;
    let admin = world.admin().await;
    let address = remote::local(world.port());
    let token = admin.token().await;
    let start = Arc::new(Barrier::new(REPLAYS));
    let mut tasks = JoinSet::new();
    for _ in 0..REPLAYS {
        let (token, start) = (token.clone(), Arc::clone(&start));
        tasks.spawn(async move {
            let key = Key::generate();
            let raw = Raw::new(remote::channel(address, remote::nobody()).await.unwrap());
            start.wait().await;
            let answer = remote::attest(&raw, &token, &key).await;
            (key, raw, answer)
        });
    }
    let all = within("all are answered", tasks.join_all()).await;
    let (winners, losers): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(.., answer)| answer.is_ok());
    assert_eq!((winners.len(), losers.len()), (1, REPLAYS - 1));
    for (_, _, answer) in &losers {
        let status = answer.as_ref().unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("already been used"), "{status}");
    }
    assert_eq!(admin.count_agents().await, 1);

    let (key, raw, first) = winners.into_iter().next().unwrap();
    let again = remote::attest(&raw, &token, &key)
        .await
        .expect("the winner is answered again");
    let first = first.unwrap();
    let spki = |chain: &[vane_identity::x509_svid::Certificate]| {
        let (_, leaf) = x509_parser::parse_x509_certificate(chain[0].der()).unwrap();
        leaf.public_key().raw.to_vec()
    };
    assert_eq!(spki(&first), spki(&again), "for the same key");
    for (key, raw, _) in &losers {
        let status = remote::attest(raw, &token, key).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    assert_eq!(admin.count_agents().await, 1);
}
