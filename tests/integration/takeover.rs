//! A second agent on the same node takes the place of the first.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;
use vane_chassis::clock::{Clock, System};
use vane_tests::admin::{entry, unix_channel};
use vane_tests::process::within;
use vane_tests::workload::{Workload, verify};
use vane_tests::world::{Agent, World, own_selector, spiffe_id};
use vane_wire::spire::agent::debug::v1::GetInfoRequest;
use vane_wire::spire::agent::debug::v1::debug_client::DebugClient;

/// A world with an agent, and an identity for this process.
async fn world() -> (World, Agent) {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let admin = world.admin().await;
    admin
        .create(entry(&spiffe_id("/w"), &agent.id, &[&own_selector()]))
        .await;
    fetch(agent.socket.clone()).await.unwrap();
    (world, agent)
}

/// An SVID over a connection of its own.
async fn fetch(socket: PathBuf) -> Result<(), String> {
    let channel = unix_channel(&socket)
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

/// Fetches a hundred times a second while it lives.
struct Fetching {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failed: JoinSet<Vec<String>>,
}

impl Fetching {
    fn from(socket: PathBuf) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&done));
        let mut failed = JoinSet::new();
        failed.spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            let mut calls = JoinSet::new();
            while !stopped.load(Ordering::Relaxed) {
                tick.tick().await;
                let (socket, count) = (socket.clone(), Arc::clone(&count));
                calls.spawn(async move {
                    let fetched = within("a fetch", fetch(socket)).await;
                    count.fetch_add(1, Ordering::Relaxed);
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
        let wanted = self.done.load(Ordering::Relaxed) + more;
        let reached = async {
            let mut look = tokio::time::interval(Duration::from_millis(5));
            while self.done.load(Ordering::Relaxed) < wanted {
                look.tick().await;
            }
        };
        within("fetches go on", reached).await;
    }

    async fn end(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.failed.join_next().await.unwrap().unwrap();
        (self.done.load(Ordering::Relaxed), failed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_replaced_three_times_and_no_fetch_fails() {
    let (_world, mut agent) = world().await;
    let fetching = Fetching::from(agent.socket.clone());
    for _ in 0..3 {
        fetching.some_more(30).await;
        let pid = agent.process.pid();
        let (next, ended) = agent.replace().await;
        assert_eq!(ended, Some(0), "{}", next.log());
        assert_ne!(next.process.pid(), pid);
        agent = next;
    }
    fetching.some_more(30).await;
    let (fetched, failed) = fetching.end().await;
    assert!(
        failed.is_empty(),
        "{} of {fetched}: {failed:?}",
        failed.len()
    );
}

#[tokio::test]
async fn a_successor_has_the_own_svid_and_nobody_attests_again() {
    let (world, agent) = world().await;
    let admin = world.admin().await;
    let chain = |agent: &Agent| {
        let socket = agent.admin_socket();
        async move {
            let mut debug = DebugClient::new(unix_channel(&socket).await.unwrap());
            let info = debug.get_info(GetInfoRequest {}).await.unwrap();
            info.into_inner().svid_chain
        }
    };
    let before = chain(&agent).await;
    assert_eq!(before.len(), 2, "{before:?}");
    let (agent, ended) = agent.replace().await;
    assert_eq!(ended, Some(0));
    assert_eq!(chain(&agent).await, before);
    assert_eq!(admin.count_agents().await, 1);
    fetch(agent.socket.clone()).await.unwrap();
}

#[tokio::test]
async fn an_open_stream_ends_with_the_first_agent_and_is_served_by_the_second() {
    let (_world, agent) = world().await;
    let workload = agent.workload().await;
    let mut stream = workload.watch().await.unwrap();
    stream.next().await.unwrap();
    let (_agent, ended) = agent.replace().await;
    assert_eq!(ended, Some(0));
    let end = stream.next().await.unwrap_err();
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end}");
    let mut stream = workload.watch().await.unwrap();
    stream.next().await.unwrap();
}

#[tokio::test]
async fn a_second_agent_that_the_first_does_not_answer_says_who_that_is() {
    let (_world, agent) = world().await;
    let pid = Pid::from_raw(i32::try_from(agent.process.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let refused = agent.try_second().await.map(drop).unwrap_err();
    kill(pid, Signal::SIGCONT).unwrap();
    let text = format!("in use by process {pid}, which does not hand over");
    assert!(refused.contains(&text), "{refused}");
    fetch(agent.socket.clone()).await.unwrap();
}

#[tokio::test]
async fn a_second_agent_starts_as_soon_as_the_first_has_ended() {
    let (_world, agent) = world().await;
    let pid = Pid::from_raw(i32::try_from(agent.process.pid()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let (agent, ended) = agent.replace().await;
    assert_eq!(ended, Some(0));
    fetch(agent.socket.clone()).await.unwrap();
}

#[tokio::test]
async fn a_hangup_makes_an_agent_replace_itself() {
    let (world, mut agent) = world().await;
    let lock = world.path("agent").join("lock");
    let pid = agent.process.pid();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGHUP).unwrap();
    assert_eq!(agent.process.ended().await, Some(0), "{}", agent.log());
    fetch(agent.socket.clone()).await.unwrap();
    let text = std::fs::read_to_string(lock).unwrap();
    let next: i32 = text.lines().next().unwrap().parse().unwrap();
    assert_ne!(u32::try_from(next).unwrap(), pid);
    kill(Pid::from_raw(next), Signal::SIGTERM).unwrap();
    let gone = async {
        let mut look = tokio::time::interval(Duration::from_millis(5));
        while agent.socket.exists() {
            look.tick().await;
        }
    };
    within("it removes its socket at the end", gone).await;
}
