//! `vane svid fetch` and `watch`: what the Workload API serves to this process.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use tonic::Code;
use tonic::metadata::MetadataValue;
use vane_chassis::backoff::{Backoff, Policy};
use vane_chassis::clock::{Clock as _, System};
use vane_identity::lifetime::to_unix;
use vane_identity::x509_svid::{Certificate, serial_decimal};
use vane_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use vane_wire::workload::{X509svid, X509svidRequest, X509svidResponse};

use super::generation::{self, File};
use super::pem;
use crate::api::{MAX_MESSAGE_BYTES, connect, socket_path};
use crate::failure::Failure;
use crate::output::{self, Format};

/// Where `vane-agent` puts the Workload API when nothing is said.
pub(crate) const DEFAULT_WORKLOAD_API: &str = "unix:///run/vane/agent.sock";
const FLAG: &str = "--socket-path";
const FIRST_MESSAGE: Duration = Duration::from_secs(30);

/// Where the SVIDs come from and go to.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// The Workload API.
    #[arg(long, value_name = "ADDRESS", env = "SPIFFE_ENDPOINT_SOCKET", default_value = DEFAULT_WORKLOAD_API)]
    socket_path: String,
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
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    #[command(flatten)]
    target: Target,
    /// A shell command to run after each update; a failure is reported, and the watch goes on.
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
}

/// An open stream of FetchX509SVID.
pub(crate) type Updates = tonic::Streaming<X509svidResponse>;

/// Opens FetchX509SVID on the socket at `path`.
pub(crate) async fn updates(path: &Path) -> Result<Updates, Failure> {
    let channel = connect("agent", path, FLAG).await?;
    let mut client =
        SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut request = tonic::Request::new(X509svidRequest {});
    request
        .metadata_mut()
        .insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let stream = client
        .fetch_x509svid(request)
        .await
        .map_err(|status| Failure::of_status(&status))?;
    Ok(stream.into_inner())
}

impl Fetch {
    /// The first message, written or printed.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let path = socket_path(&self.target.socket_path)?;
        let first = tokio::time::timeout(FIRST_MESSAGE, async {
            updates(&path)
                .await?
                .message()
                .await
                .map_err(|status| Failure::of_status(&status))
        });
        let message = first
            .await
            .map_err(|_| {
                Failure::new(format!("the agent sent no SVID within {FIRST_MESSAGE:?}"))
                    .hint("the agent's log says what it waits for")
            })??
            .ok_or_else(|| Failure::new("the agent ended the stream without an SVID"))?;
        self.target.take(&message)
    }
}

impl Watch {
    /// Follows the stream for good: reconnects at once when it ends, then with back-off. Only
    /// what cannot get better by waiting ends it (Workload API client rules, WEP-21, WEP-27).
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let path = socket_path(&self.target.socket_path)?;
        let policy = Policy::new(Duration::from_millis(100), Duration::from_secs(5), 2.0)
            .map_err(|error| Failure::new(error.to_string()))?;
        let mut backoff = Backoff::new(policy, fastrand::Rng::new());
        loop {
            let ended = match updates(&path).await {
                Ok(stream) => self.follow(stream, &mut backoff).await?,
                Err(failure) => failure,
            };
            eprint_line(&format!("{ended}"));
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Takes each message; how the stream ended, unless waiting cannot help.
    async fn follow(&self, mut stream: Updates, backoff: &mut Backoff) -> Result<Failure, Failure> {
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    backoff.reset();
                    self.target.take(&message)?;
                    self.execute().await;
                }
                Ok(None) => {
                    return Ok(Failure::new("the agent ended the stream; connecting again"));
                }
                Err(status)
                    if matches!(status.code(), Code::InvalidArgument | Code::Unimplemented) =>
                {
                    return Err(Failure::of_status(&status));
                }
                Err(status) => return Ok(Failure::of_status(&status)),
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
            Ok(status) => eprint_line(&format!("--exec {command:?} ended with {status}")),
            Err(error) => eprint_line(&format!("--exec {command:?} did not start: {error}")),
        }
    }
}

