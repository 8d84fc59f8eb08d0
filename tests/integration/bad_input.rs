//! Wrong requests, generated from the descriptors: for every field of every served call what
//! can be wrong with it. The answer is a status with a text, or OK where that is legal; the
//! connection and the process stay, and a refused request has changed nothing.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;
use prost_reflect::{
    DynamicMessage, MessageDescriptor, MethodDescriptor, ReflectMessage as _, Value,
};
use tonic::Code;
use vane_tests::admin::{Admin, entry, id, selector};
use vane_tests::raw::{Answer, Raw};
use vane_tests::remote::{self, Key, Node, attest_request};
use vane_tests::variants::{Fault, Field, fields, variant};
use vane_tests::world::{Agent, World, own_selector, spiffe_id};
use vane_wire::descriptor_pool;
use vane_wire::spire::api::server::agent::v1 as agent;
use vane_wire::spire::api::server::bundle::v1 as bundle;
use vane_wire::spire::api::server::debug::v1 as debug;
use vane_wire::spire::api::server::entry::v1 as registry;
use vane_wire::spire::api::server::logger::v1 as logger;
use vane_wire::spire::api::server::svid::v1 as svid;
use vane_wire::spire::api::types;
use vane_wire::vane::sync::v1 as sync;

/// Over which connection a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    /// The admin socket.
    Admin,
    /// TLS without a certificate.
    Nobody,
    /// TLS with an agent's certificate.
    Node,
    /// TLS with the SVID of a downstream server.
    Nested,
    /// The agent's public socket.
    Workload,
}

/// A served call; of a oneof the arm that is looked at.
struct Call {
    path: &'static str,
    via: Via,
    arm: Option<&'static str>,
}

const fn call(path: &'static str, via: Via) -> Call {
    Call {
        path,
        via,
        arm: None,
    }
}

const fn arm(path: &'static str, via: Via, arm: &'static str) -> Call {
    Call {
        path,
        via,
        arm: Some(arm),
    }
}

/// The trust domain of a bundle that is always there.
const FEDERATED: &str = "federated.test";
const WATCH: &str = "vane.sync.v1.Sync/Watch";

const SERVER: &[Call] = &[
    call("spire.api.server.agent.v1.Agent/AttestAgent", Via::Nobody),
    call("spire.api.server.agent.v1.Agent/BanAgent", Via::Admin),
    call("spire.api.server.agent.v1.Agent/CountAgents", Via::Admin),
    call(
        "spire.api.server.agent.v1.Agent/CreateJoinToken",
        Via::Admin,
    ),
    call("spire.api.server.agent.v1.Agent/DeleteAgent", Via::Admin),
    call("spire.api.server.agent.v1.Agent/GetAgent", Via::Admin),
    call("spire.api.server.agent.v1.Agent/ListAgents", Via::Admin),
    call("spire.api.server.agent.v1.Agent/PostStatus", Via::Node),
    call("spire.api.server.agent.v1.Agent/RenewAgent", Via::Node),
    call("spire.api.server.bundle.v1.Bundle/AppendBundle", Via::Admin),
    call(
        "spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle",
        Via::Admin,
    ),
    call(
        "spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle",
        Via::Admin,
    ),
    call(
        "spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle",
        Via::Admin,
    ),
    call(
        "spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle",
        Via::Admin,
    ),
    call("spire.api.server.bundle.v1.Bundle/CountBundles", Via::Admin),
    call("spire.api.server.bundle.v1.Bundle/GetBundle", Via::Nobody),
    call(
        "spire.api.server.bundle.v1.Bundle/GetFederatedBundle",
        Via::Node,
    ),
    call(
        "spire.api.server.bundle.v1.Bundle/ListFederatedBundles",
        Via::Admin,
    ),
    call(
        "spire.api.server.bundle.v1.Bundle/PublishJWTAuthority",
        Via::Nested,
    ),
    call("spire.api.server.debug.v1.Debug/GetInfo", Via::Admin),
    call(
        "spire.api.server.entry.v1.Entry/BatchCreateEntry",
        Via::Admin,
    ),
    call(
        "spire.api.server.entry.v1.Entry/BatchDeleteEntry",
        Via::Admin,
    ),
    call(
        "spire.api.server.entry.v1.Entry/BatchUpdateEntry",
        Via::Admin,
    ),
    call("spire.api.server.entry.v1.Entry/CountEntries", Via::Admin),
    call("spire.api.server.entry.v1.Entry/GetEntry", Via::Admin),
    call("spire.api.server.entry.v1.Entry/ListEntries", Via::Admin),
    call(
        "spire.api.server.entry.v1.Entry/GetAuthorizedEntries",
        Via::Node,
    ),
    call(
        "spire.api.server.entry.v1.Entry/SyncAuthorizedEntries",
        Via::Node,
    ),
    call("spire.api.server.logger.v1.Logger/GetLogger", Via::Admin),
    call(
        "spire.api.server.logger.v1.Logger/ResetLogLevel",
        Via::Admin,
    ),
    call("spire.api.server.logger.v1.Logger/SetLogLevel", Via::Admin),
    call("spire.api.server.svid.v1.SVID/BatchNewX509SVID", Via::Node),
    call("spire.api.server.svid.v1.SVID/MintJWTSVID", Via::Admin),
    call("spire.api.server.svid.v1.SVID/MintX509SVID", Via::Admin),
    call("spire.api.server.svid.v1.SVID/NewJWTSVID", Via::Node),
    call(
        "spire.api.server.svid.v1.SVID/NewDownstreamX509CA",
        Via::Nested,
    ),
    call("vane.status.v1.Status/GetStatus", Via::Admin),
    arm(WATCH, Via::Node, "hello"),
    arm(WATCH, Via::Node, "need"),
    arm(WATCH, Via::Node, "ack"),
];

