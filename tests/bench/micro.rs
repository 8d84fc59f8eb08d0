//! Micro benches of the hot paths, beside the least that each could cost.

mod bare;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use vane_agent::snapshot::{Kind, Matches, Served, Snapshot, State};
use vane_agent::svid::Svid;
use vane_agent::workload::{Attested, Outcome};
use vane_authority::authority::{Authority, Deps};
use vane_authority::csr;
use vane_authority::issue::X509Request;
use vane_authority::key_manager::Memory;
use vane_authority::log::Log;
use vane_authority::profile::SvidKind;
use vane_chassis::clock::{Clock, System};
use vane_chassis::h2_authority;
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::digest::{Digest, Member};
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::{KeyType, PrivateKey};
use vane_identity::lifetime::Jitter;
use vane_identity::selector::Selector;
use vane_identity::x509_svid::Certificate;
use vane_store::memory::MemoryKv;
use vane_tests::remote::Key;
use vane_wire::spire::api::types;

use bare::BareCa;

const ENTRIES: usize = 1_000;

fn main() {
    divan::main();
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap()
}

fn now() -> SystemTime {
    System.now()
}

mod issuance {
    use super::*;

    /// The bare loop of P2: what issuing is compared with.
    #[divan::bench]
    fn bare_loop(bencher: Bencher<'_, '_>) {
        let (ca, id) = (BareCa::new(), id("/workload"));
        let csr = Key::generate().csr(Some(id.as_str()));
        bencher.bench_local(|| ca.issue(black_box(&csr), &id, now()));
    }

    /// The one function of the server, and the CSR before it, without a network and with a
    /// log that is written to a file, a batch at a time.
    #[divan::bench(args = [1, 10, 64])]
    fn server_function(bencher: Bencher<'_, '_>, batch: usize) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let authority = runtime.block_on(authority(&dir.path().join("audit.jsonl")));
        let id = id("/workload");
        let csr = Key::generate().csr(Some(id.as_str()));
        bencher.counter(ItemsCount::new(batch)).bench_local(|| {
            let requests = (0..batch).map(|_| request(&csr, &id)).collect();
            runtime.block_on(authority.issue_x509(requests))
        });
    }

    fn request(csr: &[u8], id: &SpiffeId) -> X509Request {
        X509Request {
            kind: SvidKind::Workload {
                dns_names: Vec::new(),
            },
            spiffe_id: id.clone(),
            public_key: csr::verify(black_box(csr)).unwrap().public_key,
            ttl: Duration::ZERO,
            caller: "spiffe://example.org/spire/agent/x".to_owned(),
            entry_id: Some(EntryId::parse("7b7a7f2e-6a0b-4a57-9c1c-000000000001").unwrap()),
        }
    }

    async fn authority(log: &Path) -> Arc<Authority> {
        let clock: Arc<dyn Clock> = Arc::new(System);
        let deps = Deps {
            clock: Arc::clone(&clock),
            kv: Arc::new(MemoryKv::new().unwrap()),
            keys: Arc::new(Memory::new()),
            log: Arc::new(Log::open(log, clock).unwrap()),
            server_id: "bench".to_owned(),
        };
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let opened = Authority::open(&bare::profile(&trust_domain), deps).await;
        opened.map_err(|error| error.to_string()).unwrap()
    }

    #[divan::bench]
    fn csr_verify(bencher: Bencher<'_, '_>) {
        let csr = Key::generate().csr(Some("spiffe://example.org/workload"));
        bencher.bench_local(|| csr::verify(black_box(&csr)).unwrap());
    }

    /// What reading a leaf back costs, as the self-check does.
    #[divan::bench]
    fn leaf_read_back(bencher: Bencher<'_, '_>) {
        let (ca, id) = (BareCa::new(), id("/workload"));
        let leaf = ca.issue(&Key::generate().csr(None), &id, now());
        bencher.bench_local(|| black_box(&leaf).info().unwrap());
    }
}

/// A snapshot of [`ENTRIES`] entries with SVIDs, and a process that matches `matching` of them.
fn snapshot(matching: usize) -> (Snapshot, Outcome) {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let (ca, (key, _)) = (
        BareCa::new(),
        PrivateKey::generate(KeyType::EcP256).unwrap(),
    );
    let served = (0..ENTRIES).map(|at| {
        let uid = if at < matching { 7 } else { 1_000 + at };
        let entry = entry(at, &format!("uid:{uid}"));
        let leaf = ca.issue(&Key::generate().csr(None), &entry.spiffe_id, now());
        let svid = Svid::received(&entry, vec![leaf], key.clone(), now(), Jitter::new(0.0));
        Served {
            entry: Arc::new(entry),
            svid: State::Ready(Arc::new(svid.unwrap())),
        }
    });
    let mut bundle = Bundle::empty(trust_domain.clone());
    let authority = Certificate::from_der(&[7; 480]);
    bundle.x509_authorities.push(X509Authority::new(authority));
    let bundles = BTreeMap::from([(trust_domain.clone(), Arc::new(bundle))]);
    let snapshot = Snapshot::new(trust_domain, served, bundles);
    (snapshot, process())
}

