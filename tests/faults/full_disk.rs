//! No space left under the data directory of the server, or of an agent.
//!
//! The disk is a small tmpfs in a mount namespace of its own.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tonic::{Code, Status};
use vane_tests::admin::{Admin, entry};
use vane_tests::process::{free_port, metric, ops, within};
use vane_tests::workload::{SvidStream, ids, verify};
use vane_tests::world::{Agent, Options, World, own_selector, spiffe_id};
use vane_wire::spire::api::server::entry::v1::{BatchCreateEntryRequest, GetEntryRequest};

use super::Outcome;

const SIZE: &str = "24m";
/// How often the disk is filled.
const ROUNDS: usize = 3;
/// Octets that are left free when it is filled.
const LEFT: u64 = 300_000;
/// How often what has no event is looked at.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// A world whose server has its data on a small disk.
async fn on_a_small_disk() -> World {
    let mut world = World::start().await;
    assert_eq!(world.server.take().unwrap().terminate().await, Some(0));
    mount(&world.path("server"), SIZE);
    world.restart_server().await;
    world
}

/// A disk of its own for a folder.
fn mount(folder: &Path, size: &str) {
    let options = format!("size={size},mode=0700");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &options, "vane-faults"])
        .arg(folder)
        .status()
        .unwrap();
    assert!(mounted.success());
}

/// Fills the disk up to `left` octets; the file that does it.
fn fill(disk: &Path, left: u64) -> PathBuf {
    let path = disk.join("ballast");
    let mut file = File::create(&path).unwrap();
    let chunk = vec![1; 64 * 1024];
    while file.write_all(&chunk).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(left)).unwrap();
    path
}

/// Creates one entry; its ID, or why not.
async fn create(admin: &Admin, path: &str, parent: &str) -> Result<String, Status> {
    let request = BatchCreateEntryRequest {
        entries: vec![entry(&spiffe_id(path), parent, &["unix:uid:4294967294"])],
        output_mask: None,
    };
    let answer = admin.entries().batch_create_entry(request).await?;
    let result = answer.into_inner().results.remove(0);
    let status = result.status.unwrap();
    match result.entry {
        Some(entry) if status.code == 0 => Ok(entry.id),
        _ => Err(Status::new(Code::from_i32(status.code), status.message)),
    }
}

async fn all_there(admin: &Admin, ids: &[String]) {
    for id in ids {
        let request = GetEntryRequest {
            id: id.clone(),
            output_mask: None,
        };
        let found = admin.entries().get_entry(request).await;
        found.unwrap_or_else(|status| panic!("{id} was acknowledged: {status}"));
    }
}

/// A stream on a new connection, which has brought the own SVID.
async fn served(agent: &Agent) -> SvidStream {
    let mut stream = agent.workload().await.watch().await.unwrap();
    let own = stream.until(|ids| ids == [spiffe_id("/own")]).await;
    own.unwrap();
    stream
}

/// Commits fail with a text while the disk is full, what is in memory is served on, and with
/// space the same process goes on: nothing that was acknowledged is lost.
pub async fn commit() -> Outcome {
    let mut world = on_a_small_disk().await;
    let pid = world.server().pid();
    let agent = world.agent("agent").await;
    let admin = world.admin().await;
    let own = entry(&spiffe_id("/own"), &agent.id, &[&own_selector()]);
    let mut acknowledged = vec![admin.create(own).await];
    // What is not in memory before the disk is full cannot be issued then.
    agent.workload().await.served().await;
    let mut refusals = 0;
    let mut n = 0;
    for round in 0..ROUNDS {
        let ballast = fill(&world.path("server"), LEFT);
        let refusal = within("the disk is full", async {
            loop {
                n += 1;
                match create(&admin, &format!("/n/{n}"), &agent.id).await {
                    Ok(id) => acknowledged.push(id),
                    Err(status) => break status,
                }
            }
        })
        .await;
        refusals += 1;
        println!("round {round}: {refusal}");
        assert_eq!(refusal.code(), Code::Unavailable, "{refusal}");
        let text = refusal.message();
        assert!(text.contains("space"), "the cause and the way out: {text}");
        assert_eq!(world.server().pid(), pid);
        let mut stream = served(&agent).await;

        std::fs::remove_file(ballast).unwrap();
        let mut looks = tokio::time::interval(LOOK);
        let again = within("it goes on when space is back", async {
            loop {
                looks.tick().await;
                n += 1;
                if let Ok(id) = create(&admin, &format!("/n/{n}"), &agent.id).await {
                    break id;
                }
            }
        })
        .await;
        acknowledged.push(again);
        all_there(&admin, &acknowledged).await;
        let late = format!("/late/{round}");
        let pushed = entry(&spiffe_id(&late), &agent.id, &[&own_selector()]);
        let pushed = admin.create(pushed).await;
        stream
            .until(|ids| ids.contains(&spiffe_id(&late)))
            .await
            .unwrap();
        admin.delete(&pushed).await;
    }
    assert_eq!(world.server().pid(), pid, "the same process");
    world.kill_server().await;
    world.restart_server().await;
    all_there(&world.admin().await, &acknowledged).await;
    let log = world.server_log();
    assert!(!log.contains("panicked"), "{log}");
    Outcome::Passed(format!(
        "{} acknowledged, {refusals} times full",
        acknowledged.len()
    ))
}

