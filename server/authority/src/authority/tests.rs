use vane_chassis::clock::Manual;
use vane_identity::bundle::Bundle;
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::{KeyType, PrivateKey, PublicKey};
use vane_identity::x509_svid::{Role, serial_decimal};
use vane_store::memory::MemoryKv;
use vane_store::tables::{authorities, bundles};

use super::rotate::MAX_OWN;
use super::*;
use crate::key_manager::{KeyInfo, Memory, SignRequest};
use crate::profile::SvidKind;

mod faults;
mod tokens;

struct World {
    clock: Arc<Manual>,
    kv: Arc<MemoryKv>,
    keys: Arc<dyn KeyManager>,
}

fn own() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn config() -> ProfileConfig {
    ProfileConfig::new(own())
}

impl World {
    fn new() -> Self {
        Self {
            clock: Arc::new(Manual::starting_now()),
            kv: Arc::new(MemoryKv::new().unwrap()),
            keys: Arc::new(Memory::default()),
        }
    }

    fn deps(&self) -> Deps {
        let clock: Arc<dyn Clock> = self.clock.clone();
        Deps {
            kv: self.kv.clone(),
            keys: Arc::clone(&self.keys),
            log: Arc::new(Log::off(Arc::clone(&clock))),
            server_id: "s1".to_owned(),
            clock,
        }
    }

    async fn open(&self) -> Arc<Authority> {
        Authority::open(&config(), self.deps()).await.unwrap()
    }

    async fn bundle(&self) -> Bundle {
        bundles::get(&*self.kv, &own())
            .await
            .unwrap()
            .unwrap()
            .value
    }
}

fn states_of(authority: &Arc<Authority>, kind: Kind) -> Vec<AuthorityState> {
    let all = authority.authorities().borrow().clone();
    let own = all.iter().filter(|record| Kind::of(record) == kind);
    own.map(|record| record.state).collect()
}

fn states(authority: &Arc<Authority>) -> Vec<AuthorityState> {
    states_of(authority, Kind::X509)
}

fn id_of(authority: &Arc<Authority>, kind: Kind, state: AuthorityState) -> String {
    let all = authority.authorities().borrow().clone();
    let mut own = all.iter().filter(|record| Kind::of(record) == kind);
    own.find(|record| record.state == state).unwrap().id.clone()
}

fn id_in(authority: &Arc<Authority>, state: AuthorityState) -> String {
    id_of(authority, Kind::X509, state)
}

fn request(path: &str, kind: SvidKind) -> X509Request {
    let (_, public_key) = PrivateKey::generate(KeyType::EcP256).unwrap();
    X509Request {
        kind,
        spiffe_id: SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap(),
        public_key,
        ttl: Duration::ZERO,
        caller: "test".to_owned(),
        entry_id: None,
    }
}

fn workload() -> SvidKind {
    SvidKind::Workload {
        dns_names: Vec::new(),
    }
}

/// Proves: ID-27, ID-28, ID-29, X509-09, X509-10, X509-11, X509-12, X509-15, X509-22, FED-04.
#[tokio::test]
async fn an_opened_server_has_one_active_authority_whose_certificate_is_in_the_bundle() {
    let world = World::new();
    let authority = world.open().await;
    assert_eq!(states(&authority), [AuthorityState::Active]);
    let bundle = world.bundle().await;
    assert_eq!(bundle.x509_authorities.len(), 1);
    assert_eq!(
        bundle.x509_authorities[0].authority_id().unwrap(),
        id_in(&authority, AuthorityState::Active)
    );
    let info = bundle.x509_authorities[0].certificate.info().unwrap();
    assert!(info.is_ca);
    assert_eq!(info.spiffe_id, Some(own().id()));
}

