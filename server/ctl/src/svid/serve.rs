//! `vane svid fetch` and `watch`: what the Workload API serves to this process.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use vane_chassis::backoff::Policy;
use vane_chassis::clock::{Clock as _, System};
use vane_client::endpoint::Endpoint;
use vane_client::workload::{Change, X509Context, X509Contexts};

use super::jwt::Jwt;
use super::{generation, show};
use crate::agent_socket::{self, failure_at, workload_api};
use crate::failure::{self, Failure};
use crate::output::{self, Format};

const FLAG: &str = "--socket-path";
const FIRST_MESSAGE: Duration = Duration::from_secs(30);

/// Where the SVIDs come from and go to.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// The Workload API; else SPIFFE_ENDPOINT_SOCKET, else unix:///run/vane/agent.sock.
    #[arg(long, value_name = "ADDRESS")]
    socket_path: Option<String>,
    /// Where svid.pem, svid.key and bundle.pem go, a generation swapped whole.
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Write all identities, the n-th as svid.<n>.pem and so on, not only the default one.
    #[arg(long, requires = "write")]
    all: bool,
    /// How they are printed.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    jwt: Jwt,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    #[command(flatten)]
    target: Target,
    /// A shell command to run after each update; a failure is reported, and the watch goes on.
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
}

/// The contexts of this process from the Workload API at `endpoint`.
pub(crate) fn contexts(endpoint: Endpoint) -> Result<X509Contexts, Failure> {
    let policy = Policy::new(Duration::from_millis(100), Duration::from_secs(5), 2.0)
        .map_err(|error| Failure::new(error.to_string()))?;
    Ok(X509Contexts::new(endpoint, policy, fastrand::Rng::new()))
}

impl Fetch {
    /// The first message, written or printed. What hinders it is told; nothing is tried again.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let endpoint = self.target.endpoint()?;
        if self.jwt.jwt {
            let channel = agent_socket::connect(&endpoint, FLAG).await?;
            let refuse = |status| failure_at(&endpoint, &status, FLAG);
            return self.jwt.fetch(channel, self.target.output, refuse).await;
        }
        let mut contexts = contexts(endpoint.clone())?;
        let first = tokio::time::timeout(FIRST_MESSAGE, contexts.next());
        let change = first.await.map_err(|_| {
            Failure::new(format!("the agent sent no SVID within {FIRST_MESSAGE:?}"))
                .hint("the agent's log says what it waits for")
        })?;
        let refuse = |status| failure_at(&endpoint, &status, FLAG);
        match change.map_err(refuse)? {
            Change::Context(context) => self.target.take(&context),
            Change::Denied(status) | Change::Interrupted { status, .. } => Err(refuse(status)),
            Change::Discarded(why) => Err(Failure::new(format!(
                "the agent sent what no SVIDs can be read from: {why}"
            ))),
        }
    }
}

impl Watch {
    /// Follows the SVIDs for good. Only an answer that waiting cannot make better ends it, at
    /// once (WEP-21, WEP-27); the files stay as they are while there is no other.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let endpoint = self.target.endpoint()?;
        let mut contexts = contexts(endpoint.clone())?;
        let refuse = |status| failure_at(&endpoint, &status, FLAG);
        // The same trouble is told once, not at each try.
        let mut told = String::new();
        loop {
            match contexts.next().await.map_err(refuse)? {
                Change::Context(context) => {
                    told.clear();
                    self.target.take(&context)?;
                    self.execute().await;
                }
                Change::Denied(status) | Change::Interrupted { status, .. } => {
                    let trouble = refuse(status).to_string();
                    if trouble != told {
                        output::note(&trouble);
                    }
                    told = trouble;
                }
                Change::Discarded(why) => output::note(format!(
                    "the agent sent what no SVIDs can be read from: {why}; those before stay"
                )),
            }
        }
    }

    async fn execute(&self) {
        let Some(command) = &self.exec else { return };
        let status = tokio::process::Command::new("sh")
            .arg("-c")
            .arg(command)
            .stdin(Stdio::null())
            .status()
            .await;
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => output::note(format!("--exec {command:?} ended with {status}")),
            Err(error) => output::note(format!("--exec {command:?} did not start: {error}")),
        }
    }
}

impl Target {
    fn endpoint(&self) -> Result<Endpoint, Failure> {
        let endpoint = workload_api(FLAG, self.socket_path.as_deref())?;
        if let Endpoint::Unix(path) = &endpoint {
            failure::talks_to(path, FLAG);
        }
        Ok(endpoint)
    }

    /// Writes the files of a context, and prints it.
    fn take(&self, context: &X509Context) -> Result<(), Failure> {
        if let Some(dir) = &self.write {
            generation::swap(dir, &show::files(context, self.all), System.now())?;
        }
        match self.output {
            Format::Json => output::line(show::json(context).to_string()),
            Format::Table => context
                .svids
                .iter()
                .try_for_each(|identity| output::line(show::describe(identity))),
        }
    }
}
