//! What a process on the stage does. It is this test program, started again to run the one test below.
//!
//! Standard input is the control socket: each line that is read means "go",
//! each octet that is written "done". After an exec standard output is the
//! connection.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::{Gid, Uid, setegid, seteuid, setgroups};

pub(crate) const ARGUMENTS: [&str; 4] = ["--exact", "actor::actor", "--nocapture", "--quiet"];
pub(crate) const PART: &str = "VANE_STORM_PART";
pub(crate) const SOCKET: &str = "VANE_STORM_SOCKET";
/// Whom `users` becomes and stops being.
const NOBODY: u32 = 65_534;

/// The shell's half of `exec`: it says that it is there, and on "go" becomes this program again.
const BACK: &str = r#"printf d >&0; read go || exit 0; exec "$@""#;
/// A child that keeps the connection (standard output) while its parent, which connected, ends.
const FORK: &str = r#"exec 3<&0; printf d >&3; read go; ( read go <&3 ) & exit 0"#;

#[test]
fn actor() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    match part.as_str() {
        "exit" => exit(),
        "fork" => become_shell(FORK),
        "pass" => pass(),
        "exec" => become_shell(BACK),
        "again" => again(),
        "users" => users(),
        other => panic!("no part {other}"),
    }
    std::process::exit(0);
}

fn control() -> UnixStream {
    std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .unwrap()
        .into()
}

fn connect() -> UnixStream {
    UnixStream::connect(std::env::var_os(SOCKET).unwrap()).unwrap()
}

/// Waits for "go"; false at the end of input.
fn may_go() -> bool {
    use std::io::Read;
    matches!(control().read(&mut [0]), Ok(1))
}

fn done() {
    control().write_all(b"d").unwrap();
}

fn exit() {
    let _connection = connect();
    may_go();
}

fn become_shell(script: &str) {
    let connection = connect();
    exec_shell(script, connection.into());
}

/// Execs a shell, which has `/proc/self/exe` no more and is told the program's path.
fn exec_shell(script: &str, connection: OwnedFd) {
    let this = std::env::current_exe().unwrap();
    let error = Command::new("/bin/sh")
        .args(["-c", script, "sh"])
        .arg(this)
        .args(ARGUMENTS)
        .env(PART, "again")
        .stdout(Stdio::from(connection))
        .exec();
    panic!("exec: {error}");
}

/// This program, execed by the shell.
fn again() {
    done();
    if may_go() {
        exec_shell(
            BACK,
            std::io::stdout().as_fd().try_clone_to_owned().unwrap(),
        );
    }
}

/// Passes the connection to whoever has the other end of the control socket, and ends on "go".
fn pass() {
    let connection = connect();
    let fds = [connection.as_raw_fd()];
    let octets = [std::io::IoSlice::new(b"d")];
    sendmsg::<()>(
        control().as_raw_fd(),
        &octets,
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )
    .unwrap();
    drop(connection);
    may_go();
}

/// Becomes somebody else and root again, in turn, in one of three ways.
fn users() {
    let _connection = connect();
    for turn in 0.. {
        if !may_go() {
            return;
        }
        let id = if turn % 2 == 0 { NOBODY } else { 0 };
        match turn / 2 % 3 {
            0 => seteuid(Uid::from_raw(id)).unwrap(),
            1 => setegid(Gid::from_raw(id)).unwrap(),
            _ => setgroups(&[Gid::from_raw(id)]).unwrap(),
        }
        done();
    }
}
