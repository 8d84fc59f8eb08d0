use super::*;

const EXAMPLE: &str = include_str!("../../../deploy/examples/server.toml");

fn parsed(text: &str) -> Config {
    config::parse(text, "server.toml").unwrap()
}

fn minimal() -> Config {
    parsed("[server]\ntrust_domain = \"example.org\"\n")
}

fn refused(change: impl FnOnce(&mut Config)) -> String {
    let mut config = minimal();
    change(&mut config);
    config.check().unwrap_err().to_string()
}

fn printed(config: &Config) -> String {
    config::print(config).unwrap()
}

#[test]
fn the_example_says_the_defaults() {
    let mut example = parsed(EXAMPLE);
    let mut default = minimal();
    example.check().unwrap();
    default.check().unwrap();
    assert_eq!(printed(&example), printed(&default));
}

#[test]
fn the_example_names_every_key() {
    for line in printed(&minimal()).lines() {
        let Some((key, _)) = line.split_once(" = ") else {
            continue;
        };
        let named = |line: &str| {
            line.trim_start_matches("# ")
                .starts_with(&format!("{key} ="))
        };
        assert!(EXAMPLE.lines().any(named), "{key}");
    }
}

#[test]
fn what_is_printed_is_read_back_the_same() {
    let mut config = minimal();
    config.server.agent_ttl = Some(Duration::from_secs(90));
    config.server.admin_group = "0".to_owned();
    config.server.jwt_key_type = Some(KeyType::Rsa2048);
    config.server.jwt_issuer = "https://oidc.example.org".to_owned();
    config.server.admin_ids = vec![SpiffeId::parse("spiffe://example.org/admin").unwrap()];
    config.log.mode = Mode::BestEffort;
    config.check().unwrap();
    let again = parsed(&printed(&config));
    assert_eq!(again.server, config.server);
    assert_eq!(printed(&again), printed(&config));
}

#[test]
fn an_unknown_key_is_refused_with_the_known_ones() {
    let text = "[server]\ntrust_domain = \"example.org\"\nbind_prot = 1\n";
    let error = config::parse::<Config>(text, "server.toml").unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("server.toml:3:1: unknown field `bind_prot`"),
        "{error}"
    );
    assert!(error.contains("`bind_port`"), "{error}");
}

/// Proves: JWT-30.
#[test]
fn no_small_rsa_key_can_sign_tokens() {
    let with = |kind: &str| {
        let text = format!("[server]\ntrust_domain = \"example.org\"\njwt_key_type = \"{kind}\"\n");
        config::parse::<Config>(&text, "server.toml")
    };
    assert!(with("rsa-2048").is_ok());
    for bad in ["rsa-1024", "ec-p224", "hs256", "none", ""] {
        assert!(with(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_trust_domain_is_required_and_never_normalised() {
    for text in [
        "[server]\n",
        "[server]\ntrust_domain = \"Example.org\"\n",
        "",
    ] {
        assert!(config::parse::<Config>(text, "").is_err(), "{text}");
    }
}

#[test]
fn values_out_of_range_are_told_with_key_value_and_range() {
    assert_eq!(
        refused(|c| c.server.ca_ttl = Duration::ZERO),
        "server.ca_ttl is 0ns but must be at least 10s and at most 315360000s"
    );
    let long = Duration::from_secs(315_360_001);
    assert_eq!(
        refused(|c| c.server.default_x509_svid_ttl = long),
        "server.default_x509_svid_ttl is 315360001s but must be at least 1s and at most 315360000s"
    );
    assert_eq!(
        refused(|c| c.server.ca_subject.country = vec!["USA".to_owned()]),
        "server.ca_subject: country \"USA\" is not two letters"
    );
    assert_eq!(
        refused(|c| c.server.max_renewal_staleness = Duration::from_secs(59)),
        "server.max_renewal_staleness is 59s but must be at least 60s and at most 315360000s"
    );
    let path = format!("/{}", "x".repeat(107));
    assert!(refused(|c| c.server.socket_path = path.into()).contains("108"));
    let own = SpiffeId::parse("spiffe://example.org").unwrap();
    assert_eq!(
        refused(|c| c.server.admin_ids = vec![own]),
        "server.admin_ids: \"spiffe://example.org\" has no path"
    );
}

#[test]
fn plugins_that_are_not_there_are_told_with_those_that_are() {
    let section = |kind: &str| Section::new(kind, Default::default());
    assert!(refused(|c| c.key_manager = section("x")).starts_with("key_manager: unknown type"));
    assert!(
        refused(|c| c.node_attestor.push(section("aws_iid"))).starts_with(
            "node_attestor: unknown type \"aws_iid\", expected one of join_token, x509pop, k8s_psat"
        )
    );
    assert_eq!(
        refused(|c| c.node_attestor.extend(default_node_attestors())),
        "node_attestor: type \"join_token\" is given twice"
    );
}

#[test]
fn a_store_that_is_not_there_is_told_with_those_that_are() {
    let text = "[server]\ntrust_domain = \"example.org\"\n[store]\ntype = \"sqlite\"\n";
    let error = config::parse::<Config>(text, "").unwrap_err().to_string();
    assert!(error.contains("expected `sled` or `memory`"), "{error}");
}

#[test]
fn the_admin_group_is_a_number_or_a_name_that_exists() {
    let mut server = minimal().server;
    assert_eq!(server.admin_gid().unwrap(), None);
    server.admin_group = "12".to_owned();
    assert_eq!(server.admin_gid().unwrap(), Some(12));
    server.admin_group = "root".to_owned();
    assert_eq!(server.admin_gid().unwrap(), Some(0));
    server.admin_group = "no-such-group".to_owned();
    assert!(server.admin_gid().is_err());
}
