//! The agent's listening sockets: where they are, and who may open them.
//!
//! Public: everybody on the node (0777 in a folder of 0755). Admin: the agent's own user, or
//! with `admin_group` that group. Both lie in `/run/vane` by default, beside the server's
//! admin socket: the modes of the sockets, not of the folder, tell who may. One that was given
//! to us (by systemd or a predecessor) is used as it is.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vane_chassis::files::{Dir, SHARED_RUN_DIR, compat_dir, socket_dir};
use vane_chassis::given::Given;
use vane_chassis::unix_listener::{Socket, UnixListener};

use crate::aliases;
use crate::api::{self, Connector};
use crate::config::{Agent, COMPAT_SOCKET, Config};
use crate::limits::{Bounds, Limits};

/// The name of the public socket where others pass it (`FileDescriptorName=`).
pub(crate) const PUBLIC: &str = "public";
/// The name of SPIRE's public socket.
pub(crate) const COMPAT: &str = "compat";
/// The name of the admin socket.
pub(crate) const ADMIN: &str = "admin";
/// The name of the ops listener.
pub(crate) const OPS: &str = "ops";

const PUBLIC_MODE: u32 = 0o777;
const PUBLIC_DIR: u32 = 0o755;
const ADMIN_MODE: u32 = 0o600;
const ADMIN_GROUP_MODE: u32 = 0o660;
const ADMIN_DIR: u32 = 0o750;
/// The bounds of the admin socket: few processes with much to ask.
const ADMIN_BOUNDS: Bounds = Bounds {
    per_process: 64,
    per_group: 128,
    total: 256,
    streams: 100,
};

type Listener = UnixListener<Arc<Connector>>;

/// How listeners end once a successor has their sockets.
#[derive(Debug)]
pub(crate) struct Retirement {
    begun: CancellationToken,
    gone: mpsc::Sender<Infallible>,
}

impl Retirement {
    /// Not begun; the receiver ends when the last listener has ended after that.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Infallible>) {
        let (gone, all_gone) = mpsc::channel(1);
        let begun = CancellationToken::new();
        (Self { begun, gone }, all_gone)
    }

    /// Accepts no more.
    pub(crate) fn begin(self) {
        self.begun.cancel();
    }

    fn of(&self, listener: Listener) -> Listener {
        listener.retiring(self.begun.clone(), self.gone.clone())
    }
}

/// Where the sockets are that `config` wants, by their names.
pub(crate) fn places(config: &Config) -> Vec<(&'static str, String)> {
    let agent = &config.agent;
    let path = |path: &Path| path.display().to_string();
    let compat = agent
        .compat_socket
        .then(|| (COMPAT, COMPAT_SOCKET.to_owned()));
    let ops = config.telemetry.ops_address;
    [
        (PUBLIC, path(&agent.socket_path)),
        (ADMIN, path(&agent.admin_socket())),
    ]
    .into_iter()
    .chain(compat)
    .chain(ops.map(|address| (OPS, address.to_string())))
    .collect()
}

/// Opens the public sockets: the configured one and, when asked for, SPIRE's.
///
/// # Errors
/// What keeps one from being opened, with the key that names it.
pub(crate) fn public(
    agent: &Agent,
    limits: &Limits,
    given: &mut Given,
    retirement: &Retirement,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<(&'static str, Listener)>> {
    let mut wanted = vec![(PUBLIC, agent.socket_path.clone())];
    if let Some(dir) = agent.socket_path.parent() {
        if !given.has(PUBLIC) {
            socket_dir(dir, PUBLIC_DIR).context("agent.socket_path")?;
        }
        if !agent.socket_aliases.is_empty() {
            let name = agent.socket_path.file_name().unwrap_or_default();
            let dir = Dir::open(dir).context("agent.socket_path")?;
            aliases::link(&dir, name, &agent.socket_aliases).context("agent.socket_aliases")?;
        }
    }
    if agent.compat_socket {
        let path = PathBuf::from(COMPAT_SOCKET);
        if let Some(dir) = path.parent().filter(|_| !given.has(COMPAT)) {
            compat_dir(dir, PUBLIC_DIR).context("agent.compat_socket")?;
        }
        wanted.push((COMPAT, path));
    }
    let open = |(name, path)| {
        let socket = Socket {
            path,
            mode: PUBLIC_MODE,
            group: None,
        };
        let listener = open(
            &socket,
            given.take_unix(name, &socket.path)?,
            limits.clone(),
            agent,
            stop,
        )?;
        Ok((name, retirement.of(listener)))
    };
    wanted.into_iter().map(open).collect()
}

/// Opens the admin socket.
///
/// # Errors
/// As [`public`].
pub(crate) fn admin(
    agent: &Agent,
    given: &mut Given,
    retirement: &Retirement,
    stop: &CancellationToken,
) -> anyhow::Result<Listener> {
    let path = agent.admin_socket();
    let group = agent.admin_gid()?;
    if let Some(dir) = path.parent().filter(|_| !given.has(ADMIN)) {
        socket_dir(dir, admin_dir_mode(dir, agent)).context("agent.admin_socket_path")?;
    }
    let socket = Socket {
        path,
        mode: group.map_or(ADMIN_MODE, |_| ADMIN_GROUP_MODE),
        group,
    };
    let given = given.take_unix(ADMIN, &socket.path)?;
    let listener = open(&socket, given, Limits::new(ADMIN_BOUNDS), agent, stop)?;
    Ok(retirement.of(listener))
}

/// A folder that the public socket is in, too, must be open to everybody.
fn admin_dir_mode(dir: &Path, agent: &Agent) -> u32 {
    let is_shared = dir == Path::new(SHARED_RUN_DIR) || agent.socket_path.parent() == Some(dir);
    if is_shared || !agent.admin_group.is_empty() {
        PUBLIC_DIR
    } else {
        ADMIN_DIR
    }
}

fn open(
    socket: &Socket,
    given: Option<vane_chassis::given::GivenUnix>,
    limits: Limits,
    agent: &Agent,
    stop: &CancellationToken,
) -> anyhow::Result<Listener> {
    let mode = agent.peer_pidfd;
    let admits = move |stream: &UnixStream| api::admit(stream, &limits, mode);
    let stop = stop.clone();
    Ok(match given {
        Some(given) => UnixListener::adopt(given, socket.path.clone(), admits, stop)?,
        None => UnixListener::bind(socket, admits, stop)?,
    })
}
