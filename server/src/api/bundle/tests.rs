//! Bundles over the wire.

use rcgen::{KeyPair, PublicKeyData as _};
use tonic::Code;
use tonic::transport::Channel;
use vane_store::kv::Kv as _;
use vane_wire::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use vane_wire::spire::api::server::bundle::v1::bundle_client::BundleClient;
use vane_wire::spire::api::server::bundle::v1::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchDeleteFederatedBundleRequest,
    BatchSetFederatedBundleRequest, BatchUpdateFederatedBundleRequest, CountBundlesRequest,
    GetBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
    PublishJwtAuthorityRequest,
};
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::server::entry::v1::{BatchCreateEntryRequest, GetEntryRequest};
use vane_wire::spire::api::types;

use crate::api::testing::{World, entry, own, refused, tls_as};

type Client = BundleClient<Channel>;

const PARENT: &str = "spiffe://example.org/spire/agent/join_token/a";

async fn client(world: &mut World) -> Client {
    BundleClient::new(world.local().await)
}

/// A CA of another trust domain.
fn ca(name: &str) -> types::X509Certificate {
    let key = KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let uri = format!("spiffe://{name}");
    params.subject_alt_names = vec![rcgen::SanType::URI(uri.as_str().try_into().unwrap())];
    let der = params.self_signed(&key).unwrap().der().to_vec();
    types::X509Certificate {
        asn1: der.into(),
        tainted: false,
    }
}

fn jwt_key(key_id: &str) -> types::JwtKey {
    let key = KeyPair::generate().unwrap();
    types::JwtKey {
        public_key: key.subject_public_key_info().into(),
        key_id: key_id.to_owned(),
        expires_at: 4_000_000_000,
        tainted: false,
    }
}

fn bundle(name: &str) -> types::Bundle {
    types::Bundle {
        trust_domain: name.to_owned(),
        x509_authorities: vec![ca(name)],
        jwt_authorities: vec![jwt_key("k1")],
        refresh_hint: 60,
        sequence_number: 42,
        wit_authorities: Vec::new(),
    }
}

async fn create(
    client: &mut Client,
    bundle: types::Bundle,
) -> (Code, String, Option<types::Bundle>) {
    let request = BatchCreateFederatedBundleRequest {
        bundle: vec![bundle],
        output_mask: None,
    };
    let answer = client.batch_create_federated_bundle(request).await.unwrap();
    let result = answer.into_inner().results.remove(0);
    shown(result.status, result.bundle)
}

async fn set(client: &mut Client, bundle: types::Bundle) -> (Code, String, Option<types::Bundle>) {
    let request = BatchSetFederatedBundleRequest {
        bundle: vec![bundle],
        output_mask: None,
    };
    let answer = client.batch_set_federated_bundle(request).await.unwrap();
    let result = answer.into_inner().results.remove(0);
    shown(result.status, result.bundle)
}

async fn update(
    client: &mut Client,
    bundle: types::Bundle,
    input_mask: Option<types::BundleMask>,
) -> (Code, String, Option<types::Bundle>) {
    let request = BatchUpdateFederatedBundleRequest {
        bundle: vec![bundle],
        input_mask,
        output_mask: None,
    };
    let answer = client.batch_update_federated_bundle(request).await.unwrap();
    let result = answer.into_inner().results.remove(0);
    shown(result.status, result.bundle)
}

async fn delete(client: &mut Client, name: &str, mode: Mode) -> (Code, String) {
    let request = BatchDeleteFederatedBundleRequest {
        trust_domains: vec![name.to_owned()],
        mode: mode.into(),
    };
    let answer = client.batch_delete_federated_bundle(request).await.unwrap();
    let result = answer.into_inner().results.remove(0);
    assert_eq!(result.trust_domain, name);
    let (code, text, _) = shown(result.status, None);
    (code, text)
}

fn shown(
    status: Option<types::Status>,
    bundle: Option<types::Bundle>,
) -> (Code, String, Option<types::Bundle>) {
    let status = status.unwrap();
    (status.code.into(), status.message, bundle)
}

fn no(code: Code, text: &str) -> (Code, String, Option<types::Bundle>) {
    (code, text.to_owned(), None)
}

async fn get(client: &mut Client, name: &str) -> Result<types::Bundle, tonic::Status> {
    let request = GetFederatedBundleRequest {
        trust_domain: name.to_owned(),
        output_mask: None,
    };
    let answer = client.get_federated_bundle(request).await?;
    Ok(answer.into_inner())
}

