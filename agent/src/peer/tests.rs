use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// Connects, says it is there with a line, then does what `then` says.
fn connector(socket: &Path, then: &str) -> Command {
    let script = format!(
        "import os, socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.connect('{}')\nprint('x', flush=True)\n{then}",
        socket.display()
    );
    let mut command = Command::new("python3");
    command
        .args(["-c", &script])
        .stdout(Stdio::piped())
        .stdin(Stdio::piped());
    command
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

    fn peer(&self, then: &str) -> (Child, UnixStream, PeerProcess) {
        let child = connector(&self.path, then).spawn().unwrap();
        let stream = self.accept();
        let peer = PeerProcess::from_socket(&stream, PeerPidfd::Require).unwrap();
        (child, stream, peer)
    }
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[tokio::test]
async fn the_peer_is_who_connected_with_its_facts() {
    let world = world();
    let (child, _stream, peer) = world.peer("sys.stdin.read()");
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
    let (mut child, stream, peer) = world.peer("sys.stdin.read()");
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
async fn exec_of_another_file_is_a_change() {
    let world = world();
    let (mut child, _stream, peer) = world.peer("sys.stdin.readline()\nos.set_inheritable(s.fileno(), True)\nos.execv('/bin/sh', ['sh', '-c', 'echo there; read x'])");
    let facts = peer.attest_facts().unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap());
    expect(&mut lines, "x\n");
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
    expect(&mut lines, "there\n");
    assert!(matches!(peer.recheck(&facts), Err(Changed::Exe)));
    let now = peer.attest_facts().unwrap();
    peer.recheck(&now).unwrap();
    end(child);
}

#[tokio::test]
async fn a_child_with_the_descriptor_does_not_stand_in_for_the_connector() {
    let world = world();
    let (child, mut stream, peer) = world.peer(
        "pid = os.fork()\nif pid == 0:\n  s.sendall(b'c')\n  s.recv(1)\n  os._exit(0)\nos._exit(0)",
    );
    let facts = peer.attest_facts();
    stream.read_exact(&mut [0]).unwrap();
    timeout(DEADLINE, peer.exited()).await.unwrap();
    if let Ok(facts) = facts {
        assert!(matches!(peer.recheck(&facts), Err(Changed::Ended)));
    }
    assert!(PeerProcess::from_socket(&stream, PeerPidfd::Require).is_err());
    end(child);
}

#[tokio::test]
async fn without_peer_pidfd_the_number_and_the_credentials_name_the_process() {
    let world = world();
    let (child, stream, _peer) = world.peer("sys.stdin.read()");
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

fn expect(lines: &mut impl std::io::BufRead, wanted: &str) {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, wanted);
}