const WORKLOAD: &[Call] = &[
    call("SpiffeWorkloadAPI/FetchX509SVID", Via::Workload),
    call("SpiffeWorkloadAPI/FetchX509Bundles", Via::Workload),
    call("SpiffeWorkloadAPI/FetchJWTBundles", Via::Workload),
    // Not served yet, but their requests have fields: whoever calls gets a status.
    call("SpiffeWorkloadAPI/FetchJWTSVID", Via::Workload),
    call("SpiffeWorkloadAPI/ValidateJWTSVID", Via::Workload),
    call("SpiffeWorkloadAPI/FetchWITSVID", Via::Workload),
    call("SpiffeWorkloadAPI/FetchWITBundles", Via::Workload),
];

impl Call {
    fn method(&self) -> MethodDescriptor {
        let (service, name) = self.path.split_once('/').unwrap();
        let service = descriptor_pool().get_service_by_name(service).unwrap();
        let found = service.methods().find(|method| method.name() == name);
        found.unwrap_or_else(|| panic!("{} is in no descriptor", self.path))
    }

    fn fields(&self) -> Vec<Field> {
        let of_arm = |field: &Field| match self.arm {
            Some(arm) => field.to_string().split('.').next() == Some(arm),
            None => true,
        };
        let all = fields(&self.method().input());
        all.into_iter().filter(of_arm).collect()
    }

    fn name(&self) -> String {
        let name = self.path.rsplit('/').next().unwrap();
        self.arm
            .map_or(name.to_owned(), |arm| format!("{name}.{arm}"))
    }
}

/// A server with an agent, and a connection of each kind of caller.
struct Stage {
    world: World,
    agent: Agent,
    admin: Admin,
    local: Raw,
    nobody: Raw,
    node: Node,
    nested: Node,
    /// Authorities that are added again and again.
    authorities: (types::X509Certificate, types::JwtKey),
    workload: Raw,
    /// An entry that the node may ask an SVID for.
    entry_id: String,
    /// Makes names that were not there before.
    fresh: std::cell::Cell<u32>,
}

/// What a request could have changed.
#[derive(Debug, PartialEq)]
struct Registry {
    entries: Vec<types::Entry>,
    agents: Vec<types::Agent>,
    /// The own one first.
    bundles: Vec<types::Bundle>,
}

impl Stage {
    async fn set() -> Self {
        let world = World::start().await;
        let agent = world.agent("agent").await;
        let admin = world.admin().await;
        let address = remote::local(world.port());
        let node = Node::attest(address, &admin.token().await, &admin.bundle().await).await;
        let entry_id = admin
            .create(entry(
                &spiffe_id("/of-the-node"),
                &node.id,
                &[&own_selector()],
            ))
            .await;
        admin
            .create(entry(&spiffe_id("/own"), &agent.id, &[&own_selector()]))
            .await;
        let nested = types::Entry {
            downstream: true,
            ..entry(&spiffe_id("/nested"), &node.id, &["unix:uid:4294967293"])
        };
        admin.create(nested).await;
        let nested = Node::minted(address, &admin, &spiffe_id("/nested")).await;
        let authorities = (remote::ca(FEDERATED), remote::jwt_key("key"));
        let request = bundle::BatchSetFederatedBundleRequest {
            bundle: vec![federated(FEDERATED, &authorities)],
            output_mask: None,
        };
        let set = admin.bundles().batch_set_federated_bundle(request).await;
        set.unwrap();
        let public = vane_tests::admin::unix_channel(&agent.socket)
            .await
            .unwrap();
        Self {
            local: Raw::new(admin.channel()),
            nobody: Raw::new(remote::channel(address, remote::nobody()).await.unwrap()),
            workload: Raw::workload(public),
            world,
            agent,
            admin,
            node,
            nested,
            authorities,
            entry_id,
            fresh: std::cell::Cell::new(0),
        }
    }

