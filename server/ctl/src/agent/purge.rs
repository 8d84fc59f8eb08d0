//! `vane agent purge`: evicting agents whose SVID expired long ago.

use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::{Value, json};
use vane_chassis::clock::{Clock as _, System};
use vane_identity::lifetime::from_unix;
use vane_wire::spire::api::server::agent::v1 as wire;
use vane_wire::spire::api::types;

use super::{PAGE, agents};
use crate::api::{Server, answer, request};
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Purge {
    /// How long ago its SVID expired, as 720h or 30days.
    #[arg(long, value_name = "TIME", default_value = "720h", value_parser = humantime::parse_duration)]
    expired_for: Duration,
    /// Only print the agents that would go.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: Server,
}

/// What became of one agent.
struct Purged {
    id: String,
    deleted: bool,
    error: Option<String>,
}

impl Purge {
    /// As SPIRE: agents that can attest again only, for the others would be lost.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut client = agents(self.server.connect().await?);
        let expired = self.expired(&mut client, System.now()).await?;
        let mut all = Vec::with_capacity(expired.len());
        for id in expired {
            let mut purged = Purged {
                id: output::id(Some(&id)),
                deleted: false,
                error: None,
            };
            if !self.dry_run {
                let message = wire::DeleteAgentRequest { id: Some(id) };
                match client.delete_agent(request(message)).await {
                    Ok(_) => purged.deleted = true,
                    Err(status) => purged.error = Some(status.message().to_owned()),
                }
            }
            all.push(purged);
        }
        self.print(&all)?;
        match all.iter().filter(|one| one.error.is_some()).count() {
            0 => Ok(()),
            failed => Err(Failure::new(format!("{failed} agents were not purged"))
                .hint("the server's log has the cause")),
        }
    }

    async fn expired(
        &self,
        client: &mut wire::agent_client::AgentClient<tonic::transport::Channel>,
        now: SystemTime,
    ) -> Result<Vec<types::Spiffeid>, Failure> {
        let filter = wire::list_agents_request::Filter {
            by_can_reattest: Some(true),
            ..Default::default()
        };
        let mut expired = Vec::new();
        let mut page_token = String::new();
        loop {
            let message = wire::ListAgentsRequest {
                filter: Some(filter.clone()),
                output_mask: Some(types::AgentMask {
                    x509svid_expires_at: true,
                    ..Default::default()
                }),
                page_size: PAGE,
                page_token,
            };
            let page = answer(client.list_agents(request(message)).await)?;
            let old = page.agents.into_iter().filter(|agent| {
                let ended = from_unix(agent.x509svid_expires_at);
                now.duration_since(ended)
                    .is_ok_and(|ago| ago > self.expired_for)
            });
            expired.extend(old.filter_map(|agent| agent.id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(expired);
            }
        }
    }

    fn print(&self, all: &[Purged]) -> Result<(), Failure> {
        if self.server.json() {
            let agents: Vec<Value> = all.iter().map(Purged::json).collect();
            return output::line(json!({ "expired_agents": agents }).to_string());
        }
        let row = |one: &Purged| {
            let what = match &one.error {
                Some(error) => error.as_str(),
                None if one.deleted => "purged",
                None => "can be purged",
            };
            vec![one.id.clone(), what.to_owned()]
        };
        let rows = all.iter().map(row).collect();
        output::table(&["SPIFFE ID", ""], rows, "No agents to purge.")
    }
}

impl Purged {
    fn json(&self) -> Value {
        let mut value = json!({ "agent_id": self.id, "deleted": self.deleted });
        if let (Some(error), Some(object)) = (&self.error, value.as_object_mut()) {
            object.insert("error".to_owned(), Value::from(error.as_str()));
        }
        value
    }
}
