//! The attestor against what a real kubelet and API server answered (tests/kubernetes/recorded),
//! served by a double.

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::DropGuard;
use vane_chassis::clock::System;
use vane_chassis::kubernetes::double::{Answer, Double};
use vane_chassis::tasks::TaskSet;

use super::*;
use crate::cgroup::{ContainerId, PodUid};
use crate::workload::Unknown;

mod api_server;
mod parse;
mod runtime;

const SOON: Duration = Duration::from_secs(10);
const PODS: &str = "/pods";

/// A pod of a Deployment, and its container `app`.
const WEB: (&str, &str) = (
    "5de646af-36bf-4c7f-890b-4aa375461b2b",
    "3fdc4c25fccce5901478f6dabcb36ef3a93dd5e3897e0248ae45c691ef3b75f7",
);
/// One of a StatefulSet.
const DB: (&str, &str) = (
    "c3b91c31-a849-4836-a901-2a8995ea5f34",
    "b8341d9801eaab339e6eafed0ac3be598f7f74fa9aeba2483844fc82530004cb",
);

fn recorded(file: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/kubernetes/recorded");
    std::fs::read_to_string(folder.join(file)).unwrap()
}

/// The body of a recorded answer.
fn body(file: &str) -> Value {
    let mut answer: Value = serde_json::from_str(&recorded(file)).unwrap();
    answer["body"].take()
}

fn place((pod, container): (&str, &str)) -> Place {
    Place {
        pod: PodUid::parse(pod).unwrap(),
        container: ContainerId::parse(container),
    }
}

fn values(attested: &Attested) -> Vec<&str> {
    let mut values: Vec<&str> = attested.selectors.iter().map(|one| one.value()).collect();
    values.sort_unstable();
    values
}

fn unknown(attested: &Attested) -> Vec<&str> {
    attested
        .unknown
        .iter()
        .map(|Unknown { prefix, .. }| *prefix)
        .collect()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it takes too long")
}

