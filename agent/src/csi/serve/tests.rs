//! The services over their sockets, as the kubelet calls them. Nothing is mounted here: what
//! needs that is `vane-faults csi`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use tokio::sync::oneshot;
use tonic::Code;
use vane_client::channel;
use vane_wire::csi::v1::identity_client::IdentityClient;
use vane_wire::csi::v1::node_client::NodeClient;
use vane_wire::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest,
    NodeGetInfoRequest, NodeGetVolumeStatsRequest, NodeUnpublishVolumeRequest, ProbeRequest,
    node_service_capability,
};
use vane_wire::pluginregistration::registration_client::RegistrationClient;
use vane_wire::pluginregistration::{InfoRequest, RegistrationStatus};

use super::super::options::Registration;
use super::super::request::tests::publish;
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);
const PARENT: &str = "kubelet/pods/uid/volumes/kubernetes.io~csi/spiffe";

/// A driver that serves in a folder of its own.
struct Running {
    dir: tempfile::TempDir,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["sockets", "kubelet/plugins_registry", PARENT] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let path = |name: &str| dir.path().join(name);
        fs::set_permissions(path("sockets"), fs::Permissions::from_mode(0o755)).unwrap();
        let settings = Settings {
            name: "csi.spiffe.io".to_owned(),
            node_id: "node-1".to_owned(),
            folder: path("sockets"),
            pods: path("kubelet/pods"),
            socket: path("plugin/csi.sock"),
            registration: Some(Registration {
                socket: path("kubelet/plugins_registry/csi.spiffe.io-reg.sock"),
                endpoint: "/seen/by/kubelet/csi.sock".to_owned(),
            }),
        };
        let volumes = Volumes::new(
            Pods::open(&settings.pods).unwrap(),
            Folder::open(&settings.folder).unwrap(),
        );
        let stop = CancellationToken::new();
        let (ready, is_ready) = oneshot::channel();
        let stopped = stop.clone();
        #[expect(clippy::disallowed_methods, reason = "a test owns what it starts")]
        let ended = tokio::spawn(async move {
            let on_ready = |it: Ready| ready.send(it.socket).unwrap();
            serve(&settings, volumes, stopped, on_ready).await
        });
        let socket = is_ready.await.unwrap();
        assert_eq!(socket, dir.path().join("plugin/csi.sock"));
        Self { dir, stop, ended }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn target(&self) -> String {
        let target = self.path(PARENT).join("mount");
        target.to_str().unwrap().to_owned()
    }

    async fn driver(&self) -> channel::Channel {
        channel::unix(&self.path("plugin/csi.sock")).await.unwrap()
    }

    async fn registration(&self) -> RegistrationClient<channel::Channel> {
        let socket = self.path("kubelet/plugins_registry/csi.spiffe.io-reg.sock");
        RegistrationClient::new(channel::unix(&socket).await.unwrap())
    }

    async fn end(self) -> anyhow::Result<()> {
        let ended = tokio::time::timeout(DEADLINE, self.ended).await;
        ended.unwrap().unwrap()
    }
}

#[tokio::test]
async fn the_driver_says_what_it_is_and_what_it_can() {
    let running = Running::start().await;
    let mut identity = IdentityClient::new(running.driver().await);
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await;
    let info = info.unwrap().into_inner();
    assert_eq!(info.name, "csi.spiffe.io");
    assert_eq!(info.vendor_version, env!("CARGO_PKG_VERSION"));
    let asked = GetPluginCapabilitiesRequest {};
    identity.get_plugin_capabilities(asked).await.unwrap();
    identity.probe(ProbeRequest {}).await.unwrap();

    let mut node = NodeClient::new(running.driver().await);
    let info = node.node_get_info(NodeGetInfoRequest {}).await.unwrap();
    let info = info.into_inner();
    assert_eq!(
        (info.node_id.as_str(), info.max_volumes_per_node),
        ("node-1", 0)
    );
    let able = node.node_get_capabilities(NodeGetCapabilitiesRequest {});
    let able = able.await.unwrap().into_inner().capabilities;
    let rpcs: Vec<_> = able
        .into_iter()
        .map(|one| match one.r#type.unwrap() {
            node_service_capability::Type::Rpc(rpc) => rpc.r#type().as_str_name(),
        })
        .collect();
    assert_eq!(rpcs, ["VOLUME_CONDITION", "GET_VOLUME_STATS"]);
    running.stop.cancel();
    running.end().await.unwrap();
}

