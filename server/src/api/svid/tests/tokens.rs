//! JWT-SVIDs over the wire.

use std::time::Duration;

use vane_identity::jwt_svid::{JwtSvid, MAX_AUDIENCE_BYTES, MAX_AUDIENCES, Verified};
use vane_identity::lifetime::to_unix;
use vane_wire::spire::api::server::svid::v1::{MintJwtsvidRequest, NewJwtsvidRequest};

use super::*;
use crate::api::testing::own;

const FULL: &str = "rejecting request due to JWT signing request rate limiting: rate limit of 500/s exceeded, and the deadline comes before the turn";

fn audience(all: &[&str]) -> Vec<String> {
    all.iter().map(|&one| one.to_owned()).collect()
}

async fn new(channel: &Channel, entry: &str, all: &[&str]) -> Result<types::Jwtsvid, Status> {
    let mut request = tonic::Request::new(NewJwtsvidRequest {
        entry_id: entry.to_owned(),
        audience: audience(all),
    });
    request.set_timeout(Duration::from_millis(100));
    let mut client = SvidClient::new(channel.clone());
    let response = client.new_jwtsvid(request).await?;
    Ok(response.into_inner().svid.unwrap())
}

fn verified(world: &World, svid: &types::Jwtsvid, audience: &str) -> Verified {
    let bundle = world.parts.state.bundle(&own());
    JwtSvid::verify(&svid.token, audience, |_| bundle, world.clock.now()).unwrap()
}

/// Proves: WAPI-49.
#[tokio::test]
async fn an_agent_gets_a_token_for_an_entry_that_it_may_have() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let wanted = types::Entry {
        jwt_svid_ttl: 60,
        x509_svid_ttl: 999,
        hint: "internal".to_owned(),
        ..entry("/a", agent.svid.id().as_str(), 1)
    };
    let made = world.entry(wanted).await;
    let channel = world.peer(&agent.svid).await;
    let svid = new(&channel, &made.id, &["db", "", "web"]).await.unwrap();
    let now = to_unix(world.clock.now());
    assert_eq!((svid.issued_at, svid.expires_at), (now, now + 60));
    assert_eq!(svid.hint, "", "as SPIRE's server");
    assert_eq!(svid.id, made.spiffe_id);
    let Verified { svid: read, claims } = verified(&world, &svid, "web");
    assert_eq!(read.id().as_str(), "spiffe://example.org/a");
    assert_eq!(read.audience(), ["db", "web"], "an empty one is left out");
    assert!(!claims.contains_key("jti") && !claims.contains_key("iss"));
    let logged = world.log();
    let line = logged.last().unwrap();
    assert_eq!(line["type"], "jwt");
    assert_eq!(line["entry_id"], made.id.as_str());
    assert_eq!(line["caller"], agent.svid.id().as_str());
    let (input, signature) = svid.token.rsplit_once('.').unwrap();
    assert_eq!(line["signing_input"], input);
    assert!(!line.to_string().contains(signature));
}

#[tokio::test]
async fn a_token_has_an_id_when_its_entry_says_so_and_lives_five_minutes() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let wanted = types::Entry {
        additional_attributes: Some(types::entry::AdditionalAttributes {
            jwt_svid_include_jti: true,
            ..Default::default()
        }),
        ..entry("/a", agent.svid.id().as_str(), 1)
    };
    let made = world.entry(wanted).await;
    let channel = world.peer(&agent.svid).await;
    let svid = new(&channel, &made.id, &["web"]).await.unwrap();
    assert_eq!(svid.expires_at - svid.issued_at, 300);
    let claims = verified(&world, &svid, "web").claims;
    assert_eq!(claims["jti"].as_str().unwrap().len(), 22);
}

/// Among them: the entry of another agent is not found.
///
/// Proves: JWT-18.
#[tokio::test]
async fn what_an_agent_may_not_have_or_nobody_could_use_is_refused_in_spires_words() {
    let mut world = World::new().await;
    let (agent, other) = (world.agent().await, world.agent().await);
    let made = entry_of(&mut world, &agent, "/a", 1).await;
    let foreign = entry_of(&mut world, &other, "/b", 1).await;
    let channel = world.peer(&agent.svid).await;
    let many = vec!["a"; MAX_AUDIENCES + 1];
    let long = "a".repeat(MAX_AUDIENCE_BYTES + 1);
    let not_found = "entry not found or not authorized";
    for (id, all, code, text) in [
        ("", &["a"][..], Code::NotFound, not_found),
        ("nope", &["a"], Code::NotFound, not_found),
        (&foreign.id, &["a"], Code::NotFound, not_found),
        (
            &made.id,
            &[],
            Code::InvalidArgument,
            "at least one audience is required",
        ),
        (
            &made.id,
            &["", ""],
            Code::InvalidArgument,
            "at least one audience is required",
        ),
        (
            &made.id,
            &many,
            Code::InvalidArgument,
            "failed to sign JWT-SVID: too large an audience",
        ),
        (
            &made.id,
            &[long.as_str()],
            Code::InvalidArgument,
            "failed to sign JWT-SVID: too large an audience",
        ),
    ] {
        let (refused, said) = refused(new(&channel, id, all).await);
        assert_eq!(refused, code, "{id} {said}");
        assert!(said.starts_with(text), "{said}");
    }
    let tokens = world.log().into_iter().filter(|line| line["type"] == "jwt");
    assert_eq!(tokens.count(), 0, "what is refused is not logged as issued");
}

