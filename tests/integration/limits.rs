//! Nobody takes another's place: floods of connections, idle ones, and no descriptors left.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::Command;
use vane_agent::limits::Bounds;
use vane_chassis::clock::{Clock as _, System};
use vane_tests::admin::{Admin, entry};
use vane_tests::greedy::{self, Greedy};
use vane_tests::process::{program, within};
use vane_tests::sample;
use vane_tests::world::{Agent, Options, World, own_selector, spiffe_id};

/// The first fetch of a process that was not there before: the CLI, from its start.
async fn fetch(socket: &Path) -> (Duration, String) {
    let started = System.monotonic();
    let ended = Command::new(program("vane-test-cli"))
        .args(["svid", "fetch", "--socket-path"])
        .arg(format!("unix://{}", socket.display()))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = within("a fetch of another process", ended).await.unwrap();
    let said = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
    (System.monotonic() - started, said)
}

async fn register(admin: &Admin, agent: &Agent) {
    admin
        .create(entry(&spiffe_id("/w"), &agent.id, &[&own_selector()]))
        .await;
    let mut stream = agent.workload().await.served().await;
    stream.until(|ids| ids == [spiffe_id("/w")]).await.unwrap();
}

const FLOODS: usize = 6;
const IDLE: usize = 8_000;

/// The most connections of one process here: 1,000 where there are descriptors enough.
fn of_one_process() -> usize {
    Bounds::for_descriptors(greedy::descriptors()).per_process
}

/// 8,000 idle connections of one process stand (as many as the machine lets it have): another
/// process is served within a second all the same, and when they are gone so is what they cost.
/// glibc keeps what a process once had (a trim from outside gives it back): the first floods are
/// for it, and memory is compared after later ones, which finds what a connection leaves behind.
#[tokio::test]
async fn idle_connections_of_one_process_keep_nobody_else_out() {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    register(&world.admin().await, &agent).await;
    let (_, said) = fetch(&agent.socket).await;
    assert!(said.contains("spiffe://example.org/w"), "{said}");
    let fresh = (agent.process.rss(), agent.process.descriptors());
    let mut after = Vec::new();
    for _ in 0..FLOODS {
        flood(&agent).await;
        sample::until("the descriptors are back", || {
            agent.process.descriptors() <= fresh.1
        })
        .await;
        after.push(agent.process.rss());
    }
    println!("rss {} fresh, {after:?} after each flood", fresh.0);
    assert!(after[FLOODS - 1] <= after[1] / 5 * 6, "{after:?}");
    let (_, said) = fetch(&agent.socket).await;
    assert!(said.contains("spiffe://example.org/w"), "{said}");
}

async fn flood(agent: &Agent) {
    let wanted = greedy::at_most(IDLE);
    let mut greedy = Greedy::start(&agent.socket, wanted).await;
    let open = greedy.settled(of_one_process()).await;
    let (took, said) = fetch(&agent.socket).await;
    println!(
        "{wanted} connections tried with {} descriptors, {open} let in; another's first fetch took {took:?}; rss {}",
        greedy::descriptors(),
        agent.process.rss()
    );
    assert!(said.contains("spiffe://example.org/w"), "{said}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(greedy.open().await, open, "nobody was put out for it");
}

/// Opens connections until there are `count`, whatever becomes of them.
async fn storm(socket: &Path, count: usize) -> Vec<UnixStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.extend(UnixStream::connect(socket).await);
    }
    all
}

const OUT_OF_DESCRIPTORS: &str = "cannot accept connections for now";

/// No descriptor is left: `accept` fails, the listener lives, and with descriptors it serves
/// who waited. (tonic's own accept loop ends at the first such error.)
#[tokio::test]
async fn an_agent_that_cannot_accept_serves_again_when_it_can() {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let (pid, before) = (agent.process.pid(), agent.process.descriptors());
    register(&world.admin().await, &agent).await;
    for _ in 0..3 {
        let all_closed = || agent.process.descriptors() <= before;
        sample::until("earlier connections are closed", all_closed).await;
        let most = agent.process.no_more_descriptors();
        let log = agent.log().len();
        let flood = storm(&agent.socket, of_one_process() / 2).await;
        sample::until("accept fails", || {
            agent.log()[log..].contains(OUT_OF_DESCRIPTORS)
        })
        .await;
        agent.process.limit_descriptors(most);
        // This one stands in the queue behind all of them.
        let mut stream = agent.workload().await.watch().await.unwrap();
        stream.until(|ids| ids == [spiffe_id("/w")]).await.unwrap();
        drop((flood, stream));
    }
    assert_eq!(agent.process.pid(), pid);
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

/// The same on the server's two listeners.
#[tokio::test]
async fn a_server_without_descriptors_serves_again_when_they_are_back() {
    let options = Options {
        server_descriptors: Some(64),
        ..Options::default()
    };
    let world = World::with(options).await;
    let before = world.server().descriptors();
    for _ in 0..3 {
        let flood = storm(&world.admin_socket(), 200).await;
        let mut remote = Vec::new();
        for _ in 0..200 {
            let connected = tokio::net::TcpStream::connect(("127.0.0.1", world.port()));
            let short = Duration::from_millis(20);
            remote.extend(tokio::time::timeout(short, connected).await);
        }
        println!(
            "{} descriptors of 64 before, {} in the storm",
            before,
            world.server().descriptors()
        );
        drop((flood, remote));
        sample::until("the flood is over", || {
            world.server().descriptors() <= before
        })
        .await;
        let admin = world.admin().await;
        admin.bundle().await;
        let address = vane_tests::remote::local(world.port());
        let token = admin.token().await;
        vane_tests::remote::Node::attest(address, &token, &admin.bundle().await).await;
    }
    assert!(
        world.server_log().contains("cannot accept connections"),
        "{}",
        world.server_log()
    );
    assert!(
        !world.server_log().contains("panicked"),
        "{}",
        world.server_log()
    );
}
