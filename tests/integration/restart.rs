//! Crashes: nothing acknowledged is lost, nobody attests again.

use std::time::Duration;

use vane_chassis::clock::{Clock, System};
use vane_tests::admin::{Admin, entry};
use vane_tests::workload::verify;
use vane_tests::world::{Options, World, own_selector, spiffe_id};

const AGENTS: usize = 20;
const KILLS: usize = 20;

/// Creates entries until the server dies under it; the IDs that were acknowledged.
async fn create_until_it_dies(admin: Admin, parent: String, round: usize) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        let wanted = entry(
            &spiffe_id(&format!("/k/{round}/{n}")),
            &parent,
            &["unix:uid:4294967294"],
        );
        let request = vane_wire::spire::api::server::entry::v1::BatchCreateEntryRequest {
            entries: vec![wanted],
            output_mask: None,
        };
        match admin.entries().batch_create_entry(request).await {
            Ok(answer) => {
                let result = answer.into_inner().results.remove(0);
                let status = result.status.unwrap();
                if status.code == 0 {
                    acknowledged.push(result.entry.unwrap().id);
                }
            }
            Err(_) => break,
        }
    }
    acknowledged
}

/// Twenty times, 0.2 to 1 s apart, while entries are created and the CA rotates.
///
/// Proves: TDB-09.
#[tokio::test]
async fn a_server_that_is_killed_twenty_times_loses_nothing_and_no_agent_attests_again() {
    let options = Options::default()
        .server("ca_ttl = \"120s\"")
        .server("agent_ttl = \"60s\"")
        .agent("max_backoff = \"1s\"");
    let mut world = World::with(options).await;
    let mut agents = Vec::new();
    for n in 0..AGENTS {
        agents.push(world.agent(&format!("a{n}")).await);
    }
    let before = world.admin().await.bundle().await;
    let mut all = Vec::new();
    let mut random = fastrand::Rng::with_seed(20);
    for round in 0..KILLS {
        let admin = world.admin().await;
        let writer = tokio::task::JoinSet::from_iter([create_until_it_dies(
            admin,
            agents[0].id.clone(),
            round,
        )]);
        tokio::time::sleep(Duration::from_millis(random.u64(200..1000))).await;
        world.kill_server().await;
        all.extend(writer.join_all().await.into_iter().flatten());
        world.restart_server().await;
    }
    let admin = world.admin().await;
    for id in &all {
        let request = vane_wire::spire::api::server::entry::v1::GetEntryRequest {
            id: id.clone(),
            output_mask: None,
        };
        admin
            .entries()
            .get_entry(request)
            .await
            .unwrap_or_else(|status| panic!("{id} was acknowledged: {status}"));
    }
    let after = admin.bundle().await;
    assert_eq!(
        before.x509_authorities[0], after.x509_authorities[0],
        "the authority continues"
    );
    assert!(after.sequence_number >= before.sequence_number);
    assert_eq!(admin.count_agents().await, i32::try_from(AGENTS).unwrap());
    // Each agent is back on push: an entry of its own reaches a stream.
    for agent in &agents {
        admin
            .create(entry(&spiffe_id("/back"), &agent.id, &[&own_selector()]))
            .await;
        let workload = agent.workload().await;
        let message = vane_tests::process::within("the identity is served", async {
            loop {
                if let Ok(mut stream) = workload.watch().await
                    && let Ok(message) = stream.next().await
                {
                    break message;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        verify(&message, System.now());
        assert_eq!(
            agent.log().matches("attested").count(),
            1,
            "{} attested once",
            agent.id
        );
    }
    println!("{} acknowledged entries through {KILLS} kills", all.len());
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
    let mut stream = agent.workload().await.watch().await.unwrap();
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
