use std::path::Path as FilePath;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::double::{Answer, Double};
use super::*;

/// Longer than anything here takes; a test that reaches it fails.
const PATIENCE: Duration = Duration::from_secs(20);
const BOUNDS: Bounds = Bounds {
    deadline: PATIENCE,
    max_bytes: 4096,
};
const POD: &str = "/api/v1/namespaces/vane/pods/agent";

fn pod() -> Path {
    Path::of(&["api", "v1", "namespaces", "vane", "pods", "agent"])
}

fn short(milliseconds: u64) -> Bounds {
    Bounds {
        deadline: Duration::from_millis(milliseconds),
        ..BOUNDS
    }
}

async fn ask(client: &Client, bounds: Bounds) -> Result<Value, Error> {
    client.get(&pod(), bounds).await
}

#[derive(Debug, PartialEq, Deserialize)]
struct Named {
    name: String,
}

#[test]
fn no_name_leads_out_of_its_path_segment() {
    let path = Path::of(&["api", "v1", "pods", "../../secrets?x=/y", "..", ""]);
    let text = "/api/v1/pods/..%2F..%2Fsecrets%3Fx%3D%2Fy/%2E%2E%00/%00";
    assert_eq!(path.to_string(), text);
    let path = Path::of(&["a"]).with(&[("fieldSelector", "spec.nodeName=n&x")]);
    assert_eq!(path.to_string(), "/a?fieldSelector=spec.nodeName%3Dn%26x");
}

#[test]
fn addresses_are_read_as_a_kubeconfig_has_them() {
    let shown = |url: &str| Endpoint::parse(url).map(|it| it.to_string());
    for (url, want) in [
        ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
        ("https://[fd00::1]:6443/", "https://[fd00::1]:6443"),
        ("https://proxy/k8s/c-1/", "https://proxy:443/k8s/c-1"),
        ("http://localhost:8001", "http://localhost:8001"),
    ] {
        assert_eq!(shown(url).unwrap(), want);
    }
    for url in [
        "",
        "10.0.0.1:6443",
        "ftp://a",
        "https://u:p@a",
        "https://a/?b",
    ] {
        assert!(matches!(shown(url), Err(AccessError::Url(_))), "{url}");
    }
}

#[tokio::test]
async fn an_object_is_read_and_the_connection_used_again() {
    let double = Double::start().await;
    double.shows(POD, json!({"name": "agent", "more": [1, 2]}));
    let client = Client::new(double.access("secret"));
    for _ in 0..3 {
        let pod: Named = client.get(&pod(), BOUNDS).await.unwrap();
        assert_eq!(pod.name, "agent");
    }
    let seen = double.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|it| it.connection == 1));
    assert_eq!(seen[0].token.as_deref(), Some("secret"));
}

#[tokio::test]
async fn bodies_go_out_as_json_with_their_method() {
    let double = Double::start().await;
    for method in [Method::POST, Method::PUT, Method::PATCH] {
        double.answer(&method, POD, Answer::Json(201, json!({"name": "made"})));
    }
    let client = Client::new(double.access("t"));
    let body = json!({"data": {"a": "b"}});
    let named = Named {
        name: "made".to_owned(),
    };
    assert_eq!(
        client
            .post::<_, Named>(&pod(), &body, BOUNDS)
            .await
            .unwrap(),
        named
    );
    assert_eq!(
        client.put::<_, Named>(&pod(), &body, BOUNDS).await.unwrap(),
        named
    );
    assert_eq!(
        client
            .patch::<_, Named>(&pod(), &body, BOUNDS)
            .await
            .unwrap(),
        named
    );
    let seen = double.seen();
    let methods: Vec<_> = seen.iter().map(|it| it.method.as_str()).collect();
    assert_eq!(methods, ["POST", "PUT", "PATCH"]);
    assert!(seen.iter().all(|it| it.body == body));
}