/// Proves: ID-26, ID-31, X509-01, X509-17, X509-27, X509-28.
#[tokio::test]
async fn an_issued_svid_verifies_against_the_stored_bundle() {
    let world = World::new();
    let authority = world.open().await;
    let requests = (0..130)
        .map(|n| request(&format!("/w/{n}"), workload()))
        .collect();
    let issued = authority.issue_x509(requests).await;
    let anchors = world.bundle().await.anchors();
    let mut serials = std::collections::HashSet::new();
    for (n, svid) in issued.into_iter().enumerate() {
        let svid = svid.unwrap();
        assert_eq!(
            svid.id().path(),
            format!("/w/{n}"),
            "results come in the order of the requests"
        );
        assert!(serials.insert(serial_decimal(&svid.leaf().serial)));
        anchors
            .verify(svid, Role::Client, world.clock.now())
            .unwrap();
    }
}

/// Proves: ID-35, X509-06.
#[tokio::test]
async fn one_request_that_is_refused_spoils_no_other() {
    let world = World::new();
    let authority = world.open().await;
    let foreign = X509Request {
        spiffe_id: SpiffeId::parse("spiffe://other.org/x").unwrap(),
        ..request("/x", workload())
    };
    let requests = vec![
        request("/a", workload()),
        foreign,
        request("/spire/server", workload()),
        request("/b", workload()),
    ];
    let issued = authority.issue_x509(requests).await;
    let good: Vec<bool> = issued.iter().map(std::result::Result::is_ok).collect();
    assert_eq!(good, [true, false, false, true]);
}

/// Proves: FED-02, FED-04, FED-05, TDB-09, TDB-10.
#[tokio::test]
async fn authorities_rotate_by_the_clock_and_each_is_published_before_it_signs() {
    let world = World::new();
    let authority = world.open().await;
    let first = id_in(&authority, AuthorityState::Active);
    let sequence = world.bundle().await.sequence_number;
    let hour = Duration::from_secs(3_600);

    world.clock.advance(12 * hour + Duration::from_secs(1));
    authority.catch_up().await.unwrap();
    assert_eq!(id_in(&authority, AuthorityState::Active), first);
    assert_eq!(world.bundle().await.x509_authorities.len(), 2);
    assert!(world.bundle().await.sequence_number > sequence);

    world.clock.advance(8 * hour);
    let next = id_in(&authority, AuthorityState::Prepared);
    authority.catch_up().await.unwrap();
    assert_eq!(id_in(&authority, AuthorityState::Active), next);
    let svid = authority
        .issue_x509(vec![request("/w", workload())])
        .await
        .remove(0)
        .unwrap();
    let signer = svid.leaf().authority_key_id.clone().unwrap();
    assert_eq!(
        signer
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>(),
        next
    );

    for _ in 0..6 {
        world.clock.advance(8 * hour);
        authority.catch_up().await.unwrap();
    }
    let left = world.bundle().await.x509_authorities;
    assert!(
        left.len() <= 3 && left.iter().all(|one| one.authority_id().unwrap() != first),
        "the first is gone"
    );
}

#[tokio::test]
async fn a_restart_continues_the_same_authorities() {
    let world = World::new();
    let first = id_in(&world.open().await, AuthorityState::Active);
    let again = world.open().await;
    assert_eq!(id_in(&again, AuthorityState::Active), first);
    assert_eq!(world.bundle().await.sequence_number, 2, "one for each kind");
}

#[tokio::test]
async fn a_restart_between_prepare_and_activate_resumes_there() {
    let world = World::new();
    let authority = world.open().await;
    let prepared = authority.prepare(Kind::X509).await.unwrap().id;
    drop(authority);
    let again = world.open().await;
    assert_eq!(id_in(&again, AuthorityState::Prepared), prepared);
    again.activate(Kind::X509, &prepared).await.unwrap();
    assert_eq!(id_in(&world.open().await, AuthorityState::Active), prepared);
}

#[tokio::test]
async fn an_authority_whose_key_is_gone_retires_and_another_takes_over() {
    let world = World::new();
    let authority = world.open().await;
    let first = id_in(&authority, AuthorityState::Active);
    world.keys.remove("x509-CA-A").await.unwrap();
    let again = world.open().await;
    assert_ne!(id_in(&again, AuthorityState::Active), first);
    assert_eq!(id_in(&again, AuthorityState::Old), first);
    assert_eq!(
        world.bundle().await.x509_authorities.len(),
        2,
        "what it signed still verifies"
    );
}

