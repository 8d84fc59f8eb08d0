//! The attestor `k8s` with real cgroups: this program moves itself into those that a kubelet
//! would make, below a root of its own, and asks an agent whose kubelet is a double.
//!
//! What it does there as the workload is what a hostile one would try: trees of its own with
//! another pod's names, and hierarchies that do not agree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use tonic::Code;
use vane_chassis::clock::{Clock as _, System};
use vane_chassis::kubernetes::double::{Answer, Double};
use vane_tests::admin::entry;
use vane_tests::workload::{SvidStream, ids};
use vane_tests::world::{Agent, Options, World, spiffe_id};

use super::Outcome;

const PODS: &str = "/pods";
/// Longer than the age up to which what the kubelet said is believed.
const REREAD: Duration = Duration::from_secs(45);
const WEB: &str = "0b1c2d3e-4f50-4a61-8b72-93a4b5c6d7e8";
const VICTIM: &str = "ffffffff-4f50-4a61-8b72-93a4b5c6d7e8";
const UNLISTED: &str = "eeeeeeee-4f50-4a61-8b72-93a4b5c6d7e8";

fn id(pair: &str) -> String {
    pair.repeat(32)
}

/// The folders below which cgroups are made, one for each hierarchy. `cpuset` takes no process
/// before it is told of processors.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let hierarchy = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let is_cgroup = after.next()?.starts_with("cgroup");
        let options = after.nth(1)?;
        (is_cgroup && root == "/" && !options.contains("cpuset")).then(|| point.into())
    };
    let found: BTreeSet<PathBuf> = mounts.lines().filter_map(hierarchy).collect();
    found.into_iter().collect()
}

/// The cgroups of a kubelet that is not there; removed when this is dropped.
struct Cgroups {
    hierarchies: Vec<PathBuf>,
    root: String,
}

impl Cgroups {
    /// # Errors
    /// Why there can be none.
    fn new() -> Result<Self, String> {
        let root = format!("vane-faults-{}", std::process::id());
        let all = hierarchies();
        if all.is_empty() {
            return Err("no cgroup hierarchy is mounted".to_owned());
        }
        let own = Self {
            hierarchies: all,
            root,
        };
        for folder in own.folders("") {
            fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        Ok(own)
    }

    fn folders(&self, path: &str) -> Vec<PathBuf> {
        let folder = |hierarchy: &PathBuf| hierarchy.join(&self.root).join(path);
        self.hierarchies.iter().map(folder).collect()
    }

    /// Moves this process there, in the hierarchies that `wanted` takes.
    fn enter(&self, path: &str, wanted: impl Fn(usize) -> bool) {
        let folders = self.folders(path).into_iter().enumerate();
        for (_, folder) in folders.filter(|(at, _)| wanted(*at)) {
            fs::create_dir_all(&folder).unwrap();
            join(&folder);
        }
    }

    fn leave(&self) {
        self.hierarchies
            .iter()
            .for_each(|hierarchy| join(hierarchy));
    }
}

fn join(folder: &Path) {
    let own = std::process::id().to_string();
    fs::write(folder.join("cgroup.procs"), own).unwrap();
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.leave();
        self.folders("").iter().for_each(|folder| remove(folder));
    }
}

/// A cgroup with those below it: their files cannot be removed, and need not be.
fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    if let Err(error) = fs::remove_dir(folder) {
        println!("left behind: {}: {error}", folder.display());
    }
}

/// What the kubelet says of a pod; its container has an ID once it is `started`.
fn pod(uid: &str, namespace: &str, app: &str, started: Option<&str>) -> Value {
    let status = match started {
        Some(id) => json!([{"name": "app", "image": "docker.io/shop/app:1",
            "imageID": "docker.io/shop/app@sha256:00", "containerID": format!("containerd://{id}")}]),
        None => json!([{"name": "app", "image": "docker.io/shop/app:1", "imageID": ""}]),
    };
    json!({
        "metadata": {"uid": uid, "name": app, "namespace": namespace, "labels": {"app": app}},
        "spec": {"nodeName": "n", "serviceAccountName": "web",
            "containers": [{"name": "app", "image": "docker.io/shop/app:1"}]},
        "status": {"containerStatuses": status},
    })
}