#[tokio::test]
async fn the_kubelet_is_told_of_the_driver_by_its_own_path() {
    let running = Running::start().await;
    let mut registration = running.registration().await;
    let info = registration.get_info(InfoRequest {}).await.unwrap();
    let info = info.into_inner();
    assert_eq!(info.r#type, "CSIPlugin");
    assert_eq!(info.name, "csi.spiffe.io");
    assert_eq!(info.endpoint, "/seen/by/kubelet/csi.sock");
    assert_eq!(info.supported_versions, ["1.0.0"]);
    let registered = RegistrationStatus {
        plugin_registered: true,
        error: String::new(),
    };
    let told = registration.notify_registration_status(registered);
    told.await.unwrap();
    running.stop.cancel();
    let socket = running.path("kubelet/plugins_registry/csi.spiffe.io-reg.sock");
    running.end().await.unwrap();
    assert!(!socket.exists(), "the kubelet forgets the driver with it");
}

#[tokio::test]
async fn a_registration_that_failed_ends_the_driver_with_the_kubelets_words() {
    let running = Running::start().await;
    let refused = RegistrationStatus {
        plugin_registered: false,
        error: "another driver has the name".to_owned(),
    };
    let mut registration = running.registration().await;
    let told = registration.notify_registration_status(refused);
    told.await.unwrap();
    let error = running.end().await.unwrap_err().to_string();
    assert!(error.contains("another driver has the name"), "{error}");
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let running = Running::start().await;
    let mut node = NodeClient::new(running.driver().await);
    let mut code = async |target: &str| {
        let status = node.node_publish_volume(publish(target)).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let (elsewhere, _) = code("/etc/cron.d").await;
    assert_eq!(elsewhere, Code::InvalidArgument);
    let none = running.path("kubelet/pods/none/v/mount");
    assert_eq!(code(none.to_str().unwrap()).await.0, Code::Internal);
    fs::write(running.path("sockets/seal.key"), "k").unwrap();
    let (private, text) = code(&running.target()).await;
    assert_eq!(private, Code::FailedPrecondition);
    assert!(text.contains("seal.key"), "{text}");
}

#[tokio::test]
async fn unpublish_is_repeated_without_an_error_and_stats_tell_what_is_missing() {
    let running = Running::start().await;
    let mut node = NodeClient::new(running.driver().await);
    for _ in 0..2 {
        let request = NodeUnpublishVolumeRequest {
            volume_id: "csi-0".to_owned(),
            target_path: running.target(),
        };
        node.node_unpublish_volume(request).await.unwrap();
    }
    let request = NodeGetVolumeStatsRequest {
        volume_id: "csi-0".to_owned(),
        volume_path: running.target(),
    };
    let stats = node.node_get_volume_stats(request).await.unwrap();
    let condition = stats.into_inner().volume_condition.unwrap();
    assert!(condition.abnormal);
    assert_eq!(condition.message, "volume path is not mounted");
}

#[tokio::test]
async fn a_folder_that_was_removed_ends_the_driver_so_that_a_new_container_gets_the_new_one() {
    let running = Running::start().await;
    fs::remove_dir(running.path("sockets")).unwrap();
    let mut node = NodeClient::new(running.driver().await);
    let status = node.node_publish_volume(publish(&running.target())).await;
    assert_eq!(status.unwrap_err().code(), Code::Unavailable);
    let error = running.end().await.unwrap_err().to_string();
    assert!(error.contains("was removed"), "{error}");
}

#[tokio::test]
async fn the_sockets_are_for_root_only() {
    let running = Running::start().await;
    for socket in [
        "plugin/csi.sock",
        "kubelet/plugins_registry/csi.spiffe.io-reg.sock",
    ] {
        let mode = fs::metadata(running.path(socket)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{socket}");
    }
}
