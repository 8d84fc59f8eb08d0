//! Printing bundles and counting them.

use clap::Args;
use vane_identity::bundle::Bundle as Authorities;
use vane_wire::spire::api::server::bundle::v1::{
    CountBundlesRequest, GetBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
    ListFederatedBundlesResponse,
};
use vane_wire::spire::api::types;

use super::{Form, bundles};
use crate::api::{Server, answer, request};
use crate::failure::{Failure, trust_domain};
use crate::output;

/// Bundles of one page of a list.
const PAGE: i32 = 100;
const RULE: &str = "****************************************";

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// How the bundle is printed.
    #[arg(long, value_enum, default_value = "pem")]
    format: Form,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// The trust domain whose bundle is printed, as other.org or spiffe://other.org; else all.
    #[arg(long, value_name = "TRUST_DOMAIN")]
    id: Option<String>,
    /// How the bundles are printed.
    #[arg(long, value_enum, default_value = "pem")]
    format: Form,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct Count {
    #[command(flatten)]
    server: Server,
}

impl Show {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut client = bundles(self.server.connect().await?);
        let message = GetBundleRequest { output_mask: None };
        let bundle = answer(client.get_bundle(request(message)).await)?;
        if self.server.json() {
            return output::json(&bundle);
        }
        print(&bundle, self.format)
    }
}

impl List {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match &self.id {
            Some(id) => self.one(id).await,
            None => self.all().await,
        }
    }

    async fn one(&self, id: &str) -> Result<(), Failure> {
        let trust_domain = trust_domain("--id", id)?;
        let mut client = bundles(self.server.connect().await?);
        let message = GetFederatedBundleRequest {
            trust_domain: trust_domain.as_str().to_owned(),
            output_mask: None,
        };
        let bundle =
            answer(client.get_federated_bundle(request(message)).await).map_err(|failure| {
                failure.with(&format!("--id {id}")).hint(
                    "`vane bundle list` shows those that there are, `vane bundle show` the own one",
                )
            })?;
        if self.server.json() {
            return output::json(&bundle);
        }
        print(&bundle, self.format)
    }

    async fn all(&self) -> Result<(), Failure> {
        let mut client = bundles(self.server.connect().await?);
        let mut all = ListFederatedBundlesResponse::default();
        loop {
            let message = ListFederatedBundlesRequest {
                output_mask: None,
                page_size: PAGE,
                page_token: std::mem::take(&mut all.next_page_token),
            };
            let page = answer(client.list_federated_bundles(request(message)).await)?;
            all.bundles.extend(page.bundles);
            all.next_page_token = page.next_page_token;
            if all.next_page_token.is_empty() {
                break;
            }
        }
        if self.server.json() {
            return output::json(&all);
        }
        if all.bundles.is_empty() {
            return output::line("No bundles of other trust domains.");
        }
        for (at, bundle) in all.bundles.iter().enumerate() {
            if at > 0 {
                output::line("")?;
            }
            output::line(format!("{RULE}\n* {}\n{RULE}", bundle.trust_domain))?;
            print(bundle, self.format)?;
        }
        Ok(())
    }
}

impl Count {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut client = bundles(self.server.connect().await?);
        let counted = answer(client.count_bundles(request(CountBundlesRequest {})).await)?;
        if self.server.json() {
            return output::json(&counted);
        }
        let noun = if counted.count == 1 {
            "bundle"
        } else {
            "bundles"
        };
        output::line(format!("{} {noun}", counted.count))
    }
}

fn print(bundle: &types::Bundle, form: Form) -> Result<(), Failure> {
    match form {
        Form::Pem => output::raw(&pem(bundle)),
        Form::Spiffe => output::line(spiffe(bundle)?),
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
