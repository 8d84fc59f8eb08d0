//! `vane agent`: the attested nodes.

mod purge;

use clap::{Args, Subcommand};
use tonic::transport::Channel;
use vane_chassis::clock::{Clock as _, System};
use vane_wire::spire::api::server::agent::v1 as wire;
use vane_wire::spire::api::server::agent::v1::agent_client::AgentClient;
use vane_wire::spire::api::types;

use crate::api::{self, Server, answer, client, request, wire_id};
use crate::failure::{self, Failure};
use crate::flags::{self, Match};
use crate::output::{self, Format};
use crate::status;

use purge::Purge;

const PAGE: i32 = 1000;
/// Where `vane-agent` puts its admin socket when nothing is said.
const DEFAULT_AGENT_SOCKET: &str = "/run/vane/agent-admin.sock";

/// The attested nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum Agent {
    /// List the agents that match, all without a filter.
    #[command(after_help = "Examples:\n  vane agent list\n  vane agent list --banned true -o json")]
    List(List),
    /// Count the agents that match, all without a filter.
    #[command(
        after_help = "Examples:\n  vane agent count\n  vane agent count --attestation-type join_token"
    )]
    Count(List),
    /// Show one agent.
    #[command(
        after_help = "Examples:\n  vane agent show --spiffe-id spiffe://example.org/spire/agent/join_token/…"
    )]
    Show(One),
    /// Ban an agent: it is cut off at once and cannot attest again until it is evicted.
    #[command(
        after_help = "Examples:\n  vane agent ban --spiffe-id spiffe://example.org/spire/agent/join_token/…"
    )]
    Ban(One),
    /// Evict an agent: it is forgotten and may attest again.
    #[command(
        after_help = "Examples:\n  vane agent evict --spiffe-id spiffe://example.org/spire/agent/join_token/…"
    )]
    Evict(One),
    /// Evict the agents whose SVID expired long ago; those that cannot attest again stay.
    #[command(
        after_help = "Examples:\n  vane agent purge --dry-run\n  vane agent purge --expired-for 90days"
    )]
    Purge(Purge),
    /// How the agent of this node fares: faults with the way out, clock, link to the server,
    /// rotations, counts.
    #[command(
        after_help = "Examples:\n  vane agent status\n  vane agent status -o json --socket-path /run/vane/agent-admin.sock"
    )]
    Status(Local),
}

/// The agent of this node.
#[derive(Debug, Args)]
pub(crate) struct Local {
    /// The agent's admin socket.
    #[arg(long, value_name = "PATH", env = "VANE_AGENT_SOCKET", default_value = DEFAULT_AGENT_SOCKET)]
    socket_path: String,
    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Those attested this way.
    #[arg(long, value_name = "TYPE")]
    attestation_type: Option<String>,
    /// Those that are banned, or not.
    #[arg(long, value_name = "BOOL")]
    banned: Option<bool>,
    /// Those that can attest again, or not.
    #[arg(long, value_name = "BOOL")]
    can_reattest: Option<bool>,
    /// Those whose SVID expires before, as "2006-01-02 15:04:05 -0700 -07".
    #[arg(long, value_name = "TIME")]
    expires_before: Option<String>,
    /// Those with these selectors; may be repeated.
    #[arg(long, value_name = "TYPE:VALUE")]
    selector: Vec<String>,
    /// How --selector is compared.
    #[arg(long, value_enum, default_value = "superset")]
    match_selectors_on: Match,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// The agent's ID.
    #[arg(long, value_name = "ID")]
    spiffe_id: String,
    #[command(flatten)]
    server: Server,
}

impl Agent {
    /// Carries the command out.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.run().await,
            Self::Count(count) => count.count().await,
            Self::Show(one) => one.show().await,
            Self::Ban(one) => one.ban().await,
            Self::Evict(one) => one.evict().await,
            Self::Purge(purge) => purge.run().await,
            Self::Status(Local {
                socket_path,
                output,
            }) => {
                let path = api::socket_path(&socket_path)?;
                let channel = api::connect("agent", &path, "--socket-path").await?;
                status::show(channel, output).await
            }
        }
    }
}

fn agents(channel: Channel) -> AgentClient<Channel> {
    client!(AgentClient<_>, channel)
}

impl List {
    /// The only flag whose value the server reads is the time.
    fn about(&self, failure: Failure) -> Failure {
        match &self.expires_before {
            Some(time) => failure.with(&format!("--expires-before {time:?}")),
            None => failure,
        }
    }

