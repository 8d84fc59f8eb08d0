//! Keeping and forgetting the bundles of other trust domains.

use std::io::Read as _;

use clap::{Args, ValueEnum};
use vane_identity::bundle::{Bundle as Authorities, X509Authority};
use vane_identity::id::TrustDomain;
use vane_wire::spire::api::server::bundle::v1 as wire;
use vane_wire::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode as WireMode;
use vane_wire::spire::api::types;

use super::{Form, bundles};
use crate::api::{Server, answer, request};
use crate::failure::{Failure, trust_domain};
use crate::output;

/// The most bytes of a bundle: what fits into a message.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The trust domain whose bundle it is, as other.org or spiffe://other.org.
    #[arg(long, value_name = "TRUST_DOMAIN")]
    id: String,
    /// The file with the bundle; standard input without it.
    #[arg(long, value_name = "FILE")]
    path: Option<String>,
    /// How it is written.
    #[arg(long, value_enum, default_value = "pem")]
    format: Form,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The trust domain whose bundle goes, as other.org or spiffe://other.org.
    #[arg(long, value_name = "TRUST_DOMAIN")]
    id: String,
    /// What becomes of the entries that federate with it.
    #[arg(long, value_enum, default_value = "restrict")]
    mode: Mode,
    #[command(flatten)]
    server: Server,
}

/// What becomes of entries that federate with a bundle that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// As long as there are any, the bundle stays.
    Restrict,
    /// They stay, and federate with it no longer.
    Dissociate,
    /// They are deleted.
    Delete,
}

impl From<Mode> for WireMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Restrict => Self::Restrict,
            Mode::Dissociate => Self::Dissociate,
            Mode::Delete => Self::Delete,
        }
    }
}

impl Set {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let trust_domain = trust_domain("--id", &self.id)?;
        let text = self.text()?;
        let bundle =
            parse(trust_domain, self.format, &text).map_err(|why| self.unreadable(&why))?;
        let mut client = bundles(self.server.connect().await?);
        let message = wire::BatchSetFederatedBundleRequest {
            bundle: vec![types::Bundle::from(&bundle)],
            output_mask: None,
        };
        let answered = answer(client.batch_set_federated_bundle(request(message)).await)?;
        if self.server.json() {
            output::json(&answered)?;
        }
        let status = answered.results.into_iter().next();
        let status = status.and_then(|result| result.status).unwrap_or_default();
        if status.code != 0 {
            let what = format!("cannot set the bundle --id {}: {}", self.id, status.message);
            return Err(Failure::new(what).hint(set_hint(&status.message)));
        }
        if self.server.json() {
            return Ok(());
        }
        output::line(format!("Bundle set: {}", bundle.trust_domain))
    }

    fn source(&self) -> &str {
        self.path.as_deref().unwrap_or("standard input")
    }

    fn text(&self) -> Result<String, Failure> {
        let open = || -> std::io::Result<Box<dyn std::io::Read>> {
            match self.path.as_deref() {
                None | Some("-") => Ok(Box::new(std::io::stdin().lock())),
                Some(path) => Ok(Box::new(std::fs::File::open(path)?)),
            }
        };
        let mut text = String::new();
        let read = open().and_then(|source| source.take(MAX_BYTES + 1).read_to_string(&mut text));
        read.map_err(|error| {
            Failure::usage(format!("cannot read {}: {error}", self.source()))
                .hint("name the file of the bundle with --path")
        })?;
        if text.len() as u64 > MAX_BYTES {
            let what = format!("{} is larger than {MAX_BYTES} bytes", self.source());
            return Err(Failure::usage(what).hint("that is no bundle"));
        }
        Ok(text)
    }

    fn unreadable(&self, why: &str) -> Failure {
        let (name, other) = match self.format {
            Form::Pem => ("pem", "spiffe"),
            Form::Spiffe => ("spiffe", "pem"),
        };
        Failure::usage(format!("{} is no bundle as {name}: {why}", self.source())).hint(format!(
            "write --format {other} if it is one, or get it by `vane bundle show --format {name}` there"
        ))
    }
}

fn set_hint(text: &str) -> &'static str {
    if text.contains("own trust domain") {
        "the server makes its own bundle; --id names another trust domain"
    } else {
        "the server's log has the cause"
    }
}

/// The bundle that `text` is.
pub(super) fn parse(
    trust_domain: TrustDomain,
    form: Form,
    text: &str,
) -> Result<Authorities, String> {
    match form {
        Form::Spiffe => {
            Authorities::from_jwks(trust_domain, text.as_bytes()).map_err(|error| error.to_string())
        }
        Form::Pem => {
            let certificates =
                vane_agent::pem::certificates(text).map_err(|error| error.to_string())?;
            if certificates.is_empty() {
                return Err("it has no certificate".to_owned());
            }
            let mut bundle = Authorities::empty(trust_domain);
            bundle.x509_authorities = certificates.into_iter().map(X509Authority::new).collect();
            Ok(bundle)
        }
    }
}

impl Delete {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let trust_domain = trust_domain("--id", &self.id)?;
        let mut client = bundles(self.server.connect().await?);
        let message = wire::BatchDeleteFederatedBundleRequest {
            trust_domains: vec![trust_domain.as_str().to_owned()],
            mode: WireMode::from(self.mode).into(),
        };
        let answered = answer(client.batch_delete_federated_bundle(request(message)).await)?;
        if self.server.json() {
            output::json(&answered)?;
        }
        let status = answered.results.into_iter().next();
        let status = status.and_then(|result| result.status).unwrap_or_default();
        if status.code != 0 {
            let what = format!(
                "cannot delete the bundle --id {}: {}",
                self.id, status.message
            );
            return Err(Failure::new(what).hint(delete_hint(status.code)));
        }
        if self.server.json() {
            return Ok(());
        }
        output::line(format!("Bundle deleted: {trust_domain}"))
    }
}

fn delete_hint(code: i32) -> &'static str {
    match code {
        3 => "the server's own bundle stays; --id names another trust domain",
        5 => "`vane bundle list` shows those that there are",
        9 => {
            "`vane entry list --federates-with …` shows the entries; --mode dissociate keeps them \
             without it, --mode delete deletes them"
        }
        _ => "the server's log has the cause",
    }
}
