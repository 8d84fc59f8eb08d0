//! No space left under the server's data directory.
//!
//! The disk is a small tmpfs in a mount namespace of its own: this program starts itself again
//! in one, and the mounts are gone with it whatever happens.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use tonic::{Code, Status};
use vane_tests::admin::{Admin, entry};
use vane_tests::process::within;
use vane_tests::world::{World, own_selector, spiffe_id};
use vane_wire::spire::api::server::entry::v1::{BatchCreateEntryRequest, GetEntryRequest};

use super::Outcome;

const SIZE: &str = "24m";
/// How often the disk is filled.
const ROUNDS: usize = 3;
/// Octets that are left free when it is filled.
const LEFT: u64 = 300_000;

/// Why this machine cannot do it.
pub fn cannot() -> Option<String> {
    if !nix::unistd::getuid().is_root() {
        return Some("needs root, to mount a small disk".to_owned());
    }
    let tried = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "mount",
            "-t",
            "tmpfs",
            "none",
            "/mnt",
        ])
        .output();
    match tried {
        Ok(ended) if ended.status.success() => None,
        Ok(ended) => Some(String::from_utf8_lossy(&ended.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// Starts this program again where it may mount.
pub fn inside() -> ExitCode {
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["full-disk", "--inside"])
        .status()
        .unwrap();
    ExitCode::from(u8::from(!status.success()))
}

/// A world whose server has its data on a small disk.
async fn on_a_small_disk() -> World {
    let mut world = World::start().await;
    assert_eq!(world.server.take().unwrap().terminate().await, Some(0));
    let options = format!("size={SIZE},mode=0700");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &options, "vane-faults"])
        .arg(world.path("server"))
        .status()
        .unwrap();
    assert!(mounted.success());
    world.restart_server().await;
    world
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

/// Commits fail with a text while the disk is full, what is in memory is served on, and with
/// space the same process goes on: nothing that was acknowledged is lost.
pub async fn commit() -> Outcome {
    let mut world = on_a_small_disk().await;
    let pid = world.server().pid();
    let agent = world.agent("agent").await;
    let admin = world.admin().await;
    let own = entry(&spiffe_id("/own"), &agent.id, &[&own_selector()]);
    let mut acknowledged = vec![admin.create(own).await];
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
        let mut stream = agent.workload().await.watch().await.unwrap();
        stream
            .until(|ids| ids == [spiffe_id("/own")])
            .await
            .unwrap();

        std::fs::remove_file(ballast).unwrap();
        let mut looks = tokio::time::interval(std::time::Duration::from_millis(50));
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
