//! `vane-agent csi` with real mounts, as the kubelet calls it.
//!
//! This program starts itself again in a mount namespace of its own, which is the host; the
//! driver runs in a further one, which is its container: the kubelet's folder is shared between
//! the two (`mountPropagation: Bidirectional`), the sockets' folder is mounted read-only.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tonic::{Code, Status};
use vane_client::channel::{self, Channel};
use vane_tests::process::{Launch, Process};
use vane_wire::csi::v1::node_client::NodeClient;
use vane_wire::csi::v1::volume_capability::access_mode::Mode;
use vane_wire::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use vane_wire::csi::v1::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest,
    VolumeCapability, VolumeCondition,
};
use vane_wire::pluginregistration::registration_client::RegistrationClient;
use vane_wire::pluginregistration::{InfoRequest, RegistrationStatus};

use super::Outcome;

/// The driver's socket below a node.
const SOCKET: &str = "kubelet/plugins/csi.spiffe.io/csi.sock";
/// CAP_SYS_ADMIN alone.
const SYS_ADMIN: &str = "0000000000200000";

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}

/// How the container's volumes are mounted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Volumes {
    Right,
    NotReadOnly,
    NotShared,
}

/// A node with a kubelet's folder and an agent's sockets.
struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Self { dir };
        for folder in [
            "sockets",
            "kubelet/pods",
            "kubelet/plugins/csi.spiffe.io",
            "kubelet/plugins_registry",
        ] {
            fs::create_dir_all(node.path(folder)).unwrap();
        }
        let kubelet = node.text("kubelet");
        run("mount", &["--bind", &kubelet, &kubelet]);
        run("mount", &["--make-shared", &kubelet]);
        node.open_folder();
        node
    }

    fn open_folder(&self) {
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.path("sockets"), mode).unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn text(&self, path: &str) -> String {
        self.path(path).to_str().unwrap().to_owned()
    }

    /// The driver in its container.
    async fn try_drive(&self, volumes: Volumes) -> Result<Process, String> {
        let [sockets, seen, kubelet] = ["sockets", "seen", "kubelet"].map(|path| self.text(path));
        fs::create_dir_all(&seen).unwrap();
        let mut mounts = format!("mount --bind '{sockets}' '{seen}';");
        if volumes != Volumes::NotReadOnly {
            mounts += &format!("mount -o remount,bind,ro '{seen}';");
        }
        if volumes == Volumes::NotShared {
            mounts += &format!("mount --make-private '{kubelet}';");
        }
        let launch = Launch {
            mounts: Some(mounts),
            ..Launch::default()
        };
        let (socket, registry) = (self.text(SOCKET), self.text("kubelet/plugins_registry"));
        let args = [
            "csi",
            "--node-id=node-1",
            &format!("--workload-api-socket-dir={seen}"),
            &format!("--kubelet-dir={kubelet}"),
            &format!("--csi-socket-path={socket}"),
            &format!("--plugin-registration-path={registry}"),
        ];
        Process::try_start_under(&launch, "vane-test-agent", &args, &self.path("log")).await
    }

    async fn drive(&self) -> Driver {
        let process = self.try_drive(Volumes::Right).await.unwrap();
        let channel = channel::unix(&self.path(SOCKET)).await.unwrap();
        Driver { process, channel }
    }

    /// The target of a pod's volume, whose folder the kubelet has made.
    fn target(&self, pod: &str) -> String {
        let folder = self.path("kubelet/pods").join(pod);
        let volume = folder.join("volumes/kubernetes.io~csi/spiffe");
        fs::create_dir_all(&volume).unwrap();
        volume.join("mount").to_str().unwrap().to_owned()
    }

    fn agent(&self, name: &str, mode: u32) -> UnixListener {
        let path = self.path("sockets").join(name);
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        listener
    }
}

struct Driver {
    process: Process,
    channel: Channel,
}

impl Driver {
    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    async fn publish(&self, target: &str) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: "csi-0".to_owned(),
            target_path: target.to_owned(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode {
                    mode: Mode::SingleNodeWriter.into(),
                }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            readonly: true,
            volume_context: [("csi.storage.k8s.io/ephemeral", "true")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        };
        self.node().node_publish_volume(request).await.map(|_| ())
    }

