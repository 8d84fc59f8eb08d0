//! The agent's life over the wire: it joins, renews, is banned, is evicted.

use rcgen::{KeyPair, PublicKeyData as _};
use tonic::transport::Channel;
use tonic::{Code, Status};
use vane_chassis::clock::Clock as _;
use vane_chassis::tasks::Tasks;
use vane_identity::lifetime::to_unix;
use vane_identity::x509_svid::{X509Svid, serial_decimal};
use vane_store::kv::Kv as _;
use vane_store::tables::{agents, join_tokens};
use vane_wire::record::AgentRecord;
use vane_wire::spire::api::server::agent::v1::agent_client::AgentClient;
use vane_wire::spire::api::server::agent::v1::attest_agent_request::Step;
use vane_wire::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, BanAgentRequest, CountAgentsRequest,
    CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest,
    PostStatusRequest, RenewAgentRequest, list_agents_request,
};
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::server::entry::v1::{ListEntriesRequest, list_entries_request};
use vane_wire::spire::api::types;
use vane_wire::status::{Reason, denial_reason};

use crate::api::testing::{
    Agent, DEFAULT_TTL, World, attest, attestation, csr, own, refused, wire_id,
};

const USED: &str = "failed to attest: join token does not exist or has already been used";

async fn post_status(channel: &Channel, version: &str) -> Result<(), Status> {
    let request = PostStatusRequest {
        current_bundle_serial: 0,
        agent_version: version.to_owned(),
    };
    let mut client = AgentClient::new(channel.clone());
    client.post_status(request).await.map(drop)
}

async fn renew(channel: &Channel, key: &KeyPair) -> Result<X509Svid, Status> {
    let params = AgentX509svidParams {
        csr: csr(key).into(),
    };
    let request = RenewAgentRequest {
        params: Some(params),
    };
    let mut client = AgentClient::new(channel.clone());
    let renewed = client.renew_agent(request).await?.into_inner();
    Ok(X509Svid::try_from(&renewed.svid.unwrap()).unwrap())
}

async fn ban(world: &mut World, agent: &Agent) -> Result<(), Status> {
    let mut client = AgentClient::new(world.local().await);
    let id = Some(agent.svid.id().into());
    client.ban_agent(BanAgentRequest { id }).await.map(drop)
}

async fn delete(world: &mut World, agent: &Agent) -> Result<(), Status> {
    let mut client = AgentClient::new(world.local().await);
    let id = Some(agent.svid.id().into());
    client
        .delete_agent(DeleteAgentRequest { id })
        .await
        .map(drop)
}

fn reason(answer: Result<(), Status>) -> Option<Reason> {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(
        status.message(),
        "authorization denied for method /spire.api.server.agent.v1.Agent/PostStatus"
    );
    denial_reason(&status)
}

#[tokio::test]
async fn an_agent_joins_with_a_token_and_gets_the_id_of_the_token() {
    let mut world = World::new().await;
    let token = world.token(600).await;
    let key = KeyPair::generate().unwrap();
    let svid = world.attest(&token, &key).await.unwrap();
    let id = format!("spiffe://example.org/spire/agent/join_token/{token}");
    assert_eq!(svid.id().as_str(), id);
    assert_eq!(svid.leaf().spki, key.subject_public_key_info());
    assert!(world.verifies(&svid));
    let left = svid.leaf().validity.not_after;
    let left = left.duration_since(world.clock.now()).unwrap();
    assert!(left <= DEFAULT_TTL && left.as_secs() >= DEFAULT_TTL.as_secs() - 1);
    let channel = world.peer(&svid).await;
    post_status(&channel, "1.2.3").await.unwrap();
    let record = world.parts.state.agent(svid.id()).unwrap();
    assert_eq!(record.agent_version, "1.2.3");
    assert_eq!(record.serial, serial_decimal(&svid.leaf().serial));
    let lines = world.log();
    let attestation = lines.iter().find(|line| line["type"] == "attestation");
    assert_eq!(attestation.unwrap()["agent_id"], id);
    let text = format!("{lines:?}");
    let mentions = text.matches(&token).count();
    let as_agent_id = text.matches(&format!("/join_token/{token}")).count();
    assert_eq!(
        mentions, as_agent_id,
        "a token is logged as the agent's ID only"
    );
}

