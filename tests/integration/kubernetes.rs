//! A node of Kubernetes with everything but Kubernetes: the API server is a double, and this
//! test is the kubelet that mounts the token and the ConfigMap.

use std::path::Path;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, interval, timeout_at};
use vane_chassis::clock::{Clock as _, System};
use vane_chassis::kubernetes::double::{Answer, Double};
use vane_tests::admin::entry;
use vane_tests::process::within;
use vane_tests::workload::verify;
use vane_tests::world::{Agent, Options, World, own_selector, pem, spiffe_id};
use vane_wire::workload::X509svidResponse;

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const MAP: &str = "/api/v1/namespaces/vane/configmaps/vane-bundle";
const NODE: &str = "/spire/agent/k8s_psat/demo/6a357e70";
/// What the agent's configuration mounts; see [`World::agent_by`].
const MOUNTED: &str = "bundle.pem";

/// The cluster: one node, whose agent's pods have tokens that are called as they are.
async fn cluster() -> Double {
    let double = Double::start().await;
    double.answer(
        &Method::POST,
        REVIEWS,
        Answer::by(|seen| {
            let token = seen.body["spec"]["token"].as_str().unwrap_or_default();
            let status = match token.strip_prefix("token-of-") {
                None => json!({"user": {}, "error": "invalid bearer token"}),
                Some(pod) => json!({"authenticated": true, "audiences": ["spire-server"], "user": {
                "username": "system:serviceaccount:vane:vane-agent",
                "extra": {"authentication.kubernetes.io/pod-name": [pod],
                    "authentication.kubernetes.io/pod-uid": [format!("uid-{pod}")]}}}),
            };
            Answer::Json(201, json!({"status": status}))
        }),
    );
    for pod in ["agent-1", "agent-2"] {
        let path = format!("/api/v1/namespaces/vane/pods/{pod}");
        let uid = format!("uid-{pod}");
        double.shows(
            &path,
            json!({"metadata": {"uid": uid, "labels": {"app": "vane-agent"}},
            "spec": {"nodeName": "worker"}, "status": {"hostIP": "10.0.0.7"}}),
        );
    }
    let node = json!({"metadata": {"uid": "6a357e70", "labels": {"zone": "a"}}});
    double.shows("/api/v1/nodes/worker", node);
    double.answer(&Method::PATCH, MAP, Answer::Json(200, json!({})));
    double
}

fn options(double: &Double, folder: &Path) -> Options {
    let kubeconfig = double.kubeconfig(folder, "of-the-server");
    Options {
        server_tables: format!(
            "[[node_attestor]]\ntype = \"k8s_psat\"\n[node_attestor.clusters.demo]\n\
             kube_config_file = {kubeconfig:?}\nservice_account_allow_list = [\"vane:vane-agent\"]\n\
             allowed_node_label_keys = [\"zone\"]\n\
             [[bundle_publisher]]\ntype = \"k8s_configmap\"\n[bundle_publisher.clusters.demo]\n\
             kubeconfig_path = {kubeconfig:?}\nnamespace = \"vane\"\nconfigmap_name = \"vane-bundle\"\n\
             configmap_key = \"bundle.crt\"\nformat = \"pem\"\n"
        ),
        ..Options::default()
    }
}

/// The bundles that the server has published, oldest first.
fn published(seen: &[vane_chassis::kubernetes::double::Seen]) -> Vec<&str> {
    let patches = seen.iter().filter(|it| it.path == MAP);
    let values = patches.map(|it| &it.body["data"]["bundle.crt"]);
    values.filter_map(Value::as_str).collect()
}

/// Waits for a published bundle that is as wanted, and mounts it, as kubelet would.
async fn mount(world: &World, double: &Double, mut wanted: impl FnMut(&str) -> bool) {
    let seen = double.until(|seen| published(seen).last().is_some_and(|last| wanted(last)));
    let seen = within("the bundle is published", seen).await;
    let last = published(&seen).last().unwrap().to_string();
    let next = world.write("next.pem", &last);
    std::fs::rename(next, world.path(MOUNTED)).unwrap();
}

/// How the agent proves itself: with the token of the pod that it is in now.
fn attestor(world: &World) -> String {
    let token = world.path("token");
    format!("[node_attestor]\ntype = \"k8s_psat\"\ncluster = \"demo\"\ntoken_path = {token:?}\n")
}

async fn agent(world: &World, double: &Double) -> Agent {
    world.write("token", "token-of-agent-1");
    let agent = world.agent_by("agent", &attestor(world)).await;
    let now = pem(&world.admin().await.bundle().await);
    mount(world, double, |value| value.contains(&now)).await;
    agent
}

