//! A workload that fetches a hundred times a second, each time over a connection of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use vane_chassis::clock::{Clock, System};

use crate::admin::{entry, unix_channel};
use crate::process::within;
use crate::workload::{Workload, verify};
use crate::world::{Agent, World, own_selector, spiffe_id};

/// A world with an agent that has an identity for this process.
pub async fn world() -> (World, Agent) {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let admin = world.admin().await;
    admin
        .create(entry(&spiffe_id("/w"), &agent.id, &[&own_selector()]))
        .await;
    agent.workload().await.served().await;
    (world, agent)
}

/// Fetches SVIDs over a connection of its own, and verifies them.
///
/// # Errors
/// What went wrong: the connect, or the fetch.
pub async fn fetch(socket: &Path) -> Result<(), String> {
    let channel = unix_channel(socket)
        .await
        .map_err(|error| format!("connect: {error:?}"))?;
    let workload = Workload::over(channel);
    let fetched = async { workload.watch().await?.until(|ids| !ids.is_empty()).await };
    let message = fetched
        .await
        .map_err(|status| format!("fetch: {status:?}"))?;
    verify(&message, System.now());
    Ok(())
}

/// Fetches a hundred times a second while the agent is replaced so often; how many fetches there
/// were, and how those failed that did.
///
/// # Panics
/// A take-over does not come off.
pub async fn through_take_overs(times: usize) -> (usize, Vec<String>) {
    let (_world, mut agent) = world().await;
    let fetches = Fetches::from(agent.socket.clone());
    for _ in 0..times {
        fetches.some_more(30).await;
        let pid = agent.process.pid();
        let (next, ended) = agent.replace().await;
        assert_eq!(ended, Some(0), "{}", next.log());
        assert_ne!(next.process.pid(), pid);
        agent = next;
    }
    fetches.some_more(30).await;
    fetches.end().await
}

struct Fetches {
    stop: watch::Sender<bool>,
    done: watch::Receiver<usize>,
    failed: JoinSet<Vec<String>>,
}

impl Fetches {
    fn from(socket: PathBuf) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (count, done) = watch::channel(0);
        let count = Arc::new(count);
        let mut failed = JoinSet::new();
        failed.spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            let mut calls = JoinSet::new();
            while !*stopped.borrow() {
                tick.tick().await;
                let (socket, count) = (socket.clone(), Arc::clone(&count));
                calls.spawn(async move {
                    let fetched = within("a fetch", fetch(&socket)).await;
                    count.send_modify(|count| *count += 1);
                    fetched
                });
            }
            let fetched = calls.join_all().await;
            fetched.into_iter().filter_map(Result::err).collect()
        });
        Self { stop, done, failed }
    }

    /// Waits until so many more were answered.
    async fn some_more(&self, more: usize) {
        let mut done = self.done.clone();
        let wanted = *done.borrow_and_update() + more;
        within("fetches go on", done.wait_for(|done| *done >= wanted))
            .await
            .unwrap();
    }

    async fn end(mut self) -> (usize, Vec<String>) {
        self.stop.send_replace(true);
        let failed = self.failed.join_next().await.unwrap().unwrap();
        (*self.done.borrow(), failed)
    }
}