fn entry(at: usize, uid: &str) -> Entry {
    let mut wire = types::Entry {
        id: format!("entry-{at:08}"),
        ..vane_tests::admin::entry(
            &format!("spiffe://example.org/workload/{at}"),
            "spiffe://example.org/spire/agent/x",
            &[&format!("unix:{uid}"), "unix:path:/usr/bin/workload"],
        )
    };
    wire.created_at = 1;
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let fresh = || EntryId::parse("fresh").unwrap();
    vane_wire::convert::entry::create(&wire, &trust_domain, 1, fresh).unwrap()
}

/// What the unix attestor finds out about a process.
fn process() -> Outcome {
    let selectors = [
        "uid:7",
        "user:workload",
        "gid:7",
        "group:workload",
        "supplementary_gid:7",
        "supplementary_gid:27",
        "path:/usr/bin/workload",
    ];
    let selectors = selectors.map(|value| Selector::new("unix", value).unwrap());
    let attested = Attested {
        selectors: selectors.to_vec(),
        ..Attested::default()
    };
    [attested].into_iter().collect()
}

mod agent {
    use super::*;

    /// Which of 1,000 entries match a process, as at every fetch and every change.
    #[divan::bench(args = [1, 10])]
    fn entry_match(bencher: Bencher<'_, '_>, matching: usize) {
        let (snapshot, process) = snapshot(matching);
        bencher.bench_local(|| snapshot.matches(black_box(&process)));
    }

    /// The message for entries that were asked for before.
    #[divan::bench(args = [1, 10])]
    fn cached_message(bencher: Bencher<'_, '_>, matching: usize) {
        let (snapshot, process) = snapshot(matching);
        let matches = snapshot.matches(&process);
        bencher.bench_local(|| message(&snapshot, &matches));
    }

    /// The message for entries that nobody asked for in this snapshot.
    #[divan::bench(args = [1, 10])]
    fn first_message(bencher: Bencher<'_, '_>, matching: usize) {
        bencher
            .with_inputs(|| {
                let (snapshot, process) = snapshot(matching);
                let matches = snapshot.matches(&process);
                (snapshot, matches)
            })
            .bench_local_values(|(snapshot, matches)| {
                let message = message(&snapshot, &matches);
                (snapshot, message)
            });
    }

    fn message(snapshot: &Snapshot, matches: &Matches) -> bytes::Bytes {
        let message = snapshot.message(Kind::X509Svid, black_box(matches), now());
        message.unwrap()
    }
}

mod sync {
    use super::*;

    /// One entry of a set replaced by its next revision.
    #[divan::bench]
    fn digest_update(bencher: Bencher<'_, '_>) {
        let ids: Vec<String> = (0..ENTRIES)
            .map(|at| format!("7b7a7f2e-6a0b-4a57-9c1c-{at:012}"))
            .collect();
        let members = ids.iter().map(|id| Member::of_entry(id, 0, 1_700_000_000));
        let mut digest: Digest = members.collect();
        let id = &ids[ENTRIES / 2];
        bencher.bench_local(|| {
            digest.remove(Member::of_entry(black_box(id), 0, 1_700_000_000));
            digest.add(Member::of_entry(black_box(id), 1, 1_700_000_000));
            digest
        });
    }
}

mod h2 {
    use super::*;

    /// The header block of a grpcio client: literal name and value, both plain.
    #[divan::bench]
    fn authority_patch(bencher: Bencher<'_, '_>) {
        let block = block();
        bencher
            .with_inputs(|| block.clone())
            .bench_local_values(|mut block| {
                h2_authority::patch(&mut block).unwrap();
                block
            });
    }

    fn block() -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in [
            (":scheme", "http"),
            (":method", "POST"),
            (":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
            (":authority", "%2Frun%2Fvane%2Fagent.sock"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            (
                "user-agent",
                "grpc-python/1.66.1 grpc-c/43.0.0 (linux; chttp2)",
            ),
            ("workload.spiffe.io", "true"),
        ] {
            // Literal with incremental indexing, new name (RFC 7541 section 6.2.1).
            block.push(0x40);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend_from_slice(text.as_bytes());
            }
        }
        block
    }
}
