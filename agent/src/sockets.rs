//! The agent's listening sockets: where they are, and who may open them.
//!
//! Public: everybody on the node (0777 in a folder of 0755). Admin: the agent's own user, or
//! with `admin_group` that group. Both lie in `/run/vane` by default, beside the server's
//! admin socket: the modes of the sockets, not of the folder, tell who may.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use vane_chassis::files::{SHARED_RUN_DIR, compat_dir, socket_dir};
use vane_chassis::unix_listener::{Socket, UnixListener};

use crate::api::{self, Connector};
use crate::config::{Agent, COMPAT_SOCKET};
use crate::limits::{Bounds, Limits};

const PUBLIC: u32 = 0o777;
const PUBLIC_DIR: u32 = 0o755;
const ADMIN: u32 = 0o600;
const ADMIN_OF_GROUP: u32 = 0o660;
const ADMIN_DIR: u32 = 0o750;
/// The bounds of the admin socket: few processes with much to ask.
const ADMIN_BOUNDS: Bounds = Bounds {
    per_process: 64,
    per_group: 128,
    total: 256,
    streams: 100,
};

/// Binds the public sockets: the configured one and, when asked for, SPIRE's.
///
/// # Errors
/// What keeps one from being bound, with the key that names it.
pub(crate) fn public(
    agent: &Agent,
    descriptors: u64,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<UnixListener<Arc<Connector>>>> {
    let limits = Limits::new(Bounds::for_descriptors(descriptors));
    let mut paths = vec![agent.socket_path.clone()];
    if let Some(dir) = agent.socket_path.parent() {
        socket_dir(dir, PUBLIC_DIR).context("agent.socket_path")?;
    }
    if agent.compat_socket {
        let path = PathBuf::from(COMPAT_SOCKET);
        if let Some(dir) = path.parent() {
            compat_dir(dir, PUBLIC_DIR).context("agent.compat_socket")?;
        }
        paths.push(path);
    }
    let bind = |path: PathBuf| {
        let socket = Socket {
            path,
            mode: PUBLIC,
            group: None,
        };
        bind(&socket, limits.clone(), agent, stop)
    };
    paths.into_iter().map(bind).collect()
}

/// Binds the admin socket.
///
/// # Errors
/// As [`public`].
pub(crate) fn admin(
    agent: &Agent,
    stop: &CancellationToken,
) -> anyhow::Result<UnixListener<Arc<Connector>>> {
    let path = agent.admin_socket();
    let group = agent.admin_gid()?;
    if let Some(dir) = path.parent() {
        socket_dir(dir, admin_dir_mode(dir, agent)).context("agent.admin_socket_path")?;
    }
    let socket = Socket {
        path,
        mode: group.map_or(ADMIN, |_| ADMIN_OF_GROUP),
        group,
    };
    bind(&socket, Limits::new(ADMIN_BOUNDS), agent, stop)
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

fn bind(
    socket: &Socket,
    limits: Limits,
    agent: &Agent,
    stop: &CancellationToken,
) -> anyhow::Result<UnixListener<Arc<Connector>>> {
    let mode = agent.peer_pidfd;
    Ok(UnixListener::bind(
        socket,
        move |stream| api::admit(stream, &limits, mode),
        stop.clone(),
    )?)
}