#[tokio::test]
async fn a_used_token_answers_its_own_key_again_and_no_other_one() {
    let mut world = World::new().await;
    let token = world.token(600).await;
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let first = world.attest(&token, &key).await.unwrap();
    let refusal = refused(world.attest(&token, &other).await);
    assert_eq!(refusal, (Code::InvalidArgument, USED.to_owned()));

    let second = world.attest(&token, &key).await.unwrap();
    assert_eq!(second.id(), first.id());
    assert_ne!(second.leaf().serial, first.leaf().serial);
    // Both are good until the second is seen.
    let (with_first, with_second) = (world.peer(&first).await, world.peer(&second).await);
    post_status(&with_first, "a").await.unwrap();
    post_status(&with_second, "b").await.unwrap();
    // The first one is good for five minutes more.
    post_status(&with_first, "c").await.unwrap();
    world.clock.advance(std::time::Duration::from_secs(301));
    let denied = post_status(&with_first, "d").await;
    assert_eq!(reason(denied), Some(Reason::AgentNotActive));

    world.clock.advance(std::time::Duration::from_secs(300));
    world.parts.state.confirm().await.unwrap();
    let refusal = refused(world.attest(&token, &key).await);
    assert_eq!(refusal, (Code::InvalidArgument, USED.to_owned()));
}

#[tokio::test]
async fn of_fifty_keys_at_once_with_one_token_one_wins() {
    let mut world = World::with(|settings| settings.limit_attestation = false).await;
    let token = world.token(600).await;
    let mut tasks = Tasks::new();
    let (sender, mut results) = tokio::sync::mpsc::channel(50);
    for _ in 0..50 {
        let (channel, sender) = (world.anonymous().await, sender.clone());
        let request = attestation("join_token", &token, csr(&KeyPair::generate().unwrap()));
        tasks.spawn("attestation", async move {
            let mut client = AgentClient::new(channel);
            sender.send(attest(&mut client, request).await).await
        });
    }
    drop(sender);
    let (mut winners, mut losers) = (Vec::new(), 0);
    while let Some(result) = results.recv().await {
        match result {
            Ok(svid) => winners.push(svid),
            Err(status) => {
                assert_eq!(status.message(), USED);
                losers += 1;
            }
        }
    }
    assert_eq!((winners.len(), losers), (1, 49));
    let record = world.parts.state.agent(winners[0].id()).unwrap();
    assert_eq!(record.serial, serial_decimal(&winners[0].leaf().serial));
}

