//! `vane dev`: a whole system in one process, without configuration (NAMES 11).
//!
//! Server and agent run as they do alone, over real sockets in one folder of their own; an
//! entry gives the calling user an identity with a TTL of a minute, so that rotation can be
//! watched. A temporary folder is removed at the end, a named one stays and is continued.

use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use vane_chassis::clock::{Clock as _, System};
use vane_chassis::files::unix_path_check;
use vane_chassis::signals::Signals;
use vane_chassis::tasks::Tasks;
use vane_client::endpoint::Endpoint;
use vane_client::workload::Change;
use vane_identity::id::TrustDomain;
use vane_identity::lifetime::to_unix;
use vane_wire::spire::api::server::agent::v1::CreateJoinTokenRequest;
use vane_wire::spire::api::server::agent::v1::agent_client::AgentClient;
use vane_wire::spire::api::server::bundle::v1::GetBundleRequest;
use vane_wire::spire::api::server::bundle::v1::bundle_client::BundleClient;
use vane_wire::spire::api::server::entry::v1::BatchCreateEntryRequest;
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::types;

use crate::api::{answer, connect, request, wire_id};
use crate::failure::{self, Failure};
use crate::output::{self, Format};
use crate::svid::{Shown, contexts, pem, shown};

const DRAIN: Duration = Duration::from_secs(10);
const X509_TTL: i32 = 60;

/// Run a server and an agent here, with an identity for you; Ctrl-C ends it.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vane dev\n  vane dev --dir ./vane-dev --trust-domain example.org\n  vane dev -o json"
)]
pub(crate) struct Dev {
    /// A folder that stays and is continued; a temporary one when nothing is said.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The trust domain; dev-<8 hex>.example.org when nothing is said.
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// With json: one line once ready, then nothing.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// The folder, removed at the end when it is a temporary one.
struct Folder {
    path: PathBuf,
    temporary: bool,
}

/// Where everything is, once it runs.
struct Running {
    trust_domain: TrustDomain,
    server_address: String,
    admin_socket: PathBuf,
    workload_api: PathBuf,
    agent_id: String,
}

impl Dev {
    /// Runs until a signal, or until a part fails.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let folder = Folder::open(self.dir.as_deref())?;
        let trust_domain = self.trust_domain(&folder)?;
        let tasks = Tasks::new();
        let stop = tasks.token();
        let signals = Signals::install()
            .map_err(|error| Failure::new(format!("cannot handle signals: {error}")))?;
        let mut tasks = tasks;
        tasks.spawn("signals", {
            let stop = stop.clone();
            async move {
                signals.cancel(stop).await;
                Ok::<(), std::convert::Infallible>(())
            }
        });
        let started = start(&mut tasks, &folder, trust_domain).await;
        let shown = match &started {
            Ok(running) => self.show(running, &stop).await,
            Err(_) => Ok(()),
        };
        stop.cancel();
        let ended = tasks
            .join(DRAIN)
            .await
            .map_err(|error| Failure::new(format!("vane dev ended: {}", chain(&error))));
        folder.close();
        // What failed inside a part says more than that it did not become ready.
        ended?;
        started?;
        shown
    }

    fn trust_domain(&self, folder: &Folder) -> Result<TrustDomain, Failure> {
        let name = match (&self.trust_domain, folder.remembered()) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => name,
            (None, None) => random_name(),
        };
        let trust_domain = TrustDomain::parse_name_or_id(&name).map_err(|error| {
            Failure::usage(format!("--trust-domain {name:?}: {error}"))
                .hint("for example --trust-domain example.org")
        })?;
        folder.remember(&trust_domain)?;
        Ok(trust_domain)
    }

    async fn show(&self, running: &Running, stop: &CancellationToken) -> Result<(), Failure> {
        if self.output == Format::Json {
            output::line(running.json())?;
            stop.cancelled().await;
            return Ok(());
        }
        running.print()?;
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = follow(&running.workload_api) => ended,
        }
    }
}

/// A trust domain that nobody else has, under a name that nobody owns (RFC 2606).
fn random_name() -> String {
    format!("dev-{:08x}.example.org", fastrand::u32(..))
}

impl Folder {
    fn open(wanted: Option<&Path>) -> Result<Self, Failure> {
        let (path, temporary) = match wanted {
            Some(path) => (
                std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
                false,
            ),
            None => (
                std::env::temp_dir().join(format!("vane-dev-{:08x}", fastrand::u32(..))),
                true,
            ),
        };
        unix_path_check(&path.join("server.sock")).map_err(|error| {
            Failure::usage(format!("{}: {error}", path.display()))
                .hint("name a shorter folder with --dir")
        })?;
        let made = std::fs::DirBuilder::new()
            .recursive(!temporary)
            .mode(0o700)
            .create(&path);
        made.map_err(|error| {
            Failure::new(format!("cannot make {}: {error}", path.display()))
                .hint("name another folder with --dir")
        })?;
        Ok(Self { path, temporary })
    }