#[tokio::test]
async fn an_authority_is_tainted_only_when_old_and_revoked_only_when_tainted() {
    let world = World::new();
    let authority = world.open().await;
    let first = id_in(&authority, AuthorityState::Active);
    assert!(authority.taint(Kind::X509, &first).await.is_err());
    let next = authority.prepare(Kind::X509).await.unwrap().id;
    assert!(authority.activate(Kind::X509, &first).await.is_err());
    authority.activate(Kind::X509, &next).await.unwrap();
    assert!(authority.revoke(Kind::X509, &first).await.is_err());
    authority.taint(Kind::X509, &first).await.unwrap();
    let tainted: Vec<bool> = world
        .bundle()
        .await
        .x509_authorities
        .iter()
        .map(|one| one.tainted)
        .collect();
    assert_eq!(tainted, [true, false]);
    authority.revoke(Kind::X509, &first).await.unwrap();
    assert_eq!(world.bundle().await.x509_authorities.len(), 1);
    assert!(matches!(
        authority.taint(Kind::X509, "nobody").await,
        Err(AuthorityError::Unknown(_))
    ));
}

#[tokio::test]
async fn authorities_of_other_servers_are_left_alone_and_share_the_bundle() {
    let world = World::new();
    let one = world.open().await;
    let clock: Arc<dyn Clock> = world.clock.clone();
    let other = Deps {
        kv: world.kv.clone(),
        keys: Arc::new(Memory::default()),
        log: Arc::new(Log::off(Arc::clone(&clock))),
        server_id: "s2".to_owned(),
        clock,
    };
    let two = Authority::open(&config(), other).await.unwrap();
    assert_ne!(
        id_in(&one, AuthorityState::Active),
        id_in(&two, AuthorityState::Active)
    );
    assert_eq!(states(&world.open().await), [AuthorityState::Active]);
    assert_eq!(world.bundle().await.x509_authorities.len(), 2);
}

#[tokio::test]
async fn an_authority_goes_on_with_its_own_kind_of_key_when_the_configured_one_changes() {
    let world = World::new();
    drop(world.open().await);
    let other = ProfileConfig {
        ca_key_type: KeyType::EcP384,
        ..config()
    };
    let authority = Authority::open(&other, world.deps()).await.unwrap();
    issue_and_verify(&world, &authority).await;
    let next = authority.prepare(Kind::X509).await.unwrap();
    authority.activate(Kind::X509, &next.id).await.unwrap();
    issue_and_verify(&world, &authority).await;
    assert_eq!(
        published::public_key(&next).and_then(|key| x509::key_type_of(&key)),
        Some(KeyType::EcP384)
    );
}

async fn issue_and_verify(world: &World, authority: &Arc<Authority>) {
    let requests = (0..3).map(|n| request(&format!("/w/{n}"), workload()));
    let anchors = world.bundle().await.anchors();
    for svid in authority.issue_x509(requests.collect()).await {
        let now = world.clock.now();
        anchors.verify(svid.unwrap(), Role::Server, now).unwrap();
    }
}

#[tokio::test]
async fn a_certificate_that_left_the_bundle_is_put_back_at_start() {
    let world = World::new();
    drop(world.open().await);
    let row = bundles::get(&*world.kv, &own()).await.unwrap().unwrap();
    world.kv.commit(bundles::deletion(&row)).await.unwrap();
    let authority = world.open().await;
    assert_eq!(states(&authority), [AuthorityState::Active]);
    issue_and_verify(&world, &authority).await;
}

#[tokio::test]
async fn authorities_are_not_prepared_without_bound() {
    let world = World::new();
    let authority = world.open().await;
    for _ in 1..MAX_OWN {
        authority.prepare(Kind::X509).await.unwrap();
    }
    let error = authority.prepare(Kind::X509).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "32 authorities of this server are in the bundle already; revoke some"
    );
    assert_eq!(world.bundle().await.x509_authorities.len(), MAX_OWN);
    issue_and_verify(&world, &authority).await;
}

