use std::sync::Mutex;

use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use vane_chassis::builtin::{OpenError, Section, open_section};
use vane_chassis::kubernetes::double::{Answer, Double};
use vane_chassis::tasks::TaskSet;
use vane_identity::bundle::X509Authority;
use vane_identity::x509_svid::Certificate;

use super::*;
use crate::authorized::tests::trust_domain;
use crate::state::tests::{World, put_bundle};

const MAP: &str = "/api/v1/namespaces/vane/configmaps/trust";
const MAPS: &str = "/api/v1/namespaces/vane/configmaps";
const PATIENCE: Duration = Duration::from_secs(20);

fn bundle(name: &str) -> Bundle {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let der = params.self_signed(&key).unwrap();
    let mut bundle = Bundle::empty(trust_domain());
    bundle.sequence_number = 7;
    bundle.x509_authorities = vec![X509Authority::new(Certificate::from_der(der.der()))];
    bundle
}

fn cluster(double: &Double, folder: &TempDir, name: &str, format: &str) -> String {
    let path = double.kubeconfig(folder.path(), "of-the-server");
    format!(
        "[clusters.{name}]\nconfigmap_name = \"trust\"\nconfigmap_key = \"bundle.crt\"\n\
         namespace = \"vane\"\nkubeconfig_path = {path:?}\nformat = {format:?}\n"
    )
}

async fn opened(options: &str) -> Result<Arc<dyn BundlePublisher>, OpenError> {
    let section = Section::new("k8s_configmap", options.parse().unwrap());
    open_section(BUILTINS, &section, &()).await
}

/// The value that the last patch or creation brought.
fn value(double: &Double) -> String {
    let seen = double.seen();
    let data = &seen.last().unwrap().body["data"]["bundle.crt"];
    data.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn each_format_is_the_one_of_its_name() {
    let (double, folder) = (Double::start().await, TempDir::new().unwrap());
    double.answer(&Method::PATCH, MAP, Answer::Json(200, json!({})));
    let bundle = bundle("a");
    let publish = async |options: String| {
        let publisher = opened(&options).await.unwrap();
        publisher.publish(&bundle).await.unwrap();
        value(&double)
    };
    let written = publish(cluster(&double, &folder, "a", "pem")).await;
    assert_eq!(written, bundle.to_pem());
    let written = publish(cluster(&double, &folder, "a", "spiffe")).await;
    assert_eq!(written.as_bytes(), bundle.to_jwks().unwrap());
    let hinted = cluster(&double, &folder, "a", "spiffe") + "refresh_hint = \"5m\"\n";
    let written: Value = serde_json::from_str(&publish(hinted).await).unwrap();
    assert_eq!(written["spiffe_refresh_hint"], 300);
    let written = publish(cluster(&double, &folder, "a", "jwks")).await;
    let written: Value = serde_json::from_str(&written).unwrap();
    let keys: Vec<_> = written.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["keys"]);
    assert!(written["keys"][0]["use"].is_null() && written["keys"][0]["x5c"][0].is_string());
    let seen = double.seen();
    assert!(seen.iter().all(|it| it.method == "PATCH" && it.path == MAP));
    assert!(
        seen.iter()
            .all(|it| it.token.as_deref() == Some("of-the-server"))
    );
    assert_eq!(
        seen[0].body,
        json!({"data": {"bundle.crt": bundle.to_pem()}})
    );
}

#[tokio::test]
async fn a_configmap_that_is_not_there_is_made() {
    let (double, folder) = (Double::start().await, TempDir::new().unwrap());
    double.answer(&Method::POST, MAPS, Answer::Json(201, json!({})));
    let publisher = opened(&cluster(&double, &folder, "a", "pem"))
        .await
        .unwrap();
    let bundle = bundle("a");
    publisher.publish(&bundle).await.unwrap();
    let seen = double.seen();
    let asked: Vec<_> = seen.iter().map(|it| it.method.as_str()).collect();
    assert_eq!(asked, ["PATCH", "POST"]);
    assert_eq!(
        seen[1].body,
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "trust", "namespace": "vane"},
            "data": {"bundle.crt": bundle.to_pem()}})
    );
}

#[tokio::test]
async fn a_cluster_that_fails_is_named_and_hinders_no_other() {
    let (well, ill) = (Double::start().await, Double::start().await);
    let folder = TempDir::new().unwrap();
    well.answer(&Method::PATCH, MAP, Answer::Json(200, json!({})));
    let forbidden = Answer::refusal(403, "Forbidden", "cannot patch resource \"configmaps\"");
    ill.answer(&Method::PATCH, MAP, forbidden);
    let options = cluster(&ill, &folder, "ill", "pem") + &cluster(&well, &folder, "well", "pem");
    let publisher = opened(&options).await.unwrap();
    let error = publisher
        .publish(&bundle("a"))
        .await
        .unwrap_err()
        .to_string();
    let want = format!(
        "cluster \"ill\": {}: status 403 Forbidden: cannot patch resource \"configmaps\"",
        ill.url()
    );
    assert_eq!(error, want);
    assert_eq!(well.seen().len(), 1);
}

