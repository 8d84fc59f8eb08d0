//! A second agent on the same node takes the place of the first.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use vane_chassis::clock::{Clock, System};
use vane_tests::admin::{entry, unix_channel};
use vane_tests::fetches::{fetch, through_take_overs, world};
use vane_tests::half_call::{Ended, call_after, framed};
use vane_tests::handshakes::Storm;
use vane_tests::process::within;
use vane_tests::sample;
use vane_tests::world::{Agent, Options, World, own_selector, read, spiffe_id};
use vane_wire::spire::agent::debug::v1::GetInfoRequest;
use vane_wire::spire::agent::debug::v1::debug_client::DebugClient;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_replaced_three_times_and_no_fetch_fails() {
    let (fetched, failed) = through_take_overs(3).await;
    assert!(
        failed.is_empty(),
        "{} of {fetched}: {failed:?}",
        failed.len()
    );
}

const CHECK: &str = "/grpc.health.v1.Health/Check";

/// Who connected to the first agent and had not asked yet when the second began to serve is
/// answered by the first.
#[tokio::test]
async fn a_connection_from_before_that_asks_afterwards_is_answered() {
    let (_world, agent) = world().await;
    let (socket, log) = (agent.socket.clone(), agent.log_path());
    let says = |text: &'static str| {
        let log = log.clone();
        async move { sample::until(text, || read(&log).contains(text)).await }
    };
    let asks = async {
        says("a successor takes over").await;
        // A client that tries nothing again, as a library that was told to go away would.
        let early = UnixStream::connect(&socket).await.unwrap();
        let connected = System.monotonic();
        let serves = says("a successor serves: ending");
        let answer = call_after(serves, early, CHECK, framed(&[])).await;
        let after = System.monotonic() - connected;
        assert_eq!(answer, Ended::Status(0, String::new()), "after {after:?}");
    };
    let ((_agent, ended), ()) = tokio::join!(agent.replace(), asks);
    assert_eq!(ended, Some(0));
}

/// Who waits for a first answer gets it, though a successor serves already.
#[tokio::test]
async fn a_call_that_waits_for_the_server_is_answered_by_the_agent_that_it_asked() {
    let (world, agent) = world().await;
    let (workload, log) = (agent.workload().await, agent.log_path());
    workload.jwt("warm").await.unwrap();
    let server = Pid::from_raw(i32::try_from(world.server().pid()).unwrap());
    kill(server, Signal::SIGSTOP).unwrap();
    let goes_on = async {
        let serves = || read(&log).contains("a successor serves: ending");
        sample::until("a successor serves", serves).await;
        kill(server, Signal::SIGCONT).unwrap();
    };
    let (answer, (_agent, ended), ()) = tokio::join!(workload.jwt("web"), agent.replace(), goes_on);
    assert_eq!(answer.unwrap().svids.len(), 1);
    assert_eq!(ended, Some(0));
}

/// Its own SVID ended while the server was away: it tries to attest all the time, and gives that
/// up for a successor.
#[tokio::test]
async fn an_agent_that_is_attesting_hands_over() {
    let mut world = World::with(Options::default().server("agent_ttl = \"4s\"")).await;
    let agent = world.agent("agent").await;
    let own = entry(&spiffe_id("/w"), &agent.id, &[&own_selector()]);
    world.admin().await.create(own).await;
    agent.workload().await.served().await;
    world.kill_server().await;
    let attests = || agent.log().contains("not attested yet");
    sample::until("it attests anew", attests).await;
    let (agent, ended) = agent.replace().await;
    assert_eq!(ended, Some(0), "{}", agent.log());
    fetch(&agent.socket).await.unwrap();
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
    fetch(&agent.socket).await.unwrap();
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
    fetch(&agent.socket).await.unwrap();
}

#[tokio::test]
async fn a_second_agent_starts_as_soon_as_the_first_has_ended() {
    let (_world, agent) = world().await;
    let pid = Pid::from_raw(i32::try_from(agent.process.pid()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let (agent, ended) = agent.replace().await;
    assert_eq!(ended, Some(0));
    fetch(&agent.socket).await.unwrap();
}

#[tokio::test]
async fn a_hangup_makes_an_agent_replace_itself() {
    let (world, mut agent) = world().await;
    let lock = world.path("agent").join("lock");
    let pid = agent.process.pid();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGHUP).unwrap();
    assert_eq!(agent.process.ended().await, Some(0), "{}", agent.log());
    fetch(&agent.socket).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handshake_fails_while_agent_and_server_come_and_go() {
    let storm = Storm {
        clients: 10,
        every: Duration::from_millis(100),
        outage: Duration::from_secs(3),
        take_overs: 1,
    };
    let report = storm.rage().await;
    let failed = report.failed;
    assert!(failed.is_empty(), "of {}: {failed:?}", report.handshakes);
}

#[tokio::test]
async fn an_agent_is_replaced_while_its_server_is_away() {
    let (mut world, agent) = world().await;
    let before = agent.log();
    assert!(!before.contains("taking over with what was sealed"));
    world.kill_server().await;
    let (agent, ended) = agent.replace().await;
    assert_eq!(ended, Some(0), "{}", agent.log());
    let said = agent.log();
    assert!(said.contains("taking over with what was sealed"), "{said}");
    fetch(&agent.socket).await.unwrap();
    world.restart_server().await;
    fetch(&agent.socket).await.unwrap();
}