#[tokio::test]
async fn a_refusal_is_told_with_status_reason_and_message() {
    let double = Double::start().await;
    let client = Client::new(double.access("t"));
    let error = ask(&client, BOUNDS).await.unwrap_err();
    assert!(error.is_not_found());
    let text = format!(
        "{}: status 404 NotFound: the double has no such thing",
        double.url()
    );
    assert_eq!(error.to_string(), text);
    // A kubelet refuses with a line of text; control characters do not reach a log.
    let answer = Answer::Text(401, "Unauthorized\n\x1b[31m".to_owned());
    double.answer(&Method::GET, POD, answer);
    let error = ask(&client, BOUNDS).await.unwrap_err();
    assert!(error.is_denied());
    assert!(
        error
            .to_string()
            .ends_with("status 401: Unauthorized  [31m")
    );
    // A redirect is a refusal too: nobody is led elsewhere with our token.
    double.answer(&Method::GET, POD, Answer::Text(302, String::new()));
    assert_eq!(ask(&client, BOUNDS).await.unwrap_err().code(), Some(302));
}

#[tokio::test]
async fn a_silent_or_halting_server_costs_no_more_than_the_deadline() {
    let double = Double::start().await;
    let client = Client::new(double.access("t"));
    for answer in [Answer::Silence, Answer::Half] {
        double.answer(&Method::GET, POD, answer);
        let error = ask(&client, short(50)).await.unwrap_err();
        let text = format!("{} did not answer within 50ms", double.url());
        assert_eq!(error.to_string(), text);
    }
}

#[tokio::test]
async fn a_server_that_takes_no_connection_or_breaks_it_is_named() {
    let double = Double::start().await;
    let client = Client::new(double.access("t"));
    double.answer(&Method::GET, POD, Answer::Close);
    let error = ask(&client, BOUNDS).await.unwrap_err();
    assert!(matches!(error, Error::Broken { .. }), "{error}");
    drop(double);
    let error = ask(&client, BOUNDS).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closed_is_replaced_unseen() {
    let double = Double::start().await;
    let client = Client::new(double.access("t"));
    double.shows(POD, json!({}));
    ask(&client, BOUNDS).await.unwrap();
    // The first call of this kind on a used connection finds it closed, the next is answered.
    double.answer(
        &Method::GET,
        POD,
        Answer::by(|seen| match seen.connection {
            1 => Answer::Close,
            _ => Answer::Json(200, json!({})),
        }),
    );
    ask(&client, BOUNDS).await.unwrap();
    assert_eq!(double.seen().last().unwrap().connection, 2);
}

#[tokio::test]
async fn answers_are_bounded_and_must_be_what_was_asked_for() {
    let double = Double::start().await;
    let client = Client::new(double.access("t"));
    double.shows(POD, json!("x".repeat(5000)));
    let error = ask(&client, BOUNDS).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("answered with more than 4096 bytes")
    );
    double.answer(&Method::GET, POD, Answer::Text(200, "<html>".to_owned()));
    let error = ask(&client, BOUNDS).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn only_the_trusted_ca_and_the_right_name_are_believed() {
    let (double, other) = (Double::start().await, Double::start().await);
    double.shows(POD, json!({}));
    let access = double.access("t");
    let stranger = Access {
        trust: other.access("t").trust,
        ..access.clone()
    };
    let misnamed = Access {
        name: Name::Other("node-7".to_owned()),
        ..access.clone()
    };
    for access in [stranger.clone(), misnamed] {
        let error = ask(&Client::new(access), BOUNDS).await.unwrap_err();
        assert!(matches!(error, Error::Tls { .. }), "{error}");
    }
    assert!(double.seen().is_empty(), "no token went to a stranger");
    let named = Access {
        name: Name::Other("kubernetes.default".to_owned()),
        ..access.clone()
    };
    let any = Access {
        name: Name::Any,
        ..access
    };
    let blind = Access {
        trust: Trust::Nothing,
        ..stranger.clone()
    };
    for access in [named, any, blind] {
        ask(&Client::new(access), BOUNDS).await.unwrap();
    }
    let any = Access {
        name: Name::Any,
        ..stranger
    };
    let error = ask(&Client::new(any), BOUNDS).await.unwrap_err();
    assert!(
        matches!(error, Error::Tls { .. }),
        "the chain still counts: {error}"
    );
}

fn in_pod(double: &Double, folder: &FilePath) -> Access {
    std::fs::write(folder.join("token"), "first\n").unwrap();
    std::fs::write(folder.join("ca.crt"), double.ca_pem()).unwrap();
    let variable = |name: &str| match name {
        "KUBERNETES_SERVICE_HOST" => Some(double.address().ip().to_string()),
        _ => Some(double.address().port().to_string()),
    };
    Access::in_cluster_of(variable, folder).unwrap()
}

#[tokio::test]
async fn in_a_pod_token_and_ca_are_read_as_they_rotate() {
    let folder = tempfile::tempdir().unwrap();
    let (double, other) = (Double::start().await, Double::start().await);
    double.shows(POD, json!({}));
    let client = Client::new(in_pod(&double, folder.path()));
    ask(&client, BOUNDS).await.unwrap();
    std::fs::write(folder.path().join("token"), "second").unwrap();
    ask(&client, BOUNDS).await.unwrap();
    let tokens: Vec<_> = double.seen().into_iter().map(|it| it.token).collect();
    assert_eq!(
        tokens,
        [Some("first".to_owned()), Some("second".to_owned())]
    );
    // Another CA: the kept connection was verified against the old one and is not used.
    std::fs::write(folder.path().join("ca.crt"), other.ca_pem()).unwrap();
    let error = ask(&client, BOUNDS).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error}");
    std::fs::remove_file(folder.path().join("ca.crt")).unwrap();
    let error = ask(&client, BOUNDS).await.unwrap_err();
    assert!(
        matches!(error, Error::Access(AccessError::File { .. })),
        "{error}"
    );
    let error = Access::in_cluster_of(|_| None, folder.path()).unwrap_err();
    assert!(matches!(error, AccessError::NotInCluster));
}

