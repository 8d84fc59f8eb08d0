//! The calls of the JWT profile.

use serde_json::json;
use vane_chassis::clock::Clock as _;
use vane_identity::bundle::JwtAuthority;
use vane_identity::id::TrustDomain;
use vane_identity::jwt_svid::JwtSvid;
use vane_identity::lifetime::to_unix;
use vane_wire::workload::{JwtsvidResponse, ValidateJwtsvidResponse};

use super::*;
use crate::testing::{JWT_TTL, own};

impl World {
    /// One whose own bundle has the JWT key.
    async fn with_jwt_key(entries: &[Entry]) -> Self {
        let mut world = World::new(entries).await;
        let bundle = world.fake.jwt_bundle(false);
        world.pushes(bundle).await;
        world
    }

    async fn pushes(&mut self, bundle: Bundle) {
        self.session.bundle(&bundle).await;
        let mut snapshots = self._running.reader.snapshots();
        let domain = bundle.trust_domain.clone();
        let arrived =
            snapshots.wait_for(|now| now.bundle(&domain).is_some_and(|one| **one == bundle));
        soon(arrived).await.unwrap();
    }

    async fn fetch(&self, audience: &[&str], id: &str) -> Result<JwtsvidResponse, Status> {
        let request = JwtsvidRequest {
            audience: audience.iter().map(|one| (*one).to_owned()).collect(),
            spiffe_id: id.to_owned(),
        };
        let answer = soon(self.client().fetch_jwtsvid(with_header(request))).await;
        answer.map(Response::into_inner)
    }

    async fn validate(
        &self,
        audience: &str,
        svid: &str,
    ) -> Result<ValidateJwtsvidResponse, Status> {
        let request = ValidateJwtsvidRequest {
            audience: audience.to_owned(),
            svid: svid.to_owned(),
        };
        let answer = soon(self.client().validate_jwtsvid(with_header(request))).await;
        answer.map(Response::into_inner)
    }

    fn now(&self) -> i64 {
        to_unix(self.fake.clock.now())
    }
}

fn told<T>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.err().expect("a refusal");
    (status.code(), status.message().to_owned())
}

fn told_ids(answer: &JwtsvidResponse) -> Vec<&str> {
    let ids = answer.svids.iter().map(|one| one.spiffe_id.as_str());
    ids.map(|id| id.rsplit('/').next().unwrap()).collect()
}

/// Proves: WAPI-45, WAPI-46, WAPI-47, WAPI-48, WAPI-49, WAPI-50, WAPI-66, ID-32.
#[tokio::test]
async fn each_matching_entry_gives_a_token_for_the_audience_that_was_asked_for() {
    let (mut b, mut c) = (entry("b", &mine()), entry("c", &mine()));
    (b.hint, c.hint) = ("web".to_owned(), "web".to_owned());
    c.created_at = 8;
    let entries = [
        b,
        entry("a", &mine()),
        c,
        entry("other", "unix:uid:4000000000"),
    ];
    let world = World::with_jwt_key(&entries).await;
    let all = world.fetch(&["y", "x", ""], "").await.unwrap();
    assert_eq!(told_ids(&all), ["a", "b"], "a hint is told once");
    assert_eq!(all.svids[1].hint, "web");
    for one in &all.svids {
        let svid = JwtSvid::parse(&one.svid).unwrap();
        assert_eq!(svid.id().as_str(), one.spiffe_id);
        assert_eq!(svid.audience(), ["x", "y"]);
    }
    let one = world.fetch(&["x"], "spiffe://example.org/b").await.unwrap();
    assert_eq!(told_ids(&one), ["b"]);
}

