//! The clock of one process is set while it runs (libfaketime), and set right again.
//!
//! Each check sets the wall clock of the server or of the agent by an hour or a day, forward
//! or back, waits until the process says that it noticed, compares its state with the table,
//! corrects the clock and wants everything to be well again: the same agent, connected, with
//! an SVID for a workload that is valid now.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::Channel;
use vane_chassis::clock::{Clock as _, System};
use vane_tests::admin::{entry, unix_channel};
use vane_tests::process::within;
use vane_tests::workload::verify;
use vane_tests::world::{Agent, Options, World, own_selector, spiffe_id};
use vane_wire::vane::status::v1::status_client::StatusClient;
use vane_wire::vane::status::v1::{GetStatusRequest, GetStatusResponse};

use super::Outcome;

/// How often what nobody tells is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Whose clock is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Server,
    Agent,
}

/// The table: whose clock, by how many seconds, and what is expected until it is corrected.
pub const TABLE: [(Whose, i64, &str, bool); 8] = [
    // Whose, by, what the process itself tells, whether the agent keeps its stream.
    (Whose::Server, 3_600, "clock_jump", false),
    (Whose::Server, -3_600, "clock_jump", true),
    (Whose::Server, 86_400, "clock_jump", false),
    (Whose::Server, -86_400, "clock_jump", true),
    (Whose::Agent, 3_600, "clock_jump", true),
    (Whose::Agent, -3_600, "clock_jump", true),
    (Whose::Agent, 86_400, "clock_jump", true),
    (Whose::Agent, -86_400, "clock_jump", true),
];

/// The library, where Debian puts it.
fn library() -> Option<PathBuf> {
    let dirs = [
        "/usr/lib/x86_64-linux-gnu/faketime",
        "/usr/lib/aarch64-linux-gnu/faketime",
        "/usr/lib/faketime",
    ];
    let files = dirs.map(|dir| Path::new(dir).join("libfaketimeMT.so.1"));
    files.into_iter().find(|file| file.is_file())
}

/// Why this machine cannot do it.
pub fn cannot() -> Option<String> {
    let missing = "libfaketime is not installed (Debian: faketime)";
    library().is_none().then(|| missing.to_owned())
}

/// A clock that a process reads from a file.
struct Clock(PathBuf);

impl Clock {
    fn new(dir: &Path, name: &str) -> Self {
        let clock = Self(dir.join(name));
        clock.set(0);
        clock
    }

    /// Shows the time that it is and so many seconds.
    fn set(&self, ahead: i64) {
        let fresh = self.0.with_extension("new");
        std::fs::write(&fresh, format!("{ahead:+}\n")).unwrap();
        std::fs::rename(fresh, &self.0).unwrap();
    }

    fn environment(&self) -> Vec<(String, String)> {
        let pair = |name: &str, value: String| (name.to_owned(), value);
        vec![
            pair("LD_PRELOAD", library().unwrap().display().to_string()),
            pair("FAKETIME_TIMESTAMP_FILE", self.0.display().to_string()),
            pair("FAKETIME_NO_CACHE", "1".to_owned()),
            pair("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}

async fn status(channel: &Channel) -> GetStatusResponse {
    let mut client = StatusClient::new(channel.clone());
    let answer = within("a status", client.get_status(GetStatusRequest {})).await;
    answer.unwrap().into_inner()
}

/// Asks until `holds`: the state of another process is told by nobody.
async fn until(
    what: &str,
    channel: &Channel,
    holds: impl Fn(&GetStatusResponse) -> bool,
) -> GetStatusResponse {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        let status = status(channel).await;
        if holds(&status) {
            return status;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: {status:?}");
    }
}

fn has(status: &GetStatusResponse, fault: &str) -> bool {
    status.faults.iter().any(|one| one.fault == fault)
}

fn connected(status: &GetStatusResponse) -> bool {
    status.sync.as_ref().is_some_and(|sync| sync.connected)
}

fn skew(status: &GetStatusResponse) -> i64 {
    let clock = status.clock.as_ref();
    clock
        .filter(|clock| clock.compared)
        .map_or(0, |clock| clock.skew)
}

fn own_svid(status: &GetStatusResponse) -> i64 {
    let own = status.rotations.iter().find(|one| one.kind == "own_svid");
    own.map_or(0, |one| one.expires_at)
}

/// One row of the table.
pub async fn run(whose: Whose, by: i64, fault: &'static str, keeps_stream: bool) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new(dir.path(), "clock");
    let environment = clock.environment();
    let mut options = Options::default().agent("max_backoff = \"1s\"");
    match whose {
        Whose::Server => options.server_environment = environment,
        Whose::Agent => options.agent_environment = environment,
    }
    let world = World::with(options).await;
    let admin = world.admin().await;
    let agent = world.agent("agent").await;
    admin
        .create(entry(&spiffe_id("/before"), &agent.id, &[&own_selector()]))
        .await;
    assert_served(&agent, "/before").await;
    let server = unix_channel(&world.admin_socket()).await.unwrap();
    let local = unix_channel(&world.path("agent-admin.sock")).await.unwrap();
    until("the agent is well", &local, |s| {
        s.ready && connected(s) && s.faults.is_empty()
    })
    .await;
    let own = own_svid(&status(&local).await);

    clock.set(by);
    let asked = match whose {
        Whose::Server => &server,
        Whose::Agent => &local,
    };
    let set = until("the jump is noticed", asked, |s| {
        s.clock.as_ref().is_some_and(|clock| clock.jumps == 1) && has(s, fault)
    })
    .await;
    let jump = set.clock.as_ref().unwrap().last_jump;
    assert!((jump - by * 1_000).abs() < 3_000, "{jump}");
    assert!(set.live, "no restart helps: {set:?}");
    if keeps_stream {
        // The heartbeat tells by how much the clocks differ.
        let ahead = match whose {
            Whose::Server => -by,
            Whose::Agent => by,
        };
        until("the skew is told", &local, |s| {
            connected(s) && has(s, "clock_jump") && (skew(s) - ahead * 1_000).abs() < 5_000
        })
        .await;
    } else {
        until("the agent is cut off", &local, |s| !connected(s)).await;
    }
    assert!(agent_lives(&local).await, "no agent ends for a clock");

    clock.set(0);
    until("the agent is well again", &local, |s| {
        s.ready && connected(s) && !has(s, "no_upstream") && skew(s).abs() < 5_000
    })
    .await;
    until("it has an SVID of its own that is valid", &local, |s| {
        own_svid(s) > s.time / 1_000
    })
    .await;
    assert_ne!(own, 0);
    admin
        .create(entry(&spiffe_id("/after"), &agent.id, &[&own_selector()]))
        .await;
    assert_served(&agent, "/after").await;
    Outcome::Passed(format!("noticed as {} ms, well again", jump))
}

async fn agent_lives(local: &Channel) -> bool {
    let status = status(local).await;
    !status.spiffe_id.is_empty()
}

/// A workload gets an SVID for `path` that verifies now, by the right clock.
async fn assert_served(agent: &Agent, path: &str) {
    let wanted = spiffe_id(path);
    let valid = async {
        let mut looks = tokio::time::interval(LOOK);
        loop {
            looks.tick().await;
            let mut stream = agent.workload().await.watch().await.unwrap();
            let Ok(message) = stream.until(|ids| ids.contains(&wanted)).await else {
                continue;
            };
            let now = System.now();
            let is_valid = std::panic::catch_unwind(|| verify(&message, now)).is_ok();
            if is_valid {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), valid)
        .await
        .unwrap_or_else(|_| panic!("no valid SVID of {wanted}"));
}
