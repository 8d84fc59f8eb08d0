//! Programs of this workspace as child processes, ended with their owner.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// The deadline of everything that a test waits for.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for `future`, or fails with `what` after [`DEADLINE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// A program built beside the running test: `<target>/<profile>/<name>`. With `VANE_BIN` it is
/// the one in that folder which is shipped, so that benches measure that one.
pub fn program(name: &str) -> PathBuf {
    let shipped = match name {
        "vane-test-server" => Some("vane-server"),
        "vane-test-agent" => Some("vane-agent"),
        "vane-test-cli" => Some("vane"),
        _ => None,
    };
    if let (Some(shipped), Some(folder)) = (shipped, std::env::var_os("VANE_BIN")) {
        return PathBuf::from(folder).join(shipped);
    }
    let own = std::env::current_exe().unwrap();
    own.ancestors()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} was not built beside {}", own.display()))
}

/// Under what a program is started, beside what this process has.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// The most descriptors, when it is not this process's limit.
    pub descriptors: Option<u64>,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
    /// What a shell does first, in a mount namespace that the program then has; root only.
    pub mounts: Option<String>,
}

/// A running program that has printed its ready line.
pub struct Process {
    child: Child,
    _stdout: BufReader<ChildStdout>,
    /// The words `key=value` of the ready line.
    pub ready: HashMap<String, String>,
}

impl Process {
    /// Starts `name` with `args`, its log appended to `log`, and waits for its ready line.
    pub async fn start(name: &str, args: &[&str], log: &Path) -> Self {
        Self::try_start(name, args, log)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Process::start`]; a program that ends before it is ready is an error with its log.
    pub async fn try_start(name: &str, args: &[&str], log: &Path) -> Result<Self, String> {
        Self::try_start_under(&Launch::default(), name, args, log).await
    }

    /// As [`Process::try_start`], under the terms of `launch`.
    pub async fn try_start_under(
        launch: &Launch,
        name: &str,
        args: &[&str],
        log: &Path,
    ) -> Result<Self, String> {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let mut child = launched(launch, &program(name))
            .args(args)
            .envs(launch.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let ready = tokio::time::timeout(DEADLINE, stdout.read_line(&mut line)).await;
        let Ok(ready) = ready else {
            return Err(format!(
                "{name} is not ready after {DEADLINE:?}\n{}",
                tail(log)
            ));
        };
        ready.unwrap();
        let Some(words) = line.strip_prefix("ready ") else {
            let status = within("its end", child.wait()).await.unwrap();
            return Err(format!("{name} ended with {status}: {line}{}", tail(log)));
        };
        let ready = words
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Ok(Self {
            child,
            _stdout: stdout,
            ready,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// `kill -9`, and waits for its end.
    pub async fn kill(mut self) {
        self.child.start_kill().unwrap();
        within("it is gone", self.child.wait()).await.unwrap();
    }

    /// SIGTERM, and waits for its end; the exit code.
    pub async fn terminate(mut self) -> Option<i32> {
        kill(
            Pid::from_raw(i32::try_from(self.pid()).unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
        within("it drains", self.child.wait()).await.unwrap().code()
    }

    /// Waits for its own end; the exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        within("it ends", self.child.wait()).await.unwrap().code()
    }

    /// Lets it open nothing more; what its limit of descriptors was before.
    pub fn no_more_descriptors(&self) -> Option<u64> {
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let open: std::collections::BTreeSet<u64> =
            std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
                .unwrap()
                .map(|entry| name(entry).to_str().unwrap().parse().unwrap())
                .collect();
        // A limit is above the numbers, not the count.
        let first_free = (0..).find(|n| !open.contains(n));
        self.limit_descriptors(first_free)
    }

    /// Sets its limit of descriptors; what it was before.
    pub fn limit_descriptors(&self, most: Option<u64>) -> Option<u64> {
        use rustix::process::{Pid, Resource, Rlimit, prlimit};
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.pid())).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let hard = line.unwrap().split_whitespace().nth(4).unwrap().parse();
        let limit = Rlimit {
            current: most,
            maximum: hard.ok(),
        };
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap());
        prlimit(pid, Resource::Nofile, limit).unwrap().current
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        rss_of(self.pid())
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// The program, through a shell that lowers its limit of descriptors or mounts for it.
fn launched(launch: &Launch, program: &Path) -> Command {
    let limit = launch.descriptors.map(|most| format!("ulimit -n {most};"));
    let Some(first) = limit.or_else(|| launch.mounts.clone()) else {
        return Command::new(program);
    };
    let mut command = Command::new(launch.mounts.as_ref().map_or("sh", |_| "unshare"));
    if launch.mounts.is_some() {
        command.args(["--mount", "--propagation", "unchanged", "sh"]);
    }
    let script = format!("set -e; {first} exec \"$0\" \"$@\"");
    command.args(["-c", &script]).arg(program);
    command
}

/// Resident memory of a process in bytes.
pub fn rss_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// A TCP port of the loopback address that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// What the ops listener at `port` answers for `path`: the status, and the body.
pub async fn ops(port: u16, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    // HTTP/1.0: the body comes whole and not in chunks.
    let request = format!("GET {path} HTTP/1.0\r\nhost: ops\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    within(
        "an answer of the ops listener",
        stream.read_to_string(&mut text),
    )
    .await
    .unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split_whitespace().nth(1).unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// A metric without labels, as the ops listener at `port` shows it.
pub async fn metric(port: u16, name: &str) -> u64 {
    let (_, text) = ops(port, "/metrics").await;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no metric {name}: {text}"))
        .trim()
        .parse()
        .unwrap()
}