#[tokio::test]
async fn mistakes_of_the_options_are_told() {
    let (double, folder) = (Double::start().await, TempDir::new().unwrap());
    let good = cluster(&double, &folder, "a", "pem");
    for (options, want) in [
        (good.replace("\"trust\"", "\"\""), "configmap_name is empty"),
        (
            good.clone() + "refresh_hint = \"5m\"",
            "refresh_hint is part of format \"spiffe\" only",
        ),
        (good.replace("\"pem\"", "\"der\""), "unknown variant `der`"),
        (
            good.replace("namespace = \"vane\"", ""),
            "missing field `namespace`",
        ),
        (
            good.replace("kubeconfig-", "nothing-"),
            "kubeconfig_path: cannot read",
        ),
    ] {
        let error = opened(&options).await.unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    opened("")
        .await
        .unwrap()
        .publish(&bundle("a"))
        .await
        .unwrap();
}

/// Takes bundles, fails or hangs as it is told.
#[derive(Debug)]
struct Place {
    taken: watch::Sender<Vec<u64>>,
    mood: Mutex<Mood>,
}

#[derive(Debug, Clone, Copy)]
enum Mood {
    Well,
    Fails,
    Hangs,
}

#[async_trait]
impl BundlePublisher for Place {
    fn name(&self) -> &'static str {
        "place"
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), PublishError> {
        let sequence = bundle.sequence_number;
        self.taken.send_modify(|taken| taken.push(sequence));
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Well => Ok(()),
            Mood::Fails => Err(PublishError::Places(vec!["no place".to_owned()])),
            Mood::Hangs => std::future::pending().await,
        }
    }
}

impl Place {
    fn feels(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    async fn took(&self, sequence: u64) {
        let mut taken = self.taken.subscribe();
        let wait = taken.wait_for(|taken| taken.last() == Some(&sequence));
        tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap();
    }
}

fn numbered(name: &str, sequence_number: u64) -> Bundle {
    let mut bundle = bundle(name);
    bundle.sequence_number = sequence_number;
    bundle
}

#[tokio::test]
async fn every_change_is_published_and_what_fails_is_told_and_tried_again() {
    let world = World::new().await;
    let place = Arc::new(Place {
        taken: watch::Sender::new(Vec::new()),
        mood: Mutex::new(Mood::Well),
    });
    let waits = Policy::new(Duration::from_millis(1), Duration::from_millis(2), 2.0).unwrap();
    let publish = Publish::new(Arc::<Place>::clone(&place), waits);
    let mut trouble = publish.trouble();
    let stop = CancellationToken::new();
    let tasks = TaskSet::new("test");
    let at_work = publish.run(Arc::clone(&world.state), trust_domain(), stop.clone());
    tasks.spawn(async { at_work.await.unwrap_or_default() });

    world.commit(put_bundle(&numbered("a", 1))).await;
    place.took(1).await;
    // A foreign bundle is no reason to publish the own one.
    let foreign = Bundle {
        trust_domain: TrustDomain::parse("other.org").unwrap(),
        ..numbered("b", 9)
    };
    world.commit(put_bundle(&foreign)).await;
    world.commit(put_bundle(&numbered("a", 2))).await;
    place.took(2).await;
    assert_eq!(*place.taken.borrow(), [1, 2]);

    place.feels(Mood::Fails);
    world.commit(put_bundle(&numbered("a", 3))).await;
    let told = tokio::time::timeout(PATIENCE, trouble.wait_for(Option::is_some));
    let told = told.await.unwrap().unwrap().clone().unwrap();
    assert_eq!((told.publisher, told.error.as_str()), ("place", "no place"));
    place.feels(Mood::Well);
    let over = tokio::time::timeout(PATIENCE, trouble.wait_for(Option::is_none));
    drop(over.await.unwrap().unwrap());
    assert!(place.taken.borrow().iter().filter(|it| **it == 3).count() > 1);

    // A place that hangs gets the next one all the same.
    place.feels(Mood::Hangs);
    world.commit(put_bundle(&numbered("a", 4))).await;
    place.took(4).await;
    world.commit(put_bundle(&numbered("a", 5))).await;
    place.took(5).await;
    stop.cancel();
    assert_eq!(tasks.join(PATIENCE).await, 0);
}
