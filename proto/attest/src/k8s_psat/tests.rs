use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use vane_chassis::builtin::{Section, open_section};
use vane_chassis::kubernetes::double::{Answer, Double, Seen};
use vane_identity::id::TrustDomain;

use super::*;
use crate::{PROVERS, VERIFIERS};

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const POD: &str = "/api/v1/namespaces/vane/pods/agent-x";
const NODE: &str = "/api/v1/nodes/worker-1";
const GOOD: &str = "good-token";

/// A cluster with one agent's pod whose token is `good-token`.
struct Kube {
    double: Double,
    folder: TempDir,
}

fn review(user: &str, extra: &Value) -> Value {
    json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
        "status": {"authenticated": true, "audiences": ["spire-server"],
            "user": {"username": user, "uid": "sa-uid", "groups": ["system:authenticated"],
                "extra": extra}}})
}

fn bound() -> Value {
    json!({"authentication.kubernetes.io/pod-name": ["agent-x"],
        "authentication.kubernetes.io/pod-uid": ["pod-uid-1"]})
}

/// As an API server judges: the token, for the audiences that are asked for.
fn judged(seen: &Seen) -> Answer {
    let spec = &seen.body["spec"];
    let refused = |error: &str| Answer::Json(201, json!({"status": {"user": {}, "error": error}}));
    let user = "system:serviceaccount:vane:vane-agent";
    match spec["token"].as_str().unwrap() {
        GOOD => Answer::Json(201, review(user, &bound())),
        "for-others" => refused(
            "token audiences [\"vault\"] is invalid for the target audiences [\"spire-server\"]",
        ),
        "expired" => refused("[invalid bearer token, Token has expired.]"),
        "other-account" => Answer::Json(201, review("system:serviceaccount:shop:web", &bound())),
        "a-person" => Answer::Json(201, review("alice", &json!({}))),
        "unbound" => Answer::Json(201, review(user, &json!({}))),
        "unaware" => {
            let mut answer = review(user, &bound());
            answer["status"]["audiences"] = json!(["https://kubernetes.default.svc"]);
            Answer::Json(201, answer)
        }
        _ => refused("invalid bearer token"),
    }
}

fn pod(uid: &str) -> Value {
    json!({"metadata": {"name": "agent-x", "namespace": "vane", "uid": uid,
            "labels": {"app": "vane-agent", "secret": "s"}},
        "spec": {"nodeName": "worker-1", "serviceAccountName": "vane-agent"},
        "status": {"hostIP": "10.1.2.3", "phase": "Running"}})
}

impl Kube {
    async fn start() -> Self {
        let double = Double::start().await;
        double.answer(&Method::POST, REVIEWS, Answer::by(judged));
        double.shows(POD, pod("pod-uid-1"));
        let labels = json!({"zone": "a", "hidden": "h"});
        let node = json!({"metadata": {"name": "worker-1", "uid": "node-uid-1", "labels": labels}});
        double.shows(NODE, node);
        let folder = tempfile::tempdir().unwrap();
        Self { double, folder }
    }

    async fn gate(&self, more: &str) -> Arc<dyn Verifier> {
        let kubeconfig = self.double.kubeconfig(self.folder.path(), "of-the-server");
        let text = format!(
            "[clusters.demo]\nkube_config_file = {kubeconfig:?}\n\
             service_account_allow_list = [\"vane:vane-agent\"]\n{more}"
        );
        opened(&text).await.unwrap()
    }

    fn token(&self) -> std::path::PathBuf {
        self.folder.path().join("token")
    }

    async fn prover(&self, cluster: &str) -> Arc<dyn Prover> {
        let options = format!("cluster = {cluster:?}\ntoken_path = {:?}", self.token());
        let section = Section::new(NAME, options.parse().unwrap());
        open_section(PROVERS, &section, &()).await.unwrap()
    }

    /// What the server makes of this token.
    async fn attest(&self, gate: &dyn Verifier, token: &str) -> Result<Attested, VerifyError> {
        std::fs::write(self.token(), format!("{token}\n")).unwrap();
        let evidence = self.prover("demo").await.evidence().await.unwrap();
        judge(gate, &evidence).await
    }
}

async fn opened(options: &str) -> Result<Arc<dyn Verifier>, OpenError> {
    let section = Section::new(NAME, options.parse().unwrap());
    let deps = Deps {
        trust_domain: TrustDomain::parse("example.org").unwrap(),
        bundle: Arc::new(|| None),
    };
    open_section(VERIFIERS, &section, &deps).await
}

