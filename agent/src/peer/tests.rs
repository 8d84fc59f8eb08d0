use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// Where the connector, which is this program again, connects to.
const SOCKET: &str = "VANE_TEST_PEER_SOCKET";

/// Connects and lives until its input ends, when started by [`World::peer`].
#[test]
fn connector() {
    if let Some(path) = std::env::var_os(SOCKET) {
        let _connection = UnixStream::connect(path).unwrap();
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        std::process::exit(0);
    }
}

struct World {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
    listener: UnixListener,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    World {
        listener: UnixListener::bind(&path).unwrap(),
        path,
        _folder: folder,
    }
}

impl World {
    fn accept(&self) -> UnixStream {
        self.listener.accept().unwrap().0
    }

    fn peer(&self) -> (Child, UnixStream, PeerProcess) {
        let child = Command::new("/proc/self/exe")
            .args(["--exact", "peer::tests::connector"])
            .env(SOCKET, &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stream = self.accept();
        let peer = PeerProcess::from_socket(&stream, PeerPidfd::Require).unwrap();
        (child, stream, peer)
    }
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// Proves: WEP-19.
#[tokio::test]
async fn the_peer_is_who_connected_with_its_facts() {
    let world = world();
    let (child, _stream, peer) = world.peer();
    let facts = peer.attest_facts().unwrap();
    assert_eq!(peer.pid(), i32::try_from(child.id()).unwrap());
    assert_eq!(peer.key().start_time, facts.start_time);
    assert_eq!(facts.uid.effective, nix::unistd::geteuid().as_raw());
    assert_eq!(facts.gid.real, nix::unistd::getgid().as_raw());
    assert_eq!(
        facts.cgroup,
        std::fs::read_to_string("/proc/self/cgroup").unwrap()
    );
    let exe = std::fs::metadata(format!("/proc/{}/exe", child.id())).unwrap();
    assert_eq!(facts.exe.inode, std::os::unix::fs::MetadataExt::ino(&exe));
    peer.recheck(&facts).unwrap();
    end(child);
}

#[tokio::test]
async fn exit_ends_the_wait_and_every_check() {
    let world = world();
    let (mut child, stream, peer) = world.peer();
    let facts = peer.attest_facts().unwrap();
    drop(child.stdin.take());
    timeout(DEADLINE, peer.exited()).await.unwrap();
    // A zombie: nobody has waited for it yet.
    assert!(matches!(peer.recheck(&facts), Err(Changed::Ended)));
    assert!(matches!(
        PeerProcess::from_socket(&stream, PeerPidfd::Require),
        Err(PeerError::Ended)
    ));
    child.wait().unwrap();
    assert!(matches!(peer.recheck(&facts), Err(Changed::Ended)));
    assert!(matches!(
        PeerProcess::from_socket(&stream, PeerPidfd::Require),
        Err(PeerError::Reaped)
    ));
    assert!(matches!(peer.attest_facts(), Err(PeerError::Ended)));
}

#[tokio::test]
async fn without_peer_pidfd_the_number_and_the_credentials_name_the_process() {
    let world = world();
    let (child, stream, _peer) = world.peer();
    let peer = PeerProcess::from_number(&stream).unwrap();
    let facts = peer.attest_facts().unwrap();
    assert_eq!(peer.pid(), i32::try_from(child.id()).unwrap());
    end(child);
    timeout(DEADLINE, peer.exited()).await.unwrap();
    assert!(matches!(peer.recheck(&facts), Err(Changed::Ended)));
    assert!(matches!(
        PeerProcess::from_number(&stream),
        Err(PeerError::Reaped)
    ));
}

#[test]
fn each_fact_that_differs_is_named() {
    let ids = Ids {
        real: 1,
        effective: 1,
        saved: 1,
        fs: 1,
    };
    let other = Ids { saved: 0, ..ids };
    let facts = ProcessFacts {
        exe: FileId {
            device: 1,
            inode: 2,
        },
        uid: ids,
        gid: ids,
        groups: [4].into(),
        start_time: 9,
        cgroup: "0::/\n".to_owned(),
    };
    let changes = [
        ProcessFacts {
            exe: FileId {
                device: 2,
                inode: 2,
            },
            ..facts.clone()
        },
        ProcessFacts {
            uid: other,
            ..facts.clone()
        },
        ProcessFacts {
            gid: other,
            ..facts.clone()
        },
        ProcessFacts {
            groups: [].into(),
            ..facts.clone()
        },
        ProcessFacts {
            start_time: 8,
            ..facts.clone()
        },
        ProcessFacts {
            cgroup: "0::/x\n".to_owned(),
            ..facts.clone()
        },
    ];
    let named: Vec<_> = changes
        .iter()
        .map(|now| difference(&facts, now).unwrap().to_string())
        .collect();
    assert_eq!(
        named,
        [
            "the process executes another file",
            "the process changed its user",
            "the process changed its group",
            "the process changed its supplementary groups",
            "the process is another one",
            "the process was moved to another cgroup",
        ]
    );
    assert!(difference(&facts, &facts).is_none());
}
