//! JWT keys and the tokens that they sign.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use vane_identity::jwt_svid::Verified;

use super::*;

fn token(path: &str) -> JwtRequest {
    JwtRequest {
        spiffe_id: SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap(),
        audience: vec!["a".to_owned(), "b".to_owned()],
        ttl: Duration::ZERO,
        with_id: false,
        caller: "test".to_owned(),
        entry_id: None,
    }
}

async fn issue(authority: &Arc<Authority>, request: JwtRequest) -> Result<JwtSvid, IssueError> {
    authority.issue_jwt(vec![request]).await.remove(0)
}

impl World {
    async fn verify(&self, svid: &JwtSvid) -> Result<Verified, vane_identity::jwt_svid::JwtError> {
        let bundle = self.bundle().await;
        JwtSvid::verify(svid.token(), "b", |_| Some(&bundle), self.clock.now())
    }
}

/// The header and the claims of a token.
fn parts(token: &str) -> Vec<serde_json::Value> {
    let parts = token.split('.').take(2);
    let read = |part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    parts.map(read).collect()
}

/// Proves: JWT-01, JWT-04, JWT-07, JWT-12, JWT-14, JWT-16, JWT-18, JWT-23.
#[tokio::test]
async fn a_token_has_spires_shape_and_verifies_against_the_stored_bundle() {
    for (key_type, alg) in [
        (KeyType::EcP256, "ES256"),
        (KeyType::EcP384, "ES384"),
        (KeyType::Rsa2048, "RS256"),
    ] {
        let config = ProfileConfig {
            jwt_key_type: Some(key_type),
            ..config()
        };
        let world = World::new();
        let authority = Authority::open(&config, world.deps()).await.unwrap();
        let svid = issue(&authority, token("/w")).await.unwrap();
        let kid = id_of(&authority, Kind::Jwt, AuthorityState::Active);
        assert!(kid.len() == 32 && kid.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let now = vane_identity::lifetime::to_unix(world.clock.now());
        let [header, claims] = parts(svid.token()).try_into().unwrap();
        assert_eq!(
            header,
            serde_json::json!({"alg": alg, "kid": kid, "typ": "JWT"})
        );
        assert_eq!(
            claims,
            serde_json::json!({"aud": ["a", "b"], "exp": now + 300, "iat": now, "sub": "spiffe://example.org/w"})
        );
        assert_eq!(world.verify(&svid).await.unwrap().svid, svid);
    }
}

#[tokio::test]
async fn a_token_says_issuer_and_id_when_that_is_wanted() {
    let config = ProfileConfig {
        jwt_issuer: "https://issuer.example.org".to_owned(),
        ..config()
    };
    let world = World::new();
    let authority = Authority::open(&config, world.deps()).await.unwrap();
    let wanted = || JwtRequest {
        with_id: true,
        ..token("/w")
    };
    let mut seen = Vec::new();
    for _ in 0..3 {
        let svid = issue(&authority, wanted()).await.unwrap();
        let claims = world.verify(&svid).await.unwrap().claims;
        assert_eq!(claims["iss"], "https://issuer.example.org");
        let id = URL_SAFE_NO_PAD
            .decode(claims["jti"].as_str().unwrap())
            .unwrap();
        assert_eq!((id.len(), id[6] >> 4), (16, 4), "a random UUID");
        seen.push(id);
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2]);
}

#[tokio::test]
async fn the_key_rotates_by_the_clock_and_what_the_old_one_signed_stays_valid() {
    let world = World::new();
    let authority = world.open().await;
    let first = id_of(&authority, Kind::Jwt, AuthorityState::Active);
    let long = || JwtRequest {
        ttl: Duration::from_secs(86_400),
        ..token("/w")
    };
    let old = issue(&authority, long()).await.unwrap();
    let hour = Duration::from_secs(3_600);

    world.clock.advance(12 * hour + Duration::from_secs(1));
    authority.catch_up().await.unwrap();
    let next = id_of(&authority, Kind::Jwt, AuthorityState::Prepared);
    let published = world.bundle().await.jwt_authorities;
    let ids: Vec<&str> = published.iter().map(|one| one.key_id.as_str()).collect();
    assert_eq!(ids, [&first, &next]);
    assert_eq!(
        issue(&authority, token("/w")).await.unwrap().key_id(),
        first
    );

    world.clock.advance(8 * hour);
    authority.catch_up().await.unwrap();
    let new = issue(&authority, token("/w")).await.unwrap();
    assert_eq!(new.key_id(), next);
    assert_eq!(old.key_id(), first);
    for svid in [&old, &new] {
        world.verify(svid).await.unwrap();
    }
    for _ in 0..6 {
        world.clock.advance(8 * hour);
        authority.catch_up().await.unwrap();
    }
    let left = world.bundle().await.jwt_authorities;
    assert!(left.len() <= 3 && left.iter().all(|one| one.key_id != first));
}

