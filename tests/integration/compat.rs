//! Where SPIRE's own tools look when they are told nothing: `compat_socket` of both programs.
//!
//! The paths are the machine's, so the tests of this file wait for each other, also for those
//! of other runs.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use vane_chassis::clock::{Clock as _, System};
use vane_tests::admin::{Admin, entry};
use vane_tests::workload::{Workload, verify};
use vane_tests::world::{Options, World, own_selector, spiffe_id};

const SERVER: &str = "/tmp/spire-server/private/api.sock";
const AGENT: &str = "/tmp/spire-agent/public/api.sock";

/// The paths are this test's; what it made there goes with it.
struct Places(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl Places {
    async fn take() -> Self {
        let lock = std::env::temp_dir().join("vane-compat-socket.lock");
        let open = move || {
            let file = File::options()
                .create(true)
                .append(true)
                .open(lock)
                .unwrap();
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)
        };
        let lock = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
        clear();
        for path in [SERVER, AGENT] {
            let top = Path::new(path).ancestors().nth(2).unwrap();
            assert!(
                !top.exists(),
                "{} is in use: stop what made it",
                top.display()
            );
        }
        Self(lock)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        clear();
    }
}

/// Removes what nobody uses: sockets at which nobody answers, and folders that are empty.
fn clear() {
    for path in [SERVER, AGENT] {
        let path = Path::new(path);
        if std::os::unix::net::UnixStream::connect(path).is_err() {
            let _ = fs::remove_file(path);
        }
        let top = path.ancestors().nth(2).unwrap();
        if top.is_symlink() {
            let _ = fs::remove_file(top);
        }
        let _ = fs::remove_dir(path.parent().unwrap());
        let _ = fs::remove_dir(top);
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn options() -> Options {
    Options::default()
        .server("compat_socket = true")
        .agent("compat_socket = true")
}

#[tokio::test]
async fn spires_default_paths_reach_both_programs() {
    let places = Places::take().await;
    let world = World::with(options()).await;
    let agent = world.agent("agent").await;
    let (server_socket, agent_socket) = (Path::new(SERVER), Path::new(AGENT));
    for (socket, socket_mode, dir_mode) in
        [(server_socket, 0o660, 0o750), (agent_socket, 0o777, 0o755)]
    {
        assert!(fs::metadata(socket).unwrap().file_type().is_socket());
        assert_eq!(mode(socket), socket_mode, "{}", socket.display());
        let dir = socket.parent().unwrap();
        assert_eq!(mode(dir), dir_mode, "{}", dir.display());
        assert_eq!(mode(dir.parent().unwrap()), 0o755);
    }
    let admin = Admin::connect(server_socket).await;
    assert_eq!(admin.count_agents().await, 1);
    admin
        .create(entry(&spiffe_id("/web"), &agent.id, &[&own_selector()]))
        .await;
    let mut stream = Workload::connect(agent_socket).await.served().await;
    let message = stream
        .until(|ids| ids == [spiffe_id("/web")])
        .await
        .unwrap();
    verify(&message, System.now());
    drop((stream, admin));
    assert_eq!(agent.process.terminate().await, Some(0));
    assert!(!agent_socket.exists(), "the socket goes with the agent");
    stop(world).await;
    drop(places);
}

#[tokio::test]
async fn a_folder_that_somebody_else_prepared_is_refused() {
    let places = Places::take().await;
    let mut world = World::start().await;
    world.kill_server().await;
    world.add_to_server("compat_socket = true");
    let top = Path::new("/tmp/spire-server");
    let trap = world.path("trap");
    fs::create_dir(&trap).unwrap();

    symlink(&trap, top).unwrap();
    let refused = world.try_restart_server().await.unwrap_err();
    assert!(refused.contains("server.compat_socket"), "{refused}");
    assert!(refused.contains("/tmp/spire-server"), "{refused}");
    assert!(
        fs::read_dir(&trap).unwrap().next().is_none(),
        "nothing is made behind a link"
    );
    fs::remove_file(top).unwrap();

    let mut open = fs::DirBuilder::new();
    fs::create_dir(top).unwrap();
    open.mode(0o777).create(top.join("private")).unwrap();
    let wide = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(top.join("private"), wide).unwrap();
    let refused = world.try_restart_server().await.unwrap_err();
    assert!(refused.contains("/tmp/spire-server/private"), "{refused}");
    fs::remove_dir(top.join("private")).unwrap();
    fs::remove_dir(top).unwrap();
    world.try_restart_server().await.unwrap();
    stop(world).await;
    drop(places);
}

/// Ends the server, which takes its sockets with it.
async fn stop(mut world: World) {
    let server = world.server.take().unwrap();
    assert_eq!(server.terminate().await, Some(0));
    assert!(
        !Path::new(SERVER).exists(),
        "the socket goes with the server"
    );
}
