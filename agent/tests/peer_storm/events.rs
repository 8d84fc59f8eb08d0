//! The events, one method each: what happens, and when it is complete.

use std::fs;
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, send};
use vane_agent::peer::{FileId, PeerPidfd, PeerProcess};

use crate::{Actor, Stage, peer, settled};

/// Execs of one process.
const EXECS: u64 = 24;
/// Changes of user or cgroup of one process.
const CHANGES: u64 = 60;

impl Stage {
    /// The connector ends. Complete when it was waited for.
    pub(crate) fn exit(&mut self) {
        let (mut actor, connection) = self.enter("exit");
        let peer = peer(&connection);
        let facts = peer.attest_facts().unwrap();
        actor.go();
        self.recheck(&peer, &facts, true, || {
            actor.child.try_wait().unwrap().is_some()
        });
        self.totals.wrong +=
            u64::from(PeerProcess::from_socket(&connection, PeerPidfd::Require).is_ok());
        self.totals.exits += 1;
    }

    /// The connector ends, while its child, of the same program, user and cgroup, keeps the connection.
    pub(crate) fn fork(&mut self) {
        let (mut actor, connection) = self.enter("fork");
        let peer = peer(&connection);
        actor.control.read_exact(&mut [0]).unwrap();
        let facts = peer.attest_facts().unwrap();
        actor.go();
        self.recheck(&peer, &facts, true, || {
            actor.child.try_wait().unwrap().is_some()
        });
        self.totals.wrong +=
            u64::from(PeerProcess::from_socket(&connection, PeerPidfd::Require).is_ok());
        self.totals.forks += 1;
        actor.leave();
    }

    /// The connector passes the connection to this process, which has its program, user and cgroup, and ends.
    pub(crate) fn pass(&mut self) {
        let (mut actor, mut connection) = self.enter("pass");
        let passed = receive(&actor);
        let peer = peer(&connection);
        let facts = peer.attest_facts().unwrap();
        assert_eq!(
            peer.pid(),
            i32::try_from(actor.child.id()).unwrap(),
            "who connected, not who holds it"
        );
        // It speaks for its connector while that lives.
        send(passed, b"x", MsgFlags::empty()).unwrap();
        connection.read_exact(&mut [0]).unwrap();
        peer.recheck(&facts).unwrap();
        actor.go();
        self.recheck(&peer, &facts, true, || {
            actor.child.try_wait().unwrap().is_some()
        });
        send(passed, b"x", MsgFlags::empty()).unwrap();
        connection.read_exact(&mut [0]).unwrap();
        self.totals.wrong +=
            u64::from(PeerProcess::from_socket(&connection, PeerPidfd::Require).is_ok());
        self.totals.passed += 1;
        nix::unistd::close(passed).unwrap();
    }

    /// The connector executes a shell, that executes the first program again, and so on.
    /// Complete when the new program has written its first octet.
    pub(crate) fn execs(&mut self) {
        let (mut actor, connection) = self.enter("exec");
        let peer = peer(&connection);
        let (this, shell) = (id("/proc/self/exe"), id("/bin/sh"));
        for turn in 0..EXECS {
            let before = if turn % 2 == 0 { this } else { shell };
            self.linger();
            let facts = settled(|| peer.attest_facts());
            assert!(facts.exe == this || facts.exe == shell);
            let is_old = facts.exe == before;
            self.recheck(&peer, &facts, is_old, || actor.has_said());
            self.totals.execs += 1;
            // The next exec begins while nobody looks, or while the facts are read.
            actor.go();
        }
        actor.leave();
    }

    /// The connector changes its effective user, group or groups. Complete when it says so.
    pub(crate) fn users(&mut self) {
        let (mut actor, connection) = self.enter("users");
        let peer = peer(&connection);
        for _ in 0..CHANGES {
            let before = peer.attest_facts().unwrap();
            actor.go();
            self.linger();
            let facts = peer.attest_facts().unwrap();
            self.recheck(&peer, &facts, facts == before, || actor.has_said());
            self.totals.users += 1;
        }
        actor.leave();
    }

    /// The connector is moved from one cgroup to another. Complete when the write has returned.
    pub(crate) fn cgroups(&mut self, cgroups: &Cgroups) {
        let (actor, connection) = self.enter("exit");
        let peer = peer(&connection);
        let pid = actor.child.id();
        move_to(&cgroups.folder(0), pid);
        for turn in 1..=CHANGES {
            let facts = peer.attest_facts().unwrap();
            let folder = cgroups.folder(turn);
            let mut mover = Some(std::thread::spawn(move || move_to(&folder, pid)));
            self.recheck(&peer, &facts, true, || {
                if mover
                    .as_ref()
                    .is_some_and(std::thread::JoinHandle::is_finished)
                {
                    mover.take().unwrap().join().unwrap();
                }
                mover.is_none()
            });
            self.totals.cgroups += 1;
        }
        actor.leave();
    }
}

fn id(path: &str) -> FileId {
    let file = fs::metadata(path).unwrap();
    FileId {
        device: file.dev(),
        inode: file.ino(),
    }
}

fn receive(actor: &Actor) -> RawFd {
    let mut octet = [0];
    let mut slices = [IoSliceMut::new(&mut octet)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(
        actor.control.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    );
    let message = message.unwrap();
    match message.cmsgs().unwrap().next() {
        Some(ControlMessageOwned::ScmRights(fds)) => fds[0],
        other => panic!("no descriptor: {other:?}"),
    }
}

/// Two cgroups of this test's own, below the one it is in.
#[derive(Debug)]
pub(crate) struct Cgroups([PathBuf; 2]);

impl Cgroups {
    /// None when this user may not make cgroups, or not here.
    pub(crate) fn new() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let roots = match controllers {
                "" => [
                    "/sys/fs/cgroup".to_owned(),
                    "/sys/fs/cgroup/unified".to_owned(),
                ],
                "cpuset" => return None,
                named => [
                    format!("/sys/fs/cgroup/{}", named.trim_start_matches("name=")),
                    String::new(),
                ],
            };
            roots
                .iter()
                .find_map(|root| Self::below(Path::new(&format!("{root}{path}"))))
        })
    }

    fn below(parent: &Path) -> Option<Self> {
        if !parent.join("cgroup.procs").exists() {
            return None;
        }
        let tag = format!(
            "vane-storm-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let two = Self([0, 1].map(|number| parent.join(format!("{tag}-{number}"))));
        two.0
            .iter()
            .all(|folder| fs::create_dir(folder).is_ok())
            .then_some(two)
    }

    fn folder(&self, turn: u64) -> PathBuf {
        self.0[usize::try_from(turn % 2).unwrap()].clone()
    }
}

fn move_to(folder: &Path, pid: u32) {
    fs::write(folder.join("cgroup.procs"), pid.to_string()).unwrap();
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Left behind only if somebody else put a process there.
            let _ = fs::remove_dir(folder);
        }
    }
}