/// A full node: 250 pods, each with what an API server adds to its description.
fn listing(web: Value) -> Value {
    let mut items = vec![web, pod(VICTIM, "victims", "victim", Some(&id("1e")))];
    items.extend((0..248).map(|at| {
        let uid = format!("{at:08x}-4f50-4a61-8b72-93a4b5c6d7e8");
        let mut other = pod(&uid, "others", "other", Some(&id("00")));
        other["metadata"]["managedFields"] = json!([{"manager": "x".repeat(12 * 1024)}]);
        other
    }));
    json!({"kind": "PodList", "metadata": {}, "items": items})
}

async fn identities(agent: &Agent) -> Result<Vec<String>, Code> {
    let stream = agent.workload().await.watch().await;
    let message = match stream {
        Ok(mut stream) => stream.next().await,
        Err(status) => Err(status),
    };
    message
        .map(|message| sorted(ids(&message)))
        .map_err(|status| status.code())
}

/// In a message they stand by entry.
fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort_unstable();
    ids
}

async fn until(stream: &mut SvidStream, wanted: &[&str]) -> Duration {
    let began = now();
    let wanted: Vec<String> = wanted.iter().map(|path| spiffe_id(path)).collect();
    stream
        .until(|ids| sorted(ids.to_vec()) == wanted)
        .await
        .unwrap();
    now() - began
}

fn now() -> Instant {
    System.monotonic()
}

struct Node {
    double: Double,
    world: World,
    agent: Agent,
    cgroups: Cgroups,
}

impl Node {
    async fn new(cgroups: Cgroups) -> Self {
        let double = Double::start().await;
        let files = tempfile::tempdir().unwrap().keep();
        let file = |name: &str, text: &str| {
            fs::write(files.join(name), text).unwrap();
            files.join(name)
        };
        let tables = format!(
            "[[workload_attestor]]\ntype = \"k8s\"\nkubelet_secure_port = {}\nkubelet_ca_path = {:?}\ntoken_path = {:?}\nkubelet_cgroup_root = {:?}\nnode_name_env = \"NONE\"\n",
            double.address().port(),
            file("ca.crt", double.ca_pem()),
            file("token", "token"),
            cgroups.root,
        );
        let options = Options {
            agent_tables: tables,
            ..Options::default()
        };
        let world = World::with(options).await;
        let agent = world.agent("agent").await;
        let admin = world.admin().await;
        for (path, selectors) in [
            ("/a-pod", ["k8s:ns:shop", "k8s:sa:web"]),
            ("/b-label", ["k8s:ns:shop", "k8s:pod-label:app:web"]),
            ("/c-container", ["k8s:ns:shop", "k8s:container-name:app"]),
            ("/victim", ["k8s:ns:victims", "k8s:sa:web"]),
        ] {
            admin
                .create(entry(&spiffe_id(path), &agent.id, &selectors))
                .await;
        }
        Self {
            double,
            world,
            agent,
            cgroups,
        }
    }

    fn lists(&self, web: Value) {
        self.double.shows(PODS, listing(web));
    }
}