/// Proves: WAPI-15, WAPI-45, WAPI-52, WAPI-56, WAPI-61.
#[tokio::test]
async fn what_cannot_be_served_is_refused_in_the_words_of_spire() {
    let mut world = World::with_jwt_key(&[entry("a", &mine())]).await;
    let missing = (
        Code::InvalidArgument,
        "audience must be specified".to_owned(),
    );
    assert_eq!(told(world.fetch(&[], "").await), missing);
    assert_eq!(told(world.fetch(&[""], "").await), missing);
    assert_eq!(told(world.validate("", "x").await), missing);
    let no_svid = (Code::InvalidArgument, "svid must be specified".to_owned());
    assert_eq!(told(world.validate("x", "").await), no_svid);
    let (code, text) = told(world.fetch(&["x"], "not an ID").await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.starts_with("invalid requested SPIFFE ID: "), "{text}");
    let nobody = (Code::PermissionDenied, "no identity issued".to_owned());
    assert_eq!(
        told(world.fetch(&["x"], "spiffe://example.org/b").await),
        nobody
    );

    world.fake.refuse("a", true);
    let (code, text) = told(world.fetch(&["x"], "").await);
    assert_eq!(code, Code::Unavailable);
    assert!(text.starts_with("could not fetch JWT-SVID: "), "{text}");
    assert_eq!(world.fake.token().await, "a:x");

    world.session.change(&[], &["a"]).await;
    let mut snapshots = world._running.reader.snapshots();
    let gone = snapshots.wait_for(|now| now.find(&"a".parse_id()).is_none());
    soon(gone).await.unwrap();
    assert_eq!(told(world.fetch(&["x"], "").await), nobody);
}

/// A short name in tests.
trait ParseId {
    fn parse_id(&self) -> vane_identity::entry::EntryId;
}

impl ParseId for str {
    fn parse_id(&self) -> vane_identity::entry::EntryId {
        vane_identity::entry::EntryId::parse(self).unwrap()
    }
}

/// Proves: WAPI-60, ID-33.
#[tokio::test]
async fn a_token_of_the_own_trust_domain_is_validated_with_its_claims() {
    let world = World::with_jwt_key(&[entry("a", &mine())]).await;
    let fetched = world.fetch(&["x"], "").await.unwrap();
    let answer = world.validate("x", &fetched.svids[0].svid).await.unwrap();
    assert_eq!(answer.spiffe_id, "spiffe://example.org/a");
    let claims = answer.claims.unwrap().fields;
    let names: Vec<&str> = claims.keys().map(String::as_str).collect();
    assert_eq!(names, ["aud", "exp", "iat", "n", "sub"]);

    // One audience as text comes back as a list.
    let token = world.fake.signer().sign(&json!({
        "sub": "spiffe://example.org/z", "aud": "x", "exp": world.now() + 60, "deep": {"a": [1, null]},
    }));
    let answer = world.validate("x", &token).await.unwrap();
    let answer = vane_wire::json::to_value(&answer).unwrap();
    assert_eq!(answer["claims"]["aud"], json!(["x"]));
    assert_eq!(answer["claims"]["deep"], json!({"a": [1, null]}));
}

/// Proves: WAPI-34, WAPI-59, WAPI-62, WAPI-64, WAPI-65.
#[tokio::test]
async fn a_token_that_does_not_verify_is_refused() {
    let mut world = World::with_jwt_key(&[entry("a", &mine())]).await;
    let token = world.fetch(&["x"], "").await.unwrap().svids[0].svid.clone();
    let mut tampered = token.clone();
    tampered.replace_range(tampered.len() - 4.., "AAAA");
    let foreign = world.fake.signer().sign(&json!({
        "sub": "spiffe://other.org/a", "aud": ["x"], "exp": world.now() + 60,
    }));
    let cases = [
        (tampered.as_str(), "x", "token signature does not verify"),
        (&token, "y", "expected audience in"),
        (
            &foreign,
            "x",
            "no keys found for trust domain \"other.org\"",
        ),
        ("a.b", "x", "token"),
    ];
    for (token, audience, text) in cases {
        let (code, said) = told(world.validate(audience, token).await);
        assert_eq!(code, Code::InvalidArgument, "{said}");
        assert!(said.contains(text), "{said}");
    }
    world.fake.clock.advance(JWT_TTL + Duration::from_secs(61));
    let expired = (Code::InvalidArgument, "token has expired".to_owned());
    assert_eq!(told(world.validate("x", &token).await), expired);

    // The same key in the X.509 part of a bundle verifies nothing.
    let mut bundle = world.fake.bundle(false);
    bundle.sequence_number = 50;
    world.pushes(bundle).await;
    let fresh = world.fake.signer().sign(&json!({
        "sub": "spiffe://example.org/a", "aud": ["x"], "exp": world.now() + 60,
    }));
    let (code, text) = told(world.validate("x", &fresh).await);
    assert_eq!(code, Code::InvalidArgument, "{text}");
}

