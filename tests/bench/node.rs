//! An attested agent that this process plays, with entries to ask SVIDs for.

use bytes::Bytes;
use prost::Message as _;
use tonic::Code;
use vane_tests::admin::{Admin, entry};
use vane_tests::remote::{Key, Node, local};
use vane_tests::world::{World, spiffe_id};
use vane_wire::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, BatchNewX509svidResponse, NewJwtsvidRequest, NewX509svidParams,
};

const BATCH_NEW: &str = "/spire.api.server.svid.v1.SVID/BatchNewX509SVID";
const NEW_TOKEN: &str = "/spire.api.server.svid.v1.SVID/NewJWTSVID";
/// Whom the tokens are for.
pub(crate) const AUDIENCE: &str = "https://service.example.org";

/// An agent with as many entries as CSRs.
pub(crate) struct Asker {
    node: Node,
    params: Vec<NewX509svidParams>,
}

impl Asker {
    /// Attests and registers `entries` workloads.
    pub(crate) async fn new(world: &World, admin: &Admin, entries: usize) -> Self {
        let token = admin.token().await;
        let node = Node::attest(local(world.port()), &token, &admin.bundle().await).await;
        let ids: Vec<String> = (0..entries)
            .map(|at| spiffe_id(&format!("/asked/{at}")))
            .collect();
        let wanted = ids
            .iter()
            .enumerate()
            .map(|(at, id)| entry(id, &node.id, &[&format!("unix:uid:{at}")]));
        let created = admin.create_all(wanted.collect()).await;
        let params = created.into_iter().zip(ids).map(|(created, id)| {
            let csr = Key::generate().csr(Some(&id)).into();
            let entry_id = created.entry.unwrap().id;
            NewX509svidParams { entry_id, csr }
        });
        Self {
            params: params.collect(),
            node,
        }
    }

    /// The CSRs that it sends.
    pub(crate) fn csrs(&self) -> Vec<Vec<u8>> {
        self.params.iter().map(|one| one.csr.to_vec()).collect()
    }

    /// Requests of `batch` items each that go round all entries.
    pub(crate) fn requests(&self, batch: usize) -> Vec<Bytes> {
        self.params
            .chunks(batch)
            .map(|params| {
                let params = params.to_vec();
                BatchNewX509svidRequest { params }.encode_to_vec().into()
            })
            .collect()
    }

    /// Sends one; every item must be issued. How many that were.
    pub(crate) async fn ask(&self, request: Bytes) -> usize {
        let mut answer = self.node.raw.call(BATCH_NEW, vec![request]).await;
        assert_eq!(answer.status.code(), Code::Ok, "{:?}", answer.status);
        let answer = BatchNewX509svidResponse::decode(answer.messages.remove(0)).unwrap();
        for result in &answer.results {
            let status = result.status.as_ref().unwrap();
            assert_eq!(status.code, 0, "{}", status.message);
        }
        answer.results.len()
    }

    /// Requests of one token each that go round all entries.
    pub(crate) fn token_requests(&self) -> Vec<Bytes> {
        let request = |one: &NewX509svidParams| NewJwtsvidRequest {
            entry_id: one.entry_id.clone(),
            audience: vec![AUDIENCE.to_owned()],
        };
        let all = self.params.iter().map(request);
        all.map(|request| request.encode_to_vec().into()).collect()
    }

    /// Sends one; the token must be signed. How many that were.
    pub(crate) async fn ask_token(&self, request: Bytes) -> usize {
        let answer = self.node.raw.call(NEW_TOKEN, vec![request]).await;
        assert_eq!(answer.status.code(), Code::Ok, "{:?}", answer.status);
        1
    }
}
