//! Attestation by x509pop over the wire: what it makes, renews and refuses.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use vane_attest::{PROVERS, Prover};
use vane_chassis::builtin::{Section, open_section};
use vane_identity::id::SpiffeId;
use vane_identity::x509_svid::X509Svid;
use vane_wire::spire::api::server::agent::v1::agent_client::AgentClient;
use vane_wire::spire::api::server::agent::v1::{
    BanAgentRequest, GetAgentRequest, RenewAgentRequest,
};
use vane_wire::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::types;
use vane_wire::status::{Reason, denial_reason};

use super::*;
use crate::api::testing::{World, attestation, csr, entry, refused};

/// A CA and the files of a node of it.
struct Pki {
    dir: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

fn table(pairs: &[(&str, &Path)]) -> toml::Table {
    let pairs = pairs.iter().map(|(key, path)| {
        let path = path.to_str().unwrap().to_owned();
        ((*key).to_owned(), toml::Value::String(path))
    });
    pairs.collect()
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "CA");
        let key = KeyPair::generate().unwrap();
        let ca = CertifiedIssuer::self_signed(params, key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
        Self { dir, ca }
    }

    fn gate(&self) -> Section {
        let path = self.dir.path().join("ca.pem");
        let mut options = table(&[("ca_bundle_path", &path)]);
        let template = "/x509pop/{{ .Subject.CommonName }}".to_owned();
        options.insert("agent_path_template".to_owned(), template.into());
        Section::new("x509pop", options)
    }

    async fn node(&self, name: &str) -> Arc<dyn Prover> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.ca).unwrap();
        let (key_path, path) = (self.dir.path().join("key"), self.dir.path().join("leaf"));
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        std::fs::write(&path, leaf.pem()).unwrap();
        let options = table(&[("private_key_path", &key_path), ("certificate_path", &path)]);
        let section = Section::new("x509pop", options);
        open_section(PROVERS, &section, &()).await.unwrap()
    }
}

/// An agent's end of an attestation.
struct Client {
    requests: mpsc::Sender<AttestAgentRequest>,
    answers: Streaming<AttestAgentResponse>,
}

impl Client {
    async fn open(channel: Channel, evidence: Vec<u8>, key: &KeyPair) -> Result<Self, Status> {
        let mut first = attestation("x509pop", "", csr(key));
        if let Some(attest_agent_request::Step::Params(params)) = &mut first.step {
            params.data.as_mut().unwrap().payload = evidence;
        }
        let (requests, receiver) = mpsc::channel(4);
        requests.send(first).await.unwrap();
        let mut client = AgentClient::new(channel);
        let answers = client.attest_agent(ReceiverStream::new(receiver)).await?;
        Ok(Self {
            requests,
            answers: answers.into_inner(),
        })
    }

    async fn next(&mut self) -> Result<response::Step, Status> {
        let answer = self.answers.message().await?.unwrap();
        Ok(answer.step.unwrap())
    }

    async fn challenge(&mut self) -> Vec<u8> {
        match self.next().await.unwrap() {
            response::Step::Challenge(challenge) => challenge,
            response::Step::Result(_) => panic!("no challenge"),
        }
    }

    async fn answer(&self, answer: Vec<u8>) {
        let step = attest_agent_request::Step::ChallengeResponse(answer);
        let request = AttestAgentRequest { step: Some(step) };
        self.requests.send(request).await.unwrap();
    }
}

async fn attest(world: &mut World, node: &dyn Prover, key: &KeyPair) -> Result<X509Svid, Status> {
    let channel = world.anonymous().await;
    let mut client = Client::open(channel, node.evidence().await.unwrap(), key).await?;
    let challenge = client.challenge().await;
    client.answer(node.answer(&challenge).await.unwrap()).await;
    match client.next().await? {
        response::Step::Result(result) => {
            assert!(result.reattestable);
            Ok(X509Svid::try_from(&result.svid.unwrap()).unwrap())
        }
        response::Step::Challenge(_) => panic!("a second challenge"),
    }
}

async fn shown(world: &mut World, id: &SpiffeId) -> types::Agent {
    let mut admin = AgentClient::new(world.local().await);
    let request = GetAgentRequest {
        id: Some(id.into()),
        output_mask: None,
    };
    admin.get_agent(request).await.unwrap().into_inner()
}

/// How many entries the agent with `svid` gets.
async fn set(world: &mut World, svid: &X509Svid) -> Result<usize, Status> {
    let mut client = EntryClient::new(world.peer(svid).await);
    let request = GetAuthorizedEntriesRequest { output_mask: None };
    let set = client.get_authorized_entries(request).await?;
    Ok(set.into_inner().entries.len())
}