async fn count(client: &mut Client) -> i32 {
    let counted = client.count_bundles(CountBundlesRequest {}).await.unwrap();
    counted.into_inner().count
}

/// An entry that federates with `names`.
fn federating(path: &str, uid: u32, names: &[&str]) -> types::Entry {
    types::Entry {
        federates_with: names.iter().map(|&name| name.to_owned()).collect(),
        ..entry(path, PARENT, uid)
    }
}

/// Proves: TDB-03.
#[tokio::test]
async fn a_federated_bundle_is_kept_as_it_is_given() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let given = bundle("other.org");
    let (code, text, made) = create(&mut client, given.clone()).await;
    assert_eq!((code, text.as_str()), (Code::Ok, "OK"));
    assert_eq!(made.as_ref(), Some(&given));
    assert_eq!(get(&mut client, "other.org").await.unwrap(), given);
    assert_eq!(get(&mut client, "spiffe://other.org").await.unwrap(), given);
    assert_eq!(count(&mut client).await, 2);
    let again = create(&mut client, bundle("other.org")).await;
    assert_eq!(again, no(Code::AlreadyExists, "bundle already exists"));

    let mut next = bundle("other.org");
    next.x509_authorities[0].tainted = true;
    next.sequence_number = 7;
    let (_, _, set_to) = set(&mut client, next.clone()).await;
    next.x509_authorities[0].tainted = false;
    assert_eq!(set_to.as_ref(), Some(&next));
    let (_, _, new) = set(&mut client, bundle("third.org")).await;
    assert_eq!(new.unwrap().trust_domain, "third.org");
    assert_eq!(count(&mut client).await, 3);
    let actions: Vec<_> = world.log().iter().map(|l| l["action"].clone()).collect();
    assert!(actions.contains(&"Bundle/BatchCreateFederatedBundle".into()));
    assert!(actions.contains(&"Bundle/BatchSetFederatedBundle".into()));
}

#[tokio::test]
async fn an_update_changes_the_fields_of_its_mask() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let old = bundle("other.org");
    assert_eq!(
        update(&mut client, old.clone(), None).await,
        no(Code::NotFound, "bundle not found")
    );
    create(&mut client, old.clone()).await;
    let new = types::Bundle {
        refresh_hint: 9,
        sequence_number: 43,
        ..bundle("other.org")
    };
    let mask = types::BundleMask {
        refresh_hint: true,
        jwt_authorities: true,
        ..Default::default()
    };
    let (code, _, updated) = update(&mut client, new.clone(), Some(mask)).await;
    assert_eq!(code, Code::Ok);
    let want = types::Bundle {
        refresh_hint: 9,
        jwt_authorities: new.jwt_authorities.clone(),
        ..old
    };
    assert_eq!(updated, Some(want.clone()));
    let nothing = Some(types::BundleMask::default());
    let (_, _, same) = update(&mut client, bundle("other.org"), nothing).await;
    assert_eq!(same, Some(want));
    let (_, _, all) = update(&mut client, new.clone(), None).await;
    assert_eq!(all, Some(new));
}

#[tokio::test]
async fn what_is_no_foreign_bundle_is_refused_with_spires_texts() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let verbs = ["creating", "setting", "updating"];
    for verb in verbs {
        let mut send = async |bundle: types::Bundle| match verb {
            "creating" => create(&mut client, bundle).await,
            "setting" => set(&mut client, bundle).await,
            _ => update(&mut client, bundle, None).await,
        };
        let invalid = |text: &str| no(Code::InvalidArgument, text);
        let own =
            format!("{verb} a federated bundle for the server's own trust domain is not allowed");
        assert_eq!(send(bundle("example.org")).await, invalid(&own));
        let missing = "trust domain argument is not valid: trust domain is missing";
        let unnamed = types::Bundle {
            trust_domain: String::new(),
            ..bundle("x")
        };
        assert_eq!(send(unnamed).await, invalid(missing));
        let mut broken = bundle("other.org");
        broken.x509_authorities[0].asn1 = b"no certificate".as_slice().into();
        let (code, text, _) = send(broken).await;
        assert_eq!(code, Code::InvalidArgument);
        let start = "failed to convert bundle: unable to parse X.509 authority: ";
        assert!(text.starts_with(start), "{text}");
        let mut unnamed = bundle("other.org");
        unnamed.jwt_authorities[0].key_id.clear();
        let text = "failed to convert bundle: unable to parse JWT authority: missing key ID";
        assert_eq!(send(unnamed).await, invalid(text));
    }
    let invalid = |text: &str| (Code::InvalidArgument, text.to_owned());
    let own = "getting a federated bundle for the server's own trust domain is not allowed";
    assert_eq!(refused(get(&mut client, "example.org").await), invalid(own));
    let missing = (Code::NotFound, "bundle not found".to_owned());
    assert_eq!(refused(get(&mut client, "other.org").await), missing);
    let own = "removing the bundle for the server trust domain is not allowed";
    assert_eq!(
        delete(&mut client, "example.org", Mode::Delete).await,
        invalid(own)
    );
    assert_eq!(
        delete(&mut client, "other.org", Mode::Delete).await,
        missing
    );
    let request = BatchDeleteFederatedBundleRequest {
        trust_domains: Vec::new(),
        mode: 7,
    };
    let (code, text) = refused(client.batch_delete_federated_bundle(request).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(
        text.starts_with("failed to parse deletion mode: "),
        "{text}"
    );
}