fn eprint_line(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

impl Target {
    /// Writes the files of a message, and prints it.
    fn take(&self, message: &X509svidResponse) -> Result<(), Failure> {
        if let Some(dir) = &self.write {
            generation::swap(dir, &files(message, self.all)?, System.now())?;
        }
        match self.output {
            Format::Json => output::line(json(message)?.to_string()),
            Format::Table => message
                .svids
                .iter()
                .try_for_each(|svid| output::line(describe(svid)?)),
        }
    }
}

fn files(message: &X509svidResponse, all: bool) -> Result<Vec<File>, Failure> {
    let mut files = Vec::new();
    let wanted = if all { message.svids.len() } else { 1 };
    for (n, svid) in message.svids.iter().take(wanted).enumerate() {
        let name = |kind: &str, end: &str| {
            if all {
                format!("{kind}.{n}.{end}")
            } else {
                format!("{kind}.{end}")
            }
        };
        let name_of_bundle = if all {
            format!("bundle.{n}.pem")
        } else {
            "bundle.pem".to_owned()
        };
        files.push(File::public(
            name("svid", "pem"),
            chain_pem(&svid.x509_svid)?.into_bytes(),
        ));
        files.push(File::secret(
            name("svid", "key"),
            pem("PRIVATE KEY", &svid.x509_svid_key).into_bytes(),
        ));
        files.push(File::public(
            name_of_bundle,
            chain_pem(&svid.bundle)?.into_bytes(),
        ));
    }
    Ok(files)
}

/// Certificates of a DER concatenation, one after the other.
pub(crate) fn certificates(der: &[u8]) -> Result<Vec<Certificate>, Failure> {
    Certificate::split(der).map_err(|error| {
        Failure::new(format!(
            "the agent sent a certificate that cannot be read: {error}"
        ))
    })
}

fn chain_pem(der: &[u8]) -> Result<String, Failure> {
    Ok(certificates(der)?
        .iter()
        .map(|one| pem("CERTIFICATE", one.der()))
        .collect())
}

/// SPIFFE ID, serial and expiry of an SVID.
pub(crate) struct Shown {
    pub(crate) spiffe_id: String,
    pub(crate) serial: String,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

/// What is shown of an SVID; its leaf is read, not verified.
pub(crate) fn shown(svid: &X509svid) -> Result<Shown, Failure> {
    let chain = certificates(&svid.x509_svid)?;
    let leaf = chain
        .first()
        .ok_or_else(|| Failure::new("the agent sent an SVID without a certificate"))?;
    let info = leaf.info().map_err(|error| {
        Failure::new(format!(
            "the agent sent a certificate that cannot be read: {error}"
        ))
    })?;
    Ok(Shown {
        spiffe_id: svid.spiffe_id.clone(),
        serial: serial_decimal(&info.serial),
        not_before: to_unix(info.validity.not_before),
        not_after: to_unix(info.validity.not_after),
    })
}

fn describe(svid: &X509svid) -> Result<String, Failure> {
    let it = shown(svid)?;
    let hint = if svid.hint.is_empty() {
        String::new()
    } else {
        format!("  hint {}", svid.hint)
    };
    let left = output::distance(it.not_after, System.now());
    Ok(format!(
        "{}  serial {}  expires {} ({left}){hint}",
        it.spiffe_id,
        it.serial,
        output::time(it.not_after)
    ))
}

/// The message without keys: scripts that want keys take files.
fn json(message: &X509svidResponse) -> Result<serde_json::Value, Failure> {
    let svids = message.svids.iter().map(|svid| {
        let it = shown(svid)?;
        Ok(serde_json::json!({
            "spiffe_id": it.spiffe_id, "serial": it.serial, "hint": svid.hint,
            "not_before": it.not_before.to_string(), "expires_at": it.not_after.to_string(),
        }))
    });
    Ok(serde_json::json!({ "svids": svids.collect::<Result<Vec<_>, Failure>>()? }))
}
