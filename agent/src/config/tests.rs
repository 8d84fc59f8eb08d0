use super::*;

const EXAMPLE: &str = include_str!("../../../deploy/examples/agent.toml");

fn parse(text: &str) -> Config {
    config::parse(text, "test").unwrap()
}

#[test]
fn the_example_says_the_defaults() {
    let mut example = parse(EXAMPLE);
    example.check().unwrap();
    let mut short = parse(
        "[agent]\ntrust_domain = \"example.org\"\nserver_address = \"vane-server\"\ntrust_bundle_path = \"/etc/vane/bundle.pem\"\n\
         join_token_file = \"/etc/vane/join_token\"\n",
    );
    short.check().unwrap();
    assert_eq!(
        toml::to_string(&example).unwrap(),
        toml::to_string(&short).unwrap()
    );
}

#[test]
fn the_printed_configuration_is_read_back_and_has_no_secret() {
    let mut config = parse(
        "[agent]\ntrust_domain = \"example.org\"\nserver_address = \"h\"\njoin_token = \"hunter2\"\n",
    );
    config.check().unwrap();
    let printed = toml::to_string(&config).unwrap();
    assert!(!printed.contains("hunter2"), "{printed}");
    parse(&printed).check().unwrap();
}

/// Proves: WEP-01, WEP-02, WEP-04, WEP-05, WEP-06.
#[test]
fn the_workload_api_is_a_unix_socket_and_cannot_be_made_another() {
    let agent = "[agent]\ntrust_domain = \"example.org\"\nserver_address = \"h\"\n";
    assert!(parse(agent).agent.socket_path.is_absolute());
    let tcp = format!("{agent}socket_path = \"tcp://0.0.0.0:8000\"\n");
    assert!(parse(&tcp).check().is_err());
    for key in ["bind_address", "bind_port", "workload_api_address"] {
        let text = format!("{agent}{key} = \"0.0.0.0:8000\"\n");
        assert!(config::parse::<Config>(&text, "test").is_err(), "{key}");
    }
}

#[test]
fn keys_that_exclude_each_other_or_do_not_exist_are_refused() {
    for more in [
        "insecure_bootstrap = true\ntrust_bundle_path = \"/b\"",
        "join_token = \"a\"\njoin_token_file = \"/t\"",
        "max_backoff = \"0s\"",
        "[[workload_attestor]]\ntype = \"nosuch\"",
        "[node_attestor]\ntype = \"nosuch\"",
        "socket_path = \"/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
    ] {
        let text =
            format!("[agent]\ntrust_domain = \"example.org\"\nserver_address = \"h\"\n{more}\n");
        assert!(parse(&text).check().is_err(), "{more}");
    }
    assert!(
        config::parse::<Config>(
            "[agent]\ntrust_domain = \"a\"\nserver_address = \"h\"\nnosuch = 1\n",
            "test"
        )
        .is_err()
    );
}

#[test]
fn an_alias_is_the_name_of_another_file_beside_the_socket() {
    let with = |aliases: &str| {
        let agent = "[agent]\ntrust_domain = \"example.org\"\nserver_address = \"h\"\n";
        let mut config = parse(&format!("{agent}socket_aliases = {aliases}\n"));
        config.check()
    };
    with("[\"socket\", \"spire-agent.sock\"]").unwrap();
    let many = format!("{:?}", vec!["a"; 17]);
    for wrong in [
        "[\"\"]",
        "[\".\"]",
        "[\"..\"]",
        "[\"a/b\"]",
        "[\"a/\"]",
        "[\"/etc/x\"]",
        "[\"a\\u0000\"]",
        "[\"agent.sock\"]",
        "[\"agent-admin.sock\"]",
        many.as_str(),
    ] {
        assert!(with(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_admin_socket_stands_beside_the_public_one_and_is_never_the_same() {
    let agent = "[agent]\ntrust_domain = \"example.org\"\nserver_address = \"h\"\n";
    let admin = |more: &str| parse(&format!("{agent}{more}")).agent.admin_socket();
    assert_eq!(admin(""), Path::new("/run/vane/agent-admin.sock"));
    assert_eq!(
        admin("socket_path = \"/x/one.sock\""),
        Path::new("/x/one-admin.sock")
    );
    assert_eq!(admin("admin_socket_path = \"/y/a\""), Path::new("/y/a"));
    for wrong in [
        "admin_socket_path = \"/run/vane/agent.sock\"",
        "admin_socket_path = \"a.sock\"",
        "admin_group = \"nobody calls a group so\"",
    ] {
        assert!(
            parse(&format!("{agent}{wrong}\n")).check().is_err(),
            "{wrong}"
        );
    }
}
