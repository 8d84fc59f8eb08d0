//! A damaged store: the server says so, with the way out, or has lost nothing. It never starts
//! on less than was acknowledged, and never writes over what it cannot read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vane_tests::admin::{Admin, entry};
use vane_tests::world::{World, spiffe_id};
use vane_wire::spire::api::server::entry::v1::ListEntriesRequest;

const ENTRIES: usize = 500;

/// What is done to the file of the store.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// The first so many thousandths are left.
    CutTo(usize),
    /// A bit at so many thousandths is another.
    Flip(usize),
    /// 512 octets from so many thousandths on are zero.
    Zero(usize),
    /// The file is gone.
    Gone,
}

impl Damage {
    fn apply(self, file: &Path) {
        let mut bytes = std::fs::read(file).unwrap();
        let at = |part: usize| bytes.len() * part / 1000;
        match self {
            Self::CutTo(part) => bytes.truncate(at(part)),
            Self::Flip(part) => {
                let at = at(part);
                bytes[at] ^= 0x10;
            }
            Self::Zero(part) => {
                let (at, end) = (at(part), bytes.len());
                bytes[at..end.min(at + 512)].fill(0);
            }
            Self::Gone => return std::fs::remove_file(file).unwrap(),
        }
        std::fs::write(file, bytes).unwrap();
    }
}

/// Every file below `dir` with its content.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}

/// Puts the files back as they were; what was not there is removed.
fn restore(dir: &Path, kept: &BTreeMap<PathBuf, Vec<u8>>) {
    for path in contents(dir).keys() {
        std::fs::remove_file(path).unwrap();
    }
    for (path, bytes) in kept {
        std::fs::write(path, bytes).unwrap();
    }
}

async fn ids(admin: &Admin) -> Vec<String> {
    let request = ListEntriesRequest::default();
    let listed = admin
        .entries()
        .list_entries(request)
        .await
        .unwrap()
        .into_inner();
    listed.entries.into_iter().map(|entry| entry.id).collect()
}

/// Damage at many places of the file. `refused` counts that it was found; a server that starts
/// has everything.
#[tokio::test]
async fn a_damaged_store_is_refused_with_the_way_out_and_nothing_is_lost() {
    let mut world = World::start().await;
    let admin = world.admin().await;
    let parent = spiffe_id("/node");
    let wanted = (0..ENTRIES)
        .map(|n| {
            entry(
                &spiffe_id(&format!("/w/{n:03}")),
                &parent,
                &["unix:uid:4294967294"],
            )
        })
        .collect();
    admin.create_all(wanted).await;
    let all = ids(&admin).await;
    assert_eq!(all.len(), ENTRIES);
    drop(admin);
    assert_eq!(world.server.take().unwrap().terminate().await, Some(0));

    let store = world.path("server/store");
    // Otherwise it would make good most of what is damaged here.
    std::fs::write(store.join("journal"), "").unwrap();
    let good = contents(&store);
    let file = store.join("db");
    let mut refused = 0;
    let cuts = [0, 1, 250, 500, 750, 999].map(Damage::CutTo);
    let flips = [0, 1, 100, 300, 500, 700, 900].map(Damage::Flip);
    let zeros = [0, 200, 400, 600, 800].map(Damage::Zero);
    let damages = [&cuts[..], &flips, &zeros, &[Damage::Gone]].concat();
    for damage in &damages {
        damage.apply(&file);
        let damaged = contents(&store);
        match world.try_restart_server().await {
            Ok(()) => {
                let now = ids(&world.admin().await).await;
                assert_eq!(now, all, "{damage:?} lost entries without a word");
                world.kill_server().await;
                println!("{damage:?}: nothing was lost");
            }
            Err(why) => {
                refused += 1;
                assert!(
                    why.contains("ended with exit status: 1"),
                    "{damage:?}: {why}"
                );
                assert!(!why.contains("panicked"), "{damage:?}: {why}");
                let error = why.lines().last().unwrap_or_default();
                for part in [store.to_str().unwrap(), "put back a copy"] {
                    assert!(
                        error.contains(part),
                        "{damage:?}: {error} does not say {part:?}"
                    );
                }
                let after = contents(&store);
                assert!(
                    after.keys().eq(damaged.keys()),
                    "{damage:?}: {:?}",
                    after.keys()
                );
                for (path, before) in &damaged {
                    let path_is_same = after[path] == *before;
                    assert!(path_is_same, "{damage:?}: {} was written", path.display());
                }
                println!("{damage:?}: {error}");
            }
        }
        restore(&store, &good);
    }
    println!("{refused} of {} were refused", damages.len());
    assert!(
        refused > damages.len() / 2,
        "{refused} of {} were noticed",
        damages.len()
    );
    world.restart_server().await;
    assert_eq!(
        ids(&world.admin().await).await,
        all,
        "what was put back is served"
    );
}

/// Keys and the other files of the data directory: each is named when it cannot be read.
#[tokio::test]
async fn a_damaged_file_beside_the_store_is_named() {
    let mut world = World::start().await;
    assert_eq!(world.server.take().unwrap().terminate().await, Some(0));
    let dir = world.path("server");
    let good = contents(&dir);
    for name in ["keys.json", "server_id"] {
        let file = dir.join(name);
        for bytes in [&b"{"[..], b"", &[0xff; 100]] {
            std::fs::write(&file, bytes).unwrap();
            let why = world.try_restart_server().await.expect_err(name);
            assert!(why.contains("ended with exit status: 1"), "{why}");
            assert!(!why.contains("panicked"), "{why}");
            let error = why.lines().last().unwrap_or_default();
            assert!(error.contains(name), "{error} does not name {name}");
            assert_eq!(std::fs::read(&file).unwrap(), bytes, "{name} was written");
            println!("{error}");
        }
        std::fs::write(&file, &good[&file]).unwrap();
    }
    world.restart_server().await;
}