#[tokio::test]
async fn attestations_that_cannot_succeed_are_refused_in_spires_words() {
    let mut world = World::new().await;
    let token = world.token(1).await;
    let key = KeyPair::generate().unwrap();
    world.clock.advance(std::time::Duration::from_secs(3));
    let mut client = AgentClient::new(world.anonymous().await);
    let with = |change: fn(&mut AttestAgentRequest)| {
        let mut request = attestation("join_token", "t", vec![1]);
        change(&mut request);
        request
    };
    fn params(
        request: &mut AttestAgentRequest,
    ) -> &mut vane_wire::spire::api::server::agent::v1::attest_agent_request::Params {
        match request.step.as_mut() {
            Some(Step::Params(params)) => params,
            _ => panic!("no params"),
        }
    }
    let table = [
        (with(|r| r.step = None), "malformed param: missing params"),
        (
            with(|r| r.step = Some(Step::ChallengeResponse(vec![1]))),
            "malformed param: missing params",
        ),
        (
            with(|r| params(r).data = None),
            "malformed param: missing attestation data",
        ),
        (
            with(|r| params(r).params = None),
            "malformed param: missing X509-SVID parameters",
        ),
        (
            attestation("join_token", "t", Vec::new()),
            "malformed param: missing CSR",
        ),
        (
            attestation("", "t", vec![1]),
            "malformed param: missing attestation data type",
        ),
        (
            attestation("join_token", "", vec![1]),
            "malformed param: missing attestation data payload",
        ),
        (attestation("join_token", "t", csr(&key)), USED),
        (attestation("join_token", "a/b", csr(&key)), USED),
        (attestation("join_token", "../x", csr(&key)), USED),
        (
            attestation("join_token", &token, csr(&key)),
            "join token expired",
        ),
    ];
    for (request, text) in table {
        let refusal = refused(attest(&mut client, request).await);
        assert_eq!(refusal, (Code::InvalidArgument, text.to_owned()));
    }
    let refusal = refused(attest(&mut client, attestation("aws_iid", "x", csr(&key))).await);
    let text = "error getting node attestor: could not find node attestor type \"aws_iid\"";
    assert_eq!(refusal, (Code::FailedPrecondition, text.to_owned()));
    let fresh = world.token(600).await;
    let (code, text) =
        refused(attest(&mut client, attestation("join_token", &fresh, vec![7; 9])).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(
        text.starts_with("failed to parse CSR: malformed CSR: "),
        "{text}"
    );
    let empty = tokio_stream::empty::<AttestAgentRequest>();
    let (code, text) = refused(client.attest_agent(empty).await);
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(text, "failed to receive request from stream: EOF");
}

#[tokio::test]
async fn a_renewed_certificate_replaces_the_old_one_when_it_is_first_seen() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let with_old = world.peer(&agent.svid).await;
    let key = KeyPair::generate().unwrap();
    let lost = renew(&with_old, &key).await.unwrap();
    let renewed = renew(&with_old, &key).await.unwrap();
    assert_eq!(renewed.leaf().spki, key.subject_public_key_info());
    assert!(world.verifies(&renewed));
    post_status(&with_old, "old").await.unwrap();
    let with_new = world.peer(&renewed).await;
    post_status(&with_new, "new").await.unwrap();
    let record = world.parts.state.agent(renewed.id()).unwrap();
    assert_eq!(record.serial, serial_decimal(&renewed.leaf().serial));
    assert_eq!(record.not_after, to_unix(renewed.leaf().validity.not_after));
    assert_eq!(record.new_serial, None);
    // Another process of the agent may still have the old one: it has five minutes.
    post_status(&with_old, "late").await.unwrap();
    world.clock.advance(std::time::Duration::from_secs(301));
    let denied = post_status(&with_old, "old").await;
    assert_eq!(reason(denied), Some(Reason::AgentNotActive));
    let with_lost = world.peer(&lost).await;
    let denied = post_status(&with_lost, "lost").await;
    assert_eq!(reason(denied), Some(Reason::AgentNotActive));
}

#[tokio::test]
async fn a_renewal_needs_a_csr_and_a_method_that_cannot_be_repeated() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let channel = world.peer(&agent.svid).await;
    let mut client = AgentClient::new(channel.clone());
    let refusal = refused(client.renew_agent(RenewAgentRequest::default()).await);
    let text = "params cannot be nil".to_owned();
    assert_eq!(refusal, (Code::InvalidArgument, text));
    let request = RenewAgentRequest {
        params: Some(AgentX509svidParams::default()),
    };
    let refusal = refused(client.renew_agent(request).await);
    assert_eq!(refusal, (Code::InvalidArgument, "missing CSR".to_owned()));

    let changed = agents::change(&*world.kv, agent.svid.id(), |record| {
        Some(AgentRecord {
            can_reattest: true,
            ..record.clone()
        })
    });
    let revision = changed.await.unwrap();
    world.parts.state.wait_for(revision).await;
    let status = renew(&channel, &agent.key).await.unwrap_err();
    assert_eq!(status.message(), "agent must reattest instead of renew");
    assert_eq!(denial_reason(&status), Some(Reason::AgentMustReattest));
}