/// Creates the entry of this process, and waits until it has it from the server of now.
async fn serve(world: &World, agent: &Agent) {
    let admin = world.admin().await;
    let zone = entry(
        &spiffe_id("/zone-a"),
        &spiffe_id("/spire/server"),
        &["k8s_psat:agent_node_label:zone:a"],
    );
    admin.create(zone).await;
    let web = entry(
        &spiffe_id("/web"),
        &spiffe_id("/zone-a"),
        &[&own_selector()],
    );
    admin.create(web).await;
    let bundle = admin.bundle().await;
    let authority = &bundle.x509_authorities[0].asn1;
    let is_of_now = |message: &X509svidResponse| {
        let trusted = &message.svids[0].bundle;
        trusted
            .windows(authority.len())
            .any(|at| at == &authority[..])
    };
    let workload = agent.workload().await;
    let of_now = async {
        // A server without entries ends the stream of before: then it is opened again.
        let mut sampler = interval(Duration::from_millis(100));
        loop {
            sampler.tick().await;
            let mut stream = workload.watch().await.unwrap();
            while let Ok(message) = stream.until(|ids| ids == [spiffe_id("/web")]).await {
                if is_of_now(&message) {
                    return message;
                }
            }
        }
    };
    let message = within("an SVID of the server of now", of_now).await;
    assert_eq!(verify(&message, System.now()).len(), 1);
}

/// A pod's agent: named by its node, and banned for good, whatever pod comes next.
#[tokio::test]
async fn an_agent_in_a_pod_is_its_node_until_that_is_banned() {
    let double = cluster().await;
    let folder = tempfile::tempdir().unwrap();
    let world = World::with(options(&double, folder.path()).server("agent_ttl = \"4s\"")).await;
    let mut agent = agent(&world, &double).await;
    assert_eq!(agent.id, spiffe_id(NODE));
    serve(&world, &agent).await;
    // It renews by attesting with the token that kubelet put there meanwhile.
    world.write("token", "token-of-agent-2");
    let reviewed = double.until(|seen| {
        seen.iter()
            .any(|it| it.body["spec"]["token"] == "token-of-agent-2")
    });
    within("the new token is used", reviewed).await;

    world.admin().await.ban(&agent.id).await.unwrap();
    within("the agent ends", agent.process.ended()).await;
    for token in ["token-of-agent-1", "token-of-agent-2"] {
        world.write("token", token);
        let log = world.try_agent_by("agent", &attestor(&world)).await;
        let log = log.err().unwrap();
        assert!(log.contains("agent is banned"), "{log}");
    }
}

/// A token that is refused is described by the agent, which alone may know what it says.
#[tokio::test]
async fn a_refused_token_is_told_with_what_it_says_of_itself() {
    let double = cluster().await;
    let folder = tempfile::tempdir().unwrap();
    let world = World::with(options(&double, folder.path())).await;
    // {"aud":["vault"],"exp":1000000000,"sub":"system:serviceaccount:vane:vane-agent"}
    let claims = "eyJhdWQiOlsidmF1bHQiXSwiZXhwIjoxMDAwMDAwMDAwLCJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6dmFuZTp2YW5lLWFnZW50In0";
    world.write("token", &format!("e30.{claims}.c2ln"));
    let log = world.try_agent_by("agent", &attestor(&world)).await;
    let log = log.err().unwrap();
    for want in [
        "token not authenticated according to TokenReview API",
        "is for audience [\"vault\"]",
        "expired at 2001-09-09T01:46:40Z",
    ] {
        assert!(log.contains(want), "{want} is not in {log}");
    }
    assert!(world.server_log().contains("invalid bearer token"));
}

/// The node was off until nothing that it had kept was valid: it comes back by the ConfigMap.
#[tokio::test]
async fn a_node_that_was_off_for_long_comes_back_by_its_configmap() {
    let double = cluster().await;
    let folder = tempfile::tempdir().unwrap();
    let options = options(&double, folder.path())
        .server("ca_ttl = \"10s\"")
        .server("agent_ttl = \"2s\"")
        .server("default_x509_svid_ttl = \"2s\"");
    let world = World::with(options).await;
    let agent = agent(&world, &double).await;
    let kept = world.admin().await.bundle().await;
    let deadline = Instant::now() + Duration::from_secs(90);
    let agent = agent.kill_and_restart_after(async {
        // Until none of the authorities that it knew is in use any more.
        let mut sampler = interval(Duration::from_millis(200));
        loop {
            timeout_at(deadline, sampler.tick()).await.unwrap();
            let now = world.admin().await.bundle().await;
            let known = |one| kept.x509_authorities.contains(one);
            if !now.x509_authorities.iter().any(known) {
                break;
            }
        }
        let old = pem(&kept);
        mount(&world, &double, |value| !value.contains(&old)).await;
    });
    let agent = agent.await;
    assert_eq!(agent.id, spiffe_id(NODE));
    serve(&world, &agent).await;
}

/// The server lost its disk: its authorities, entries and agents are others. An agent whose own
/// SVID is still valid notices by the server's certificate, and attests by the ConfigMap.
#[tokio::test]
async fn an_agent_goes_over_to_a_server_that_lost_its_disk() {
    let double = cluster().await;
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::with(options(&double, folder.path())).await;
    let agent = agent(&world, &double).await;
    serve(&world, &agent).await;
    let old = pem(&world.admin().await.bundle().await);
    world.kill_server().await;
    std::fs::remove_dir_all(world.path("server")).unwrap();
    world.restart_server().await;
    mount(&world, &double, |value| !value.contains(&old)).await;
    serve(&world, &agent).await;
    assert!(
        agent
            .log()
            .contains("attesting anew by the bundle of trust_bundle_path")
    );
}
