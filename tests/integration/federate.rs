//! Two foreign bundles, from the command line into the stream of a workload and out again.

use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tonic::Code;
use vane_identity::x509_svid::Certificate;
use vane_tests::process::{program, within};
use vane_tests::remote::ca;
use vane_tests::workload::{SvidStream, request};
use vane_tests::world::{World, own_selector, spiffe_id};
use vane_wire::spire::api::types;
use vane_wire::workload::{X509BundlesRequest, X509svidResponse};

/// `vane` with the words of `line`; its exit status and all it said.
async fn vane(world: &World, line: &str, stdin: &str) -> (i32, String) {
    let mut child = Command::new(program("vane-test-cli"))
        .args(line.split_whitespace())
        .env_clear()
        .env("VANE_SERVER_SOCKET", world.admin_socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // A command that reads nothing may be gone already.
    let _ = input.write_all(stdin.as_bytes()).await;
    drop(input);
    let ended = within(line, child.wait_with_output()).await.unwrap();
    let said = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
    (ended.status.code().unwrap(), said)
}

/// As [`vane`], of a command that must succeed.
async fn good(world: &World, line: &str, stdin: &str) -> String {
    let (status, said) = vane(world, line, stdin).await;
    assert_eq!(status, 0, "vane {line}: {said}");
    said
}

fn pem(certificate: &types::X509Certificate) -> String {
    Certificate::from_der(&certificate.asn1).to_pem()
}

fn jwks(name: &str, certificate: &types::X509Certificate) -> String {
    let bundle = types::Bundle {
        trust_domain: name.to_owned(),
        x509_authorities: vec![certificate.clone()],
        ..types::Bundle::default()
    };
    let bundle = vane_identity::bundle::Bundle::try_from(&bundle).unwrap();
    String::from_utf8(bundle.to_jwks().unwrap()).unwrap()
}

/// Waits for a message with these foreign bundles and no others.
async fn federated(stream: &mut SvidStream, wanted: &[(&str, &types::X509Certificate)]) {
    let is_wanted = |message: &X509svidResponse| {
        message.federated_bundles.len() == wanted.len()
            && wanted.iter().all(|(name, ca)| {
                let found = message.federated_bundles.get(&format!("spiffe://{name}"));
                found.is_some_and(|der| **der == *ca.asn1)
            })
    };
    loop {
        let message = stream.next().await.unwrap();
        if is_wanted(&message) {
            return;
        }
    }
}

/// Proves: WAPI-27, WAPI-36.
#[tokio::test]
async fn bundles_set_on_the_command_line_reach_the_workloads_that_federate() {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let (one, two, rotated) = (ca("one.org"), ca("two.org"), ca("one.org"));
    let file = world.write("one.pem", &pem(&one));
    let set = format!("bundle set --id one.org --path {}", file.display());
    assert_eq!(good(&world, &set, "").await, "Bundle set: one.org\n");
    let set_two = "bundle set --id spiffe://two.org --format spiffe";
    good(&world, set_two, &jwks("two.org", &two)).await;
    assert_eq!(good(&world, "bundle count", "").await, "3 bundles\n");
    let listed = good(&world, "bundle list", "").await;
    let rule = "*".repeat(40);
    let head = format!("{rule}\n* one.org\n{rule}\n{}", pem(&one));
    assert!(listed.starts_with(&head), "{listed}");
    let alone = good(&world, "bundle list --id two.org", "").await;
    assert_eq!(alone, pem(&two));

    let create = format!(
        "entry create --spiffe-id {} --parent-id {} --selector {} --federates-with one.org \
         --federates-with two.org",
        spiffe_id("/web"),
        agent.id,
        own_selector()
    );
    good(&world, &create, "").await;
    let workload = agent.workload().await;
    let mut stream = workload.served().await;
    federated(&mut stream, &[("one.org", &one), ("two.org", &two)]).await;
    let mut bundles = workload
        .api()
        .fetch_x509_bundles(request(X509BundlesRequest {}))
        .await
        .unwrap()
        .into_inner();
    let message = within("bundles", bundles.message()).await.unwrap().unwrap();
    let mut names: Vec<&str> = message.bundles.keys().map(String::as_str).collect();
    names.sort_unstable();
    let own = spiffe_id("");
    assert_eq!(
        names,
        [own.as_str(), "spiffe://one.org", "spiffe://two.org"]
    );

    good(&world, "bundle set --id one.org", &pem(&rotated)).await;
    federated(&mut stream, &[("one.org", &rotated), ("two.org", &two)]).await;

    let (status, said) = vane(&world, "bundle delete --id one.org", "").await;
    assert_eq!(status, 1);
    assert!(
        said.contains("federated with 1 registration entries"),
        "{said}"
    );
    assert!(said.contains("--mode dissociate"), "{said}");
    good(&world, "bundle delete --id one.org --mode dissociate", "").await;
    federated(&mut stream, &[("two.org", &two)]).await;
    good(&world, "bundle delete --id two.org --mode delete", "").await;
    let end = loop {
        if let Err(status) = stream.next().await {
            break status;
        }
    };
    assert_eq!(end.code(), Code::PermissionDenied);
    assert_eq!(
        good(&world, "entry count", "").await,
        "0 registration entries\n"
    );
    assert_eq!(good(&world, "bundle count", "").await, "1 bundle\n");
}

#[tokio::test]
async fn what_is_printed_for_scripts_is_spires_json() {
    let world = World::start().await;
    let set = "bundle set --id one.org -o json";
    let one = ca("one.org");
    let said = good(&world, set, &pem(&one)).await;
    assert!(said.starts_with(r#"{"results":[{"bundle":{"#), "{said}");
    assert!(
        said.contains(r#""status":{"code":0,"message":"OK"}"#),
        "{said}"
    );
    let said = good(&world, "bundle list -o json", "").await;
    assert!(said.contains(r#""next_page_token":"""#), "{said}");
    assert!(said.contains(r#""trust_domain":"one.org""#), "{said}");
    assert_eq!(
        good(&world, "bundle count -o json", "").await,
        "{\"count\":2}\n"
    );
    let delete = "bundle delete --id one.org -o json";
    let wanted = concat!(
        r#"{"results":[{"status":{"code":0,"message":"OK"},"trust_domain":"one.org"}]}"#,
        "\n"
    );
    assert_eq!(good(&world, delete, "").await, wanted);
    let level =
        |current: &str| format!("{{\"current_level\":\"{current}\",\"launch_level\":\"INFO\"}}\n");
    assert_eq!(good(&world, "logger get -o json", "").await, level("INFO"));
    let set = "logger set --level debug -o json";
    assert_eq!(good(&world, set, "").await, level("DEBUG"));
    assert!(
        world.server_log().contains("DEBUG"),
        "{}",
        world.server_log()
    );
    assert_eq!(
        good(&world, "logger reset -o json", "").await,
        level("INFO")
    );
    let purged = good(&world, "agent purge -o json", "").await;
    assert_eq!(purged, "{\"expired_agents\":[]}\n");
}