#[tokio::test]
async fn a_node_of_the_ca_is_an_agent_with_its_selectors_and_attests_again() {
    let pki = Pki::new();
    let mut world = World::attesting(pki.gate()).await;
    let node = pki.node("one").await;
    let key = KeyPair::generate().unwrap();
    let first = attest(&mut world, &*node, &key).await.unwrap();
    assert_eq!(
        first.id().as_str(),
        "spiffe://example.org/spire/agent/x509pop/one"
    );
    let agent = shown(&mut world, first.id()).await;
    assert_eq!(
        (agent.attestation_type.as_str(), agent.can_reattest),
        ("x509pop", true)
    );
    let values: Vec<_> = agent
        .selectors
        .iter()
        .map(|one| one.value.as_str())
        .collect();
    assert!(values.contains(&"subject:cn:one") && agent.selectors.len() == 3);

    // By its selectors it has an alias, and what stands under that.
    let mut alias = entry("/nodes", "spiffe://example.org/spire/server", 1);
    alias.selectors = vec![types::Selector {
        r#type: "x509pop".to_owned(),
        value: "subject:cn:one".to_owned(),
    }];
    world.entry(alias).await;
    world
        .entry(entry("/web", "spiffe://example.org/nodes", 1))
        .await;
    assert_eq!(set(&mut world, &first).await.unwrap(), 1);

    // It renews by attesting: the previous certificate is good for five minutes more.
    let mut client = AgentClient::new(world.peer(&first).await);
    let params = Some(
        vane_wire::spire::api::server::agent::v1::AgentX509svidParams {
            csr: csr(&key).into(),
        },
    );
    let refusal = client
        .renew_agent(RenewAgentRequest { params })
        .await
        .unwrap_err();
    assert_eq!(denial_reason(&refusal), Some(Reason::AgentMustReattest));
    let second = attest(&mut world, &*node, &key).await.unwrap();
    assert_eq!(set(&mut world, &first).await.unwrap(), 1);
    assert_eq!(set(&mut world, &second).await.unwrap(), 1);
    assert_eq!(set(&mut world, &first).await.unwrap(), 1);
    world.clock.advance(std::time::Duration::from_secs(301));
    let denied = set(&mut world, &first).await.unwrap_err();
    assert_eq!(denial_reason(&denied), Some(Reason::AgentNotActive));
}

#[tokio::test]
async fn a_ban_outlives_every_proof_and_eviction_lifts_it() {
    let pki = Pki::new();
    let mut world = World::attesting(pki.gate()).await;
    let node = pki.node("one").await;
    let key = KeyPair::generate().unwrap();
    let svid = attest(&mut world, &*node, &key).await.unwrap();
    let mut admin = AgentClient::new(world.local().await);
    let id = Some(types::Spiffeid::from(svid.id()));
    admin
        .ban_agent(BanAgentRequest { id: id.clone() })
        .await
        .unwrap();
    let outcome = attest(&mut world, &*node, &key).await;
    let text = "failed to attest: agent is banned".to_owned();
    assert_eq!(refused(outcome), (Code::PermissionDenied, text));
    let eviction = vane_wire::spire::api::server::agent::v1::DeleteAgentRequest { id };
    admin.delete_agent(eviction).await.unwrap();
    assert!(attest(&mut world, &*node, &key).await.is_ok());
}

#[tokio::test]
async fn a_challenge_is_good_for_its_stream_only() {
    let pki = Pki::new();
    let mut world = World::attesting(pki.gate()).await;
    let node = pki.node("one").await;
    let key = KeyPair::generate().unwrap();
    let evidence = node.evidence().await.unwrap();
    let channel = world.anonymous().await;
    let mut one = Client::open(channel.clone(), evidence.clone(), &key)
        .await
        .unwrap();
    let mut two = Client::open(channel, evidence, &key).await.unwrap();
    let (first, _) = (one.challenge().await, two.challenge().await);
    let answer = node.answer(&first).await.unwrap();
    two.answer(answer.clone()).await;
    let text = "nodeattestor(x509pop): challenge response verification failed: ECDSA signature verify failed";
    assert_eq!(
        refused(two.next().await),
        (Code::PermissionDenied, text.to_owned())
    );
    one.answer(answer).await;
    assert!(matches!(one.next().await, Ok(response::Step::Result(_))));
}

#[tokio::test]
async fn what_is_no_proof_is_refused_at_once_and_silence_in_time() {
    let pki = Pki::new();
    let mut world = World::attesting(pki.gate()).await;
    let key = KeyPair::generate().unwrap();
    let foreign = Pki::new().node("one").await.evidence().await.unwrap();
    let channel = world.anonymous().await;
    let outcome = Client::open(channel.clone(), foreign, &key).await.map(drop);
    let (code, text) = refused(outcome);
    assert_eq!(code, Code::PermissionDenied);
    assert!(text.starts_with("nodeattestor(x509pop): certificate verification failed: x509: "));
    let outcome = Client::open(channel.clone(), b"{}".to_vec(), &key)
        .await
        .map(drop);
    let text = "nodeattestor(x509pop): no certificate to attest".to_owned();
    assert_eq!(refused(outcome), (Code::InvalidArgument, text));

    // Who ends the stream, or sends something else than an answer, is told so.
    let node = pki.node("one").await;
    let evidence = node.evidence().await.unwrap();
    let mut client = Client::open(channel.clone(), evidence.clone(), &key)
        .await
        .unwrap();
    client.challenge().await;
    let again = attestation("x509pop", "x", csr(&key));
    client.requests.send(again).await.unwrap();
    let text = "nodeattestor(x509pop): unable to unmarshal challenge response".to_owned();
    assert_eq!(refused(client.next().await), (Code::InvalidArgument, text));
    let mut client = Client::open(channel, evidence, &key).await.unwrap();
    client.challenge().await;
    let Client {
        requests,
        mut answers,
    } = client;
    drop(requests);
    let text = "failed to receive challenge from agent: EOF".to_owned();
    assert_eq!(refused(answers.message().await), (Code::Internal, text));
}

#[tokio::test]
async fn an_id_that_another_method_made_is_not_taken_over() {
    let mut world = World::new().await;
    let joined = world.agent().await;
    let record = world.parts.state.agent(joined.svid.id()).unwrap();
    let refusal = again::judge(&record, "x509pop").unwrap_err();
    let text = "failed to attest: the agent ID is one of node attestor join_token";
    assert_eq!(
        (refusal.code(), refusal.message()),
        (Code::PermissionDenied, text)
    );
    assert!(again::judge(&record, "join_token").is_ok());
}