#[tokio::test]
async fn tokens_are_limited_for_each_agent_apart_from_certificates() {
    let mut world = World::new().await;
    let (agent, other) = (world.agent().await, world.agent().await);
    let made = entry_of(&mut world, &agent, "/a", 1).await;
    let theirs = entry_of(&mut world, &other, "/b", 1).await;
    let channel = world.peer(&agent.svid).await;
    let now = world.clock.monotonic();
    for _ in 0..1_000 {
        let taken = world
            .parts
            .limits
            .tokens(agent.svid.id(), now, Duration::ZERO);
        assert_eq!(taken, Ok(Duration::ZERO));
    }
    let taken = world
        .parts
        .limits
        .tokens(agent.svid.id(), now, Duration::from_secs(1));
    assert_eq!(taken, Ok(Duration::from_millis(2)));
    for _ in 0..100 {
        let _ = world
            .parts
            .limits
            .tokens(agent.svid.id(), now, Duration::from_secs(1));
    }
    let refusal = refused(new(&channel, &made.id, &["a"]).await);
    assert_eq!(refusal, (Code::ResourceExhausted, FULL.to_owned()));
    let csr = vec![(made.id.as_str(), csr(&agent.key))];
    assert_eq!(status(&issue(&channel, csr).await.unwrap()[0]).0, Code::Ok);
    let channel = world.peer(&other.svid).await;
    assert!(new(&channel, &theirs.id, &["a"]).await.is_ok());
}

#[tokio::test]
async fn while_the_store_is_silent_tokens_come_only_for_what_was_issued() {
    let mut world = World::with_idle_state().await;
    let agent = world.agent_without_following().await;
    let channel = world.peer(&agent.svid).await;
    let known = entry_of_idle(&mut world, &agent, "known", 1).await;
    let fresh = entry_of_idle(&mut world, &agent, "fresh", 2).await;
    assert!(new(&channel, &known, &["a"]).await.is_ok());
    world.clock.advance(Duration::from_secs(61));
    assert!(new(&channel, &known, &["b"]).await.is_ok());
    let (code, _) = refused(new(&channel, &fresh, &["a"]).await);
    assert_eq!(code, Code::Unavailable);
}

#[tokio::test]
async fn an_administrator_mints_a_token_for_any_workload() {
    let mut world = World::new().await;
    let channel = world.local().await;
    let mut client = SvidClient::new(channel);
    let id = |path: &str, domain: &str| {
        Some(types::Spiffeid {
            trust_domain: domain.to_owned(),
            path: path.to_owned(),
        })
    };
    let request = |id, all: &[&str], ttl| MintJwtsvidRequest {
        id,
        audience: audience(all),
        ttl,
    };
    let wanted = request(id("/m", "example.org"), &["a", "b"], 30);
    let minted = client.mint_jwtsvid(wanted).await.unwrap();
    let svid = minted.into_inner().svid.unwrap();
    assert_eq!(svid.expires_at - svid.issued_at, 30);
    let read = verified(&world, &svid, "b").svid;
    assert_eq!(read.id().as_str(), "spiffe://example.org/m");
    assert_eq!(world.log().last().unwrap()["caller"], "uid:0 pid:1");
    for (id, all, ttl, text) in [
        (
            None,
            &["a"][..],
            0,
            "invalid SPIFFE ID: request must specify SPIFFE ID",
        ),
        (
            id("/m", "other.org"),
            &["a"],
            0,
            "invalid SPIFFE ID: \"spiffe://other.org/m\" is not a member of trust domain \"example.org\"",
        ),
        (
            id("", "example.org"),
            &["a"],
            0,
            "invalid SPIFFE ID: \"spiffe://example.org\" is not a workload in trust domain \"example.org\"; path is empty",
        ),
        (
            id("/spire/server", "example.org"),
            &["a"],
            0,
            "invalid SPIFFE ID: \"spiffe://example.org/spire/server\" is not a workload in trust domain \"example.org\"; path is in the reserved namespace",
        ),
        (
            id("/m", "example.org"),
            &[],
            0,
            "at least one audience is required",
        ),
        (id("/m", "example.org"), &["a"], -1, "ttl is negative: -1"),
    ] {
        let refusal = refused(client.mint_jwtsvid(request(id, all, ttl)).await);
        assert_eq!(refusal, (Code::InvalidArgument, text.to_owned()));
    }
}

#[tokio::test]
async fn switched_off_tokens_are_unimplemented() {
    let mut world = World::without_tokens().await;
    let agent = world.agent().await;
    let made = entry_of(&mut world, &agent, "/a", 1).await;
    let disabled = (
        Code::Unimplemented,
        "JWT functionality is disabled".to_owned(),
    );
    let channel = world.peer(&agent.svid).await;
    assert_eq!(refused(new(&channel, &made.id, &["a"]).await), disabled);
    let mut client = SvidClient::new(world.local().await);
    let minted = client.mint_jwtsvid(MintJwtsvidRequest::default()).await;
    assert_eq!(refused(minted), disabled);
    let bundle = world.parts.state.bundle(&own()).unwrap();
    assert!(bundle.jwt_authorities.is_empty());
}