async fn judge(gate: &dyn Verifier, evidence: &[u8]) -> Result<Attested, VerifyError> {
    let claim = Claim {
        evidence,
        rounds: &[],
        peer: None,
        now: UNIX_EPOCH,
    };
    match gate.verify(&claim).await? {
        Step::Attested(attested) => Ok(attested),
        Step::Challenge(_) => panic!("there are no challenges"),
    }
}

#[tokio::test]
async fn a_pods_token_is_the_node_that_it_runs_on() {
    let kube = Kube::start().await;
    let gate = kube
        .gate("allowed_node_label_keys = [\"zone\"]\nallowed_pod_label_keys = [\"app\"]")
        .await;
    let attested = kube.attest(&*gate, GOOD).await.unwrap();
    assert_eq!(attested.path, "/k8s_psat/demo/node-uid-1");
    assert!(matches!(attested.admission, Admission::Again));
    assert_eq!(
        attested.selectors,
        [
            "cluster:demo",
            "agent_ns:vane",
            "agent_sa:vane-agent",
            "agent_pod_name:agent-x",
            "agent_pod_uid:pod-uid-1",
            "agent_node_ip:10.1.2.3",
            "agent_node_name:worker-1",
            "agent_node_uid:node-uid-1",
            "agent_node_label:zone:a",
            "agent_pod_label:app:vane-agent",
        ]
    );
    let seen = kube.double.seen();
    assert!(
        seen.iter()
            .all(|it| it.token.as_deref() == Some("of-the-server"))
    );
    let spec = json!({"token": GOOD, "audiences": ["spire-server"]});
    assert_eq!(seen[0].body["spec"], spec);
    assert_eq!(seen[0].body["kind"], "TokenReview");
}

