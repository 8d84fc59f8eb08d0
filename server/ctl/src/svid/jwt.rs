//! `vane svid fetch --jwt`: JWT-SVIDs of this process.

use clap::Args;
use tonic::transport::Channel;
use vane_chassis::clock::{Clock as _, System};
use vane_identity::jwt_svid::JwtSvid;
use vane_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use vane_wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
};

use crate::agent_socket::request;
use crate::failure::{self, Failure};
use crate::output::{self, Format};

/// What is asked for.
#[derive(Debug, Clone, Args)]
pub(crate) struct Jwt {
    /// Fetch JWT-SVIDs, which are printed, instead of X.509-SVIDs.
    #[arg(long, requires = "audience", conflicts_with_all = ["write", "all"])]
    pub(super) jwt: bool,
    /// Whom the JWT-SVID is for: best one service; may be repeated, or a list with commas.
    #[arg(long, value_name = "AUDIENCE", requires = "jwt", value_delimiter = ',')]
    audience: Vec<String>,
    /// Only the JWT-SVID of this ID.
    #[arg(long, value_name = "ID", requires = "jwt")]
    spiffe_id: Option<String>,
}

impl Jwt {
    /// Fetches and prints; `refuse` says what an answer means.
    pub(super) async fn fetch(
        &self,
        channel: Channel,
        format: Format,
        refuse: impl Fn(tonic::Status) -> Failure,
    ) -> Result<(), Failure> {
        let message = self.request()?;
        let mut client = SpiffeWorkloadApiClient::new(channel);
        let answer = client.fetch_jwtsvid(request(message)).await;
        let tokens = answer.map_err(&refuse)?.into_inner();
        if format == Format::Table {
            return tokens.svids.iter().enumerate().try_for_each(print);
        }
        let stream = client
            .fetch_jwt_bundles(request(JwtBundlesRequest {}))
            .await;
        let bundles = stream.map_err(&refuse)?.into_inner().message().await;
        print_json(&tokens, &bundles.map_err(&refuse)?.unwrap_or_default())
    }

    fn request(&self) -> Result<JwtsvidRequest, Failure> {
        if self.audience.iter().any(String::is_empty) {
            return Err(Failure::usage("--audience has an empty value")
                .hint("name the service that is to accept the token: --audience my-service"));
        }
        let id = self.spiffe_id.as_deref();
        let id = id
            .map(|id| failure::spiffe_id("--spiffe-id", id))
            .transpose()?;
        Ok(JwtsvidRequest {
            audience: self.audience.clone(),
            spiffe_id: id.map(|id| id.to_string()).unwrap_or_default(),
        })
    }
}

/// As SPIRE's CLI: both messages in one array.
fn print_json(tokens: &JwtsvidResponse, bundles: &JwtBundlesResponse) -> Result<(), Failure> {
    let both = [output::value(tokens)?, output::value(bundles)?];
    output::line(serde_json::Value::from(both.to_vec()).to_string())
}

/// One token for people, with what it says; it is not verified.
fn print((at, one): (usize, &Jwtsvid)) -> Result<(), Failure> {
    if at > 0 {
        output::line("")?;
    }
    let read = JwtSvid::parse(&one.svid).ok();
    let audience = read.as_ref().map(|svid| svid.audience().join(", "));
    let expires = read
        .as_ref()
        .map(|svid| output::expiry(svid.expires_at(), System.now()));
    output::fields(&[
        ("SPIFFE ID", one.spiffe_id.clone()),
        ("Hint", one.hint.clone()),
        ("Audience", audience.unwrap_or_default()),
        ("Expires", expires.unwrap_or_default()),
        ("Token", one.svid.clone()),
    ])
}
