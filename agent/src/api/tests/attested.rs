//! Streams and calls whose attestor learns more of the process, or something else.

use async_trait::async_trait;
use tokio::sync::watch;

use super::*;
use crate::peer::{PeerProcess, ProcessFacts};
use crate::workload::{AttestError, Attested, Soon, Unknown};

/// Says of every process what the test told last.
#[derive(Debug)]
struct Told {
    says: watch::Sender<Attested>,
    generation: watch::Sender<u64>,
}

impl Told {
    fn new(first: Attested) -> Arc<Self> {
        let (says, generation) = (watch::Sender::new(first), watch::Sender::new(0));
        Arc::new(Self { says, generation })
    }

    fn tell(&self, attested: Attested) {
        self.says.send_replace(attested);
        self.generation.send_modify(|generation| *generation += 1);
    }
}

#[async_trait]
impl WorkloadAttestor for Told {
    fn name(&self) -> &'static str {
        "k8s"
    }

    async fn attest(&self, _: &PeerProcess, _: &ProcessFacts) -> Result<Attested, AttestError> {
        Ok(self.says.borrow().clone())
    }

    fn follow(&self, _: &ProcessFacts) -> Option<watch::Receiver<u64>> {
        Some(self.generation.subscribe())
    }
}

fn says(selectors: &[&str], unknown: &[&'static str], soon: Soon) -> Attested {
    let unknown = unknown.iter().map(|prefix| Unknown {
        kind: "k8s",
        prefix,
    });
    Attested {
        selectors: selectors.iter().map(|text| text.parse().unwrap()).collect(),
        unknown: unknown.collect(),
        soon,
    }
}

const NS: &str = "k8s:ns:shop";
const APP: &str = "k8s:container-name:app";

fn entries() -> [Entry; 2] {
    [entry("pod", NS), entry("app", APP)]
}

async fn world(told: &Arc<Told>) -> World {
    World::attested(Fake::new(), &entries(), SOON, Arc::<Told>::clone(told)).await
}

#[tokio::test]
async fn what_is_known_is_served_at_once_and_the_rest_when_it_is_known() {
    let told = Told::new(says(&[NS], &["container-name:"], Soon::Unknown));
    let world = world(&told).await;
    let mut stream = world.x509_svids().await;
    assert_eq!(paths(&next(&mut stream).await), ["pod"]);
    told.tell(says(&[NS, APP], &[], Soon::Nothing));
    assert_eq!(paths(&next(&mut stream).await), ["app", "pod"]);
}

#[tokio::test]
async fn a_selector_that_is_gone_takes_its_identity_along() {
    let told = Told::new(says(&[NS, APP], &[], Soon::Nothing));
    let world = world(&told).await;
    let mut stream = world.x509_svids().await;
    assert_eq!(paths(&next(&mut stream).await), ["app", "pod"]);
    told.tell(says(&[APP], &[], Soon::Nothing));
    assert_eq!(paths(&next(&mut stream).await), ["app"]);
    told.tell(says(&[], &[], Soon::Nothing));
    let end = soon(stream.message()).await.unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn what_will_be_known_soon_is_waited_for_and_what_will_not_is_unavailable() {
    let told = Told::new(says(&[], &["container-name:"], Soon::Unknown));
    let world = world(&told).await;
    let mut waiting = world.client();
    let call = waiting.fetch_x509svid(with_header(X509svidRequest {}));
    let mut stream = soon(call).await.unwrap().into_inner();
    told.tell(says(&[APP], &[], Soon::Nothing));
    assert_eq!(paths(&next(&mut stream).await), ["app"]);

    // There is no hope any more: whoever waits is told, and who comes is not made to wait.
    told.tell(says(&[], &["container-name:"], Soon::Unknown));
    let end = soon(stream.message()).await.unwrap_err();
    assert_eq!(
        end.code(),
        Code::Unavailable,
        "its identity is not known any more"
    );
    let call = waiting.fetch_x509svid(with_header(X509svidRequest {}));
    let mut stream = soon(call).await.unwrap().into_inner();
    told.tell(says(&[], &["container-name:"], Soon::Nothing));
    let end = soon(stream.message()).await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    let end = refusal(waiting.fetch_x509svid(with_header(X509svidRequest {}))).await;
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn nobody_is_denied_by_an_old_answer() {
    let told = Told::new(says(&[], &[], Soon::Anything));
    let world = world(&told).await;
    let mut client = world.client();
    let stream = soon(client.fetch_x509svid(with_header(X509svidRequest {}))).await;
    let mut stream = stream.unwrap().into_inner();
    told.tell(says(&[NS], &[], Soon::Nothing));
    assert_eq!(paths(&next(&mut stream).await), ["pod"]);

    told.tell(says(&[], &[], Soon::Anything));
    let stream = soon(client.fetch_x509svid(with_header(X509svidRequest {}))).await;
    let mut stream = stream.unwrap().into_inner();
    told.tell(says(&[], &[], Soon::Nothing));
    let end = soon(stream.message()).await.unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn who_can_match_nothing_does_not_wait_for_what_is_unknown() {
    let told = Told::new(says(&[], &["pod-image:"], Soon::Unknown));
    let world = world(&told).await;
    let end = refusal(
        world
            .client()
            .fetch_x509svid(with_header(X509svidRequest {})),
    )
    .await;
    assert_eq!(end.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn calls_for_tokens_wait_as_streams_do() {
    let told = Told::new(says(&[], &["container-name:"], Soon::Unknown));
    let world = world(&told).await;
    let request = JwtsvidRequest {
        audience: vec!["aud".to_owned()],
        spiffe_id: String::new(),
    };
    let mut client = world.client();
    let fetch = client.fetch_jwtsvid(with_header(request));
    let opened = async {
        soon(async {
            while told.generation.receiver_count() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        told.tell(says(&[APP], &[], Soon::Nothing));
    };
    let (answer, ()) = tokio::join!(soon(fetch), opened);
    assert_eq!(answer.unwrap().into_inner().svids.len(), 1);
}