#[tokio::test]
async fn a_banned_agent_is_denied_until_it_is_evicted_and_joins_anew() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let channel = world.peer(&agent.svid).await;
    post_status(&channel, "1").await.unwrap();
    ban(&mut world, &agent).await.unwrap();
    ban(&mut world, &agent).await.unwrap();
    let denied = post_status(&channel, "2").await;
    assert_eq!(reason(denied), Some(Reason::AgentBanned));
    let token = agent
        .svid
        .id()
        .path()
        .rsplit('/')
        .next()
        .unwrap()
        .to_owned();
    let refusal = refused(world.attest(&token, &agent.key).await);
    let text = "failed to attest: agent is banned".to_owned();
    assert_eq!(refusal, (Code::PermissionDenied, text));
    let record = world.parts.state.agent(agent.svid.id()).unwrap();
    assert!(record.banned && record.serial.is_empty());

    delete(&mut world, &agent).await.unwrap();
    let denied = post_status(&channel, "3").await;
    assert_eq!(reason(denied), Some(Reason::AgentNotAttested));
    let refusal = refused(world.attest(&token, &agent.key).await);
    assert_eq!(refusal, (Code::InvalidArgument, USED.to_owned()));
    let not_found = (Code::NotFound, "agent not found".to_owned());
    assert_eq!(refused(delete(&mut world, &agent).await), not_found);
    assert_eq!(refused(ban(&mut world, &agent).await), not_found);
    let actions: Vec<_> = world
        .log()
        .iter()
        .filter(|line| line["type"] == "admin")
        .filter_map(|line| Some(line["action"].as_str()?.to_owned()))
        .collect();
    let expected = [
        "Agent/CreateJoinToken",
        "Agent/BanAgent",
        "Agent/BanAgent",
        "Agent/DeleteAgent",
    ];
    assert_eq!(actions, expected);
}

#[tokio::test]
async fn an_expired_certificate_is_denied_on_a_connection_that_stands() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let channel = world.peer(&agent.svid).await;
    post_status(&channel, "1").await.unwrap();
    world
        .clock
        .advance(DEFAULT_TTL + std::time::Duration::from_secs(1));
    let denied = post_status(&channel, "2").await;
    assert_eq!(reason(denied), Some(Reason::AgentExpired));
}

/// A server whose clock was set a day ahead must not make its agents drop what they have.
#[tokio::test]
async fn no_agent_is_denied_as_expired_right_after_the_clock_was_set() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let channel = world.peer(&agent.svid).await;
    let mut jumps = world.parts.clock.jumps();
    let day = std::time::Duration::from_secs(86_400);
    world.clock.set(world.clock.now() + day);
    jumps.next().await;
    let refused = post_status(&channel, "1").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    world.clock.set(world.clock.now() - day);
    jumps.next().await;
    post_status(&channel, "2").await.unwrap();
    world.clock.set(world.clock.now() + day);
    jumps.next().await;
    world.clock.advance(vane_chassis::clock::DOUBT);
    let denied = post_status(&channel, "3").await;
    assert_eq!(reason(denied), Some(Reason::AgentExpired));
}

#[tokio::test]
async fn a_token_that_ended_and_was_shown_stays_so_when_the_clock_is_set_back() {
    let mut world = World::new().await;
    let token = world.token(5).await;
    let mut client = AgentClient::new(world.anonymous().await);
    let key = KeyPair::generate().unwrap();
    let before = world.clock.now();
    world.clock.advance(std::time::Duration::from_secs(7));
    let shown = attest(&mut client, attestation("join_token", &token, csr(&key))).await;
    assert_eq!(refused(shown).1, "join token expired");
    world.clock.set(before);
    let again = attest(&mut client, attestation("join_token", &token, csr(&key))).await;
    assert_eq!(refused(again).1, USED);
}