    async fn unpublish(&self, target: &str) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: "csi-0".to_owned(),
            target_path: target.to_owned(),
        };
        self.node().node_unpublish_volume(request).await.map(|_| ())
    }

    async fn condition(&self, target: &str) -> VolumeCondition {
        let request = NodeGetVolumeStatsRequest {
            volume_id: "csi-0".to_owned(),
            volume_path: target.to_owned(),
        };
        let stats = self.node().node_get_volume_stats(request).await.unwrap();
        stats.into_inner().volume_condition.unwrap()
    }

    async fn end(self) {
        assert_eq!(self.process.terminate().await, Some(0));
    }
}

/// How often something is mounted at `target` here, on the host.
fn mounts(target: &str) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = |line: &&str| line.split(' ').nth(4) == Some(target);
    table.lines().filter(at).count()
}

fn inode(path: &Path) -> (u64, u64) {
    let stat = fs::metadata(path).unwrap();
    (stat.dev(), stat.ino())
}

/// A pod gets the folder, read-only also on the host; an agent that restarts is seen in it; the
/// volume goes with the pod. Each call may be repeated, by another driver as well.
pub async fn life() -> Outcome {
    let node = Node::new();
    let first = node.agent("agent.sock", 0o777);
    let driver = node.drive().await;
    let target = node.target("pod-1");
    for _ in 0..3 {
        driver.publish(&target).await.unwrap();
        assert_eq!(mounts(&target), 1);
    }
    assert_eq!(inode(Path::new(&target)), inode(&node.path("sockets")));
    let socket = Path::new(&target).join("agent.sock");
    UnixStream::connect(&socket).unwrap();
    let refused = fs::write(Path::new(&target).join("x"), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    drop(first);
    UnixStream::connect(&socket).unwrap_err();
    let _second = node.agent("agent.sock", 0o777);
    UnixStream::connect(&socket).unwrap();
    assert_eq!(driver.condition(&target).await.message, "mounted");

    driver.end().await;
    UnixStream::connect(&socket).unwrap();
    let driver = node.drive().await;
    driver.publish(&target).await.unwrap();
    assert_eq!(mounts(&target), 1, "known from the mounts");
    for _ in 0..3 {
        driver.unpublish(&target).await.unwrap();
        assert_eq!(mounts(&target), 0);
        assert!(!Path::new(&target).exists());
    }
    assert!(driver.condition(&target).await.abnormal);

    // A reboot leaves the directories and no mount.
    driver.publish(&target).await.unwrap();
    run("umount", &[&target]);
    driver.publish(&target).await.unwrap();
    assert_eq!(mounts(&target), 1);
    run("umount", &[&target]);
    driver.unpublish(&target).await.unwrap();
    assert!(!Path::new(&target).exists());
    driver.end().await;
    Outcome::Passed("published, seen through restarts, unpublished".to_owned())
}

/// What is in the way is left as it is; links lead nowhere; a pod gets nothing private.
pub async fn hostile() -> Outcome {
    let node = Node::new();
    let _agent = node.agent("agent.sock", 0o777);
    let driver = node.drive().await;

    let target = node.target("foreign");
    fs::create_dir(&target).unwrap();
    run("mount", &["-t", "tmpfs", "vane-faults", &target]);
    let data = Path::new(&target).join("data");
    fs::write(&data, "kept").unwrap();
    for call in [
        driver.publish(&target).await,
        driver.unpublish(&target).await,
    ] {
        assert_eq!(call.unwrap_err().code(), Code::FailedPrecondition);
    }
    assert!(driver.condition(&target).await.abnormal);
    assert_eq!(fs::read_to_string(&data).unwrap(), "kept");

    let victim = node.path("kubelet/plugins/victim");
    fs::create_dir(&victim).unwrap();
    let linked = node.target("linked");
    symlink(&victim, &linked).unwrap();
    let through = node.text("kubelet/pods/through/mount");
    symlink(&victim, node.path("kubelet/pods/through")).unwrap();
    let climbing = format!("{}/../../../../../../plugins/victim", node.target("up"));
    for path in [&linked, &through, &climbing, &node.text("sockets")] {
        driver.publish(path).await.unwrap_err();
        driver.unpublish(path).await.unwrap_err();
    }
    assert_eq!(mounts(victim.to_str().unwrap()), 0);
    assert!(victim.exists());

    let admin = node.agent("agent-admin.sock", 0o660);
    let status = driver.publish(&node.target("late")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("agent-admin.sock"), "{status}");
    drop(admin);
    driver.end().await;
    let error = node.try_drive(Volumes::Right).await.err().unwrap();
    assert!(error.contains("agent-admin.sock"), "{error}");
    Outcome::Passed("foreign mounts, links and private sockets stay what they are".to_owned())
}

/// A folder that was made anew: the driver ends for a new container, which mends the volumes.
pub async fn made_anew() -> Outcome {
    let node = Node::new();
    let mut driver = node.drive().await;
    let target = node.target("pod-1");
    driver.publish(&target).await.unwrap();
    fs::remove_dir(node.path("sockets")).unwrap();
    fs::create_dir(node.path("sockets")).unwrap();
    node.open_folder();
    let status = driver.publish(&target).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let ended = driver.process.ended().await;
    assert_eq!(ended, Some(1));

    let driver = node.drive().await;
    let before = driver.condition(&target).await;
    assert!(
        before.abnormal && before.message.contains("made anew"),
        "{before:?}"
    );
    driver.publish(&target).await.unwrap();
    assert_eq!(mounts(&target), 1);
    assert_eq!(inode(Path::new(&target)), inode(&node.path("sockets")));
    assert!(!driver.condition(&target).await.abnormal);
    driver.unpublish(&target).await.unwrap();

    // A volume of the old folder is taken away, too, when its pod goes first.
    driver.publish(&target).await.unwrap();
    fs::remove_dir(node.path("sockets")).unwrap();
    fs::create_dir(node.path("sockets")).unwrap();
    node.open_folder();
    driver.end().await;
    let driver = node.drive().await;
    driver.unpublish(&target).await.unwrap();
    assert_eq!(mounts(&target), 0);
    driver.end().await;
    Outcome::Passed("the volumes follow the folder".to_owned())
}

/// The container's volumes are checked at the start, and all but mounting is given up.
pub async fn start() -> Outcome {
    let node = Node::new();
    let error = node.try_drive(Volumes::NotReadOnly).await.err().unwrap();
    assert!(error.contains("readOnly: true"), "{error}");
    let error = node.try_drive(Volumes::NotShared).await.err().unwrap();
    assert!(error.contains("mountPropagation: Bidirectional"), "{error}");

    let mut driver = node.drive().await;
    driver.publish(&node.target("pod-1")).await.unwrap();
    let threads = fs::read_dir(format!("/proc/{}/task", driver.process.pid())).unwrap();
    let mut count = 0;
    for thread in threads {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let of = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("no {key}")).trim().to_owned()
        };
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(of(set), SYS_ADMIN, "{set}");
        }
        assert_eq!(of("CapInh:"), "0000000000000000");
        assert_eq!(of("NoNewPrivs:"), "1");
        count += 1;
    }
    let socket = node.path("kubelet/plugins_registry/csi.spiffe.io-reg.sock");
    let mut registration = RegistrationClient::new(channel::unix(&socket).await.unwrap());
    let info = registration.get_info(InfoRequest {}).await.unwrap();
    let endpoint = info.into_inner().endpoint;
    assert_eq!(endpoint, node.text(SOCKET));
    let refused = RegistrationStatus {
        plugin_registered: false,
        error: "no".to_owned(),
    };
    let told = registration.notify_registration_status(refused);
    told.await.unwrap();
    let ended = driver.process.ended().await;
    assert_eq!(ended, Some(1));
    assert!(count > 1, "one mounts, one serves");
    Outcome::Passed(format!("{count} threads may mount and nothing else"))
}
