//! A whole server in this process, over real sockets.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;
use vane_wire::spire::api::server::debug::v1::GetInfoRequest;
use vane_wire::spire::api::server::debug::v1::debug_client::DebugClient;
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::server::entry::v1::{BatchCreateEntryRequest, CountEntriesRequest};
use vane_wire::spire::api::types;

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// A server in `dir` that is ready.
struct Running {
    ready: Ready,
    stop: CancellationToken,
    ended: JoinSet<anyhow::Result<()>>,
}

impl Running {
    async fn start(config: Config) -> Self {
        let (told, ready) = oneshot::channel();
        let stop = CancellationToken::new();
        let mut ended = JoinSet::new();
        ended.spawn(run(config, stop.clone(), |ready| {
            told.send(ready).unwrap();
        }));
        let ready = tokio::select! {
            ready = ready => ready.unwrap(),
            ended = ended.join_next() => panic!("{ended:?}"),
        };
        Self { ready, stop, ended }
    }

    async fn channel(&self) -> Channel {
        let path = self.ready.admin_socket.clone();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://server");
        channel.connect_with_connector(connector).await.unwrap()
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.ended.join_next()).await;
        ended.unwrap().unwrap().unwrap()
    }
}

fn config(dir: &TempDir) -> Config {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let mut config = Config::new(trust_domain, dir.path().join("data"));
    config.server.bind_address = "127.0.0.1".parse().unwrap();
    config.server.bind_port = 0;
    config.server.socket_path = dir.path().join("run/server.sock");
    config.telemetry.ops_address.set_port(0);
    config
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn entry() -> types::Entry {
    let id = |path: &str| types::Spiffeid {
        trust_domain: "example.org".to_owned(),
        path: path.to_owned(),
    };
    types::Entry {
        spiffe_id: Some(id("/a")),
        parent_id: Some(id("/spire/agent/join_token/a")),
        selectors: vec![types::Selector {
            r#type: "unix".to_owned(),
            value: "uid:1".to_owned(),
        }],
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_keeps_what_it_acknowledged_and_its_authority_from_one_run_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let first = Running::start(config(&dir)).await;
    assert_ne!(first.ready.server_address.port(), 0);
    assert_eq!(mode(&dir.path().join("data")), 0o700);
    assert_eq!(mode(&dir.path().join("run")), 0o750);
    assert_eq!(mode(&first.ready.admin_socket), 0o660);
    let channel = first.channel().await;
    let request = BatchCreateEntryRequest {
        entries: vec![entry()],
        output_mask: None,
    };
    let created = EntryClient::new(channel.clone())
        .batch_create_entry(request)
        .await;
    assert_eq!(created.unwrap().into_inner().results.len(), 1);
    let info = DebugClient::new(channel).get_info(GetInfoRequest {}).await;
    let chain = info.unwrap().into_inner().svid_chain;
    assert_eq!(chain[0].id.as_ref().unwrap().path, "/spire/server");
    assert_eq!(chain[0].subject, "O=SPIRE,C=US");
    assert_eq!(chain.len(), 2, "and the root");
    let root = &chain[1].subject;
    assert!(
        root.starts_with("SERIALNUMBER=") && root.ends_with(",O=SPIFFE,C=US"),
        "{root}"
    );
    let socket = first.ready.admin_socket.clone();
    first.stop().await.unwrap();
    assert!(!socket.exists());
    let authorities = std::fs::read(dir.path().join("data/keys.json")).unwrap();

    let second = Running::start(config(&dir)).await;
    let mut client = EntryClient::new(second.channel().await);
    let count = client.count_entries(CountEntriesRequest::default()).await;
    assert_eq!(count.unwrap().into_inner().count, 1);
    second.stop().await.unwrap();
    let again = std::fs::read(dir.path().join("data/keys.json")).unwrap();
    assert_eq!(authorities, again, "the same keys go on signing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_and_idle_connections_do_not_hold_the_end_up() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(config(&dir)).await;
    let idle = server.channel().await;
    let mut health = HealthClient::new(server.channel().await);
    let request = HealthCheckRequest::default();
    let mut watch = health.watch(request).await.unwrap().into_inner();
    let serving = watch.message().await.unwrap().unwrap();
    assert_eq!(serving.status, 1);
    server.stop().await.unwrap();
    let mut last = serving;
    while let Ok(Some(next)) = watch.message().await {
        last = next;
    }
    assert_eq!(last.status, 2, "the end is told before it comes");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hinders_the_start_is_told_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(config(&dir)).await;
    let refused = async |change: fn(&mut Config, &Ready)| {
        let mut config = config(&dir);
        change(&mut config, &server.ready);
        let ended = run(config, CancellationToken::new(), |_| {});
        format!("{:#}", ended.await.unwrap_err())
    };
    let text = refused(|_, _| {}).await;
    assert!(text.starts_with("cannot open the store: "), "{text}");
    let text = refused(|config, ready| {
        config.server.data_dir.set_file_name("other");
        config.server.bind_port = ready.server_address.port();
    });
    let text = text.await;
    assert!(text.starts_with("cannot listen on 127.0.0.1:"), "{text}");
    let text = refused(|config, _| {
        config.server.data_dir.set_file_name("third");
    });
    let text = text.await;
    assert!(
        text.ends_with("server.sock is in use by another process"),
        "{text}"
    );
    std::fs::set_permissions(
        dir.path().join("other"),
        std::fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    let text = refused(|config, _| {
        config.server.data_dir.set_file_name("other");
    });
    let text = text.await;
    assert!(text.starts_with("server.data_dir: "), "{text}");
    server.stop().await.unwrap();
}