#[tokio::test]
async fn hot_state_that_lags_does_not_deny_an_agent_that_the_store_knows() {
    let mut world = World::with_idle_state().await;
    let id = own().with_path("/spire/agent/join_token/late").unwrap();
    let record = AgentRecord {
        serial: "1".to_owned(),
        agent_version: "9".to_owned(),
        ..crate::state::tests::record_of(&id, Default::default())
    };
    world.kv.commit(agents::put(None, &record)).await.unwrap();
    assert!(world.parts.state.agent(&id).is_none());
    let transport = crate::api::testing::tls_as(&id, &world);
    let channel = world.over(transport).await;
    let request = RenewAgentRequest::default();
    let reached = refused(AgentClient::new(channel).renew_agent(request).await);
    let text = "params cannot be nil".to_owned();
    assert_eq!(reached, (Code::InvalidArgument, text));
}

#[tokio::test]
async fn denials_of_one_agent_are_limited_and_then_decide_nothing() {
    let mut world = World::new().await;
    let id = own().with_path("/spire/agent/join_token/gone").unwrap();
    let transport = crate::api::testing::tls_as(&id, &world);
    let channel = world.over(transport).await;
    let mut codes = Vec::new();
    for _ in 0..12 {
        codes.push(post_status(&channel, "1").await.unwrap_err().code());
    }
    let denied = codes.iter().filter(|code| **code == Code::PermissionDenied);
    assert_eq!(denied.count(), 10, "{codes:?}");
    assert_eq!(codes[11], Code::ResourceExhausted);
}

#[tokio::test]
async fn a_token_with_an_agent_id_makes_the_alias_entry_and_its_eviction_removes_it() {
    let mut world = World::new().await;
    let mut client = AgentClient::new(world.local().await);
    let request = CreateJoinTokenRequest {
        ttl: 60,
        token: "given".to_owned(),
        agent_id: wire_id("spiffe://example.org/node/a"),
    };
    let token = client.create_join_token(request.clone()).await.unwrap();
    let token = token.into_inner();
    assert_eq!(token.value, "given");
    assert_eq!(token.expires_at, to_unix(world.clock.now()) + 60);
    let mut entries = EntryClient::new(world.local().await);
    let all = entries.list_entries(ListEntriesRequest::default()).await;
    let all = all.unwrap().into_inner().entries;
    let parent = "spiffe://example.org/spire/agent/join_token/given";
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].parent_id, wire_id(parent));
    assert_eq!(all[0].spiffe_id, wire_id("spiffe://example.org/node/a"));
    let selector = types::Selector {
        r#type: "spiffe_id".to_owned(),
        value: parent.to_owned(),
    };
    assert_eq!(all[0].selectors, [selector]);

    let (code, text) = refused(client.create_join_token(request).await);
    assert_eq!(code, Code::Internal);
    assert_eq!(
        text,
        "failed to create token: a token with this value exists already"
    );

    let key = KeyPair::generate().unwrap();
    let svid = world.attest("given", &key).await.unwrap();
    let agent = Agent { key, svid };
    delete(&mut world, &agent).await.unwrap();
    let filter = list_entries_request::Filter::default();
    let request = ListEntriesRequest {
        filter: Some(filter),
        ..Default::default()
    };
    let left = entries.list_entries(request).await.unwrap().into_inner();
    assert!(left.entries.is_empty());
    let hash = join_tokens::hash("given");
    assert_eq!(join_tokens::get(&*world.kv, &hash).await.unwrap(), None);
}

#[tokio::test]
async fn tokens_that_ended_are_cleaned_up_by_those_that_are_made() {
    let mut world = World::new().await;
    for _ in 0..20 {
        world.token(1).await;
    }
    world.clock.advance(std::time::Duration::from_secs(3));
    let left = world.token(600).await;
    world.token(600).await;
    world.token(600).await;
    let page = join_tokens::page(&*world.kv, None, 100).await.unwrap();
    assert_eq!(page.rows.len(), 3);
    let key = KeyPair::generate().unwrap();
    world.attest(&left, &key).await.unwrap();
}

