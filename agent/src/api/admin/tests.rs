use std::time::Duration;

use tokio::sync::watch;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use vane_chassis::clock::{Clock, System};
use vane_chassis::files::private_dir;
use vane_chassis::unix_listener::Socket;
use vane_identity::key::{KeyType, PrivateKey};
use vane_wire::spire::agent::debug::v1::GetInfoRequest;
use vane_wire::spire::agent::debug::v1::debug_client::DebugClient;
use vane_wire::vane::status::v1::GetStatusRequest;
use vane_wire::vane::status::v1::status_client::StatusClient;

use super::*;
use crate::api::admit;
use crate::counters::Counters;
use crate::issue::csr;
use crate::limits::{Bounds, Limits};
use crate::own_svid::{Disk, OwnSvid};
use crate::peer::PeerPidfd;
use crate::testing::{Fake, connect, entry, own, soon};
use crate::workload::Attestors;

#[tokio::test]
async fn the_debug_service_tells_what_the_agent_is_and_holds() {
    let mut fake = Fake::new();
    let mut running = fake.cache();
    let session = fake.session().await;
    let bundle = fake.bundle(false);
    session.bundle(&bundle).await;
    session.change(&[entry("one", "unix:uid:1")], &[]).await;
    session
        .in_sync(&[entry("one", "unix:uid:1")], &bundle)
        .await;
    running.in_sync().await;

    let clock: Arc<dyn Clock> = Arc::new(System);
    let (key, _) = PrivateKey::generate(KeyType::EcP256).unwrap();
    let trust_domain = own();
    let id = trust_domain.with_path("/spire/agent/x").unwrap();
    let leaf = fake.sign(&csr(&id, &key).unwrap());
    let own = OwnSvid::new(vec![leaf], key, false, clock.now()).unwrap();
    let (_held, own) = watch::channel(Some(Arc::new(own)));
    let counters = Counters::default();
    counters.sync_last.set(7);
    let shown = Vitals {
        vault: None,
        started: clock.monotonic() - Duration::from_secs(7),
        clock,
        own,
        reader: running.reader.clone(),
        counters,
        disk: Arc::new(Disk::new(
            private_dir(&fake.dir.path().join("data")).unwrap(),
            trust_domain,
        )),
        attestors: Attestors::new(Vec::new()),
    };
    let folder = tempfile::tempdir().unwrap();
    let socket = Socket {
        path: folder.path().join("admin"),
        mode: 0o600,
        group: None,
    };
    let stop = CancellationToken::new();
    let limits = Limits::new(Bounds::for_descriptors(1_024));
    let admits = move |stream: &_| admit(stream, &limits, PeerPidfd::Prefer);
    let listener = UnixListener::bind(&socket, admits, stop.clone()).unwrap();
    let routes = services(Arc::new(shown)).await.unwrap();
    let mut tasks = vane_chassis::tasks::Tasks::with_token(stop.clone());
    tasks.spawn("admin", serve(listener, routes, stop.clone()));

    let channel = connect(&socket.path);
    let mut debug = DebugClient::new(channel.clone());
    let answer = soon(debug.get_info(GetInfoRequest {})).await;
    let info = answer.unwrap().into_inner();
    let ids: Vec<_> = info.svid_chain.iter().map(|one| one.id.clone()).collect();
    assert_eq!(ids[0].as_ref().unwrap().path, "/spire/agent/x");
    assert_eq!(info.svid_chain.len(), 2, "with its root: {info:?}");
    assert!(info.uptime >= 7 && info.last_sync_success == 7, "{info:?}");
    let mut status = StatusClient::new(channel.clone());
    let answer = soon(status.get_status(GetStatusRequest {})).await.unwrap();
    let status = answer.into_inner();
    assert!(status.ready && status.live, "{status:?}");
    assert_eq!(
        status.counts["entries"], 0,
        "counted by another cache: {status:?}"
    );
    assert!(status.sync.as_ref().unwrap().connected, "{status:?}");
    assert_eq!(status.rotations[0].kind, "own_svid");
    assert_eq!(status.spiffe_id, "spiffe://example.org/spire/agent/x");
    let check = HealthCheckRequest::default();
    let mut health = HealthClient::new(channel);
    let health = soon(health.check(check)).await.unwrap();
    assert_eq!(health.into_inner().status, 1);
    stop.cancel();
    tasks.join(Duration::from_secs(10)).await.unwrap();
}