/// An attestor that asks a double.
struct World {
    double: Double,
    k8s: Arc<K8s>,
    folder: TempDir,
    _tasks: TaskSet,
    _stop: DropGuard,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut K8sConfig)) -> Self {
        let (double, folder) = (Double::start().await, tempfile::tempdir().unwrap());
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut config = K8sConfig {
            kubelet_secure_port: double.address().port(),
            kubelet_ca_path: file("ca.crt", double.ca_pem()),
            token_path: file("token", "the-agents-token\n"),
            kube_config_file: Some(double.kubeconfig(folder.path(), "t")),
            ..K8sConfig::default()
        };
        change(&mut config);
        let metrics = vane_chassis::metrics::Metrics::new("vane_agent", "0");
        let clock = Arc::new(System);
        let deps = Deps { clock, metrics };
        let k8s = Arc::new(K8s::new(config, &deps, "0::/\n", |_| None).unwrap());
        let (tasks, stop) = (TaskSet::new("k8s"), CancellationToken::new());
        let (running, stopped) = (Arc::clone(&k8s), stop.clone());
        tasks.spawn(async move { running.run(stopped).await });
        Self {
            double,
            k8s,
            folder,
            _tasks: tasks,
            _stop: stop.drop_guard(),
        }
    }

    async fn attest(&self, at: (&str, &str)) -> Result<Attested, AttestError> {
        soon(self.k8s.attest_at(&place(at))).await
    }

    /// What is said once the pod is known.
    async fn known(&self, at: (&str, &str)) -> Attested {
        let known = async {
            loop {
                match self.k8s.attest_at(&place(at)).await {
                    Ok(attested) if !attested.selectors.is_empty() => return attested,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        soon(known).await
    }

    /// Why nothing is said, once that is so.
    async fn unknown(&self, at: (&str, &str)) -> AttestError {
        let unknown = async {
            loop {
                if let Err(error) = self.k8s.attest_at(&place(at)).await {
                    return error;
                }
            }
        };
        soon(unknown).await
    }

    fn follow(&self, (pod, _): (&str, &str)) -> tokio::sync::watch::Receiver<u64> {
        self.k8s.table.follow(&PodUid::parse(pod).unwrap())
    }
}

fn cause(error: &AttestError) -> String {
    std::error::Error::source(error).unwrap().to_string()
}

#[tokio::test]
async fn a_process_outside_of_pods_has_no_selectors_and_asks_nobody() {
    let world = World::new().await;
    let place = cgroup::place("0::/system.slice/web.service\n", &world.k8s.roots);
    assert_eq!(place, Ok(None));
    assert!(world.double.seen().is_empty());
}

#[tokio::test]
async fn the_kubelet_is_asked_with_the_token_of_the_moment() {
    let world = World::new().await;
    world.double.shows(PODS, body("kubelet/pods.json"));
    let web = world.known(WEB).await;
    assert!(values(&web).contains(&"container-name:app"), "{web:?}");
    assert_eq!(web.soon, Soon::Nothing);
    let seen = world.double.seen();
    assert_eq!(seen[0].token.as_deref(), Some("the-agents-token"));
    // The others are known by the same answer.
    world.attest(DB).await.unwrap();
    assert_eq!(world.double.seen().len(), 1);
}

#[tokio::test]
async fn callers_that_come_together_share_an_answer() {
    let world = World::new().await;
    world.double.shows(PODS, body("kubelet/pods.json"));
    let all = (0..200).map(|at| world.known(if at % 2 == 0 { WEB } else { DB }));
    for attested in futures_util::future::join_all(all).await {
        assert_eq!(unknown(&attested), Vec::<&str>::new());
    }
    let requests = world.double.seen().len();
    assert!(requests <= 2, "{requests} requests for 200 callers");
}

#[tokio::test]
async fn a_container_that_the_kubelet_learns_of_wakes_who_follows() {
    let world = World::new().await;
    world.double.shows(PODS, body("kubelet/pods_partly.json"));
    let mut follow = world.follow(WEB);
    let early = world.known(WEB).await;
    assert!(values(&early).contains(&"pod-label:app:web"), "{early:?}");
    assert!(
        !values(&early)
            .iter()
            .any(|value| value.starts_with("container-"))
    );
    assert_eq!(
        unknown(&early),
        ["pod-image:", "container-name:", "container-image:"]
    );
    assert_eq!(early.soon, Soon::Unknown);
    follow.mark_unchanged();

    // It is asked again and again, until it knows.
    soon(world.double.until(|seen| seen.len() >= 3)).await;
    assert!(!follow.has_changed().unwrap(), "nothing changed yet");
    world.double.shows(PODS, body("kubelet/pods.json"));
    soon(follow.changed()).await.unwrap();
    let web = world.attest(WEB).await.unwrap();
    assert!(values(&web).contains(&"container-name:app"), "{web:?}");
    assert_eq!((unknown(&web), web.soon), (Vec::new(), Soon::Nothing));
}

#[tokio::test]
async fn there_is_an_end_to_asking_for_a_container_that_nobody_knows() {
    let tries = |config: &mut K8sConfig| {
        config.max_poll_attempts = 3;
        config.poll_retry_interval = Duration::from_millis(1);
    };
    let world = World::with(tries).await;
    world.double.shows(PODS, body("kubelet/pods.json"));
    let stranger = (WEB.0, DB.1);
    let mut follow = world.follow(stranger);
    let first = world.known(stranger).await;
    assert_eq!(first.soon, Soon::Unknown);
    follow.mark_unchanged();
    // Told once there is no hope any more.
    soon(follow.changed()).await.unwrap();
    let last = world.attest(stranger).await.unwrap();
    assert_eq!(unknown(&last), ["container-name:", "container-image:"]);
    assert_eq!(last.soon, Soon::Nothing);
}

#[tokio::test]
async fn without_container_selectors_there_are_none_and_none_is_unknown() {
    let world = World::with(|config| config.disable_container_selectors = true).await;
    world.double.shows(PODS, body("kubelet/pods.json"));
    let web = world.known(WEB).await;
    assert!(
        !values(&web)
            .iter()
            .any(|value| value.starts_with("container-"))
    );
    assert_eq!(unknown(&web), Vec::<&str>::new());
}

#[tokio::test]
async fn while_the_kubelet_is_away_the_known_keep_their_answer_and_others_get_none() {
    let world = World::new().await;
    let only_web = |mut list: Value| {
        let items = list["items"].as_array_mut().unwrap();
        items.retain(|pod| pod["metadata"]["uid"] == WEB.0);
        list
    };
    world
        .double
        .shows(PODS, only_web(body("kubelet/pods.json")));
    let before = world.known(WEB).await;
    assert_eq!(world.k8s.trouble(), None);

    let refused = recorded("kubelet/pods_forbidden.json");
    let refused: Value = serde_json::from_str(&refused).unwrap();
    let text = refused["body"].as_str().unwrap().to_owned();
    world
        .double
        .answer(&Method::GET, PODS, Answer::Text(403, text));
    let error = world.unknown(DB).await;
    assert!(cause(&error).contains("403"), "{}", cause(&error));
    let trouble = world.k8s.trouble().unwrap();
    assert!(
        trouble.starts_with("the kubelet does not tell the pods of this node: "),
        "{trouble}"
    );
    let now = world.attest(WEB).await.unwrap();
    assert_eq!(values(&now), values(&before));
    // A label that came meanwhile would not be known.
    assert!(unknown(&now).contains(&"pod-label:"), "{now:?}");

    // It is asked again by itself, and is back.
    world.double.shows(PODS, body("kubelet/pods.json"));
    world.known(DB).await;
    assert_eq!(world.k8s.trouble(), None);
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_an_error_and_nobody_is_denied() {
    let world = World::with(|config| {
        config.max_poll_attempts = 1;
        config.poll_retry_interval = Duration::from_millis(1);
    })
    .await;
    for answer in [
        Answer::Text(200, "<html>".to_owned()),
        Answer::Json(200, json!({"items": [{"metadata": 7}]})),
        Answer::Json(401, json!({})),
        Answer::Close,
    ] {
        world.double.answer(&Method::GET, PODS, answer);
        world.unknown(WEB).await;
    }
    let empty = json!({"kind": "PodList", "metadata": {}, "items": null});
    world.double.shows(PODS, empty);
    let not_listed = async {
        while !cause(&world.unknown(WEB).await).contains("is not among the pods of this node") {
            tokio::task::yield_now().await;
        }
    };
    soon(not_listed).await;
}

/// Whoever else knows something of the process is not held up.
#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_lets_the_caller_go_on_and_tells_it_later() {
    let patience = Patience {
        tries: 60,
        interval: Duration::from_millis(500),
    };
    let metrics = vane_chassis::metrics::Metrics::new("vane_agent", "0");
    let table = Table::new(patience, Metrics::register(&metrics, Arc::new(System)));
    let at = place(WEB);
    let mut follow = table.follow(&at.pod);
    let first = table.pod(&at).await.unwrap_err();
    assert!(matches!(first, Missing::Soon), "{first}");
    assert!(!follow.has_changed().unwrap());

    let list: super::pod::PodList = serde_json::from_value(body("kubelet/pods.json")).unwrap();
    let pods = list.items.into_iter().filter_map(|item| item.pod).collect();
    let read = table::Read::At(tokio::time::Instant::now());
    table.publish(pods, read, table.asked(), is_settled);
    follow.changed().await.unwrap();
    let told = table.pod(&at).await.unwrap();
    assert_eq!((&*told.pod.namespace, told.soon), ("shop", Soon::Nothing));
}

#[tokio::test]
async fn a_kubelet_of_another_ca_gets_no_token() {
    let other = Double::start().await;
    let ca = other.ca_pem().to_owned();
    let world = World::with(|config| {
        std::fs::write(&config.kubelet_ca_path, ca).unwrap();
    })
    .await;
    world.double.shows(PODS, body("kubelet/pods.json"));
    let error = world.unknown(WEB).await;
    assert!(cause(&error).contains("TLS"), "{}", cause(&error));
    assert!(world.double.seen().is_empty());
}

#[tokio::test]
async fn who_was_told_of_old_pods_is_told_anew() {
    let world = World::new().await;
    world.double.shows(PODS, body("kubelet/pods.json"));
    let mut follow = world.follow(WEB);
    world.known(WEB).await;
    // As if the answer had come before RECENT and after MAX_AGE.
    let aged = tokio::time::Instant::now() - Duration::from_secs(10);
    world.k8s.table.age(aged);
    follow.mark_unchanged();
    let mut list = body("kubelet/pods.json");
    for pod in list["items"].as_array_mut().unwrap() {
        pod["metadata"]["labels"]["app"] = json!("other");
    }
    world.double.shows(PODS, list);
    let old = world.attest(WEB).await.unwrap();
    assert!(values(&old).contains(&"pod-label:app:web"), "{old:?}");
    assert_eq!(old.soon, Soon::Anything, "it denies nobody");
    soon(follow.changed()).await.unwrap();
    let new = world.attest(WEB).await.unwrap();
    assert!(values(&new).contains(&"pod-label:app:other"), "{new:?}");
    assert_eq!(new.soon, Soon::Nothing);
}

#[tokio::test]
async fn a_kubelet_that_starts_and_lists_nothing_yet_takes_no_identity() {
    let world = World::new().await;
    world.double.shows(PODS, body("kubelet/pods.json"));
    let mut follow = world.follow(WEB);
    let before = world.known(WEB).await;
    let aged = tokio::time::Instant::now() - Duration::from_secs(10);
    world.k8s.table.age(aged);
    follow.mark_unchanged();
    world.double.shows(PODS, json!({"items": null}));
    assert_eq!(world.attest(WEB).await.unwrap().soon, Soon::Anything);
    soon(follow.changed()).await.unwrap();
    let now = world.attest(WEB).await.unwrap();
    assert_eq!(values(&now), values(&before));
}

/// Nobody asks, so nothing is read; who follows a pod has it read again in time.
#[tokio::test]
async fn the_pods_are_read_again_only_while_somebody_follows() {
    let world = World::new().await;
    world.double.shows(PODS, body("kubelet/pods.json"));
    world.known(WEB).await;
    let table = &world.k8s.table;
    let now = tokio::time::Instant::now();
    assert_eq!(table.due(now), None);
    let follow = world.follow(WEB);
    let due = table.due(now).unwrap() - now;
    assert!(
        due > Duration::from_secs(20) && due <= Duration::from_secs(30),
        "{due:?}"
    );
    drop(follow);
    assert_eq!(table.due(now), None);
}
