//! Somebody who opens connections and does nothing with them, in a process of his own.
//!
//! `vane-test-greedy SOCKET COUNT` opens COUNT connections one after the other, says
//! `ready connections=N` with how many were let in, and from then on answers each line on
//! standard input with how many are still open. It ends with its standard input.

use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::process::{program, within};

/// HTTP/2's preface and empty settings: a connection with them is idle, without it is late.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Descriptors that a process needs besides.
const OTHER: u64 = 64;

/// How many descriptors a process may have here at most.
pub fn descriptors() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).unwrap().1
}

/// So many connections, or as many as the limit of descriptors allows.
pub fn at_most(wanted: usize) -> usize {
    wanted.min(usize::try_from(descriptors() - OTHER).unwrap())
}

/// The greedy process.
pub fn main_entry() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (socket, count) = (args.next().unwrap(), args.next().unwrap());
    let most = descriptors();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut open = Vec::new();
    for _ in 0..count.parse().unwrap() {
        open.extend(connect(Path::new(&socket)));
    }
    open.retain_mut(is_open);
    println!("ready connections={}", open.len());
    for _ in std::io::stdin().lock().lines() {
        open.retain_mut(is_open);
        println!("{}", open.len());
        std::io::stdout().flush().unwrap();
    }
    ExitCode::SUCCESS
}

fn connect(socket: &Path) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(OPENING).ok()?;
    stream.set_nonblocking(true).unwrap();
    Some(stream)
}

/// Whether the other side has not closed it; what it said is read away.
fn is_open(stream: &mut UnixStream) -> bool {
    let mut said = [0; 1024];
    loop {
        match stream.read(&mut said) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

/// A handle on the greedy process.
pub struct Greedy {
    _child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Greedy {
    /// Starts it on `socket`; returns when it has tried all `count` connections.
    pub async fn start(socket: &Path, count: usize) -> Self {
        let mut child = Command::new(program("vane-test-greedy"))
            .arg(socket)
            .arg(count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut greedy = Self {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            _child: child,
        };
        let line = greedy.line().await;
        assert!(line.starts_with("ready "), "{line}");
        greedy
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        within(
            "a line of the greedy process",
            self.stdout.read_line(&mut line),
        )
        .await
        .unwrap();
        line
    }

    /// How many are open once the other side has closed those beyond its `limit`, of which it
    /// may not have accepted all at first.
    pub async fn settled(&mut self, limit: usize) -> usize {
        within("no more connections than the limit", async {
            loop {
                let open = self.open().await;
                if open <= limit {
                    break open;
                }
            }
        })
        .await
    }

    /// How many of its connections are open.
    pub async fn open(&mut self) -> usize {
        self.stdin.write_all(b"\n").await.unwrap();
        self.line().await.trim().parse().unwrap()
    }
}