#[tokio::test]
async fn federated_bundles_are_listed_in_pages() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    for name in ["c.org", "a.org", "b.org", "zz.org"] {
        create(&mut client, bundle(name)).await;
    }
    let mut page = async |page_size, page_token: &str| {
        let request = ListFederatedBundlesRequest {
            output_mask: Some(types::BundleMask {
                sequence_number: true,
                ..Default::default()
            }),
            page_size,
            page_token: page_token.to_owned(),
        };
        let answer = client.list_federated_bundles(request).await?.into_inner();
        let names = answer.bundles.iter().map(|bundle| {
            assert_eq!((bundle.sequence_number, bundle.refresh_hint), (42, 0));
            assert!(bundle.x509_authorities.is_empty());
            bundle.trust_domain.clone()
        });
        Ok::<_, tonic::Status>((names.collect::<Vec<_>>(), answer.next_page_token))
    };
    let (all, token) = page(0, "").await.unwrap();
    assert_eq!(
        (all.join(" "), token.as_str()),
        ("a.org b.org c.org zz.org".to_owned(), "")
    );
    let (first, token) = page(3, "").await.unwrap();
    assert_eq!(first, ["a.org", "b.org", "c.org"]);
    let (second, token) = page(3, &token).await.unwrap();
    assert_eq!(
        (second.join(" "), token.as_str()),
        ("zz.org".to_owned(), "")
    );
    let (_, token) = page(4, "").await.unwrap();
    assert_eq!(token, "", "nothing follows the last");
    let bad = page(1, "No Token").await;
    assert_eq!(
        refused(bad),
        (
            Code::InvalidArgument,
            "could not parse token 'No Token'".to_owned()
        )
    );
}

#[tokio::test]
async fn a_bundle_that_entries_federate_with_goes_only_with_a_word_about_them() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    for name in ["a.org", "b.org"] {
        create(&mut client, bundle(name)).await;
    }
    let both = world
        .entry(federating("/both", 1, &["a.org", "b.org"]))
        .await;
    let one = world.entry(federating("/one", 2, &["b.org"])).await;
    let text = "failed to delete federated bundle: \
                datastore-sql: cannot delete bundle; federated with 2 registration entries";
    assert_eq!(
        delete(&mut client, "b.org", Mode::Restrict).await,
        (Code::FailedPrecondition, text.to_owned())
    );
    let ok = (Code::Ok, "OK".to_owned());
    assert_eq!(delete(&mut client, "a.org", Mode::Dissociate).await, ok);
    let mut registry = EntryClient::new(world.local().await);
    let mut read = async |id: &str| {
        let id = id.to_owned();
        let request = GetEntryRequest {
            id,
            output_mask: None,
        };
        registry
            .get_entry(request)
            .await
            .map(tonic::Response::into_inner)
    };
    let now = read(&both.id).await.unwrap();
    assert_eq!(now.federates_with, ["b.org"]);
    assert_eq!(now.revision_number, both.revision_number + 1);
    assert_eq!(delete(&mut client, "b.org", Mode::Delete).await, ok);
    for id in [&both.id, &one.id] {
        assert_eq!(refused(read(id).await).0, Code::NotFound);
    }
    assert_eq!(count(&mut client).await, 1);
    create(&mut client, bundle("b.org")).await;
    assert_eq!(delete(&mut client, "b.org", Mode::Restrict).await, ok);
}

