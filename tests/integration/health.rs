//! What the operators' listener says of a server and an agent, and what `vane … status` does,
//! while all is well and while the server is gone.

use serde_json::Value;
use vane_tests::admin::entry;
use vane_tests::process::{free_port, ops, program, within};
use vane_tests::world::{Options, World, own_selector, spiffe_id};

/// `vane` with these arguments; what it prints as JSON.
async fn vane(args: &[&str]) -> Value {
    let command = tokio::process::Command::new(program("vane-test-cli"))
        .args(args)
        .output();
    let output = within("vane answers", command).await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The path's answer: whether it is good, and the faults it names.
async fn verdict(port: u16, path: &str) -> (bool, Vec<String>) {
    let (status, body) = ops(port, path).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    let faults = body["faults"].as_array().unwrap().iter();
    let faults = faults.map(|one| {
        assert_ne!(one["next"], "", "each has its way out: {one}");
        one["fault"].as_str().unwrap().to_owned()
    });
    assert_eq!(body["ok"], status == 200, "{body}");
    (status == 200, faults.collect())
}

/// Returns as soon as all of `lines` stand in one answer of `/metrics`; tells what is missing until then.
async fn shows(port: u16, lines: &[&str]) {
    let mut told = Vec::new();
    loop {
        let (_, metrics) = ops(port, "/metrics").await;
        let missing: Vec<_> = lines
            .iter()
            .filter(|line| !metrics.contains(**line))
            .collect();
        if missing.is_empty() {
            return;
        }
        if missing != told {
            eprintln!("not in /metrics yet: {missing:?}");
            told = missing;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn server_and_agent_tell_how_they_fare() {
    let (server_ops, agent_ops) = (free_port(), free_port());
    let options = Options {
        agent_tables: format!("[telemetry]\nops_address = \"127.0.0.1:{agent_ops}\"\n"),
        server_telemetry: Some(server_ops),
        ..Options::default()
    };
    let mut world = World::with(options.agent("max_backoff = \"1s\"")).await;
    let admin = world.admin().await;
    let agent = world.agent("agent").await;
    let selector = own_selector();
    let refused = agent.workload().await.watch().await.unwrap().next().await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::PermissionDenied);
    admin
        .create(entry(&spiffe_id("/w"), &agent.id, &[&selector]))
        .await;
    let mut stream = agent.workload().await.served().await;
    stream.next().await.unwrap();

    for port in [server_ops, agent_ops] {
        for path in ["/live", "/ready"] {
            assert_eq!(verdict(port, path).await, (true, Vec::new()), "{path}");
        }
    }
    // The connection over which the agent attested may be counted until it has closed.
    let names = [
        "vane_server_rpc_handled_total{method=\"spire.api.server.entry.v1.Entry/BatchCreateEntry\",code=\"OK\"} 1",
        "spire_server_rpc_entry_v1_entry_batch_create_entry{status=\"OK\"} 1",
        "spire_server_rpc_entry_v1_entry_batch_create_entry_elapsed_time_count{status=\"OK\"} 1",
        "spire_server_started{version=",
        "spire_server_manager_x509_ca_rotate_ttl{trust_domain_id=\"example.org\"} ",
        "vane_server_agents_connected 1",
        "vane_server_store_commit_seconds_count ",
        "vane_server_log_append_seconds_count ",
        "vane_server_push_streams 1",
        "vane_server_push_delay_seconds_count ",
        "vane_server_connections 1",
        "vane_server_x509_svids_issued_total ",
        "spire_server_server_ca_sign_x509_svid ",
    ];
    within("the server's metrics", shows(server_ops, &names)).await;
    let names = [
        "spire_agent_rpc_workload_api_fetch_x509svid{status=\"OK\"} 1",
        "spire_agent_rpc_workload_api_fetch_x509svid{status=\"PermissionDenied\"} ",
        "vane_agent_sync_connected 1",
        "spire_agent_sync_entries_total 1",
        "vane_agent_workload_api_connections 1",
        "spire_agent_jwt_svid_cache_size 0",
    ];
    within("the agent's metrics", shows(agent_ops, &names)).await;

    let server_socket = world.admin_socket();
    let status = ["server", "status", "-o", "json", "--socket-path"];
    let status = vane(&[&status[..], &[server_socket.to_str().unwrap()]].concat()).await;
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["counts"]["connected_agents"], "1", "{status}");
    let kinds: Vec<_> = status["rotations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["kind"])
        .collect();
    assert!(
        kinds.contains(&&Value::from("x509_authority"))
            && kinds.contains(&&Value::from("own_svid")),
        "{status}"
    );

    world.kill_server().await;
    let cut_off = async {
        loop {
            let (ready, faults) = verdict(agent_ops, "/ready").await;
            assert!(ready, "it serves what it holds: {faults:?}");
            if faults == ["no_upstream"] {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    within("the agent tells that the server is gone", cut_off).await;
    let agent_socket = world.path("agent-admin.sock");
    let status = ["agent", "status", "-o", "json", "--socket-path"];
    let status = vane(&[&status[..], &[agent_socket.to_str().unwrap()]].concat()).await;
    assert_eq!(status["sync"]["connected"], false, "{status}");
    assert_eq!(status["faults"][0]["fault"], "no_upstream", "{status}");
    assert_eq!(status["spiffe_id"], agent.id.as_str());
}

/// The level of a running agent's log, at its admin socket.
#[tokio::test]
async fn an_agents_log_is_made_to_say_more_and_less_again() {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let socket = agent.admin_socket();
    let whose = ["--agent", "--agent-socket", socket.to_str().unwrap()];
    let logger = async |ask: &[&str]| {
        let said = vane(&[&["logger"], ask, &whose, &["-o", "json"]].concat()).await;
        assert_eq!(said["launch_level"], "INFO", "{said}");
        said["current_level"].as_str().unwrap().to_owned()
    };
    assert_eq!(logger(&["get"]).await, "INFO");
    assert!(!agent.log().contains("DEBUG"), "{}", agent.log());
    assert_eq!(logger(&["set", "--level", "debug"]).await, "DEBUG");
    assert_eq!(logger(&["get"]).await, "DEBUG");
    assert!(agent.log().contains("DEBUG"), "{}", agent.log());
    assert_eq!(logger(&["reset"]).await, "INFO");
}