#[tokio::test]
async fn tokens_that_cannot_be_are_refused() {
    let mut world = World::new().await;
    let mut client = AgentClient::new(world.local().await);
    let request = |ttl, token: &str, agent_id: &str| CreateJoinTokenRequest {
        ttl,
        token: token.to_owned(),
        agent_id: (!agent_id.is_empty()).then(|| wire_id(agent_id)).flatten(),
    };
    let long = "x".repeat(256);
    let table = [
        (request(0, "", ""), "ttl is required, you must provide one"),
        (request(-1, "", ""), "ttl is required, you must provide one"),
        (
            request(1, "", "spiffe://other.org/a"),
            "invalid agent ID: \"spiffe://other.org/a\" is not a member of trust domain \"example.org\"",
        ),
        (
            request(1, &long, ""),
            "failed to create token: token is longer than 255 bytes",
        ),
        (
            request(1, "a b", ""),
            "failed to create token: token may have letters, numbers, dots, dashes and underscores",
        ),
        (
            request(1, "a/b", ""),
            "failed to create token: token may have letters, numbers, dots, dashes and underscores",
        ),
    ];
    for (request, text) in table {
        let refusal = refused(client.create_join_token(request).await);
        assert_eq!(refusal, (Code::InvalidArgument, text.to_owned()));
    }
}

#[tokio::test]
async fn agents_are_shown_listed_in_pages_and_counted() {
    let mut world = World::new().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(world.agent().await.svid.id().clone());
    }
    ids.sort();
    let banned = ids[0].clone();
    let mut client = AgentClient::new(world.local().await);
    let id = Some((&banned).into());
    client.ban_agent(BanAgentRequest { id }).await.unwrap();

    let request = |page_size, page_token: String| ListAgentsRequest {
        page_size,
        page_token,
        output_mask: Some(types::AgentMask {
            attestation_type: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    let all = client.list_agents(request(0, String::new())).await;
    let all = all.unwrap().into_inner();
    assert_eq!((all.agents.len(), all.next_page_token.as_str()), (5, ""));
    assert_eq!(all.agents[1].attestation_type, "join_token");
    assert_eq!(all.agents[1].x509svid_serial_number, "");
    let (mut pages, mut token) = (Vec::new(), String::new());
    loop {
        let page = client.list_agents(request(2, token)).await.unwrap();
        let page = page.into_inner();
        pages.push(page.agents.len());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, [2, 2, 1]);
    let refusal = refused(client.list_agents(request(2, "x".to_owned())).await);
    assert_eq!(refusal.1, "could not parse token 'x'");

    let filter = list_agents_request::Filter {
        by_banned: Some(true),
        ..Default::default()
    };
    let request = ListAgentsRequest {
        filter: Some(filter),
        ..Default::default()
    };
    let found = client.list_agents(request).await.unwrap().into_inner();
    assert_eq!(found.agents.len(), 1);
    assert_eq!(found.agents[0].id, Some((&banned).into()));
    let count = client.count_agents(CountAgentsRequest::default()).await;
    assert_eq!(count.unwrap().into_inner().count, 5);

    let get = |id: &str| GetAgentRequest {
        id: wire_id(id),
        output_mask: None,
    };
    let shown = client.get_agent(get(ids[1].as_str())).await.unwrap();
    assert_eq!(shown.into_inner().id, Some((&ids[1]).into()));
    let refusal = refused(
        client
            .get_agent(get("spiffe://example.org/spire/agent/x"))
            .await,
    );
    assert_eq!(refusal, (Code::NotFound, "agent not found".to_owned()));
    let refusal = refused(client.get_agent(get("spiffe://example.org/x")).await);
    let text = "invalid agent ID: \"spiffe://example.org/x\" is not an agent in trust domain \"example.org\"; path is not in the agent namespace";
    assert_eq!(refusal, (Code::InvalidArgument, text.to_owned()));
}

#[tokio::test]
async fn a_version_that_is_too_long_is_refused_and_an_unchanged_one_is_no_write() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let channel = world.peer(&agent.svid).await;
    post_status(&channel, "1").await.unwrap();
    let revision = world.kv.revision();
    post_status(&channel, "1").await.unwrap();
    assert_eq!(world.kv.revision(), revision);
    let (code, text) = refused(post_status(&channel, &"x".repeat(256)).await);
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(text, "agent version is too long (max 255 characters)");
}
