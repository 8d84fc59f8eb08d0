//! JWT-SVIDs in a workload's hands: fetched, kept, renewed, taken back, validated.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tonic::Code;
use vane_chassis::clock::{Clock, System};
use vane_identity::jwt_svid::JwtSvid;
use vane_identity::lifetime::from_unix;
use vane_tests::admin::{Admin, entry};
use vane_tests::process::{program, within};
use vane_tests::workload::Workload;
use vane_tests::world::{Agent, World, own_selector, spiffe_id};

/// The token of the only identity.
async fn token(workload: &Workload, audience: &str) -> JwtSvid {
    let answer = workload.jwt(audience).await.unwrap();
    assert_eq!(answer.svids.len(), 1);
    let svid = JwtSvid::parse(&answer.svids[0].svid).unwrap();
    assert_eq!(svid.id().as_str(), answer.svids[0].spiffe_id);
    assert_eq!(svid.audience(), [audience]);
    svid
}

/// A token other than `before`.
async fn other(workload: &Workload, audience: &str, before: &JwtSvid) -> JwtSvid {
    let changed = async {
        loop {
            let now = token(workload, audience).await;
            if now != *before {
                break now;
            }
            tokio::task::yield_now().await;
        }
    };
    within("another token", changed).await
}

/// The entry of this process, once the agent serves it.
async fn served(world: &World, agent: &Agent, ttl: i32) -> (Admin, Workload, String) {
    let admin = world.admin().await;
    let mut own = entry(&spiffe_id("/w"), &agent.id, &[&own_selector()]);
    own.jwt_svid_ttl = ttl;
    let id = admin.create(own).await;
    let workload = agent.workload().await;
    workload.served().await;
    (admin, workload, id)
}

/// One token serves many calls and outlives the server, and the entry's end ends it.
///
/// Proves: WAPI-01, WAPI-45, WAPI-49, WAPI-52, JWT-39.
#[tokio::test]
async fn a_token_is_served_from_the_cache_without_the_server_until_its_entry_goes() {
    let mut world = World::start().await;
    let agent = world.agent("agent").await;
    let (admin, workload, id) = served(&world, &agent, 0).await;
    let first = token(&workload, "web").await;
    let issued = issued(&world);
    for _ in 0..50 {
        assert_eq!(token(&workload, "web").await, first);
    }
    assert_eq!(self::issued(&world), issued, "nothing more was signed");

    drop(admin);
    world.kill_server().await;
    assert_eq!(token(&workload, "web").await, first);
    world.restart_server().await;
    world.admin().await.delete(&id).await;
    let denied = async {
        loop {
            if let Err(status) = workload.jwt("web").await {
                break status;
            }
            tokio::task::yield_now().await;
        }
    };
    let denied = within("the entry is gone", denied).await;
    assert_eq!(
        (denied.code(), denied.message()),
        (Code::PermissionDenied, "no identity issued")
    );
    // What was handed out is valid until it ends.
    workload.validate("web", first.token()).await.unwrap();
}

/// JWT-SVIDs that the server logged.
fn issued(world: &World) -> usize {
    let log = std::fs::read_to_string(world.path("server").join("audit.jsonl")).unwrap();
    log.lines()
        .filter(|line| line.contains("\"type\":\"jwt\""))
        .count()
}

/// With a life of six seconds: the next one is there before the first ends.
///
/// Proves: JWT-25.
#[tokio::test]
async fn a_token_in_use_is_renewed_before_it_ends() {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let (_admin, workload, _) = served(&world, &agent, 6).await;
    let first = token(&workload, "web").await;
    let second = other(&workload, "web", &first).await;
    let left = from_unix(first.expires_at()).duration_since(System.now());
    let left = left.expect("the first token is still valid");
    assert!(left > Duration::from_secs(1), "{left:?}");
    assert!(second.expires_at() > first.expires_at());
}

/// Proves: WAPI-59, WAPI-60, WAPI-62.
#[tokio::test]
async fn the_agent_says_whose_a_token_is_and_refuses_what_is_not_right() {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let (_admin, workload, _) = served(&world, &agent, 0).await;
    let svid = token(&workload, "web").await;
    let valid = workload.validate("web", svid.token()).await.unwrap();
    assert_eq!(valid.spiffe_id, spiffe_id("/w"));
    let claims = valid.claims.unwrap().fields;
    for name in ["aud", "exp", "iat", "sub"] {
        assert!(claims.contains_key(name), "{claims:?}");
    }
    let (signed, signature) = svid.token().rsplit_once('.').unwrap();
    let flipped: String = signature.chars().rev().collect();
    for (audience, token) in [
        ("other", svid.token().to_owned()),
        ("web", format!("{signed}.{flipped}")),
        ("web", "x".to_owned()),
    ] {
        let refused = workload.validate(audience, &token).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
}

/// What `vane` prints, as this process.
async fn vane(agent: &Agent, args: &[&str], stdin: &str) -> (i32, String) {
    let mut child = Command::new(program("vane-test-cli"))
        .args(args)
        .env(
            "SPIFFE_ENDPOINT_SOCKET",
            format!("unix://{}", agent.socket.display()),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(stdin.as_bytes()).await.unwrap();
    drop(input);
    let done = within("the command ends", child.wait_with_output())
        .await
        .unwrap();
    let text = [done.stdout, done.stderr].concat();
    (
        done.status.code().unwrap(),
        String::from_utf8(text).unwrap(),
    )
}

/// Proves: WAPI-63, JWT-22.
#[tokio::test]
async fn the_cli_fetches_and_validates() {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let (_admin, workload, _) = served(&world, &agent, 0).await;
    let fetch = [
        "svid",
        "fetch",
        "--jwt",
        "--audience",
        "web,api",
        "-o",
        "json",
    ];
    let (code, text) = vane(&agent, &fetch, "").await;
    assert_eq!(code, 0, "{text}");
    let both: Value = serde_json::from_str(&text).unwrap();
    let token = both[0]["svids"][0]["svid"].as_str().unwrap().to_owned();
    assert_eq!(both[0]["svids"][0]["spiffe_id"], spiffe_id("/w"));
    assert!(both[1]["bundles"][spiffe_id("")].is_string(), "{both}");
    workload.validate("api", &token).await.unwrap();

    let (code, text) = vane(&agent, &["svid", "fetch", "--jwt", "--audience", "web"], "").await;
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains(&spiffe_id("/w")) && text.contains("(in "),
        "{text}"
    );

    let validate = ["jwt", "validate", "--audience", "api"];
    let (code, text) = vane(&agent, &validate, &token).await;
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("is valid") && text.contains(&spiffe_id("/w")),
        "{text}"
    );
    let file = world.write("token.jwt", &token);
    let json = [
        &validate[..],
        &["--svid", file.to_str().unwrap(), "-o", "json"],
    ]
    .concat();
    let (code, text) = vane(&agent, &json, "").await;
    assert_eq!(code, 0, "{text}");
    let valid: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(valid["claims"]["aud"], serde_json::json!(["api", "web"]));
    assert!(valid["claims"]["exp"].is_i64(), "{valid}");
    let (code, text) = vane(&agent, &["jwt", "validate", "--audience", "else"], &token).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("not valid: expected audience"), "{text}");
}
