//! The server API over the admin socket, with the shortest calls that tests need.

use std::path::Path;

use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use vane_wire::spire::api::server::agent::v1 as agent;
use vane_wire::spire::api::server::agent::v1::agent_client::AgentClient;
use vane_wire::spire::api::server::bundle::v1 as bundle;
use vane_wire::spire::api::server::bundle::v1::bundle_client::BundleClient;
use vane_wire::spire::api::server::entry::v1 as entry;
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::types;

/// A connection to an admin socket.
#[derive(Clone)]
pub struct Admin {
    channel: Channel,
}

/// A channel to a Unix socket.
pub async fn unix_channel(path: &Path) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("unix://{}", path.display()))?
        .connect()
        .await
}

/// `spiffe://<trust domain>/<path>` as the wire has it.
pub fn id(text: &str) -> types::Spiffeid {
    let rest = text.strip_prefix("spiffe://").unwrap();
    let (trust_domain, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    types::Spiffeid {
        trust_domain: trust_domain.to_owned(),
        path: path.to_owned(),
    }
}

/// A selector of `type:value`.
pub fn selector(text: &str) -> types::Selector {
    let (kind, value) = text.split_once(':').unwrap();
    types::Selector {
        r#type: kind.to_owned(),
        value: value.to_owned(),
    }
}

/// An entry of `spiffe_id` under `parent_id` with `selectors`.
pub fn entry(spiffe_id: &str, parent_id: &str, selectors: &[&str]) -> types::Entry {
    types::Entry {
        spiffe_id: Some(id(spiffe_id)),
        parent_id: Some(id(parent_id)),
        selectors: selectors.iter().map(|text| selector(text)).collect(),
        ..types::Entry::default()
    }
}

impl Admin {
    /// Connects.
    pub async fn connect(socket: &Path) -> Self {
        let channel = unix_channel(socket).await.unwrap();
        Self { channel }
    }

    /// The Entry service.
    pub fn entries(&self) -> EntryClient<Channel> {
        EntryClient::new(self.channel.clone())
    }

    /// The Agent service.
    pub fn agents(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone())
    }

    /// The Bundle service.
    pub fn bundles(&self) -> BundleClient<Channel> {
        BundleClient::new(self.channel.clone())
    }

    /// Any other service.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Creates entries; the result of each.
    pub async fn create_all(
        &self,
        entries: Vec<types::Entry>,
    ) -> Vec<entry::batch_create_entry_response::Result> {
        let request = entry::BatchCreateEntryRequest {
            entries,
            output_mask: None,
        };
        self.entries()
            .batch_create_entry(request)
            .await
            .unwrap()
            .into_inner()
            .results
    }

    /// Creates one entry, which must succeed; its ID.
    pub async fn create(&self, entry: types::Entry) -> String {
        let result = self.create_all(vec![entry]).await.remove(0);
        let status = result.status.unwrap();
        assert_eq!(status.code, 0, "{}", status.message);
        result.entry.unwrap().id
    }

    /// Deletes one entry, which must succeed.
    pub async fn delete(&self, id: &str) {
        let request = entry::BatchDeleteEntryRequest {
            ids: vec![id.to_owned()],
        };
        let results = self
            .entries()
            .batch_delete_entry(request)
            .await
            .unwrap()
            .into_inner()
            .results;
        let status = results[0].status.clone().unwrap();
        assert_eq!(status.code, 0, "{}", status.message);
    }

    /// A fresh join token.
    pub async fn token(&self) -> String {
        let request = agent::CreateJoinTokenRequest {
            ttl: 600,
            ..Default::default()
        };
        self.agents()
            .create_join_token(request)
            .await
            .unwrap()
            .into_inner()
            .value
    }

    /// The server's own bundle.
    pub async fn bundle(&self) -> types::Bundle {
        self.bundles()
            .get_bundle(bundle::GetBundleRequest { output_mask: None })
            .await
            .unwrap()
            .into_inner()
    }

    /// How many agents the server knows.
    pub async fn count_agents(&self) -> i32 {
        self.agents()
            .count_agents(agent::CountAgentsRequest { filter: None })
            .await
            .unwrap()
            .into_inner()
            .count
    }

    /// Bans an agent.
    pub async fn ban(&self, agent_id: &str) -> Result<(), Status> {
        let request = agent::BanAgentRequest {
            id: Some(id(agent_id)),
        };
        self.agents().ban_agent(request).await.map(drop)
    }
}