    fn remembered(&self) -> Option<String> {
        std::fs::read_to_string(self.path.join("trust_domain"))
            .ok()
            .map(|name| name.trim().to_owned())
    }

    fn remember(&self, trust_domain: &TrustDomain) -> Result<(), Failure> {
        if let Some(other) = self
            .remembered()
            .filter(|name| name != trust_domain.as_str())
        {
            return Err(Failure::usage(format!(
                "--trust-domain {trust_domain}: {} is of {other}",
                self.path.display()
            ))
            .hint("leave --trust-domain away, or name another folder with --dir"));
        }
        std::fs::write(self.path.join("trust_domain"), format!("{trust_domain}\n")).map_err(
            |error| Failure::new(format!("cannot write to {}: {error}", self.path.display())),
        )
    }

    fn close(self) {
        if self.temporary {
            // What cannot be removed is of no use to anybody; there is nobody left to tell.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

async fn start(
    tasks: &mut Tasks,
    folder: &Folder,
    trust_domain: TrustDomain,
) -> Result<Running, Failure> {
    let dir = folder.path.as_path();
    let admin_socket = dir.join("server.sock");
    let server_address = start_server(tasks, dir, &trust_domain).await?;
    let channel = connect("server", &admin_socket, "--socket-path").await?;
    let bundle = answer(
        BundleClient::new(channel.clone())
            .get_bundle(request(GetBundleRequest { output_mask: None }))
            .await,
    )?;
    let roots: String = bundle
        .x509_authorities
        .iter()
        .map(|one| pem("CERTIFICATE", &one.asn1))
        .collect();
    let wrote = std::fs::write(dir.join("bundle.pem"), roots);
    wrote.map_err(|error| Failure::new(format!("cannot write the bundle: {error}")))?;
    let message = CreateJoinTokenRequest {
        ttl: 600,
        ..Default::default()
    };
    let token = answer(
        AgentClient::new(channel.clone())
            .create_join_token(request(message))
            .await,
    )?
    .value;
    let agent_id = start_agent(tasks, dir, &trust_domain, &server_address, &token).await?;
    register(channel, &trust_domain, &agent_id).await?;
    Ok(Running {
        trust_domain,
        server_address,
        admin_socket,
        workload_api: dir.join("agent.sock"),
        agent_id,
    })
}

async fn start_server(
    tasks: &mut Tasks,
    dir: &Path,
    trust_domain: &TrustDomain,
) -> Result<String, Failure> {
    let text = format!(
        "[server]\ntrust_domain = \"{trust_domain}\"\nbind_address = \"127.0.0.1\"\nbind_port = 0\nsocket_path = {:?}\n\
         data_dir = {:?}\nca_ttl = \"10m\"\ndefault_x509_svid_ttl = \"60s\"\n[telemetry]\nenabled = false\n",
        dir.join("server.sock"),
        dir.join("server"),
    );
    let config: vane_server::config::Config = vane_chassis::config::parse(&text, "vane dev")
        .map_err(|error| Failure::new(format!("the server's configuration: {error}")))?;
    let (ready, is_ready) = oneshot::channel();
    let stop = tasks.token();
    tasks.spawn("server", async move {
        vane_server::app::run(config, stop, |it| {
            drop(ready.send(it.server_address.to_string()));
        })
        .await
    });
    wait("server", tasks, is_ready).await
}

async fn start_agent(
    tasks: &mut Tasks,
    dir: &Path,
    trust_domain: &TrustDomain,
    server: &str,
    token: &str,
) -> Result<String, Failure> {
    let port = server.rsplit(':').next().unwrap_or_default();
    let text = format!(
        "[agent]\ntrust_domain = \"{trust_domain}\"\nserver_address = \"127.0.0.1\"\nserver_port = {port}\nsocket_path = {:?}\n\
         data_dir = {:?}\nsealed_state = false\ntrust_bundle_path = {:?}\njoin_token = \"{token}\"\n\
         [[workload_attestor]]\ntype = \"unix\"\ndiscover_workload_path = true\n",
        dir.join("agent.sock"),
        dir.join("agent"),
        dir.join("bundle.pem"),
    );
    let config: vane_agent::config::Config = vane_chassis::config::parse(&text, "vane dev")
        .map_err(|error| Failure::new(format!("the agent's configuration: {error}")))?;
    let (ready, is_ready) = oneshot::channel();
    let stop = tasks.token();
    tasks.spawn("agent", async move {
        vane_agent::app::run(config, stop, |it| drop(ready.send(it.agent_id.to_string()))).await
    });
    wait("agent", tasks, is_ready).await
}

/// Waits until a part is ready, or until one of them ended.
async fn wait(
    part: &str,
    tasks: &Tasks,
    ready: oneshot::Receiver<String>,
) -> Result<String, Failure> {
    let stop = tasks.token();
    tokio::select! {
        ready = ready => ready.map_err(|_| Failure::new(format!("the {part} ended before it was ready"))),
        () = stop.cancelled() => Err(Failure::new(format!("stopped before the {part} was ready"))),
    }
}

/// The entry of the calling user; one that is there already is as good.
async fn register(
    channel: tonic::transport::Channel,
    trust_domain: &TrustDomain,
    agent_id: &str,
) -> Result<(), Failure> {
    let uid = nix::unistd::getuid();
    let name = nix::unistd::User::from_uid(uid)
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name);
    let own = trust_domain
        .with_path(&format!("/user/{name}"))
        .or_else(|_| trust_domain.with_path(&format!("/user/{uid}")));
    let id =
        own.map_err(|error| Failure::new(format!("no SPIFFE ID for user {name:?}: {error}")))?;
    let entry = types::Entry {
        spiffe_id: Some(wire_id(&id)),
        parent_id: Some(wire_id(&failure::spiffe_id("agent_id", agent_id)?)),
        selectors: vec![types::Selector {
            r#type: "unix".to_owned(),
            value: format!("uid:{uid}"),
        }],
        x509_svid_ttl: X509_TTL,
        ..types::Entry::default()
    };
    let message = BatchCreateEntryRequest {
        entries: vec![entry],
        output_mask: None,
    };
    let results = answer(
        EntryClient::new(channel)
            .batch_create_entry(request(message))
            .await,
    )?
    .results;
    let status = results
        .into_iter()
        .next()
        .and_then(|result| result.status)
        .unwrap_or_default();
    match status.code {
        0 | 6 => Ok(()),
        _ => Err(Failure::new(format!(
            "cannot register {id}: {}",
            status.message
        ))),
    }
}

impl Running {
    fn json(&self) -> String {
        serde_json::json!({
            "trust_domain": self.trust_domain, "server_address": self.server_address,
            "admin_socket": self.admin_socket, "workload_api": format!("unix://{}", self.workload_api.display()),
            "agent_id": self.agent_id,
        })
        .to_string()
    }

    fn print(&self) -> Result<(), Failure> {
        output::line(format!(
            "Started a server for trust domain {} on {}.",
            self.trust_domain, self.server_address
        ))?;
        output::line(format!(
            "Admin:        vane entry list --socket-path {}",
            self.admin_socket.display()
        ))?;
        output::line(format!("Attested:     {}", self.agent_id))?;
        output::line(format!(
            "Workload API: export SPIFFE_ENDPOINT_SOCKET=unix://{}",
            self.workload_api.display()
        ))?;
        output::line("Registered you for an identity that lives a minute; Ctrl-C ends everything.")
    }
}

/// Shows the SVIDs of this process: a line for each new one, and on a terminal how far the
/// current ones are on their way to renewal.
async fn follow(workload_api: &Path) -> Result<(), Failure> {
    let live = std::io::stdout().is_terminal();
    let mut contexts = contexts(Endpoint::Unix(workload_api.to_owned()))?;
    let mut current: Vec<Shown> = Vec::new();
    let mut redraw = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            change = contexts.next() => {
                clear(live)?;
                match change.map_err(|status| Failure::of_status(&status))? {
                    Change::Context(context) => current = context.svids.iter().map(shown).collect(),
                    Change::Denied(status) => {
                        current.clear();
                        output::line(format!("No identity: {}", status.message()))?;
                    }
                    Change::Discarded(why) => {
                        return Err(Failure::new(format!("the agent sent what cannot be read: {why}")));
                    }
                    Change::Interrupted { .. } => continue,
                }
                for svid in &current {
                    output::line(format!("{}  serial {}  expires {}", svid.spiffe_id, svid.serial, output::time(svid.not_after)))?;
                }
            }
            _ = redraw.tick(), if live => draw(&current)?,
        }
    }
}