/// Replaces the key that signs by another one of its name before the first signature, as two
/// rotations within one batch would.
#[derive(Debug)]
struct Replacing(Memory);

#[async_trait::async_trait]
impl KeyManager for Replacing {
    async fn generate(&self, key_ref: &str, kind: KeyType) -> Result<PublicKey, KeyManagerError> {
        self.0.generate(key_ref, kind).await
    }

    async fn public_keys(&self) -> Result<Vec<KeyInfo>, KeyManagerError> {
        self.0.public_keys().await
    }

    async fn sign(&self, requests: &[SignRequest<'_>]) -> Result<Vec<Vec<u8>>, KeyManagerError> {
        if requests.len() > 1 {
            self.generate(requests[0].key_ref, KeyType::EcP256).await?;
        }
        self.0.sign(requests).await
    }

    async fn remove(&self, key_ref: &str) -> Result<(), KeyManagerError> {
        self.0.remove(key_ref).await
    }
}

#[tokio::test]
async fn no_signature_of_a_key_that_was_replaced_under_a_batch_gets_out() {
    let keys: Arc<dyn KeyManager> = Arc::new(Replacing(Memory::default()));
    let world = World {
        keys: Arc::clone(&keys),
        ..World::new()
    };
    let authority = world.open().await;
    let issuer = authority.active.load_full().unwrap();
    let requests: Vec<_> = (0..100).map(|_| request("/w", workload())).collect();
    let now = world.clock.now();
    let issued = authority
        .signer
        .issue(&*issuer, requests, now, || true)
        .await;
    assert!(
        issued
            .iter()
            .all(|one| matches!(one, Err(IssueError::Check(CheckError::Signature))))
    );
}

#[tokio::test]
async fn what_is_signed_stands_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(crate::log::FILE);
    let world = World::new();
    let clock: Arc<dyn Clock> = world.clock.clone();
    let deps = Deps {
        log: Arc::new(Log::open(&path, clock).unwrap()),
        ..world.deps()
    };
    let authority = Authority::open(&config(), deps).await.unwrap();
    let issued = authority
        .issue_x509(vec![request("/a", workload()), request("/b", workload())])
        .await;
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 4, "two authorities and two SVIDs");
    assert_eq!(lines[0]["spiffe_id"], "spiffe://example.org");
    assert_eq!(lines[1]["type"], "jwt_key");
    for (line, svid) in lines[2..].iter().zip(issued) {
        let svid = svid.unwrap();
        assert_eq!(line["serial"], serial_decimal(&svid.leaf().serial));
        assert_eq!(
            line["authority_id"],
            id_in(&authority, AuthorityState::Active)
        );
        assert_eq!(line["caller"], "test");
    }
}

#[tokio::test]
async fn the_loop_rotates_when_the_clock_passes_a_threshold_and_ends_when_told() {
    let world = World::new();
    let authority = world.open().await;
    let first = id_in(&authority, AuthorityState::Active);
    let mut published = authority.authorities();
    let stop = CancellationToken::new();
    let told = stop.clone();
    let rotate = Arc::clone(&authority).run(stop);
    let watch = async {
        world.clock.advance(Duration::from_secs(12 * 3_600 + 1));
        published.wait_for(|all| all.len() == 4).await.unwrap();
        world.clock.advance(Duration::from_secs(8 * 3_600));
        let next = |all: &Arc<[AuthorityRecord]>| {
            let mut x509 = all.iter().filter(|one| Kind::of(one) == Kind::X509);
            x509.any(|one| one.state == AuthorityState::Active && one.id != first)
        };
        published.wait_for(next).await.unwrap();
        told.cancel();
    };
    let both = async { tokio::join!(rotate, watch) };
    let (ended, ()) = tokio::time::timeout(Duration::from_secs(60), both)
        .await
        .unwrap();
    ended.unwrap();
}