    fn fresh(&self, what: &str) -> String {
        self.fresh.set(self.fresh.get() + 1);
        format!("{what}-{}", self.fresh.get())
    }

    async fn registry(&self) -> Registry {
        let entries = self
            .admin
            .entries()
            .list_entries(registry::ListEntriesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .entries;
        let mask = types::AgentMask {
            attestation_type: true,
            selectors: true,
            banned: true,
            can_reattest: true,
            ..types::AgentMask::default()
        };
        let request = agent::ListAgentsRequest {
            output_mask: Some(mask),
            ..agent::ListAgentsRequest::default()
        };
        let agents = self.admin.agents().list_agents(request).await.unwrap();
        let mut bundles = vec![self.admin.bundle().await];
        let request = bundle::ListFederatedBundlesRequest::default();
        let listed = self.admin.bundles().list_federated_bundles(request).await;
        bundles.extend(listed.unwrap().into_inner().bundles);
        Registry {
            entries,
            agents: agents.into_inner().agents,
            bundles,
        }
    }

    /// Attests an agent that nobody runs; its ID.
    async fn victim(&self) -> types::Spiffeid {
        let token = self.admin.token().await;
        remote::attest(&self.nobody, &token, &Key::generate())
            .await
            .unwrap();
        id(&spiffe_id(&format!("/spire/agent/join_token/{token}")))
    }

    /// An entry with every field that may be set.
    fn full_entry(&self) -> types::Entry {
        types::Entry {
            selectors: vec![
                selector("unix:uid:4294967294"),
                selector("unix:gid:4294967294"),
            ],
            x509_svid_ttl: 60,
            jwt_svid_ttl: 60,
            dns_names: vec!["a.example.org".to_owned(), "*.b.example.org".to_owned()],
            hint: "hint".to_owned(),
            expires_at: 4_000_000_000,
            additional_attributes: Some(types::entry::AdditionalAttributes {
                disable_x509_svid_prefetch: true,
                jwt_svid_include_jti: true,
            }),
            ..entry(
                &spiffe_id(&format!("/{}", self.fresh("w"))),
                &self.node.id,
                &[],
            )
        }
    }

    /// A request of `call` that is valid, now.
    async fn base(&self, call: &Call) -> DynamicMessage {
        let bytes = match call.name().as_str() {
            "AttestAgent" => {
                let key = Key::generate();
                attest_request(&self.admin.token().await, key.csr(None)).encode_to_vec()
            }
            "BanAgent" => agent::BanAgentRequest {
                id: Some(self.victim().await),
            }
            .encode_to_vec(),
            "DeleteAgent" => agent::DeleteAgentRequest {
                id: Some(self.victim().await),
            }
            .encode_to_vec(),
            "GetAgent" => agent::GetAgentRequest {
                id: Some(id(&self.agent.id)),
                output_mask: Some(types::AgentMask::default()),
            }
            .encode_to_vec(),
            "CountAgents" => {
                let filter = Some(count_filter(agent_filter()));
                agent::CountAgentsRequest { filter }.encode_to_vec()
            }
            "ListAgents" => agent::ListAgentsRequest {
                filter: Some(agent_filter()),
                output_mask: Some(types::AgentMask::default()),
                page_size: 10,
                page_token: "/spire/agent/join_token/a".to_owned(),
            }
            .encode_to_vec(),
            "CreateJoinToken" => agent::CreateJoinTokenRequest {
                ttl: 60,
                token: self.fresh("token"),
                agent_id: Some(id(&spiffe_id(&format!("/{}", self.fresh("alias"))))),
            }
            .encode_to_vec(),
            "PostStatus" => agent::PostStatusRequest {
                current_bundle_serial: 1,
                agent_version: "1".to_owned(),
            }
            .encode_to_vec(),
            "RenewAgent" => agent::RenewAgentRequest {
                params: Some(agent::AgentX509svidParams {
                    csr: Key::generate().csr(None).into(),
                }),
            }
            .encode_to_vec(),
            "GetBundle" => bundle::GetBundleRequest {
                output_mask: Some(types::BundleMask::default()),
            }
            .encode_to_vec(),
            "AppendBundle" => bundle::AppendBundleRequest {
                x509_authorities: vec![self.authorities.0.clone()],
                jwt_authorities: vec![self.authorities.1.clone()],
                output_mask: Some(types::BundleMask::default()),
                wit_authorities: Vec::new(),
            }
            .encode_to_vec(),
            "BatchCreateFederatedBundle" => bundle::BatchCreateFederatedBundleRequest {
                bundle: vec![federated(&self.fresh("new"), &self.authorities)],
                output_mask: Some(types::BundleMask::default()),
            }
            .encode_to_vec(),
            "BatchSetFederatedBundle" => bundle::BatchSetFederatedBundleRequest {
                bundle: vec![federated(&self.fresh("new"), &self.authorities)],
                output_mask: Some(types::BundleMask::default()),
            }
            .encode_to_vec(),
            "BatchUpdateFederatedBundle" => bundle::BatchUpdateFederatedBundleRequest {
                bundle: vec![federated(FEDERATED, &self.authorities)],
                input_mask: Some(vane_wire::convert::bundle::ALL_FIELDS),
                output_mask: Some(types::BundleMask::default()),
            }
            .encode_to_vec(),
            "BatchDeleteFederatedBundle" => {
                let name = self.fresh("old");
                let request = bundle::BatchSetFederatedBundleRequest {
                    bundle: vec![federated(&name, &self.authorities)],
                    output_mask: None,
                };
                let mut bundles = self.admin.bundles();
                bundles.batch_set_federated_bundle(request).await.unwrap();
                bundle::BatchDeleteFederatedBundleRequest {
                    trust_domains: vec![name],
                    mode: 1,
                }
                .encode_to_vec()
            }
            "GetFederatedBundle" => bundle::GetFederatedBundleRequest {
                trust_domain: FEDERATED.to_owned(),
                output_mask: Some(types::BundleMask::default()),
            }
            .encode_to_vec(),
            "ListFederatedBundles" => bundle::ListFederatedBundlesRequest {
                output_mask: Some(types::BundleMask::default()),
                page_size: 10,
                page_token: FEDERATED.to_owned(),
            }
            .encode_to_vec(),
            "PublishJWTAuthority" => bundle::PublishJwtAuthorityRequest {
                jwt_authority: Some(self.authorities.1.clone()),
            }
            .encode_to_vec(),
            "CountBundles" | "GetStatus" => Vec::new(),
            "GetInfo" => debug::GetInfoRequest {}.encode_to_vec(),
            "BatchCreateEntry" => registry::BatchCreateEntryRequest {
                entries: vec![self.full_entry()],
                output_mask: Some(types::EntryMask::default()),
            }
            .encode_to_vec(),
            "BatchUpdateEntry" => {
                let before = self.full_entry();
                let after = types::Entry {
                    id: self.admin.create(before.clone()).await,
                    hint: "changed".to_owned(),
                    ..before
                };
                registry::BatchUpdateEntryRequest {
                    entries: vec![after],
                    input_mask: Some(all_of_an_entry()),
                    output_mask: Some(types::EntryMask::default()),
                }
                .encode_to_vec()
            }
            "BatchDeleteEntry" => registry::BatchDeleteEntryRequest {
                ids: vec![self.admin.create(self.full_entry()).await],
            }
            .encode_to_vec(),
            "GetEntry" => registry::GetEntryRequest {
                id: self.entry_id.clone(),
                output_mask: Some(types::EntryMask::default()),
            }
            .encode_to_vec(),
            "CountEntries" => {
                let filter = Some(count_entries(entry_filter(&self.node.id)));
                registry::CountEntriesRequest { filter }.encode_to_vec()
            }
            "ListEntries" => registry::ListEntriesRequest {
                filter: Some(entry_filter(&self.node.id)),
                output_mask: Some(types::EntryMask::default()),
                page_size: 10,
                page_token: self.entry_id.clone(),
            }
            .encode_to_vec(),
            "BatchNewX509SVID" => svid::BatchNewX509svidRequest {
                params: vec![svid::NewX509svidParams {
                    entry_id: self.entry_id.clone(),
                    csr: Key::generate().csr(None).into(),
                }],
            }
            .encode_to_vec(),
            "MintX509SVID" => svid::MintX509svidRequest {
                csr: Key::generate().csr(Some(&spiffe_id("/minted"))).into(),
                ttl: 60,
            }
            .encode_to_vec(),
            "MintJWTSVID" => svid::MintJwtsvidRequest {
                id: Some(id(&spiffe_id("/minted"))),
                audience: vec!["a".to_owned(), "b".to_owned()],
                ttl: 60,
            }
            .encode_to_vec(),
            "NewJWTSVID" => svid::NewJwtsvidRequest {
                entry_id: self.entry_id.clone(),
                audience: vec!["a".to_owned(), "b".to_owned()],
            }
            .encode_to_vec(),
            "NewDownstreamX509CA" => svid::NewDownstreamX509caRequest {
                csr: Key::generate().csr(None).into(),
                preferred_ttl: 60,
            }
            .encode_to_vec(),
            "GetAuthorizedEntries" => registry::GetAuthorizedEntriesRequest {
                output_mask: Some(types::EntryMask::default()),
            }
            .encode_to_vec(),
            "SyncAuthorizedEntries" => registry::SyncAuthorizedEntriesRequest {
                output_mask: Some(with_revisions()),
                ids: Vec::new(),
            }
            .encode_to_vec(),
            "SetLogLevel" => logger::SetLogLevelRequest {
                new_level: types::LogLevel::Info.into(),
            }
            .encode_to_vec(),
            "GetLogger" | "ResetLogLevel" => Vec::new(),
            "Watch.hello" => hello().encode_to_vec(),
            "Watch.need" => need(vec![self.entry_id.clone()]).encode_to_vec(),
            "Watch.ack" => {
                let ack = sync::Ack {
                    revision: 1,
                    bundle_revision: 1,
                };
                watch(sync::watch_request::Request::Ack(ack)).encode_to_vec()
            }
            "FetchJWTSVID" => vane_wire::workload::JwtsvidRequest {
                audience: vec!["a".to_owned()],
                spiffe_id: spiffe_id("/own"),
            }
            .encode_to_vec(),
            "ValidateJWTSVID" => vane_wire::workload::ValidateJwtsvidRequest {
                audience: "a".to_owned(),
                svid: "a.b.c".to_owned(),
            }
            .encode_to_vec(),
            "FetchX509SVID" | "FetchX509Bundles" | "FetchJWTBundles" | "FetchWITSVID"
            | "FetchWITBundles" => Vec::new(),
            other => panic!("no base for {other}"),
        };
        DynamicMessage::decode(call.method().input(), bytes.as_slice()).unwrap()
    }

    /// Makes the call with `message` in the place of its request.
    async fn make(&self, call: &Call, message: Bytes) -> Answer {
        let path = format!("/{}", call.path);
        let raw = match call.via {
            Via::Admin => &self.local,
            Via::Nobody => &self.nobody,
            Via::Node => &self.node.raw,
            Via::Nested => &self.nested.raw,
            Via::Workload => &self.workload,
        };
        match call.arm {
            Some("hello") => {
                raw.until(&path, vec![message, nothing_more()], is_in_sync)
                    .await
            }
            Some(_) => {
                let hello = Bytes::from(hello().encode_to_vec());
                raw.until(&path, vec![hello, message, nothing_more()], is_in_sync)
                    .await
            }
            None if call.via == Via::Workload => raw.first(&path, message).await,
            None => raw.call(&path, vec![message]).await,
        }
    }

    /// Removes the entries and bundles of the case that was, `now` with those of the base.
    async fn tidy(&self, now: Registry) {
        let names = now.bundles.into_iter().skip(1).map(|one| one.trust_domain);
        let names: Vec<String> = names.filter(|name| name != FEDERATED).collect();
        if !names.is_empty() {
            let request = bundle::BatchDeleteFederatedBundleRequest {
                trust_domains: names,
                mode: 0,
            };
            let mut bundles = self.admin.bundles();
            bundles
                .batch_delete_federated_bundle(request)
                .await
                .unwrap();
        }
        let kept = ["/of-the-node", "/own", "/nested"].map(spiffe_id);
        let ids: Vec<String> = now
            .entries
            .into_iter()
            .filter(|one| {
                !kept
                    .iter()
                    .any(|kept| Some(&id(kept)) == one.spiffe_id.as_ref())
            })
            .map(|one| one.id)
            .collect();
        if !ids.is_empty() {
            let request = registry::BatchDeleteEntryRequest { ids };
            self.admin
                .entries()
                .batch_delete_entry(request)
                .await
                .unwrap();
        }
    }

    /// Whether the processes are those that were started, and never panicked.
    fn unharmed(&self, pids: (u32, u32)) {
        let now = (self.world.server().pid(), self.agent.process.pid());
        assert_eq!(now, pids);
        for pid in [now.0, now.1] {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            assert!(!stat.contains(") Z "), "{stat}");
        }
        for log in [self.world.server_log(), self.agent.log()] {
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}

fn federated(name: &str, authorities: &(types::X509Certificate, types::JwtKey)) -> types::Bundle {
    types::Bundle {
        trust_domain: name.to_owned(),
        x509_authorities: vec![authorities.0.clone()],
        jwt_authorities: vec![authorities.1.clone()],
        refresh_hint: 60,
        sequence_number: 1,
        wit_authorities: Vec::new(),
    }
}

fn agent_filter() -> agent::list_agents_request::Filter {
    agent::list_agents_request::Filter {
        by_attestation_type: "join_token".to_owned(),
        by_selector_match: Some(types::SelectorMatch {
            selectors: vec![selector("a:1")],
            r#match: 2,
        }),
        by_banned: Some(false),
        by_can_reattest: Some(false),
        by_expires_before: "2099-01-01 00:00:00 +0000 UTC".to_owned(),
    }
}

fn count_filter(filter: agent::list_agents_request::Filter) -> agent::count_agents_request::Filter {
    agent::count_agents_request::Filter::decode(filter.encode_to_vec().as_slice()).unwrap()
}

fn entry_filter(parent: &str) -> registry::list_entries_request::Filter {
    registry::list_entries_request::Filter {
        by_spiffe_id: Some(id(&spiffe_id("/of-the-node"))),
        by_parent_id: Some(id(parent)),
        by_selectors: Some(types::SelectorMatch {
            selectors: vec![selector("a:1")],
            r#match: 2,
        }),
        by_federates_with: Some(types::FederatesWithMatch {
            trust_domains: vec!["domain.test".to_owned()],
            r#match: 2,
        }),
        by_hint: Some("hint".to_owned()),
        by_downstream: Some(false),
    }
}

fn count_entries(
    filter: registry::list_entries_request::Filter,
) -> registry::count_entries_request::Filter {
    registry::count_entries_request::Filter::decode(filter.encode_to_vec().as_slice()).unwrap()
}

fn all_of_an_entry() -> types::EntryMask {
    let mut mask = DynamicMessage::new(
        descriptor_pool()
            .get_message_by_name("spire.api.types.EntryMask")
            .unwrap(),
    );
    for field in mask.descriptor().fields() {
        mask.set_field(&field, Value::Bool(true));
    }
    mask.transcode_to().unwrap()
}

/// A set without revisions cannot be followed, so that mask is refused.
fn with_revisions() -> types::EntryMask {
    types::EntryMask {
        revision_number: true,
        ..types::EntryMask::default()
    }
}

fn watch(request: sync::watch_request::Request) -> sync::WatchRequest {
    sync::WatchRequest {
        request: Some(request),
    }
}

fn hello() -> sync::WatchRequest {
    let hello = sync::Hello {
        agent_version: "1".to_owned(),
        ..sync::Hello::default()
    };
    watch(sync::watch_request::Request::Hello(hello))
}

fn need(entry_ids: Vec<String>) -> sync::WatchRequest {
    watch(sync::watch_request::Request::Need(sync::Need { entry_ids }))
}

fn nothing_more() -> Bytes {
    need(Vec::new()).encode_to_vec().into()
}

fn is_in_sync(got: &[Bytes]) -> bool {
    got.last().is_some_and(|last| {
        let message = sync::WatchResponse::decode(last.clone()).unwrap();
        matches!(
            message.response,
            Some(sync::watch_response::Response::InSync(_))
        )
    })
}

/// What became of a request: how many items passed, or that it did as a whole, and the
/// refusals.
struct Outcome {
    passed: usize,
    refusals: Vec<(i32, String)>,
}

impl Outcome {
    fn of(answer: &Answer, output: &MessageDescriptor) -> Self {
        if answer.status.code() != Code::Ok {
            let refusal = (
                answer.status.code() as i32,
                answer.status.message().to_owned(),
            );
            return Self {
                passed: 0,
                refusals: vec![refusal],
            };
        }
        let Some(items) = results(answer, output) else {
            return Self {
                passed: 1,
                refusals: Vec::new(),
            };
        };
        let (good, bad): (Vec<_>, Vec<_>) = items.into_iter().partition(|(code, _)| *code == 0);
        Self {
            passed: good.len(),
            refusals: bad,
        }
    }

    fn is_refused(&self) -> bool {
        self.passed == 0 && !self.refusals.is_empty()
    }

    fn shown(&self) -> String {
        match self.refusals.first() {
            Some((code, text)) => {
                let text: String = text.chars().take(110).collect();
                let more = self.refusals.len() - 1;
                let more = if more > 0 {
                    format!(" (and {more} more)")
                } else {
                    String::new()
                };
                format!("{:?}: {text}{more}", Code::from_i32(*code))
            }
            None => "ok".to_owned(),
        }
    }
}

/// Code and text of each item of a batch's answer; None when it is no batch.
fn results(answer: &Answer, output: &MessageDescriptor) -> Option<Vec<(i32, String)>> {
    output.get_field_by_name("results")?;
    let message = answer.messages.first().expect("an answer comes with OK");
    let message = DynamicMessage::decode(output.clone(), message.clone()).unwrap();
    let results = message.get_field_by_name("results")?.into_owned();
    let status = |item: &Value| {
        let status = item.as_message()?.get_field_by_name("status")?.into_owned();
        let status: types::Status = status.as_message()?.transcode_to().ok()?;
        Some((status.code, status.message))
    };
    results.as_list()?.iter().map(status).collect()
}

/// Whether a fault must be refused. Everything else may pass: an optional field that is not
/// there, a number without bounds, a field whose last occurrence counts.
fn must_be_refused(call: &Call, field: &str, fault: Fault) -> bool {
    let last = field.rsplit('.').next().unwrap();
    let in_mask = field.contains("_mask");
    match fault {
        Fault::WrongType => true,
        Fault::Foreign => {
            let id = [
                "spiffe_id",
                "parent_id",
                "agent_id",
                "id",
                "by_spiffe_id",
                "by_parent_id",
            ];
            let server = call.via == Via::Admin;
            // The bundles of others are what federation is about.
            let trust_domain = last == "trust_domain" && !call.path.contains(".bundle.");
            let minted = call.name() == "MintX509SVID" && last == "csr";
            server && !in_mask && (trust_domain || minted || id.contains(&last))
        }
        Fault::Over => {
            let bounded = [
                "trust_domain",
                "path",
                "type",
                "selectors",
                "dns_names",
                "hint",
                "federates_with",
                "trust_domains",
                "csr",
                "token",
                "payload",
                "agent_version",
                "entries",
                "ids",
                "params",
                "entry_id",
                "epoch",
                "set_digest",
                "bundle_digest",
            ];
            let message_params = field == "params" && call.name() != "BatchNewX509SVID";
            // Nobody reads the version in a Hello: PostStatus tells it.
            let unread = field == "hello.agent_version";
            bounded.contains(&last) && !in_mask && !message_params && !unread
                || last == "value" && field.contains("selectors")
        }
        Fault::LongItem => !field.starts_with("need"),
        // A preference below zero is none, as SPIRE has it.
        Fault::Negative => last.contains("ttl") && last != "preferred_ttl",
        Fault::Absent | Fault::Empty | Fault::ManyEmpty => is_required(call, field),
        Fault::Many => false,
    }
}

/// Fields without which a request says nothing.
fn is_required(call: &Call, field: &str) -> bool {
    match call.name().as_str() {
        "AttestAgent" => field != "challenge_response",
        "BanAgent" | "DeleteAgent" => true,
        "GetAgent" => field.starts_with("id"),
        "CreateJoinToken" => field == "ttl" || field == "agent_id.path",
        "RenewAgent" | "BatchNewX509SVID" => true,
        "MintX509SVID" | "NewDownstreamX509CA" => field == "csr",
        "GetFederatedBundle" => field == "trust_domain",
        "BatchCreateFederatedBundle" | "BatchSetFederatedBundle" | "BatchUpdateFederatedBundle" => {
            field == "bundle.trust_domain"
        }
        "PublishJWTAuthority" => [
            "jwt_authority",
            "jwt_authority.public_key",
            "jwt_authority.key_id",
        ]
        .contains(&field),
        "SetLogLevel" => true,
        "GetEntry" => field == "id",
        "BatchCreateEntry" | "BatchUpdateEntry" => {
            let inside = ["spiffe_id", "parent_id", "selectors"];
            let inside = inside
                .iter()
                .any(|one| field.starts_with(&format!("entries.{one}")));
            inside || field == "entries.id" && call.name() == "BatchUpdateEntry"
        }
        _ => false,
    }
}

/// Codes with which a request may be refused. INTERNAL is what gRPC says of bytes that are no
/// message, and SPIRE of a few things that are the caller's fault.
fn is_a_refusal(code: i32, text: &str) -> bool {
    match Code::from_i32(code) {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Unimplemented => true,
        Code::Internal => {
            let known = [
                "decode Protobuf message",
                "federated bundle",
                "already",
                "Unexpected EOF",
            ];
            known.iter().any(|one| text.contains(one))
        }
        _ => false,
    }
}

/// How many cases there were, of how many fields, and what became of them.
#[derive(Default)]
struct Tally {
    fields: usize,
    cases: usize,
    refused: usize,
}

impl Tally {
    fn done(&self, what: &str) {
        let Self {
            fields,
            cases,
            refused,
        } = self;
        println!("{what}: {cases} cases of {fields} fields, {refused} refused");
        assert!(*cases >= 3 * fields, "{cases} cases of {fields} fields");
    }
}

/// A token that was refused was not made either: it can be made now.
async fn token_is_free(stage: &Stage, refused: &Bytes) {
    let Ok(request) = agent::CreateJoinTokenRequest::decode(refused.clone()) else {
        return;
    };
    if !request.token.starts_with("token-") {
        return;
    }
    let request = agent::CreateJoinTokenRequest {
        ttl: 1,
        token: request.token,
        agent_id: None,
    };
    let made = stage
        .admin
        .agents()
        .create_join_token(request.clone())
        .await;
    made.unwrap_or_else(|status| panic!("{request:?}: {status}"));
}

/// One request: made, judged, and its traces removed.
async fn case(stage: &Stage, call: &Call, label: &str, must: bool, message: Bytes) -> bool {
    let before = stage.registry().await;
    let answer = stage.make(call, message.clone()).await;
    let after = stage.registry().await;
    let outcome = Outcome::of(&answer, &call.method().output());
    let what = format!("{} {label}: {}", call.name(), outcome.shown());
    println!("{what}");
    assert!(
        !answer.broke(),
        "the connection broke: {what}: {:?}",
        answer.status
    );
    for (code, text) in &outcome.refusals {
        assert!(!text.is_empty(), "no text: {what}");
        assert!(is_a_refusal(*code, text), "no refusal: {what}");
    }
    if outcome.passed == 0 {
        assert_eq!(before, after, "changed something: {what}");
        if call.name() == "CreateJoinToken" {
            token_is_free(stage, &message).await;
        }
    }
    let changed = after.entries.len().abs_diff(before.entries.len());
    match call.name().as_str() {
        "BatchCreateEntry" | "BatchDeleteEntry" => assert_eq!(changed, outcome.passed, "{what}"),
        "CreateJoinToken" => assert!(changed <= outcome.passed, "{what}"),
        _ => assert_eq!(changed, 0, "{what}"),
    }
    if must {
        assert!(outcome.is_refused(), "passed: {what}");
    }
    stage.tidy(after).await;
    outcome.is_refused()
}

/// Every field of every call, and the message as a whole.
async fn all_cases(stage: &Stage, calls: &[Call]) -> Tally {
    let mut tally = Tally::default();
    for call in calls {
        let valid = stage.base(call).await.encode_to_vec();
        let served = call.via != Via::Workload;
        let refused = case(stage, call, "as it should be", false, valid.into()).await;
        assert!(
            !served || !refused,
            "the base of {} is refused",
            call.name()
        );
        for field in call.fields() {
            tally.fields += 1;
            for fault in Fault::ALL {
                let base = stage.base(call).await;
                let Some(message) = variant(&base, &field, fault) else {
                    continue;
                };
                let name = field.to_string();
                let must = served && must_be_refused(call, &name, fault);
                let label = format!("{name} {fault:?}");
                tally.cases += 1;
                tally.refused += usize::from(case(stage, call, &label, must, message).await);
            }
        }
        for (label, message) in broken(&stage.base(call).await) {
            tally.cases += 1;
            let must = label != "unknown fields";
            tally.refused += usize::from(case(stage, call, label, must, message).await);
        }
    }
    tally
}

/// Bytes that are no message at all, or one of tomorrow.
fn broken(base: &DynamicMessage) -> Vec<(&'static str, Bytes)> {
    let valid = base.encode_to_vec();
    let mut open = valid.clone();
    // Field 1 of a length that is never reached.
    open.extend([0x0a, 0xff, 0xff, 0x03, 0x00]);
    let mut unknown = valid;
    // Field 1000, a varint.
    unknown.extend([0xc0, 0x3e, 0x01].repeat(1_000));
    vec![
        ("cut off", open.into()),
        ("no message", vec![0xff; 64].into()),
        ("five megabytes", vec![0x0a; 5 << 20].into()),
        ("unknown fields", unknown.into()),
    ]
}

#[tokio::test]
async fn a_wrong_request_to_the_server_is_refused_with_a_text_and_changes_nothing() {
    let stage = Stage::set().await;
    let pids = (stage.world.server().pid(), stage.agent.process.pid());
    let tally = all_cases(&stage, SERVER).await;
    stage.unharmed(pids);
    tally.done("server");
}

#[tokio::test]
async fn a_wrong_request_to_the_workload_api_is_refused_with_a_text() {
    let stage = Stage::set().await;
    let pids = (stage.world.server().pid(), stage.agent.process.pid());
    let tally = all_cases(&stage, WORKLOAD).await;
    stage.unharmed(pids);
    tally.done("Workload API");
}

/// Nobody forgets a call here that is served: what stands in no list above is UNIMPLEMENTED.
#[tokio::test]
async fn a_call_that_is_not_tested_here_is_not_served() {
    let stage = Stage::set().await;
    let tested: BTreeSet<String> = SERVER
        .iter()
        .map(|call| format!("/{}", call.path))
        .collect();
    let (mut unserved, mut denied) = (BTreeSet::new(), BTreeSet::new());
    for (path, _) in vane_server::caller::METHODS {
        if tested.contains(*path) || path.starts_with("/grpc.health") {
            continue;
        }
        for raw in [&stage.local, &stage.node.raw] {
            let answer = raw.call(path, vec![Bytes::new()]).await;
            match answer.status.code() {
                Code::PermissionDenied => drop(denied.insert(*path)),
                Code::Unimplemented => drop(unserved.insert(*path)),
                _ => panic!("{path} is served: {:?}", answer.status),
            }
            assert!(!answer.status.message().is_empty(), "{path}");
        }
    }
    println!(
        "{} calls are tested, {} are not served",
        tested.len(),
        unserved.len()
    );
    // Only downstream servers may call these, and there is none here.
    let downstream: Vec<&str> = denied.difference(&unserved).copied().collect();
    assert_eq!(
        downstream,
        ["/spire.api.server.bundle.v1.Bundle/PublishWITAuthority",]
    );
    let health = 3;
    assert_eq!(
        tested.len() + unserved.len() + downstream.len() + health,
        vane_server::caller::METHODS.len()
    );
}