fn clear(live: bool) -> Result<(), Failure> {
    if live {
        output::raw("\r\x1b[K")
    } else {
        Ok(())
    }
}

/// One bar, of the SVID that is nearest to its renewal at half its lifetime.
fn draw(current: &[Shown]) -> Result<(), Failure> {
    const WIDTH: i64 = 30;
    let now = to_unix(System.now());
    let Some(next) = current.iter().min_by_key(|svid| svid.not_after) else {
        return Ok(());
    };
    // notBefore lies ten seconds before the issue, which the renewal counts from.
    let issued = next.not_before + 10;
    let half = ((next.not_after - issued) / 2).max(1);
    let done = (now - issued).clamp(0, half);
    let filled = usize::try_from(done * WIDTH / half).unwrap_or_default();
    let bar = format!(
        "{:-<width$}",
        "#".repeat(filled),
        width = usize::try_from(WIDTH).unwrap_or_default()
    );
    output::raw(&format!(
        "\r\x1b[K[{bar}] renewal in about {} s",
        half - done
    ))?;
    std::io::stdout()
        .flush()
        .map_err(|error| Failure::new(error.to_string()))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves: ID-12.
    #[test]
    fn a_trust_domain_that_is_made_up_is_random_and_can_be_used() {
        let names: std::collections::HashSet<_> = (0..100).map(|_| random_name()).collect();
        assert!(names.len() > 95, "{} of 100 differ", names.len());
        for name in &names {
            assert_eq!(TrustDomain::parse(name).unwrap().as_str(), name);
        }
    }
}
