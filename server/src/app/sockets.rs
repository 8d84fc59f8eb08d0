//! The listeners: opened here or by systemd, with the modes and groups that the configuration gives them.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::unistd::Gid;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use vane_chassis::files::{SHARED_RUN_DIR, compat_dir, socket_dir};
use vane_chassis::given::Given;
use vane_chassis::health::Health;
use vane_chassis::metrics::Metrics;
use vane_chassis::mtls::TlsListener;
use vane_chassis::ops::Ops;
use vane_chassis::tasks::Tasks;
use vane_chassis::unix_listener::{Socket, UnixListener};

use crate::api::{Admitted, Places};
use crate::config::{COMPAT_SOCKET, Config};

/// Connections to the admin sockets at once.
const ADMIN_CONNECTIONS: usize = 1_024;
/// The names of the sockets that systemd may pass (`FileDescriptorName=`).
const AGENTS: &str = "agents";
const ADMIN: &str = "admin";
const COMPAT: &str = "compat";
const OPS: &str = "ops";
const ADMIN_MODE: u32 = 0o660;
const ADMIN_DIR_MODE: u32 = 0o750;
const SHARED_DIR_MODE: u32 = 0o755;

/// Serves metrics and health, where that is wanted.
pub(super) async fn serve_ops(
    config: &Config,
    given: &mut Given,
    metrics: &Metrics,
    health: Health,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    if !config.telemetry.enabled {
        return Ok(());
    }
    let address = config.telemetry.ops_address;
    let ops = match given.take_tcp(OPS)? {
        Some(listener) => Ops::over(listener, metrics.clone(), health),
        None => Ops::bind(address, metrics.clone(), health).await,
    };
    let ops = ops.with_context(|| format!("cannot listen on telemetry.ops_address {address}"))?;
    tasks.spawn("ops", ops.run(tasks.token()));
    Ok(())
}

/// The listener for agents.
pub(super) fn agent_listener(config: &Config, given: &mut Given) -> anyhow::Result<TlsListener> {
    let address = config.server.address();
    let listener = match given.take_tcp(AGENTS)? {
        Some(listener) => TlsListener::over(listener),
        None => TlsListener::bind(address),
    };
    listener
        .with_context(|| format!("cannot listen on {address}: is another server running there?"))
}

/// Four fifths of the descriptors: the rest is for the store, the log and the admin sockets.
pub(super) fn agent_connections(descriptors: u64) -> usize {
    usize::try_from(descriptors / 5 * 4).unwrap_or(usize::MAX)
}

/// The admin socket, and SPIRE's path for it where that is wanted.
pub(super) fn admin_listeners(
    config: &Config,
    given: &mut Given,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<UnixListener<Admitted>>> {
    let server = &config.server;
    let group = server.admin_gid()?;
    let places = Places::new(ADMIN_CONNECTIONS);
    let mut wanted = vec![(ADMIN, server.socket_path.clone())];
    let dir = server.socket_path.parent();
    if let Some(dir) = dir.filter(|dir| *dir != Path::new("") && !given.has(ADMIN)) {
        admin_dir(dir, group).context("server.socket_path")?;
    }
    if server.compat_socket {
        let path = PathBuf::from(COMPAT_SOCKET);
        if let Some(dir) = path.parent().filter(|_| !given.has(COMPAT)) {
            // It is ours alone, also when it was there before.
            compat_dir(dir, ADMIN_DIR_MODE).context("server.compat_socket")?;
            give(dir, group)?;
        }
        wanted.push((COMPAT, path));
    }
    let open = |(name, path): (&str, PathBuf)| {
        let places = places.clone();
        let admit = move |stream: &UnixStream| places.admit(stream);
        let socket = Socket {
            path,
            mode: ADMIN_MODE,
            group,
        };
        Ok(match given.take_unix(name, &socket.path)? {
            Some(given) => UnixListener::adopt(given, socket.path, admit, stop.clone())?,
            None => UnixListener::bind(&socket, admit, stop.clone())?,
        })
    };
    wanted.into_iter().map(open).collect()
}

/// Makes the directory of the admin socket when it is not there; its group may then enter it.
fn admin_dir(dir: &Path, group: Option<u32>) -> anyhow::Result<()> {
    let is_new = !dir.exists();
    socket_dir(dir, admin_dir_mode(dir))?;
    give(dir, group.filter(|_| is_new))
}

/// The folder that the agent's public socket lies in by default, too, must be open.
fn admin_dir_mode(dir: &Path) -> u32 {
    if dir == Path::new(SHARED_RUN_DIR) {
        SHARED_DIR_MODE
    } else {
        ADMIN_DIR_MODE
    }
}

/// Lets a group enter a folder of ours.
fn give(dir: &Path, group: Option<u32>) -> anyhow::Result<()> {
    let Some(group) = group else {
        return Ok(());
    };
    nix::unistd::chown(dir, None, Some(Gid::from_raw(group)))
        .with_context(|| format!("cannot give {} to group {group}", dir.display()))
}
