//! The driver put together: the folder and the pods, then the driver's socket, then the one at
//! which the kubelet looks for drivers, since it asks both at once.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use vane_chassis::files::socket_dir;
use vane_chassis::tasks::Tasks;
use vane_chassis::unix_listener::{Refusal, Socket, UnixListener};
use vane_wire::csi::v1::identity_server::IdentityServer;
use vane_wire::csi::v1::node_server::NodeServer;
use vane_wire::pluginregistration::registration_server::RegistrationServer;

use crate::api::Connection;

use super::folder::Folder;
use super::mountinfo::check_shared;
use super::options::Settings;
use super::service::{Driver, Fatal, Introduction};
use super::target::Pods;
use super::volumes::Volumes;

/// So long calls may take to end.
const DRAIN: Duration = Duration::from_secs(10);
/// The sockets are root's.
const SOCKET_MODE: u32 = 0o600;
const SOCKET_DIR: u32 = 0o750;
/// The most connections of a socket: the kubelet makes one for each call.
const CONNECTIONS: usize = 256;
/// The most calls of a connection at a time.
const STREAMS: u32 = 16;

type Listener = UnixListener<Arc<OwnedSemaphorePermit>>;

/// What is known once the driver serves.
#[derive(Debug)]
pub(crate) struct Ready {
    /// The driver's socket.
    pub(crate) socket: PathBuf,
    /// The driver's name.
    pub(crate) name: String,
}

/// Serves until `stop`.
///
/// # Errors
/// What keeps it from starting or from going on, with the way out.
pub(crate) async fn run(
    settings: Settings,
    stop: CancellationToken,
    on_ready: impl FnOnce(Ready),
) -> anyhow::Result<()> {
    let pods = Pods::open(&settings.pods)
        .with_context(|| format!("--kubelet-dir: cannot open {}", settings.pods.display()))?;
    check_shared(&pods)?;
    let folder = Folder::open(&settings.folder).context("--workload-api-socket-dir")?;
    folder.check_read_only()?;
    folder.check()?;
    serve(&settings, Volumes::new(pods, folder), stop, on_ready).await
}

/// As [`run`], when all is as it must be.
async fn serve(
    settings: &Settings,
    volumes: Volumes,
    stop: CancellationToken,
    on_ready: impl FnOnce(Ready),
) -> anyhow::Result<()> {
    let (alarm, alarmed) = mpsc::channel(1);
    let driver = Driver::new(settings, volumes, alarm.clone());
    let mut tasks = Tasks::with_token(stop.clone());
    let routes =
        Routes::new(IdentityServer::new(driver.clone())).add_service(NodeServer::new(driver));
    let listener = bind(&settings.socket, &stop).context("--csi-socket-path")?;
    tasks.spawn("csi", serve_routes(listener, routes, stop.clone()));
    if let Some(registration) = &settings.registration {
        let introduction = Introduction {
            name: settings.name.clone(),
            endpoint: registration.endpoint.clone(),
            alarm,
        };
        let routes = Routes::new(RegistrationServer::new(introduction));
        let listener = bind(&registration.socket, &stop).context("--plugin-registration-path")?;
        tasks.spawn("registration", serve_routes(listener, routes, stop.clone()));
    }
    tasks.spawn("alarm", alarm_of(alarmed, stop));
    on_ready(Ready {
        socket: settings.socket.clone(),
        name: settings.name.clone(),
    });
    Ok(tasks.join(DRAIN).await?)
}

async fn alarm_of(
    mut alarmed: mpsc::Receiver<Fatal>,
    stop: CancellationToken,
) -> Result<(), Fatal> {
    match stop.run_until_cancelled(alarmed.recv()).await {
        Some(Some(fatal)) => Err(fatal),
        _ => Ok(()),
    }
}

fn bind(path: &Path, stop: &CancellationToken) -> anyhow::Result<Listener> {
    if let Some(dir) = path.parent() {
        socket_dir(dir, SOCKET_DIR)?;
    }
    let socket = Socket {
        path: path.to_owned(),
        mode: SOCKET_MODE,
        group: None,
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let admits = move |stream: &UnixStream| admit(stream, &places);
    Ok(UnixListener::bind(&socket, admits, stop.clone())?)
}

/// Root, or who this runs as: the mode of the socket says so, too, but not where it lies.
fn admit(
    stream: &UnixStream,
    places: &Arc<Semaphore>,
) -> Result<Arc<OwnedSemaphorePermit>, Refusal> {
    let refused = |reason| Refusal { reason };
    let uid = stream
        .peer_cred()
        .map_err(|_| refused("the process cannot be told"))?
        .uid();
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(refused("not the kubelet's user"));
    }
    let place = Arc::clone(places).try_acquire_owned();
    place
        .map(Arc::new)
        .map_err(|_| refused("too many connections"))
}

async fn serve_routes(
    listener: Listener,
    routes: Routes,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let connections = listener.map(|accepted| Ok::<_, Infallible>(Connection::from(accepted)));
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .serve_with_incoming_shutdown(routes.prepare(), connections, stop.cancelled_owned())
        .await
}

#[cfg(test)]
mod tests;
