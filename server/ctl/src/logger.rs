//! `vane logger`: how much the server, or the agent, logs while it runs.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use tonic::transport::Channel;
use vane_wire::spire::api::agent::logger::v1 as agent;
use vane_wire::spire::api::agent::logger::v1::logger_client::LoggerClient as AgentLogger;
use vane_wire::spire::api::server::logger::v1 as server;
use vane_wire::spire::api::server::logger::v1::logger_client::LoggerClient as ServerLogger;
use vane_wire::spire::api::types::{self, LogLevel};

use crate::api::{self, Server, answer, client, request};
use crate::failure::Failure;
use crate::output;

/// How much the server, or the agent, logs while it runs.
#[derive(Debug, Subcommand)]
pub(crate) enum Logger {
    /// Show the level now, and that of the start.
    #[command(after_help = "Examples:\n  vane logger get\n  vane logger get --agent")]
    Get(Get),
    /// Set the level, until the process ends or it is reset.
    #[command(after_help = "Examples:\n  vane logger set --level debug")]
    Set(Set),
    /// Go back to the level of the start.
    #[command(after_help = "Examples:\n  vane logger reset")]
    Reset(Get),
}

/// Whose log it is.
#[derive(Debug, Args)]
struct Whose {
    /// That of the agent instead of the server's.
    #[arg(long)]
    agent: bool,
    /// The agent's admin socket.
    #[arg(long, value_name = "PATH", env = "VANE_AGENT_SOCKET", default_value = AGENT_SOCKET)]
    agent_socket: String,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    #[command(flatten)]
    whose: Whose,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// How much; fatal and panic are silence.
    #[arg(long, value_enum, ignore_case = true)]
    level: Level,
    #[command(flatten)]
    whose: Whose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Panic,
    Fatal,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Where `vane-agent` puts its admin socket when nothing is said.
const AGENT_SOCKET: &str = "/run/vane/agent-admin.sock";

/// What is asked.
enum Ask {
    Get,
    Set(LogLevel),
    Reset,
}

impl Logger {
    /// Carries the command out.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let (whose, ask) = match self {
            Self::Get(get) => (get.whose, Ask::Get),
            Self::Set(set) => (set.whose, Ask::Set(set.level.into())),
            Self::Reset(get) => (get.whose, Ask::Reset),
        };
        let logger = if whose.agent {
            let path: PathBuf = api::socket_path(&whose.agent_socket)?;
            let channel = api::connect("agent", &path, "--agent-socket").await?;
            ask.agent(client!(AgentLogger<_>, channel)).await?
        } else {
            let channel = whose.server.connect().await?;
            ask.server(client!(ServerLogger<_>, channel)).await?
        };
        if whose.server.json() {
            return output::json(&logger);
        }
        print(&logger)
    }
}

impl Ask {
    async fn server(self, mut client: ServerLogger<Channel>) -> Result<types::Logger, Failure> {
        answer(match self {
            Self::Get => {
                client
                    .get_logger(request(server::GetLoggerRequest {}))
                    .await
            }
            Self::Reset => {
                let message = server::ResetLogLevelRequest {};
                client.reset_log_level(request(message)).await
            }
            Self::Set(level) => {
                let new_level = level.into();
                let message = server::SetLogLevelRequest { new_level };
                client.set_log_level(request(message)).await
            }
        })
    }

    async fn agent(self, mut client: AgentLogger<Channel>) -> Result<types::Logger, Failure> {
        answer(match self {
            Self::Get => client.get_logger(request(agent::GetLoggerRequest {})).await,
            Self::Reset => {
                let message = agent::ResetLogLevelRequest {};
                client.reset_log_level(request(message)).await
            }
            Self::Set(level) => {
                let new_level = level.into();
                let message = agent::SetLogLevelRequest { new_level };
                client.set_log_level(request(message)).await
            }
        })
    }
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Panic => Self::Panic,
            Level::Fatal => Self::Fatal,
            Level::Error => Self::Error,
            Level::Warn => Self::Warn,
            Level::Info => Self::Info,
            Level::Debug => Self::Debug,
            Level::Trace => Self::Trace,
        }
    }
}

fn print(logger: &types::Logger) -> Result<(), Failure> {
    let name = |level: LogLevel| level.as_str_name().to_ascii_lowercase();
    output::fields(&[
        ("Level", name(logger.current_level())),
        ("At start", name(logger.launch_level())),
    ])
}
