//! The agent without its server: what the workloads have outlives the agent's process.

use std::time::Duration;

use tokio::net::TcpListener;
use tonic::{Code, Status};
use vane_chassis::clock::{Clock, System};
use vane_tests::admin::{Admin, entry};
use vane_tests::process::{free_port, metric, within};
use vane_tests::sample;
use vane_tests::workload::{SvidStream, Workload, ids, verify};
use vane_tests::world::{Agent, Options, World, own_selector, spiffe_id};

/// What a debug build on a busy machine holds; `vane-bench restart` shows the 200 ms of P6.
const BOUND: Duration = Duration::from_secs(3);

struct Outage {
    world: World,
    ops: u16,
}

impl Outage {
    /// A world whose one agent tells how many SVIDs it has sealed.
    async fn world(options: Options) -> Self {
        let ops = free_port();
        let options = Options {
            agent_tables: format!("[telemetry]\nops_address = \"127.0.0.1:{ops}\"\n"),
            ..options
        };
        Self {
            world: World::with(options).await,
            ops,
        }
    }

    /// Registers `paths` for this process; returns once all are served and sealed.
    async fn register(&self, admin: &Admin, agent: &Agent, paths: &[&str]) -> Vec<String> {
        let mut created = Vec::new();
        for path in paths {
            let one = entry(&spiffe_id(path), &agent.id, &[&own_selector()]);
            created.push(admin.create(one).await);
        }
        let mut stream = agent.workload().await.served().await;
        stream.until(|ids| ids.len() == paths.len()).await.unwrap();
        self.sealed("x509", paths.len()).await;
        created
    }

    /// Waits until as many SVIDs of `kind` are sealed.
    async fn sealed(&self, kind: &str, count: usize) {
        let name = format!("vane_agent_sealed_{kind}_svids");
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        let kept = async {
            while metric(self.ops, &name).await != count as u64 {
                looks.tick().await;
            }
        };
        within("it is sealed", kept).await;
    }
}

