//! `vane bundle`: the authorities of the server's trust domain.

use clap::{Args, Subcommand, ValueEnum};
use vane_identity::bundle::Bundle as Authorities;
use vane_wire::spire::api::server::bundle::v1::GetBundleRequest;
use vane_wire::spire::api::server::bundle::v1::bundle_client::BundleClient;
use vane_wire::spire::api::types;

use crate::api::{Server, answer, client, request};
use crate::failure::Failure;
use crate::output;

/// The authorities of the server's trust domain.
#[derive(Debug, Subcommand)]
pub(crate) enum Bundle {
    /// Print the bundle, for agents to be bootstrapped with.
    #[command(
        after_help = "Examples:\n  vane bundle show > bundle.pem\n  vane bundle show --format spiffe"
    )]
    Show(Show),
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// How the bundle is printed.
    #[arg(long, value_enum, default_value = "pem")]
    format: Form,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// The CA certificates as PEM.
    Pem,
    /// A SPIFFE bundle: a JWK Set with JWT keys, sequence and refresh hint.
    Spiffe,
}

impl Bundle {
    /// Carries the command out.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Self::Show(show) = self;
        let channel = show.server.connect().await?;
        let message = GetBundleRequest { output_mask: None };
        let bundle = answer(
            client!(BundleClient<_>, channel)
                .get_bundle(request(message))
                .await,
        )?;
        if show.server.json() {
            return output::json(&bundle);
        }
        match show.format {
            Form::Pem => output::raw(&pem(&bundle)),
            Form::Spiffe => output::line(spiffe(&bundle)?),
        }
    }
}

fn pem(bundle: &types::Bundle) -> String {
    bundle
        .x509_authorities
        .iter()
        .map(|one| crate::svid::pem("CERTIFICATE", &one.asn1))
        .collect()
}

fn spiffe(bundle: &types::Bundle) -> Result<String, Failure> {
    let refuse = |why: String| Failure::new(format!("the server's bundle cannot be read: {why}"));
    let value = Authorities::try_from(bundle).map_err(|error| refuse(error.to_string()))?;
    let json = value.to_jwks().map_err(|error| refuse(error.to_string()))?;
    String::from_utf8(json).map_err(|error| refuse(error.to_string()))
}
