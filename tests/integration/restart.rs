//! Crashes: nothing acknowledged is lost, nobody attests again.

use vane_chassis::clock::{Clock, System};
use vane_tests::admin::{Admin, entry};
use vane_tests::kill_storm::Storm;
use vane_tests::workload::verify;
use vane_tests::world::{World, own_selector, spiffe_id};

/// Twenty times, 0.2 to 1 s apart, while entries are created and the CA rotates.
///
/// Proves: TDB-09.
#[tokio::test]
async fn a_server_that_is_killed_twenty_times_loses_nothing_and_no_agent_attests_again() {
    let storm = Storm {
        kills: 20,
        agents: 20,
    };
    let acknowledged = storm.rage().await;
    println!("{acknowledged} acknowledged entries");
}

#[tokio::test]
async fn an_agent_that_is_killed_comes_back_with_its_own_svid_and_does_not_attest_again() {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let admin = world.admin().await;
    admin
        .create(entry(&spiffe_id("/w"), &agent.id, &[&own_selector()]))
        .await;
    let serial = agent_serial(&admin).await;
    let agent = agent.kill_and_restart().await;
    let mut stream = agent.workload().await.served().await;
    let message = stream.until(|ids| ids == [spiffe_id("/w")]).await.unwrap();
    verify(&message, System.now());
    assert_eq!(agent_serial(&admin).await, serial, "the same SVID");
    assert_eq!(admin.count_agents().await, 1);
}

async fn agent_serial(admin: &Admin) -> String {
    let request = vane_wire::spire::api::server::agent::v1::ListAgentsRequest::default();
    let agents = admin
        .agents()
        .list_agents(request)
        .await
        .unwrap()
        .into_inner()
        .agents;
    agents[0].x509svid_serial_number.clone()
}
