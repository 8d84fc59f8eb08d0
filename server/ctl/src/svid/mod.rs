//! `vane svid`: SVIDs from the Workload API, as files or as lines; and minting.

mod generation;
mod jwt;
mod mint;
mod serve;
mod show;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;

use crate::failure::Failure;

pub(crate) use mint::Mint;
pub(crate) use serve::{Fetch, Watch, contexts};
pub(crate) use show::{Shown, shown};

/// SVIDs of this process, or minted ones.
#[derive(Debug, Subcommand)]
pub(crate) enum Svid {
    /// Fetch this process's SVIDs once.
    #[command(
        after_help = "Examples:\n  vane svid fetch\n  vane svid fetch --write /etc/web/tls\n  vane svid fetch --jwt --audience my-service"
    )]
    Fetch(Fetch),
    /// Follow this process's SVIDs: each rotation is a line, or a generation of files.
    #[command(
        after_help = "Examples:\n  vane svid watch\n  vane svid watch --write /etc/nginx/svid --exec 'nginx -s reload'"
    )]
    Watch(Watch),
    /// Have an X.509-SVID or a JWT-SVID made for any ID; administrators only.
    #[command(
        after_help = "Examples:\n  vane svid mint --spiffe-id spiffe://example.org/ops --ttl 10m --write ./ops\n  vane svid mint --jwt --spiffe-id spiffe://example.org/ops --audience db"
    )]
    Mint(Mint),
}

impl Svid {
    /// Carries the command out.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Fetch(fetch) => fetch.run().await,
            Self::Watch(watch) => watch.run().await,
            Self::Mint(mint) => mint.run().await,
        }
    }
}

/// DER as PEM (RFC 7468).
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text + &format!("-----END {label}-----\n")
}