/// A server that is started on a full disk refuses with a text or serves what it has.
pub async fn start() -> Outcome {
    let mut world = on_a_small_disk().await;
    let admin = world.admin().await;
    let parent = spiffe_id("/node");
    let id = create(&admin, "/w", &parent).await.unwrap();
    world.kill_server().await;
    let ballast = fill(&world.path("server"), 0);
    let note = match world.try_restart_server().await {
        Ok(()) => {
            all_there(&world.admin().await, std::slice::from_ref(&id)).await;
            world.kill_server().await;
            "it served".to_owned()
        }
        Err(why) => {
            assert!(why.contains("ended with exit status: 1"), "{why}");
            let error = why.lines().last().unwrap_or_default();
            assert!(error.contains("space"), "{error}");
            error.to_owned()
        }
    };
    std::fs::remove_file(ballast).unwrap();
    world.restart_server().await;
    all_there(&world.admin().await, &[id]).await;
    assert!(!world.server_log().contains("panicked"));
    Outcome::Passed(note)
}

/// An agent that cannot seal serves on and says so; with space it seals what it holds then.
pub async fn sealing() -> Outcome {
    let port = free_port();
    let mut world = World::with(Options {
        agent_tables: format!("[telemetry]\nops_address = \"127.0.0.1:{port}\"\n"),
        ..Options::default()
    })
    .await;
    let folder = world.path("agent");
    std::fs::create_dir(&folder).unwrap();
    mount(&folder, "4m");
    let agent = world.agent("agent").await;
    let admin = world.admin().await;
    let own = |path| entry(&spiffe_id(path), &agent.id, &[&own_selector()]);
    admin.create(own("/a")).await;
    let workload = agent.workload().await;
    let mut stream = workload.served().await;
    stream.until(|ids| ids.len() == 1).await.unwrap();
    sealed(port, "x509", 1).await;

    let ballast = fill(&folder, 0);
    admin.create(own("/b")).await;
    let served = stream.until(|ids| ids.len() == 2).await.unwrap();
    let token = workload.jwt("web").await.unwrap();
    let told = fault(port, true).await;
    assert!(told.contains("free space"), "the way out: {told}");

    std::fs::remove_file(ballast).unwrap();
    sealed(port, "x509", 2).await;
    sealed(port, "jwt", 2).await;
    fault(port, false).await;
    world.kill_server().await;
    let agent = agent.kill_and_restart().await;
    let workload = agent.workload().await;
    let again = workload.watch().await.unwrap().next().await.unwrap();
    verify(
        &again,
        vane_chassis::clock::Clock::now(&vane_chassis::clock::System),
    );
    assert_eq!(again, served, "what came while the disk was full was kept");
    assert_eq!(workload.jwt("web").await.unwrap(), token);
    Outcome::Passed(format!(
        "{} served on, and kept once there was space",
        ids(&again).len()
    ))
}

/// Waits until as many SVIDs of `kind` are sealed.
async fn sealed(port: u16, kind: &str, count: u64) {
    let name = format!("vane_agent_sealed_{kind}_svids");
    let mut looks = tokio::time::interval(LOOK);
    let kept = async {
        while metric(port, &name).await != count {
            looks.tick().await;
        }
    };
    within("it is sealed", kept).await;
}

/// Waits until /ready names a full disk, or none, and is good all the while; what it says.
async fn fault(port: u16, wanted: bool) -> String {
    let mut looks = tokio::time::interval(LOOK);
    let told = async {
        loop {
            let (status, body) = ops(port, "/ready").await;
            assert_eq!(status, 200, "{body}");
            if body.contains("\"disk_full\"") == wanted {
                break body;
            }
            looks.tick().await;
        }
    };
    within("the fault of the disk", told).await
}
