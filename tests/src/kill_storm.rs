//! `kill -9` of a server, again and again, under writers and agents.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use vane_chassis::clock::{Clock, System};
use vane_identity::x509_svid::Certificate;
use vane_wire::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, GetEntryRequest, ListEntriesRequest,
};
use vane_wire::spire::api::types;

use crate::admin::{Admin, entry};
use crate::process::within;
use crate::workload::verify;
use crate::world::{Agent, Options, World, own_selector, spiffe_id};

/// How long a storm is.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// Times that the server is killed.
    pub kills: usize,
    /// Agents that are connected.
    pub agents: usize,
}

/// Creates entries until the server dies under it; the IDs that were acknowledged.
async fn create_until_it_dies(admin: Admin, parent: String, round: usize) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        let id = spiffe_id(&format!("/k/{round}/{n}"));
        let request = BatchCreateEntryRequest {
            entries: vec![entry(&id, &parent, &["unix:uid:4294967294"])],
            output_mask: None,
        };
        match admin.entries().batch_create_entry(request).await {
            Ok(answer) => {
                let result = answer.into_inner().results.remove(0);
                if result.status.unwrap().code == 0 {
                    acknowledged.push(result.entry.unwrap().id);
                }
            }
            Err(_) => break,
        }
    }
    acknowledged
}

impl Storm {
    /// Kills the server 0.2 to 1 s after it was ready, while entries are created and the CA
    /// rotates; authorities continue. Then everything acknowledged must be there, and every
    /// agent must be served without a second attestation. How many entries were acknowledged.
    pub async fn rage(self) -> usize {
        let options = Options::default()
            .server("ca_ttl = \"120s\"")
            .server("agent_ttl = \"60s\"")
            .agent("max_backoff = \"1s\"");
        let mut world = World::with(options).await;
        let mut agents = Vec::new();
        for n in 0..self.agents {
            agents.push(world.agent(&format!("a{n}")).await);
        }
        let mut bundle = world.admin().await.bundle().await;
        let mut all = Vec::new();
        let mut random = fastrand::Rng::with_seed(20);
        for round in 0..self.kills {
            let admin = world.admin().await;
            let parent = agents[0].id.clone();
            let writer = create_until_it_dies(admin, parent, round);
            let writer = tokio::task::JoinSet::from_iter([writer]);
            tokio::time::sleep(Duration::from_millis(random.u64(200..1000))).await;
            world.kill_server().await;
            all.extend(writer.join_all().await.into_iter().flatten());
            world.restart_server().await;
            let next = world.admin().await.bundle().await;
            continues(&bundle, &next);
            bundle = next;
        }
        let admin = world.admin().await;
        for id in &all {
            let request = GetEntryRequest {
                id: id.clone(),
                output_mask: None,
            };
            let found = admin.entries().get_entry(request).await;
            found.unwrap_or_else(|status| panic!("{id} was acknowledged: {status}"));
        }
        logged_once(&admin, &world.path("server/audit.jsonl")).await;
        let count = i32::try_from(self.agents).unwrap();
        assert_eq!(admin.count_agents().await, count);
        for agent in &agents {
            is_back(&admin, agent).await;
        }
        all.len()
    }
}

/// What is in the store is in the log, once, wherever the server was killed (P9).
async fn logged_once(admin: &Admin, log: &Path) {
    let text = std::fs::read_to_string(log).unwrap();
    let mut created: HashMap<String, usize> = HashMap::new();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        if line["action"] == "Entry/BatchCreateEntry" {
            let id = line["detail"]["entry_id"].as_str().unwrap();
            *created.entry(id.to_owned()).or_default() += 1;
        }
    }
    let mut request = ListEntriesRequest {
        page_size: 1_000,
        ..ListEntriesRequest::default()
    };
    let mut listed = 0;
    loop {
        let page = admin.entries().list_entries(request.clone()).await;
        let page = page.unwrap().into_inner();
        for entry in &page.entries {
            assert_eq!(created.get(&entry.id), Some(&1), "{} in the log", entry.id);
        }
        listed += page.entries.len();
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert!(listed > 0);
}

/// An authority is in the bundle until it expires, however often the server starts.
fn continues(before: &types::Bundle, after: &types::Bundle) {
    assert!(after.sequence_number >= before.sequence_number);
    let now = System.now();
    for authority in &before.x509_authorities {
        let certificate = Certificate::from_der(&authority.asn1).info().unwrap();
        let is_there = after.x509_authorities.contains(authority);
        let not_after = certificate.validity.not_after;
        assert!(
            is_there || not_after < now,
            "lost an authority: {certificate:?}"
        );
    }
}

/// The agent is back on push: an entry of its own reaches a stream.
async fn is_back(admin: &Admin, agent: &Agent) {
    let own = entry(&spiffe_id("/back"), &agent.id, &[&own_selector()]);
    admin.create(own).await;
    let workload = agent.workload().await;
    let message = within("the identity is served", async {
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
    let attested = agent.log().matches("attested").count();
    assert_eq!(attested, 1, "{} attested once", agent.id);
}
