//! `vane health`: whether the server, or the agent, serves.

use clap::Args;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::agent_socket::{connect, workload_api};
use crate::api::{Server, answer, request};
use crate::failure::Failure;
use crate::output;

/// Whether the server (or, with --agent, the agent) serves.
#[derive(Debug, Args)]
#[command(
    alias = "healthcheck",
    after_help = "Examples:\n  vane health\n  vane health --agent --workload-api unix:///run/vane/agent.sock"
)]
pub(crate) struct Health {
    /// Ask the agent's Workload API socket instead of the server.
    #[arg(long)]
    agent: bool,
    /// The agent's socket; else SPIFFE_ENDPOINT_SOCKET, else unix:///run/vane/agent.sock.
    #[arg(long, value_name = "ADDRESS")]
    workload_api: Option<String>,
    #[command(flatten)]
    server: Server,
}

impl Health {
    /// Asks, and fails unless the answer is SERVING.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let (what, channel) = if self.agent {
            let flag = "--workload-api";
            let endpoint = workload_api(flag, self.workload_api.as_deref())?;
            ("agent", connect(&endpoint, flag).await?)
        } else {
            ("server", self.server.connect().await?)
        };
        let message = HealthCheckRequest {
            service: String::new(),
        };
        let status = answer(HealthClient::new(channel).check(request(message)).await)?.status();
        if self.server.json() {
            output::line(format!("{{\"status\":\"{}\"}}", status.as_str_name()))?;
        } else if status == ServingStatus::Serving {
            output::line(format!("The {what} is healthy."))?;
        }
        if status == ServingStatus::Serving {
            return Ok(());
        }
        Err(
            Failure::new(format!("the {what} is {}", status.as_str_name()))
                .hint(format!("the {what}'s log says why")),
        )
    }
}