#[tokio::test]
async fn a_kubeconfig_is_read_at_each_call() {
    let folder = tempfile::tempdir().unwrap();
    let double = Double::start().await;
    double.shows(POD, json!({}));
    let path = double.kubeconfig(folder.path(), "one");
    let client = Client::kubeconfig(path).unwrap();
    ask(&client, BOUNDS).await.unwrap();
    double.kubeconfig(folder.path(), "two");
    ask(&client, BOUNDS).await.unwrap();
    let seen = double.seen();
    assert_eq!(seen[1].token.as_deref(), Some("two"));
    assert_eq!(seen[1].connection, 1);
}

#[tokio::test]
async fn a_kubeconfig_may_name_files_beside_it_and_a_client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let double = Double::start().await;
    double.shows(POD, json!({}));
    let (chain, key) = double.client_certificate("tester");
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    put("ca.pem", double.ca_pem());
    put("cert.pem", &chain);
    put("key.pem", &key);
    put("token", "of-the-file");
    let config = |user: &str| {
        format!(
            "{{current-context: it, contexts: [{{name: it, context: {{cluster: c, user: u}}}}], \
             clusters: [{{name: c, cluster: {{server: '{}', certificate-authority: ca.pem}}}}], \
             users: [{{name: u, user: {{{user}}}}}]}}",
            double.url()
        )
    };
    let path = folder.path().join("config");
    let user = "client-certificate: cert.pem, client-key: key.pem, tokenFile: token, token: old";
    std::fs::write(&path, config(user)).unwrap();
    let client = Client::kubeconfig(path.clone()).unwrap();
    ask(&client, BOUNDS).await.unwrap();
    assert_eq!(double.seen()[0].token.as_deref(), Some("of-the-file"));
    put("key.pem", "no key");
    let error = ask(&client, BOUNDS).await.unwrap_err().to_string();
    assert!(
        error.ends_with("cert.pem has no private key in PEM that can be used"),
        "{error}"
    );
    for (user, want) in [
        (
            "exec: {command: aws}",
            "has \"exec\", which is not supported",
        ),
        ("auth-provider: {name: gcp}", "has \"auth-provider\""),
        ("username: u, password: p", "has \"username\""),
        ("as: admin, token: t", "has \"as\""),
        (
            "client-certificate: cert.pem",
            "has only one of client-certificate and client-key",
        ),
        ("client-key-data: '%%%'", "has data that are no base64"),
        (
            "token: [s3cret]",
            "line 1 is not what a kubeconfig has there",
        ),
    ] {
        std::fs::write(&path, config(user)).unwrap();
        let error = Client::kubeconfig(path.clone()).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn a_kubeconfig_that_names_what_is_not_there_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let tail = "contexts: [{name: a, context: {cluster: c, user: u}}]\n";
    let cluster = "clusters: [{name: c, cluster: {server: 'https://h'}}]\n";
    for (text, want) in [
        (String::new(), "has no context \"\" (current-context)"),
        ("current-context: a\n".to_owned(), "has no context \"a\""),
        (
            format!("current-context: a\n{tail}"),
            "has no cluster \"c\"",
        ),
        (
            format!("current-context: a\n{tail}{cluster}"),
            "has no user \"u\"",
        ),
        (
            format!("current-context: a\n{tail}{cluster}users: [{{name: u, user: {{}}}}]"),
            "names no certificate-authority",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Client::kubeconfig(path.clone()).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

fn event(kind: &str, object: impl Into<Value>) -> Value {
    let object = object.into();
    json!({"type": kind, "object": object})
}

async fn watch(client: &Client, silence: Duration) -> Watch<Named> {
    let path = pod().with(&[("watch", "true")]);
    Watch::open(client, &path, BOUNDS, silence).await.unwrap()
}

#[tokio::test]
async fn a_watch_tells_every_change_and_ends_in_good_order() {
    let double = Double::start().await;
    let first = vec![event("ADDED", json!({"name": "a"}))];
    double.answer(&Method::GET, POD, Answer::Watch(first));
    let client = Client::new(double.access("t"));
    let mut watch = watch(&client, PATIENCE).await;
    drop(client);
    let named = |name: &str| Named {
        name: name.to_owned(),
    };
    let next = watch.next().await.unwrap();
    assert_eq!(next, Some(Event::Added(named("a"))));
    double.tell(event("MODIFIED", json!({"name": "b"})));
    double.tell(event("SOMETHING NEW", json!({"x": 1})));
    double.tell(event(
        "BOOKMARK",
        json!({"metadata": {"resourceVersion": "17"}}),
    ));
    double.tell(event("DELETED", json!({"name": "c"})));
    for want in [
        Event::Modified(named("b")),
        Event::Bookmark("17".to_owned()),
        Event::Deleted(named("c")),
    ] {
        assert_eq!(watch.next().await.unwrap(), Some(want));
    }
    double.hang_up();
    assert_eq!(watch.next().await.unwrap(), None);
    assert_eq!(double.seen()[0].query, "watch=true");
}

#[tokio::test]
async fn a_watch_from_too_long_ago_is_told_apart() {
    let double = Double::start().await;
    let status = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    double.answer(
        &Method::GET,
        POD,
        Answer::Watch(vec![event("ERROR", status)]),
    );
    let client = Client::new(double.access("t"));
    let mut opened = watch(&client, PATIENCE).await;
    assert!(opened.next().await.unwrap_err().is_gone());
    double.answer(&Method::GET, POD, Answer::refusal(410, "Gone", "too old"));
    let error = Watch::<Named>::open(&client, &pod(), BOUNDS, PATIENCE)
        .await
        .unwrap_err();
    assert!(error.is_gone());
}

#[tokio::test]
async fn a_watch_bounds_its_lines_and_its_silence() {
    let double = Double::start().await;
    let long = event("ADDED", json!({"name": "x".repeat(5000)}));
    double.answer(&Method::GET, POD, Answer::Watch(vec![long]));
    let client = Client::new(double.access("t"));
    let mut opened = watch(&client, PATIENCE).await;
    let error = opened.next().await.unwrap_err();
    assert!(
        matches!(error, Error::TooLong { limit: 4096, .. }),
        "{error}"
    );
    double.answer(&Method::GET, POD, Answer::Watch(Vec::new()));
    let mut opened = watch(&client, Duration::from_millis(50)).await;
    let error = opened.next().await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
}

#[test]
fn no_debug_text_shows_a_token_or_a_key() {
    let access = Access {
        endpoint: Endpoint::https("h", 1),
        trust: Trust::Nothing,
        name: Name::Any,
        credentials: Credentials {
            token: Some(Token::Text("s3cret".to_owned().into())),
            certificate: Some((
                Pem::Text(b"s3cret".to_vec().into()),
                Pem::Text(b"s3cret".to_vec().into()),
            )),
        },
    };
    assert!(!format!("{access:?}").contains("s3cret"));
}
