//! `vane svid mint`: an SVID for any ID, for administrators. The key of a certificate is made
//! here; with `--jwt` it is a token, as SPIRE's `jwt mint`.

use std::path::PathBuf;

use clap::Args;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use vane_chassis::clock::{Clock as _, System};
use vane_identity::id::SpiffeId;
use vane_identity::key::{KeyType, PrivateKey};
use vane_wire::spire::api::server::bundle::v1::GetBundleRequest;
use vane_wire::spire::api::server::bundle::v1::bundle_client::BundleClient;
use vane_wire::spire::api::server::svid::v1::svid_client::SvidClient;
use vane_wire::spire::api::server::svid::v1::{MintJwtsvidRequest, MintX509svidRequest};

use super::generation::{self, File};
use super::pem;
use crate::api::{Server, answer, client, request};
use crate::failure::{self, Failure};
use crate::flags::seconds;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Mint {
    /// The SPIFFE ID of the SVID.
    #[arg(long, value_name = "ID")]
    spiffe_id: String,
    /// How long it lives: seconds or like 1h30m; 0 = the server's default.
    #[arg(long, value_name = "TTL", default_value = "0", value_parser = seconds)]
    ttl: i32,
    /// A DNS name; may be repeated, the first becomes the common name.
    #[arg(long, value_name = "NAME", conflicts_with = "jwt")]
    dns: Vec<String>,
    /// A JWT-SVID instead of an X.509-SVID.
    #[arg(long, requires = "audience")]
    jwt: bool,
    /// Whom the JWT-SVID is for; may be repeated, but one service is best.
    #[arg(long, value_name = "AUDIENCE", requires = "jwt")]
    audience: Vec<String>,
    /// Where svid.pem, svid.key and bundle.pem go; with --jwt the file of the token. Printed
    /// when nothing is said.
    #[arg(long, value_name = "PATH")]
    write: Option<PathBuf>,
    #[command(flatten)]
    server: Server,
}

impl Mint {
    /// Has an SVID made, and writes or prints it.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if self.jwt {
            return self.token().await;
        }
        self.certificate().await
    }

    /// Has a token signed.
    async fn token(self) -> Result<(), Failure> {
        let id = failure::spiffe_id("--spiffe-id", &self.spiffe_id)?;
        let channel = self.server.connect().await?;
        let message = MintJwtsvidRequest {
            id: Some((&id).into()),
            audience: self.audience.clone(),
            ttl: self.ttl,
        };
        let minted = answer(
            client!(SvidClient<_>, channel)
                .mint_jwtsvid(request(message))
                .await,
        )
        .map_err(|failure| failure.with(&format!("--spiffe-id {id}")))?;
        let svid = minted.svid.clone().unwrap_or_default();
        if svid.expires_at - svid.issued_at < i64::from(self.ttl) {
            let end = output::time(svid.expires_at);
            output::note(format!(
                "the token ends before its --ttl, with the key that signed it: at {end}"
            ));
        }
        let Some(path) = &self.write else {
            return match self.server.json() {
                true => output::json(&minted),
                false => output::line(svid.token),
            };
        };
        generation::secret_file(path, svid.token.as_bytes())?;
        if self.server.json() {
            return output::json(&minted);
        }
        output::line(format!("JWT-SVID written to {}", path.display()))
    }

    /// Makes a key and has it certified.
    async fn certificate(self) -> Result<(), Failure> {
        if self.server.json() && self.write.is_none() {
            // The key is never part of a message: with -o json it must have a file to go to.
            return Err(Failure::usage("-o json prints no private key")
                .hint("add --write DIR for the files"));
        }
        let id = failure::spiffe_id("--spiffe-id", &self.spiffe_id)?;
        let (key, csr) = self.csr(&id)?;
        let channel = self.server.connect().await?;
        let message = MintX509svidRequest {
            csr: csr.into(),
            ttl: self.ttl,
        };
        let minted = answer(
            client!(SvidClient<_>, channel.clone())
                .mint_x509svid(request(message))
                .await,
        )
        .map_err(|failure| failure.with(&format!("--spiffe-id {id}")))?;
        let svid = minted.svid.clone().unwrap_or_default();
        let message = GetBundleRequest { output_mask: None };
        let bundle = answer(
            client!(BundleClient<_>, channel)
                .get_bundle(request(message))
                .await,
        )?;
        let chain: String = svid
            .cert_chain
            .iter()
            .map(|der| pem("CERTIFICATE", der))
            .collect();
        let roots: String = bundle
            .x509_authorities
            .iter()
            .map(|one| pem("CERTIFICATE", &one.asn1))
            .collect();
        let key = pem("PRIVATE KEY", key.pkcs8());
        let Some(dir) = &self.write else {
            return output::raw(&format!(
                "X509-SVID:\n{chain}\nPrivate key:\n{key}\nRoot CAs:\n{roots}"
            ));
        };
        let files = [
            File::public("svid.pem".to_owned(), chain.into_bytes()),
            File::secret("svid.key".to_owned(), key.into_bytes()),
            File::public("bundle.pem".to_owned(), roots.into_bytes()),
        ];
        generation::swap(dir, &files, System.now())?;
        if self.server.json() {
            return output::json(&minted);
        }
        output::line(format!(
            "{id}, valid until {}, written to {}",
            output::time(svid.expires_at),
            dir.display()
        ))
    }

    fn csr(&self, id: &SpiffeId) -> Result<(PrivateKey, Vec<u8>), Failure> {
        let refuse =
            |error: String| Failure::new(format!("cannot make a certificate request: {error}"));
        let (key, _) =
            PrivateKey::generate(KeyType::EcP256).map_err(|error| refuse(error.to_string()))?;
        let mut params = CertificateParams::new(self.dns.clone()).map_err(|error| {
            Failure::usage(format!("--dns {:?}: {error}", self.dns)).hint("DNS names are ASCII")
        })?;
        let uri = id
            .as_str()
            .try_into()
            .map_err(|error: rcgen::Error| refuse(error.to_string()))?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name = DistinguishedName::new();
        if let Some(first) = self.dns.first() {
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, first.as_str());
        }
        let pair = KeyPair::try_from(key.pkcs8()).map_err(|error| refuse(error.to_string()))?;
        let csr = params
            .serialize_request(&pair)
            .map_err(|error| refuse(error.to_string()))?;
        Ok((key, csr.der().to_vec()))
    }
}
