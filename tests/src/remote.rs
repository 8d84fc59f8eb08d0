//! Callers on the server's TCP port: nobody, and an agent that this process plays.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;
use vane_chassis::clock::{Clock, System};
use vane_chassis::mtls::{
    Bootstrap, Identity, Party, Roots, anyone, bootstrap_config, client_config,
};
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::{KeyType, PrivateKey};
use vane_identity::x509_svid::{Certificate, X509Svid};
use vane_wire::spire::api::server::agent::v1 as wire;
use vane_wire::spire::api::server::svid::v1::MintX509svidRequest;
use vane_wire::spire::api::server::svid::v1::svid_client::SvidClient;
use vane_wire::spire::api::types;

use crate::admin::Admin;
use crate::raw::Raw;
use crate::world::{TRUST_DOMAIN, spiffe_id};

const ATTEST: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";

/// The address of a port of this machine.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The configuration of a caller without a certificate, who trusts whoever answers.
pub fn nobody() -> Arc<ClientConfig> {
    let server = SpiffeId::parse(&spiffe_id("/spire/server")).unwrap();
    let clock: Arc<dyn Clock> = Arc::new(System);
    bootstrap_config(&Bootstrap::new(server), &clock).unwrap()
}

/// The configuration of a caller with an SVID, who verifies the server against `bundle`.
pub fn with_svid(chain: &[Certificate], key: &Key, bundle: &types::Bundle) -> Arc<ClientConfig> {
    let party = Party {
        identity: Identity::new(chain, &key.0).unwrap(),
        roots: roots(bundle),
        authorizer: anyone(),
        clock: Arc::new(System),
    };
    client_config(&party).unwrap()
}

/// A connection to a server at `address`.
pub async fn channel(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let connect = service_fn(move |_| {
        let config = Arc::clone(&config);
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let tls = vane_chassis::mtls::connect(tcp, config).await?;
            Ok::<_, std::io::Error>(TokioIo::new(tls))
        }
    });
    Endpoint::from_static("http://server.invalid")
        .connect_with_connector(connect)
        .await
}

/// A key of a node or workload.
pub struct Key(PrivateKey);

impl Key {
    /// A fresh P-256 key.
    pub fn generate() -> Self {
        Self(PrivateKey::generate(KeyType::EcP256).unwrap().0)
    }

    /// A certificate request of this key for `uri`, or for no name.
    pub fn csr(&self, uri: Option<&str>) -> Vec<u8> {
        self.request(|params| {
            let uri = uri.map(|uri| rcgen::SanType::URI(uri.try_into().unwrap()));
            params.subject_alt_names.extend(uri);
        })
    }

    /// Its public half.
    pub fn public(&self) -> Vec<u8> {
        let pair = rcgen::KeyPair::try_from(self.0.pkcs8()).unwrap();
        rcgen::PublicKeyData::subject_public_key_info(&pair)
    }

    /// A certificate request that says what `fill` put into it.
    pub fn request(&self, fill: impl FnOnce(&mut rcgen::CertificateParams)) -> Vec<u8> {
        let pair = rcgen::KeyPair::try_from(self.0.pkcs8()).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        fill(&mut params);
        params.serialize_request(&pair).unwrap().der().to_vec()
    }
}

/// The first message of AttestAgent.
pub fn attest_request(token: &str, csr: Vec<u8>) -> wire::AttestAgentRequest {
    let params = wire::attest_agent_request::Params {
        data: Some(types::AttestationData {
            r#type: "join_token".to_owned(),
            payload: token.as_bytes().to_vec(),
        }),
        params: Some(wire::AgentX509svidParams { csr: csr.into() }),
    };
    wire::AttestAgentRequest {
        step: Some(wire::attest_agent_request::Step::Params(params)),
    }
}

/// Attests with `token` over a connection of nobody; the chain of the agent's SVID.
pub async fn attest(raw: &Raw, token: &str, key: &Key) -> Result<Vec<Certificate>, Status> {
    let request = attest_request(token, key.csr(None));
    let message = Bytes::from(request.encode_to_vec());
    let mut answer = raw.call(ATTEST, vec![message]).await;
    if answer.messages.is_empty() {
        return Err(answer.status);
    }
    let answer = wire::AttestAgentResponse::decode(answer.messages.remove(0)).unwrap();
    let Some(wire::attest_agent_response::Step::Result(result)) = answer.step else {
        panic!("no result in {answer:?}");
    };
    let chain = result.svid.unwrap().cert_chain;
    Ok(chain.iter().map(|der| Certificate::from_der(der)).collect())
}

/// An attested agent whose calls this process makes by hand.
pub struct Node {
    /// Its SPIFFE ID.
    pub id: String,
    /// Calls with its certificate.
    pub raw: Raw,
}

impl Node {
    /// Attests on the server at `address` with `token`; later connections are verified
    /// against `bundle`.
    pub async fn attest(address: SocketAddr, token: &str, bundle: &types::Bundle) -> Self {
        let key = Key::generate();
        let nobody = Raw::new(channel(address, nobody()).await.unwrap());
        let chain = attest(&nobody, token, &key).await.unwrap();
        Self::with(address, &chain, &key, bundle).await
    }

    /// One with the SVID that an administrator made for `id`.
    pub async fn minted(address: SocketAddr, admin: &Admin, id: &str) -> Self {
        let key = Key::generate();
        let request = MintX509svidRequest {
            csr: key.csr(Some(id)).into(),
            ttl: 0,
        };
        let mut client = SvidClient::new(admin.channel());
        let minted = client.mint_x509svid(request).await.unwrap().into_inner();
        let chain = minted.svid.unwrap().cert_chain;
        let chain: Vec<_> = chain.iter().map(|der| Certificate::from_der(der)).collect();
        Self::with(address, &chain, &key, &admin.bundle().await).await
    }

    async fn with(
        address: SocketAddr,
        chain: &[Certificate],
        key: &Key,
        bundle: &types::Bundle,
    ) -> Self {
        let id = X509Svid::parse(chain.to_vec()).unwrap().id().to_string();
        let config = with_svid(chain, key, bundle);
        let raw = Raw::new(channel(address, config).await.unwrap());
        Self { id, raw }
    }
}

/// A CA certificate for `trust_domain`.
pub fn ca(trust_domain: &str) -> types::X509Certificate {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let uri = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.as_str().try_into().unwrap())];
    types::X509Certificate {
        asn1: params.self_signed(&key).unwrap().der().to_vec().into(),
        tainted: false,
    }
}

/// A JWT authority.
pub fn jwt_key(key_id: &str) -> types::JwtKey {
    let key = rcgen::KeyPair::generate().unwrap();
    types::JwtKey {
        public_key: rcgen::PublicKeyData::subject_public_key_info(&key).into(),
        key_id: key_id.to_owned(),
        expires_at: 4_000_000_000,
        tainted: false,
    }
}

fn roots(wire: &types::Bundle) -> Arc<Roots> {
    let trust_domain = TrustDomain::parse(TRUST_DOMAIN).unwrap();
    let mut bundle = Bundle::empty(trust_domain);
    bundle.x509_authorities = wire
        .x509_authorities
        .iter()
        .map(|one| X509Authority::new(Certificate::from_der(&one.asn1)))
        .collect();
    Roots::new([bundle.anchors()])
}