#[tokio::test]
async fn a_bundle_of_many_entries_goes_in_several_transactions() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    create(&mut client, bundle("a.org")).await;
    let mut registry = EntryClient::new(world.local().await);
    let entries = (0..130).map(|n| federating(&format!("/w{n}"), n, &["a.org"]));
    let request = BatchCreateEntryRequest {
        entries: entries.collect(),
        output_mask: None,
    };
    let made = registry.batch_create_entry(request).await.unwrap();
    let made = made.into_inner().results;
    assert!(
        made.iter()
            .all(|one| one.status.as_ref().unwrap().code == 0)
    );
    let before = world.parts.state.revision();
    let ok = (Code::Ok, "OK".to_owned());
    assert_eq!(delete(&mut client, "a.org", Mode::Delete).await, ok);
    assert!(world.parts.state.revision() >= before + 3);
    assert_eq!(world.parts.state.counts().entries, 0);
    let deleted = |line: &serde_json::Value| line["action"] == "Entry/BatchDeleteEntry";
    assert_eq!(world.log().iter().filter(|line| deleted(line)).count(), 130);
}

#[tokio::test]
async fn authorities_are_added_to_the_own_bundle_once() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let before = client
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap();
    let before = before.into_inner();
    let request = AppendBundleRequest {
        x509_authorities: vec![ca("example.org")],
        jwt_authorities: vec![jwt_key("theirs")],
        ..Default::default()
    };
    let mut after = before.clone();
    after
        .x509_authorities
        .extend(request.x509_authorities.clone());
    after
        .jwt_authorities
        .extend(request.jwt_authorities.clone());
    after.sequence_number += 1;
    for _ in 0..2 {
        let appended = client.append_bundle(request.clone()).await.unwrap();
        assert_eq!(appended.into_inner(), after);
    }
    let shown = client.get_bundle(GetBundleRequest::default()).await;
    assert_eq!(shown.unwrap().into_inner(), after);

    let nothing = client.append_bundle(AppendBundleRequest::default()).await;
    let invalid = |text: &str| (Code::InvalidArgument, text.to_owned());
    assert_eq!(refused(nothing), invalid("no authorities to append"));
    let taken = AppendBundleRequest {
        jwt_authorities: vec![jwt_key("theirs")],
        ..Default::default()
    };
    let text = "failed to append bundle: key ID \"theirs\" is that of another key";
    assert_eq!(refused(client.append_bundle(taken).await), invalid(text));
}

#[tokio::test]
async fn a_downstream_server_publishes_its_key_and_cannot_fill_the_bundle() {
    let mut world = World::new().await;
    let parent = "spiffe://example.org/spire/server";
    let nested = types::Entry {
        downstream: true,
        ..entry("/nested", parent, 2)
    };
    world.entry(nested).await;
    let id = own().with_path("/nested").unwrap();
    let transport = tls_as(&id, &world);
    let mut client = BundleClient::new(world.over(transport).await);
    let missing = client.publish_jwt_authority(PublishJwtAuthorityRequest::default());
    let text = "missing JWT authority".to_owned();
    assert_eq!(refused(missing.await), (Code::InvalidArgument, text));
    let key = jwt_key("nested");
    let publish = |key: types::JwtKey| PublishJwtAuthorityRequest {
        jwt_authority: Some(key),
    };
    let unnamed = types::JwtKey {
        key_id: String::new(),
        ..key.clone()
    };
    let refusal = refused(client.publish_jwt_authority(publish(unnamed)).await);
    let text = "invalid JWT authority: missing key ID".to_owned();
    assert_eq!(refusal, (Code::InvalidArgument, text));
    let answer = client.publish_jwt_authority(publish(key.clone())).await;
    let keys = answer.unwrap().into_inner().jwt_authorities;
    assert!(keys.contains(&key));
    let mut last = Ok(());
    for n in 0..200 {
        let key = jwt_key(&format!("k{n}"));
        last = client.publish_jwt_authority(publish(key)).await.map(drop);
        if last.is_err() {
            break;
        }
    }
    assert_eq!(refused(last).0, Code::ResourceExhausted);
    assert!(world.kv.get(b"b/example.org").await.unwrap().is_some());
}
