//! `vane token`: join tokens for new agents.

use clap::{Args, Subcommand};
use vane_wire::spire::api::server::agent::v1::CreateJoinTokenRequest;
use vane_wire::spire::api::server::agent::v1::agent_client::AgentClient;

use crate::api::{Server, answer, client, request, wire_id};
use crate::failure::{self, Failure};
use crate::flags::seconds;
use crate::output;

/// Join tokens for new agents.
#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token with which one agent can attest once.
    #[command(
        alias = "generate",
        after_help = "Examples:\n  vane token create\n  vane token create --ttl 1h --spiffe-id spiffe://example.org/node/a"
    )]
    Create(Create),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// How long it may wait to be used: seconds, or like 1h30m.
    #[arg(long, default_value = "600", value_parser = seconds)]
    ttl: i32,
    /// Another ID for the agent: makes an alias entry that entries can have as parent.
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    #[command(flatten)]
    server: Server,
}

impl Token {
    /// Carries the command out.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Self::Create(create) = self;
        create.run().await
    }
}

impl Create {
    async fn run(self) -> Result<(), Failure> {
        let alias = self
            .spiffe_id
            .as_deref()
            .map(|text| failure::spiffe_id("--spiffe-id", text))
            .transpose()?;
        if self.ttl == 0 {
            return Err(Failure::usage("--ttl 0: the token would be of no use")
                .hint("for example --ttl 10m"));
        }
        let channel = self.server.connect().await?;
        let message = CreateJoinTokenRequest {
            ttl: self.ttl,
            token: String::new(),
            agent_id: alias.as_ref().map(wire_id),
        };
        let token = answer(
            client!(AgentClient<_>, channel)
                .create_join_token(request(message))
                .await,
        )
        .map_err(|failure| match &self.spiffe_id {
            Some(id) => failure.with(&format!("--spiffe-id {id}")),
            None => failure,
        })?;
        if self.server.json() {
            return output::json(&token);
        }
        output::line(format!("Token: {}", token.value))?;
        output::line(format!(
            "Good for one agent until {}.",
            output::time(token.expires_at)
        ))
    }
}