/// Proves: ID-33, WAPI-60, WAPI-64.
#[tokio::test]
async fn a_foreign_token_needs_an_entry_that_federates_and_shows_what_is_allowed() {
    let foreign = TrustDomain::parse("other.org").unwrap();
    let mut federated = entry("a", &mine());
    federated.federates_with = vec![foreign.clone()];
    let mut world = World::with_jwt_key(&[entry("b", &mine())]).await;
    let mut bundle = Bundle::empty(foreign);
    bundle.jwt_authorities = world.fake.jwt_bundle(false).jwt_authorities;
    world.pushes(bundle).await;
    let token = world.fake.signer().sign(&json!({
        "sub": "spiffe://other.org/a", "aud": ["x"], "exp": world.now() + 60,
        "shown": 1, "hidden": 2,
    }));
    let (code, _) = told(world.validate("x", &token).await);
    assert_eq!(code, Code::InvalidArgument, "no entry federates with it");

    world.session.change(&[federated], &[]).await;
    let mut snapshots = world._running.reader.snapshots();
    let there = snapshots.wait_for(|now| now.find(&"a".parse_id()).is_some());
    soon(there).await.unwrap();
    let claims = world.validate("x", &token).await.unwrap().claims.unwrap();
    let names: Vec<&str> = claims.fields.keys().map(String::as_str).collect();
    assert_eq!(names, ["aud", "exp", "shown", "sub"]);
}

/// As SPIRE: no entry is needed for what anybody may know.
#[tokio::test]
async fn a_process_without_an_identity_may_validate_tokens_of_the_own_trust_domain() {
    let world = World::with_jwt_key(&[entry("other", "unix:uid:4000000000")]).await;
    let token = world.fake.signer().sign(&json!({
        "sub": "spiffe://example.org/z", "aud": ["x"], "exp": world.now() + 60,
    }));
    world.validate("x", &token).await.unwrap();
}

/// Proves: JWT-34, JWT-36, WAPI-53, WAPI-54, WAPI-55.
#[tokio::test]
async fn jwt_bundles_follow_the_keys_and_hold_nothing_else() {
    let mut world = World::with_jwt_key(&[entry("a", &mine())]).await;
    let call = world
        .client()
        .fetch_jwt_bundles(with_header(JwtBundlesRequest {}))
        .await;
    let mut stream = call.unwrap().into_inner();
    let key_ids = |message: &vane_wire::workload::JwtBundlesResponse| {
        let set: serde_json::Value =
            serde_json::from_slice(&message.bundles[own().id().as_str()]).unwrap();
        let keys = set["keys"].as_array().unwrap().clone();
        let names = ["crv", "kid", "kty", "x", "y"];
        for key in &keys {
            let all: Vec<&str> = key
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            assert_eq!(all, names, "no use, no x5c");
        }
        let kid = |key: &serde_json::Value| key["kid"].as_str().unwrap().to_owned();
        keys.iter().map(kid).collect::<Vec<_>>()
    };
    assert_eq!(key_ids(&next(&mut stream).await), ["k1"]);
    let mut two = world.fake.jwt_bundle(false);
    two.jwt_authorities.push(JwtAuthority {
        key_id: "k2".to_owned(),
        ..two.jwt_authorities[0].clone()
    });
    world.pushes(two).await;
    assert_eq!(key_ids(&next(&mut stream).await), ["k1", "k2"]);
}

/// Proves: WAPI-66.
#[tokio::test]
async fn a_call_over_the_limit_of_its_connection_is_refused() {
    let world = World::with_jwt_key(&[entry("a", &mine())]).await;
    let channel = world.channel();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut client = SpiffeWorkloadApiClient::new(channel.clone());
        let call = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {}));
        let mut stream = call.await.unwrap().into_inner();
        next(&mut stream).await;
        streams.push(stream);
    }
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let request = JwtsvidRequest {
        audience: vec!["x".to_owned()],
        spiffe_id: String::new(),
    };
    let over = soon(client.fetch_jwtsvid(with_header(request))).await;
    assert_eq!(told(over.map(drop)).0, Code::ResourceExhausted);
}