/// What Kubernetes 1.20 answered (tests/kubernetes/recorded).
#[tokio::test]
async fn a_real_api_servers_answers_are_understood() {
    let kube = Kube::start().await;
    for recording in ["tokenreview/good", "apiserver/pod", "apiserver/node"] {
        kube.double.replay(recording);
    }
    let gate = kube.gate("").await;
    let error = kube.attest(&*gate, GOOD).await.unwrap_err().to_string();
    let want = "nodeattestor(k8s_psat): \"shop:reviewer\" is not an allowed service account";
    assert_eq!(error, want);
    let kubeconfig = kube.double.kubeconfig(kube.folder.path(), "t");
    let options = format!(
        "[clusters.real]\nservice_account_allow_list = [\"shop:reviewer\", \"shop:web\"]\n\
         allowed_pod_label_keys = [\"app\"]\nkube_config_file = {kubeconfig:?}"
    );
    let gate = opened(&options).await.unwrap();
    let evidence = b"{\"cluster\": \"real\", \"token\": \"TOKEN\"}";
    let attested = judge(&*gate, evidence).await.unwrap();
    assert_eq!(
        attested.path,
        "/k8s_psat/real/6a357e70-cccd-47e0-b777-dc63ff00cb23"
    );
    for (at, want) in [
        (4, "agent_pod_uid:3e718490-f880-4f42-b1c0-f695e731a9c9"),
        (6, "agent_node_name:vane-node"),
        (8, "agent_pod_label:app:daemon"),
    ] {
        assert_eq!(attested.selectors[at], want);
    }
    for recording in [
        "bad_signature",
        "deleted_account",
        "deleted_pod",
        "expired",
        "malformed",
        "other_audience",
    ] {
        kube.double.replay(&format!("tokenreview/{recording}"));
        let error = judge(&*gate, evidence).await.unwrap_err().to_string();
        let want = "nodeattestor(k8s_psat): token not authenticated according to TokenReview API";
        assert_eq!(error, want, "{recording}");
    }
    for (recording, want) in [
        ("tokenreview/no_pod", "bound to no pod"),
        (
            "tokenreview/asker_forbidden",
            "it does not let this server ask",
        ),
        (
            "tokenreview/asker_unauthorized",
            "it does not let this server ask",
        ),
    ] {
        kube.double.replay(recording);
        let error = judge(&*gate, evidence).await.unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[tokio::test]
async fn the_agent_may_be_named_after_its_pod() {
    let kube = Kube::start().await;
    let gate = kube.gate("use_pod_uid_for_agent_id = true").await;
    let attested = kube.attest(&*gate, GOOD).await.unwrap();
    assert_eq!(attested.path, "/k8s_psat/demo/pod/pod-uid-1");
}

#[tokio::test]
async fn an_empty_audience_is_the_api_servers_own() {
    let kube = Kube::start().await;
    let gate = kube.gate("audience = []").await;
    kube.attest(&*gate, "unaware").await.unwrap();
    assert_eq!(
        kube.double.seen()[0].body["spec"],
        json!({"token": "unaware"})
    );
}

#[tokio::test]
async fn each_token_that_proves_nothing_is_refused_with_its_own_text() {
    let kube = Kube::start().await;
    let gate = kube.gate("").await;
    let unknown = "token not authenticated according to TokenReview API";
    for (token, want) in [
        ("forged", unknown),
        ("for-others", unknown),
        ("expired", unknown),
        ("unaware", unknown),
        (
            "other-account",
            "\"shop:web\" is not an allowed service account",
        ),
        ("a-person", "the token is none of a service account"),
        (
            "unbound",
            "the token is bound to no pod: mount it with a projected volume",
        ),
    ] {
        let error = kube.attest(&*gate, token).await.unwrap_err();
        let want = VerifyError::Denied(format!("nodeattestor(k8s_psat): {want}"));
        assert_eq!(error, want, "{token}");
    }
    let asked = kube.double.seen();
    assert!(
        asked.iter().all(|it| it.path == REVIEWS),
        "nothing else was read for them"
    );
}

#[tokio::test]
async fn a_pod_or_node_that_is_gone_or_another_is_refused() {
    let kube = Kube::start().await;
    let gate = kube.gate("").await;
    let gone = "nodeattestor(k8s_psat): the pod that the token is bound to is gone";
    kube.double.shows(POD, pod("pod-uid-2"));
    let error = kube.attest(&*gate, GOOD).await.unwrap_err();
    assert_eq!(
        error,
        VerifyError::Denied(gone.to_owned()),
        "a pod of the same name"
    );
    let missing = || Answer::refusal(404, "NotFound", "pods \"agent-x\" not found");
    kube.double.answer(&Method::GET, POD, missing());
    let error = kube.attest(&*gate, GOOD).await.unwrap_err();
    assert_eq!(error, VerifyError::Denied(gone.to_owned()));
    kube.double.shows(POD, pod("pod-uid-1"));
    kube.double.answer(&Method::GET, NODE, missing());
    let error = kube.attest(&*gate, GOOD).await.unwrap_err();
    let gone = "nodeattestor(k8s_psat): the node of the token's pod is gone";
    assert_eq!(error, VerifyError::Denied(gone.to_owned()));
}

#[tokio::test]
async fn evidence_that_is_none_is_refused_before_anybody_is_asked() {
    let kube = Kube::start().await;
    let gate = kube.gate("").await;
    let long = json!({"cluster": "demo", "token": "x".repeat(MAX_EVIDENCE)}).to_string();
    for (evidence, want) in [
        ("not JSON", "failed to unmarshal data payload"),
        (long.as_str(), "failed to unmarshal data payload"),
        ("{\"token\":\"t\"}", "missing cluster in attestation data"),
        (
            "{\"cluster\":\"demo\"}",
            "missing token in attestation data",
        ),
        (
            "{\"cluster\":\"other\",\"token\":\"t\"}",
            "not configured for cluster \"other\"",
        ),
    ] {
        let error = judge(&*gate, evidence.as_bytes()).await.unwrap_err();
        let want = VerifyError::Malformed(format!("nodeattestor(k8s_psat): {want}"));
        assert_eq!(error, want);
    }
    assert!(kube.double.seen().is_empty());
}

/// An API server that refuses us or is not there is told, without its own words.
#[tokio::test]
async fn an_api_server_of_no_use_is_an_error_of_the_server_that_tells_no_secrets() {
    let kube = Kube::start().await;
    let gate = kube.gate("").await;
    let tried = "nodeattestor(k8s_psat): unable to validate token with TokenReview API";
    let forbidden = "User \"system:serviceaccount:vane:server\" cannot create tokenreviews";
    for (answer, want) in [
        (
            Answer::refusal(403, "Forbidden", forbidden),
            "it does not let this server ask",
        ),
        (
            Answer::Text(500, "etcd is away".to_owned()),
            "its answer is of no use",
        ),
        (
            Answer::Text(200, "<html>".to_owned()),
            "its answer is of no use",
        ),
        (Answer::Close, "it cannot be reached"),
    ] {
        kube.double.answer(&Method::POST, REVIEWS, answer);
        let error = kube.attest(&*gate, GOOD).await.unwrap_err();
        assert_eq!(error, VerifyError::Internal(format!("{tried}: {want}")));
    }
    kube.double
        .answer(&Method::POST, REVIEWS, Answer::by(judged));
    kube.double
        .answer(&Method::GET, NODE, Answer::refusal(403, "Forbidden", "no"));
    let error = kube.attest(&*gate, GOOD).await.unwrap_err().to_string();
    let want = "fail to get node from k8s API server: it does not let this server ask";
    assert!(error.ends_with(want), "{error}");
}

/// Time stands still but for the deadlines: all places are taken, then all are free again.
#[tokio::test]
async fn a_silent_api_server_holds_an_attestation_no_longer_than_its_deadline() {
    let kube = Kube::start().await;
    let gate = kube.gate("").await;
    kube.double.answer(&Method::POST, REVIEWS, Answer::Silence);
    let asked = kube.attest(&*gate, GOOD);
    let paused = async {
        kube.double.until(|seen| !seen.is_empty()).await;
        tokio::time::pause();
        std::future::pending::<()>().await;
    };
    let error = tokio::select! {
        answered = asked => answered.unwrap_err().to_string(),
        () = paused => unreachable!(),
    };
    assert!(error.ends_with("it did not answer in time"), "{error}");
}

#[tokio::test]
async fn the_token_is_read_at_each_attempt_and_its_absence_told() {
    let kube = Kube::start().await;
    let prover = kube.prover("demo").await;
    let error = prover.evidence().await.unwrap_err().to_string();
    assert!(error.starts_with("cannot read "), "{error}");
    std::fs::write(kube.token(), " \n").unwrap();
    let error = prover.evidence().await.unwrap_err().to_string();
    assert!(
        error.ends_with("with a projected volume (`serviceAccountToken`)"),
        "{error}"
    );
    for token in ["one", "two"] {
        std::fs::write(kube.token(), token).unwrap();
        let evidence: Value = serde_json::from_slice(&prover.evidence().await.unwrap()).unwrap();
        assert_eq!(evidence, json!({"cluster": "demo", "token": token}));
    }
    assert!(prover.answer(b"x").await.is_err());
}

fn jwt(claims: &Value) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

#[tokio::test]
async fn who_reads_of_a_refusal_is_told_what_the_token_says_of_itself() {
    let kube = Kube::start().await;
    let prover = kube.prover("demo").await;
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    std::fs::write(kube.token(), "no token").unwrap();
    assert_eq!(prover.hint(now), None);
    let sub = "system:serviceaccount:vane:vane-agent";
    for (claims, want) in [
        (
            json!({"aud": ["vault"], "exp": 999_999_999, "sub": sub,
                "kubernetes.io": {"pod": {"name": "agent-x", "uid": "u"}}}),
            format!(
                "is for audience [\"vault\"], of {sub:?}, bound to pod \"agent-x\", expired at 2001-09-09T01:46:39Z"
            ),
        ),
        (
            json!({"aud": "spire-server", "exp": 1_000_000_001, "sub": sub}),
            format!(
                "is for audience [\"spire-server\"], of {sub:?}, bound to no pod, expires at 2001-09-09T01:46:41Z"
            ),
        ),
    ] {
        std::fs::write(kube.token(), jwt(&claims)).unwrap();
        let want = format!("the token of {} {want}", kube.token().display());
        assert_eq!(prover.hint(now), Some(want));
    }
}

#[tokio::test]
async fn mistakes_of_the_configuration_are_told() {
    let kube = Kube::start().await;
    let kubeconfig = kube.double.kubeconfig(kube.folder.path(), "t");
    let cluster = |name: &str, allowed: &str, file: &Path| {
        format!(
            "[clusters.{name:?}]\nservice_account_allow_list = [{allowed}]\nkube_config_file = {file:?}"
        )
    };
    let nowhere = Path::new("/nowhere/config");
    for (text, want) in [
        (
            cluster("a/b", "\"a:b\"", &kubeconfig),
            "the name of cluster \"a/b\"",
        ),
        (
            cluster("a", "", &kubeconfig),
            "must have at least one service account allowed",
        ),
        (
            cluster("a", "\"agent\"", &kubeconfig),
            "\"agent\" in service_account_allow_list",
        ),
        (
            cluster("a", "\"a:b\"", nowhere),
            "kube_config_file: cannot read /nowhere/config",
        ),
        (
            "[clusters.a]\n".to_owned(),
            "missing field `service_account_allow_list`",
        ),
        (
            "[clusters.a]\nservice_account_allow_list = [\"a:b\"]".to_owned(),
            "this process is not in a pod",
        ),
    ] {
        let error = opened(&text).await.unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    let section = Section::new(NAME, "cluster = \"\"".parse().unwrap());
    let error = open_section(PROVERS, &section, &()).await.unwrap_err();
    assert!(error.to_string().contains("cluster is empty"));
}