async fn watch(agent: &Agent) -> SvidStream {
    agent.workload().await.watch().await.unwrap()
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

/// P6: with the server down, every SVID is served again from what was sealed, the same ones;
/// once the server is back the set is compared: what was removed meanwhile is withdrawn, what
/// is new comes, and the agent does not attest again.
#[tokio::test]
async fn an_agent_that_is_killed_while_the_server_is_down_serves_every_svid_again() {
    let mut outage = Outage::world(Options::default()).await;
    let agent = outage.world.agent("agent").await;
    let admin = outage.world.admin().await;
    let paths = ["/a", "/b", "/gone"];
    let created = outage.register(&admin, &agent, &paths).await;
    let mut stream = watch(&agent).await;
    let before = stream.next().await.unwrap();
    outage.world.kill_server().await;
    let begun = System.monotonic();
    let agent = agent.kill_and_restart().await;
    let mut stream = watch(&agent).await;
    let after = stream.next().await.unwrap();
    let took = System.monotonic() - begun;
    println!(
        "kill -9, start and all {} SVIDs again: {took:?}",
        after.svids.len()
    );
    assert!(took < BOUND, "{took:?}");
    verify(&after, System.now());
    assert_eq!(before, after, "the same SVIDs, keys and bundle");

    outage.world.restart_server().await;
    let admin = outage.world.admin().await;
    admin.delete(&created[2]).await;
    let new = entry(&spiffe_id("/new"), &agent.id, &[&own_selector()]);
    admin.create(new).await;
    let wanted = ["/a", "/b", "/new"].map(spiffe_id);
    let synced = stream.until(|ids| sorted(ids.to_vec()) == wanted).await;
    verify(&synced.unwrap(), System.now());
    assert_eq!(admin.count_agents().await, 1);
    assert!(!agent.log().contains("attesting anew"), "{}", agent.log());
}

/// A server that accepts and never answers, and one of another CA at the same address: neither
/// keeps the agent from serving, and the second is not believed.
#[tokio::test]
async fn a_server_that_hangs_or_is_another_one_changes_nothing() {
    let mut outage = Outage::world(Options::default()).await;
    let agent = outage.world.agent("agent").await;
    let admin = outage.world.admin().await;
    outage.register(&admin, &agent, &["/a"]).await;
    outage.world.kill_server().await;
    let listener = TcpListener::bind(("127.0.0.1", outage.world.port())).await;
    let hangs = listener.unwrap();
    let agent = agent.kill_and_restart().await;
    let (_accepted, _) = hangs.accept().await.unwrap();
    let served = watch(&agent).await.next().await.unwrap();
    assert_eq!(ids(&served), [spiffe_id("/a")]);
    drop((hangs, _accepted));

    let (own, aside) = (outage.world.path("server"), outage.world.path("aside"));
    std::fs::rename(&own, &aside).unwrap();
    outage.world.restart_server().await;
    let agent = agent.kill_and_restart().await;
    let refused = || agent.log().contains("UnknownIssuer") || agent.log().contains("not trusted");
    sample::until("the other server is refused", refused).await;
    let served = watch(&agent).await.next().await.unwrap();
    assert_eq!(ids(&served), [spiffe_id("/a")]);
}

/// The agent's own SVID is over, and its join token used: what the workloads have is served on.
#[tokio::test]
async fn an_agent_whose_own_svid_expired_serves_what_is_valid() {
    let options = Options::default().server("agent_ttl = \"4s\"");
    let mut outage = Outage::world(options).await;
    let agent = outage.world.agent("agent").await;
    let admin = outage.world.admin().await;
    outage.register(&admin, &agent, &["/a"]).await;
    outage.world.kill_server().await;
    let over = System.now() + Duration::from_secs(5);
    sample::until("its own SVID is over", || System.now() > over).await;
    let agent = agent.kill_and_restart().await;
    let served = watch(&agent).await.next().await.unwrap();
    assert_eq!(ids(&served), [spiffe_id("/a")]);
    outage.world.restart_server().await;
    let tried = || agent.log().contains("not attested yet");
    sample::until("it asks for a new one", tried).await;
    let served = watch(&agent).await.next().await.unwrap();
    assert_eq!(ids(&served), [spiffe_id("/a")]);
}

/// What cannot be opened is thrown away, and what a newer version wrote keeps an older one from
/// starting, with a text that says what to do.
#[tokio::test]
async fn sealed_state_that_cannot_be_used_is_no_obstacle_and_a_newer_one_is() {
    let outage = Outage::world(Options::default()).await;
    let agent = outage.world.agent("agent").await;
    let admin = outage.world.admin().await;
    outage.register(&admin, &agent, &["/a"]).await;
    std::fs::remove_dir_all(outage.world.path("keys")).unwrap();
    let agent = agent.kill_and_restart().await;
    let served = watch(&agent).await.next().await.unwrap();
    assert_eq!(ids(&served), [spiffe_id("/a")], "from the server");
    assert!(agent.log().contains("thrown away"), "{}", agent.log());

    let file = outage.world.path("agent/workload.sealed");
    sample::until("it is sealed again", || file.exists()).await;
    let newer = || {
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[9] = 2;
        std::fs::write(&file, bytes).unwrap();
    };
    let refusal = agent.kill_and_try_restart(newer).await.err().unwrap();
    assert!(refusal.contains("newer version of vane-agent"), "{refusal}");
    assert!(refusal.contains("remove the file"), "{refusal}");
}

/// The same of JWT-SVIDs: those that were fetched are served again, and only the server's word
/// that their entry is gone takes one back.
#[tokio::test]
async fn an_agent_that_is_killed_while_the_server_is_down_serves_its_jwt_svids_again() {
    let mut outage = Outage::world(Options::default()).await;
    let agent = outage.world.agent("agent").await;
    let admin = outage.world.admin().await;
    let created = outage.register(&admin, &agent, &["/a", "/b"]).await;
    let before = agent.workload().await.jwt("web").await.unwrap();
    assert_eq!(before.svids.len(), 2);
    outage.sealed("jwt", 2).await;
    outage.world.kill_server().await;
    let begun = System.monotonic();
    let agent = agent.kill_and_restart().await;
    let workload = agent.workload().await;
    let after = workload.jwt("web").await.unwrap();
    let took = System.monotonic() - begun;
    println!("kill -9, start and both JWT-SVIDs again: {took:?}");
    assert!(took < BOUND, "{took:?}");
    assert_eq!(before, after, "the same tokens");
    for svid in &after.svids {
        let valid = workload.validate("web", &svid.svid).await.unwrap();
        assert_eq!(valid.spiffe_id, svid.spiffe_id);
    }

    outage.world.restart_server().await;
    outage.world.admin().await.delete(&created[0]).await;
    let only_b = async {
        loop {
            let now = workload.jwt("web").await.unwrap();
            if now.svids.len() == 1 {
                break now;
            }
            tokio::task::yield_now().await;
        }
    };
    let left = within("the deleted entry's token is gone", only_b).await;
    assert!(before.svids.contains(&left.svids[0]), "not signed anew");
}

/// Past `offline_grace` everything is refused as not known now, over a restart of the agent too;
/// with the server back it is served again. Takes the shortest grace that there is.
#[tokio::test]
async fn past_the_grace_nothing_is_served_until_the_server_is_back() {
    let options = Options::default()
        .agent("offline_grace = \"20s\"")
        .agent("max_backoff = \"1s\"");
    let mut outage = Outage::world(options).await;
    let agent = outage.world.agent("agent").await;
    let admin = outage.world.admin().await;
    outage.register(&admin, &agent, &["/a"]).await;
    let mut stream = watch(&agent).await;
    let before = stream.next().await.unwrap();
    let workload = agent.workload().await;
    let token = workload.jwt("web").await.unwrap();
    outage.sealed("jwt", 1).await;

    outage.world.kill_server().await;
    assert_overdue(&stream.next().await.unwrap_err());
    refuses_all(&workload, &token.svids[0].svid).await;
    let agent = agent.kill_and_restart().await;
    let workload = agent.workload().await;
    refuses_all(&workload, &token.svids[0].svid).await;

    outage.world.restart_server().await;
    let served = async {
        loop {
            match watch(&agent).await.next().await {
                Ok(message) => break message,
                Err(status) => assert_overdue(&status),
            }
            tokio::task::yield_now().await;
        }
    };
    let after = within("it is served again", served).await;
    assert_eq!(before, after, "what was kept is still good");
    assert_eq!(workload.jwt("web").await.unwrap(), token);
}

/// Every profile says that the agent does not know.
async fn refuses_all(workload: &Workload, token: &str) {
    let mut stream = workload.watch().await.unwrap();
    assert_overdue(&stream.next().await.unwrap_err());
    assert_overdue(&workload.jwt("web").await.unwrap_err());
    assert_overdue(&workload.validate("web", token).await.unwrap_err());
}

fn assert_overdue(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("offline_grace"), "{status}");
}
