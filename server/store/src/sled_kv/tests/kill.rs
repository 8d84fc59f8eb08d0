//! `kill -9` at any moment: what was acknowledged is there, wholly.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

const FOLDER: &str = "VANE_STORE_KILL_TEST";

/// The process that is killed; without the variable there is nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn child_commits_until_it_is_killed() {
    let Some(dir) = std::env::var_os(FOLDER) else {
        return;
    };
    let kv = Arc::new(open(Path::new(&dir)));
    let start = kv.revision();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let kv = Arc::clone(&kv);
        tasks.spawn(async move {
            for n in 0.. {
                let name = format!("{start}-{task}-{n}");
                // Some are long, so that chunks are torn apart if they can be.
                let long = vec![b'v'; if n % 16 == 0 { 20_000 } else { 100 }];
                let txn = Txn::new()
                    .put(format!("e/{name}"), long)
                    .put(format!("u/{name}"), "");
                kv.commit(txn).await.unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "acknowledged {name}").unwrap();
                out.flush().unwrap();
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_commits_survive_kill_9() {
    let dir = TempDir::new().unwrap();
    let mut acknowledged: Vec<String> = Vec::new();
    let mut epoch = None;
    for round in 0..8 {
        acknowledged.extend(killed_after(dir.path(), 1 + round * 53));
        let kv = open(dir.path());
        assert_eq!(*epoch.get_or_insert(kv.epoch()), kv.epoch());
        for name in &acknowledged {
            let long = value(&kv, &format!("e/{name}")).await;
            assert!(long.is_some_and(|long| long.len() >= 100), "{name} is lost");
        }
        let entries = kv.scan(b"e/", None, 100_000).await.unwrap().items;
        let twins = kv.scan(b"u/", None, 100_000).await.unwrap().items;
        let name = |item: &Item| item.key.slice(2..);
        let entries: Vec<Bytes> = entries.iter().map(name).collect();
        let twins: Vec<Bytes> = twins.iter().map(name).collect();
        assert_eq!(entries, twins, "half a commit");
    }
    assert!(acknowledged.len() > 8 * 7 / 2 * 53);
}

/// Runs the child until it acknowledged `lines` commits, kills it, and
/// returns all that it acknowledged.
fn killed_after(dir: &Path, lines: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "sled_kv::tests::kill::child_commits_until_it_is_killed",
            "--exact",
            "--nocapture",
        ])
        .env(FOLDER, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((_, name)) = line.split_once("acknowledged ") else {
            continue;
        };
        // A line that the kill cut short is no acknowledgement.
        if name.split('-').count() == 3 && !name.ends_with('-') {
            acknowledged.push(name.to_owned());
        }
        if acknowledged.len() == lines {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    acknowledged
}