    fn selectors(&self) -> Result<Option<types::SelectorMatch>, Failure> {
        let selectors = flags::selectors(&self.selector)?;
        let r#match = self.match_selectors_on.wire();
        Ok((!selectors.is_empty()).then_some(types::SelectorMatch { selectors, r#match }))
    }

    async fn run(self) -> Result<(), Failure> {
        let filter = wire::list_agents_request::Filter {
            by_attestation_type: self.attestation_type.clone().unwrap_or_default(),
            by_selector_match: self.selectors()?,
            by_banned: self.banned,
            by_can_reattest: self.can_reattest,
            by_expires_before: self.expires_before.clone().unwrap_or_default(),
        };
        let mut client = agents(self.server.connect().await?);
        let mut all = wire::ListAgentsResponse::default();
        loop {
            let message = wire::ListAgentsRequest {
                filter: Some(filter.clone()),
                output_mask: None,
                page_size: PAGE,
                page_token: std::mem::take(&mut all.next_page_token),
            };
            let page = answer(client.list_agents(request(message)).await)
                .map_err(|failure| self.about(failure))?;
            all.agents.extend(page.agents);
            all.next_page_token = page.next_page_token;
            if all.next_page_token.is_empty() {
                break;
            }
        }
        if self.server.json() {
            return output::json(&all);
        }
        let now = System.now();
        let rows = all
            .agents
            .iter()
            .map(|agent| {
                vec![
                    output::id(agent.id.as_ref()),
                    agent.attestation_type.clone(),
                    expiry(agent, now),
                    if agent.banned {
                        "banned".to_owned()
                    } else {
                        String::new()
                    },
                    agent.agent_version.clone(),
                ]
            })
            .collect();
        output::table(
            &["SPIFFE ID", "ATTESTED BY", "SVID EXPIRES", "", "VERSION"],
            rows,
            "No attested agents.",
        )
    }

    async fn count(self) -> Result<(), Failure> {
        let filter = wire::count_agents_request::Filter {
            by_attestation_type: self.attestation_type.clone().unwrap_or_default(),
            by_selector_match: self.selectors()?,
            by_banned: self.banned,
            by_can_reattest: self.can_reattest,
            by_expires_before: self.expires_before.clone().unwrap_or_default(),
        };
        let mut client = agents(self.server.connect().await?);
        let message = wire::CountAgentsRequest {
            filter: Some(filter),
        };
        let counted = answer(client.count_agents(request(message)).await)
            .map_err(|failure| self.about(failure))?;
        if self.server.json() {
            return output::json(&counted);
        }
        output::line(format!(
            "{} attested {}",
            counted.count,
            if counted.count == 1 {
                "agent"
            } else {
                "agents"
            }
        ))
    }
}

fn expiry(agent: &types::Agent, now: std::time::SystemTime) -> String {
    match agent.x509svid_expires_at {
        0 => String::new(),
        at => output::distance(at, now),
    }
}

impl One {
    async fn client(&self) -> Result<(AgentClient<Channel>, Option<types::Spiffeid>), Failure> {
        let id = failure::spiffe_id("--spiffe-id", &self.spiffe_id)?;
        Ok((agents(self.server.connect().await?), Some(wire_id(&id))))
    }

    fn about(&self, failure: Failure) -> Failure {
        failure.with(&format!("--spiffe-id {}", self.spiffe_id))
    }

    async fn show(self) -> Result<(), Failure> {
        let (mut client, id) = self.client().await?;
        let message = wire::GetAgentRequest {
            id,
            output_mask: None,
        };
        let agent = answer(client.get_agent(request(message)).await)
            .map_err(|failure| self.about(failure))?;
        if self.server.json() {
            return output::json(&agent);
        }
        let selectors: Vec<String> = agent
            .selectors
            .iter()
            .map(|one| format!("{}:{}", one.r#type, one.value))
            .collect();
        let yes = |set: bool| if set { "yes" } else { "no" }.to_owned();
        output::fields(&[
            ("SPIFFE ID", output::id(agent.id.as_ref())),
            ("Attested by", agent.attestation_type.clone()),
            ("Serial", agent.x509svid_serial_number.clone()),
            (
                "SVID expires",
                format!(
                    "{} ({})",
                    output::time(agent.x509svid_expires_at),
                    expiry(&agent, System.now())
                ),
            ),
            ("Selectors", selectors.join(" ")),
            ("Can reattest", yes(agent.can_reattest)),
            ("Banned", yes(agent.banned)),
            ("Version", agent.agent_version.clone()),
        ])
    }

    async fn ban(self) -> Result<(), Failure> {
        let (mut client, id) = self.client().await?;
        answer(
            client
                .ban_agent(request(wire::BanAgentRequest { id }))
                .await,
        )
        .map_err(|failure| self.about(failure))?;
        self.done("Agent banned")
    }

    async fn evict(self) -> Result<(), Failure> {
        let (mut client, id) = self.client().await?;
        answer(
            client
                .delete_agent(request(wire::DeleteAgentRequest { id }))
                .await,
        )
        .map_err(|failure| self.about(failure))?;
        self.done("Agent evicted")
    }

    fn done(&self, what: &str) -> Result<(), Failure> {
        if self.server.json() {
            return output::line("{}");
        }
        output::line(format!("{what}: {}", self.spiffe_id))
    }
}