#[tokio::test]
async fn no_token_outlives_its_key_and_none_is_signed_at_its_end() {
    let world = World::new();
    let authority = world.open().await;
    let end = world.bundle().await.jwt_authorities[0].expires_at;
    world.clock.advance(Duration::from_secs(24 * 3_600 - 60));
    let svid = issue(&authority, token("/w")).await.unwrap();
    assert_eq!(svid.expires_at(), end);
    world.clock.advance(Duration::from_secs(59));
    let refused = issue(&authority, token("/w")).await;
    assert!(
        matches!(refused, Err(IssueError::NoAuthority)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_key_is_tainted_when_old_and_revoked_when_tainted() {
    let world = World::new();
    let authority = world.open().await;
    let first = id_of(&authority, Kind::Jwt, AuthorityState::Active);
    let svid = issue(&authority, token("/w")).await.unwrap();
    let next = authority.prepare(Kind::Jwt).await.unwrap().id;
    let wrong = authority.activate(Kind::X509, &next).await;
    assert!(
        matches!(wrong, Err(AuthorityError::Unknown(_))),
        "{wrong:?}"
    );
    authority.activate(Kind::Jwt, &next).await.unwrap();
    assert!(authority.revoke(Kind::Jwt, &first).await.is_err());
    authority.taint(Kind::Jwt, &first).await.unwrap();
    let marks = |bundle: Bundle| -> Vec<bool> {
        let all = bundle.jwt_authorities.iter();
        all.map(|one| one.tainted).collect()
    };
    assert_eq!(marks(world.bundle().await), [true, false]);
    world.verify(&svid).await.unwrap();
    authority.revoke(Kind::Jwt, &first).await.unwrap();
    assert_eq!(marks(world.bundle().await), [false]);
    assert!(world.verify(&svid).await.is_err());
    assert_eq!(
        states(&authority),
        [AuthorityState::Active],
        "X.509 is as it was"
    );
}

#[tokio::test]
async fn a_restart_goes_on_with_the_key_and_replaces_one_that_is_gone() {
    let world = World::new();
    let first = id_of(&world.open().await, Kind::Jwt, AuthorityState::Active);
    let again = world.open().await;
    assert_eq!(id_of(&again, Kind::Jwt, AuthorityState::Active), first);
    let svid = issue(&again, token("/w")).await.unwrap();
    world.keys.remove("JWT-Signer-A").await.unwrap();
    let again = world.open().await;
    assert_eq!(id_of(&again, Kind::Jwt, AuthorityState::Old), first);
    assert_ne!(id_of(&again, Kind::Jwt, AuthorityState::Active), first);
    world.verify(&svid).await.unwrap();
    assert_eq!(states(&again), [AuthorityState::Active]);
}

#[tokio::test]
async fn switched_off_the_key_retires_and_leaves_in_its_time() {
    let world = World::new();
    let first = id_of(&world.open().await, Kind::Jwt, AuthorityState::Active);
    let off = ProfileConfig {
        disable_jwt_svids: true,
        ..config()
    };
    let authority = Authority::open(&off, world.deps()).await.unwrap();
    assert_eq!(states_of(&authority, Kind::Jwt), [AuthorityState::Old]);
    let refused = issue(&authority, token("/w")).await;
    assert!(matches!(refused, Err(IssueError::NoAuthority)));
    assert_eq!(world.bundle().await.jwt_authorities.len(), 1);
    world.clock.advance(Duration::from_secs(49 * 3_600));
    authority.catch_up().await.unwrap();
    assert!(world.bundle().await.jwt_authorities.is_empty());
    let on = world.open().await;
    assert_ne!(id_of(&on, Kind::Jwt, AuthorityState::Active), first);
}

#[tokio::test]
async fn the_exact_bytes_that_are_signed_stand_in_the_log_and_the_signature_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(crate::log::FILE);
    let world = World::new();
    let clock: Arc<dyn Clock> = world.clock.clone();
    let deps = Deps {
        log: Arc::new(Log::open(&path, clock).unwrap()),
        ..world.deps()
    };
    let authority = Authority::open(&config(), deps).await.unwrap();
    let refused = token("/spire/server");
    let mut issued = authority
        .issue_jwt(vec![token("/a"), refused, token("/b")])
        .await;
    assert!(matches!(issued.remove(1), Err(IssueError::Lint(_))));
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line["type"] == "jwt")
        .collect();
    assert_eq!(lines.len(), 2);
    for (line, svid) in lines.iter().zip(issued) {
        let svid = svid.unwrap();
        let (input, signature) = svid.token().rsplit_once('.').unwrap();
        assert_eq!(line["signing_input"], input);
        assert_eq!(line["authority_id"], svid.key_id());
        assert_eq!(line["not_after"], svid.expires_at());
        assert_eq!(line["spiffe_id"], svid.id().as_str());
        assert!(!text.contains(signature));
    }
}

#[tokio::test]
async fn no_token_of_a_key_that_was_replaced_under_a_batch_gets_out() {
    let world = World {
        keys: Arc::new(Replacing(Memory::default())),
        ..World::new()
    };
    let authority = world.open().await;
    let issuer = authority.active_jwt.load_full().unwrap();
    let requests = (0..10).map(|_| token("/w")).collect();
    let now = world.clock.now();
    let issued = authority
        .signer
        .issue(&*issuer, requests, now, || true)
        .await;
    for one in issued {
        assert!(matches!(one, Err(IssueError::Check(CheckError::Signature))));
    }
}

#[tokio::test]
async fn a_token_that_nobody_would_read_is_not_signed() {
    let world = World::new();
    let authority = world.open().await;
    let path: String = ["/", &"p".repeat(100)].concat().repeat(20);
    let huge = JwtRequest {
        audience: vec!["\u{1}".repeat(2_000); 2],
        ..token(&path)
    };
    let refused = issue(&authority, huge).await.unwrap_err();
    assert!(matches!(refused, IssueError::Lint(_)), "{refused}");
}