/// From the first call of a new pod to a label that is taken away.
pub async fn life() -> Outcome {
    let cgroups = match Cgroups::new() {
        Ok(cgroups) => cgroups,
        Err(why) => return Outcome::Skipped(why),
    };
    let node = Node::new(cgroups).await;
    node.lists(pod(WEB, "shop", "web", None));
    assert_eq!(
        identities(&node.agent).await,
        Err(Code::PermissionDenied),
        "in no pod"
    );
    assert!(node.double.seen().is_empty(), "nobody was asked for it");

    let container = id("9f");
    node.cgroups
        .enter(&format!("kubepods/burstable/pod{WEB}/{container}"), |_| {
            true
        });
    let began = now();
    let mut stream = node.agent.workload().await.watch().await.unwrap();
    until(&mut stream, &["/a-pod", "/b-label"]).await;
    let first = now() - began;

    node.lists(pod(WEB, "shop", "web", Some(&container)));
    let with_container = until(&mut stream, &["/a-pod", "/b-label", "/c-container"]).await;

    // The pod's label goes; nobody else asks, so that only the own re-reading can find it.
    node.lists(pod(WEB, "shop", "other", Some(&container)));
    let began = now();
    let withdrawn = async {
        loop {
            let message = stream.next_within(REREAD).await.unwrap();
            if sorted(ids(&message)) == [spiffe_id("/a-pod"), spiffe_id("/c-container")] {
                break now() - began;
            }
        }
    };
    let withdrawn = withdrawn.await;

    // The kubelet is away: this container keeps its answer, a pod that nobody knows has none.
    node.double.answer(&Method::GET, PODS, Answer::Close);
    let known = identities(&node.agent).await.unwrap();
    assert_eq!(known, [spiffe_id("/a-pod"), spiffe_id("/c-container")]);
    node.cgroups
        .enter(&format!("kubepods/pod{UNLISTED}/{container}"), |_| true);
    assert_eq!(identities(&node.agent).await, Err(Code::Unavailable));
    node.cgroups.leave();
    assert!(node.world.server.is_some());
    let rss = node.agent.process.rss() / 1024;
    Outcome::Passed(format!(
        "250 pods, agent {rss} KiB; first SVID {first:?} after the call, by container {with_container:?} after the kubelet knew, label withdrawn after {withdrawn:?}, {} requests",
        node.double.seen().len()
    ))
}

/// Whatever names a process makes, it is in the pod that the kubelet put it in, or in none.
pub async fn hostile() -> Outcome {
    let cgroups = match Cgroups::new() {
        Ok(cgroups) => cgroups,
        Err(why) => return Outcome::Skipped(why),
    };
    let node = Node::new(cgroups).await;
    let (own, its) = (id("9f"), id("1e"));
    node.lists(pod(WEB, "shop", "web", Some(&own)));
    let all = ["/a-pod", "/b-label", "/c-container"].map(spiffe_id);
    let home = format!("kubepods/burstable/pod{WEB}/{own}");
    let mut tries = 0;
    for below in [
        format!("kubepods/burstable/pod{VICTIM}/{its}"),
        format!("pod{VICTIM}/{its}"),
        its.clone(),
        format!("../{VICTIM}/x"),
    ] {
        let below = below.trim_start_matches("../");
        node.cgroups.enter(&format!("{home}/{below}"), |_| true);
        assert_eq!(identities(&node.agent).await.unwrap(), all, "{below}");
        tries += 1;
    }
    for elsewhere in [
        format!("user.slice/kubepods/burstable/pod{VICTIM}/{its}"),
        format!("docker/{own}/kubepods/burstable/pod{VICTIM}/{its}"),
        format!("kubepods.evil/burstable/pod{VICTIM}/{its}"),
    ] {
        node.cgroups.enter(&elsewhere, |_| true);
        let denied = identities(&node.agent).await;
        assert_eq!(denied, Err(Code::PermissionDenied), "{elsewhere}");
        tries += 1;
    }
    if node.cgroups.hierarchies.len() > 1 {
        node.cgroups.enter(&home, |at| at == 0);
        node.cgroups
            .enter(&format!("kubepods/burstable/pod{VICTIM}/{its}"), |at| {
                at > 0
            });
        let unknown = identities(&node.agent).await;
        assert_eq!(
            unknown,
            Err(Code::Unavailable),
            "hierarchies that do not agree"
        );
        tries += 1;
    }
    // Who is moved while a stream is open has it ended by the re-check of its process.
    node.cgroups.enter(&home, |_| true);
    let mut stream = node.agent.workload().await.watch().await.unwrap();
    stream
        .until(|ids| sorted(ids.to_vec()) == all)
        .await
        .unwrap();
    node.cgroups
        .enter(&format!("kubepods/burstable/pod{VICTIM}/{its}"), |_| true);
    let end = stream.next_within(REREAD).await.unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");
    assert_eq!(
        identities(&node.agent).await.unwrap(),
        [spiffe_id("/victim")],
        "root's own doing"
    );
    node.cgroups.leave();
    Outcome::Passed(format!("{tries} trees, one open stream"))
}
