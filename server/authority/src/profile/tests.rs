use vane_identity::lifetime::from_unix;

use super::*;

fn config() -> ProfileConfig {
    ProfileConfig::new(TrustDomain::parse("example.org").unwrap())
}

fn plan(kind: &SvidKind, id: &str, ttl: u64) -> Result<Plan, LintError> {
    let profile = Profile::new(&config()).unwrap();
    let wanted = Wanted {
        kind,
        spiffe_id: &SpiffeId::parse(id).unwrap(),
        public_key: &PublicKey::from_spki(b"key"),
        ttl: Duration::from_secs(ttl),
    };
    profile.plan(&wanted, from_unix(10_000), from_unix(20_000))
}

fn workload(dns_names: &[&str]) -> SvidKind {
    SvidKind::Workload {
        dns_names: dns_names.iter().map(|&name| name.to_owned()).collect(),
    }
}

/// Proves: X509-06, ID-29.
#[test]
fn only_ids_that_fit_the_kind_are_certified() {
    let cases = [
        (workload(&[]), "spiffe://example.org/web", true),
        (workload(&[]), "spiffe://example.org", false),
        (workload(&[]), "spiffe://other.org/web", false),
        (workload(&[]), "spiffe://example.org/spire/server", false),
        (workload(&[]), "spiffe://example.org/spire/agent/x", false),
        (SvidKind::Agent, "spiffe://example.org/spire/agent/x", true),
        (SvidKind::Agent, "spiffe://example.org/spire/server", false),
        (SvidKind::Agent, "spiffe://example.org/web", false),
        (SvidKind::Server, "spiffe://example.org/spire/server", true),
        (SvidKind::Server, "spiffe://example.org", false),
    ];
    for (kind, id, allowed) in cases {
        assert_eq!(plan(&kind, id, 0).is_ok(), allowed, "{kind:?} {id}");
    }
    let error = plan(&workload(&[]), "spiffe://other.org/web", 0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"spiffe://other.org/web\" is not a member of trust domain \"example.org\""
    );
}

#[test]
fn a_leaf_lives_as_long_as_asked_and_never_longer_than_its_ca() {
    let kind = workload(&[]);
    let id = "spiffe://example.org/web";
    let not_after = |ttl| plan(&kind, id, ttl).unwrap().validity.not_after;
    assert_eq!(not_after(60), from_unix(10_060));
    assert_eq!(not_after(0), from_unix(13_600));
    assert_eq!(not_after(u64::MAX), from_unix(20_000));
    let not_before = plan(&kind, id, 60).unwrap().validity.not_before;
    assert_eq!(not_before, from_unix(9_990));
}

#[test]
fn the_first_dns_name_is_the_common_name() {
    let kind = workload(&["a.example.org", "*.example.org"]);
    let made = plan(&kind, "spiffe://example.org/web", 0).unwrap();
    assert_eq!(
        made.subject,
        Subject::svid().with_common_name("a.example.org")
    );
    assert_eq!(made.dns_names.len(), 2);
    let minted = SvidKind::Minted {
        subject: Subject::default().with_common_name("mine"),
        dns_names: vec!["a.example.org".to_owned()],
    };
    let made = plan(&minted, "spiffe://example.org/web", 0).unwrap();
    assert_eq!(
        made.subject,
        Subject::default().with_common_name("a.example.org")
    );
    let bad = workload(&["not a name"]);
    assert!(plan(&bad, "spiffe://example.org/web", 0).is_err());
}

#[test]
fn lifetimes_are_checked_and_long_ones_told() {
    let profile = Profile::new(&config()).unwrap();
    assert!(profile.too_long_ttls().is_empty());
    let long = ProfileConfig {
        agent_ttl: Some(Duration::from_secs(5 * 60 * 60)),
        ..config()
    };
    let told = Profile::new(&long).unwrap().too_long_ttls();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, "agent_ttl");
    let zero = ProfileConfig {
        ca_ttl: Duration::ZERO,
        ..config()
    };
    assert_eq!(
        Profile::new(&zero).unwrap_err().to_string(),
        "ca_ttl must be between 1s and ten years, got 0ns"
    );
}

fn token(id: &str, audience: &[&str], ttl: u64) -> Result<TokenPlan, LintError> {
    let config = ProfileConfig {
        jwt_issuer: "https://issuer.example.org".to_owned(),
        ..config()
    };
    let audience: Vec<String> = audience.iter().map(|&one| one.to_owned()).collect();
    let wanted = WantedToken {
        spiffe_id: &SpiffeId::parse(id).unwrap(),
        audience: &audience,
        ttl: Duration::from_secs(ttl),
    };
    let profile = Profile::new(&config).unwrap();
    profile.plan_token(&wanted, from_unix(10_000), from_unix(20_000))
}

/// Proves: JWT-27.
#[test]
fn a_token_lives_five_minutes_or_as_long_as_asked_and_never_longer_than_its_key() {
    let id = "spiffe://example.org/web";
    let end = |ttl| token(id, &["a"], ttl).unwrap().expires_at;
    assert_eq!(end(0), 10_300);
    assert_eq!(end(60), 10_060);
    assert_eq!(end(u64::MAX), 20_000);
    let plan = token(id, &["a"], 0).unwrap();
    assert_eq!(plan.issued_at, 10_000);
    assert_eq!(plan.issuer.as_deref(), Some("https://issuer.example.org"));
}

#[test]
fn a_token_is_for_a_workload_and_for_somebody() {
    let id = "spiffe://example.org/web";
    let said = token(id, &["", "a", ""], 0).unwrap().audience;
    assert_eq!(said, ["a"], "empty ones are left out");
    assert_eq!(token(id, &[], 0), Err(LintError::NoAudience));
    assert_eq!(token(id, &[""], 0), Err(LintError::NoAudience));
    let many = vec!["a"; MAX_AUDIENCES + 1];
    let (long, all) = ("a".repeat(MAX_AUDIENCE_BYTES + 1), "a".repeat(1_500));
    for bad in [many, vec![&long], vec![&all; 3]] {
        let refused = token(id, &bad, 0).unwrap_err();
        assert!(matches!(refused, LintError::Audience { .. }));
    }
    for bad in [
        "spiffe://example.org",
        "spiffe://other.org/web",
        "spiffe://example.org/spire/server",
        "spiffe://example.org/spire/agent/x",
    ] {
        assert!(token(bad, &["a"], 0).is_err(), "{bad}");
    }
}

#[test]
fn tokens_can_be_switched_off_and_have_keys_of_their_own_kind() {
    let profile = |config: ProfileConfig| Profile::new(&config).unwrap();
    let off = profile(ProfileConfig {
        disable_jwt_svids: true,
        ..config()
    });
    assert!(off.signs(Kind::X509) && !off.signs(Kind::Jwt));
    let own = profile(ProfileConfig {
        jwt_key_type: Some(KeyType::Rsa2048),
        ..config()
    });
    assert_eq!(own.key_type(Kind::Jwt), KeyType::Rsa2048);
    assert_eq!(own.key_type(Kind::X509), KeyType::EcP256);
    let like_the_ca = profile(ProfileConfig {
        ca_key_type: KeyType::EcP384,
        ..config()
    });
    assert_eq!(like_the_ca.key_type(Kind::Jwt), KeyType::EcP384);
    let long = ProfileConfig {
        jwt_issuer: "i".repeat(MAX_ISSUER_BYTES + 1),
        ..config()
    };
    assert!(matches!(Profile::new(&long), Err(ProfileError::Issuer(_))));
}
