use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::id::SpiffeId;
use vane_identity::key::PrivateKey;
use vane_identity::lifetime::from_unix;
use vane_identity::x509_svid::{Role, X509Svid};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::check::CheckError;
use super::*;
use crate::key_manager::{KeyManager, Memory, SignRequest, SignatureFormat};

const NOW: i64 = 1_700_000_000;

/// A CA of its own with its key manager.
struct World {
    keys: Memory,
    root: Certificate,
    issuer: Issuer,
    ca_plan: CaPlan,
    ca_serial: Serial,
}

async fn sign(keys: &Memory, message: &[u8]) -> Vec<u8> {
    let request = SignRequest {
        key_ref: "ca",
        message,
        format: SignatureFormat::X509,
    };
    keys.sign(&[request]).await.unwrap().remove(0)
}

fn validity(seconds: u64) -> Validity {
    let cap = from_unix(NOW + 1_000_000);
    Validity::issued_at(from_unix(NOW), Duration::from_secs(seconds), cap)
}

async fn world(key_type: KeyType) -> World {
    let keys = Memory::new();
    let public_key = keys.generate("ca", key_type).await.unwrap();
    let ca_serial = Serial::random().unwrap();
    let ca_plan = CaPlan::new(
        TrustDomain::parse("example.org").unwrap(),
        &Subject::ca(&crate::subject::SubjectConfig::default()).unwrap(),
        public_key,
        key_type,
        validity(86_400),
        &ca_serial,
    );
    let tbs = ca_tbs(&ca_plan, &ca_serial);
    let root = assemble(&tbs, ca_plan.signature, &sign(&keys, &tbs).await);
    check::ca(&root, &tbs, &ca_plan, &ca_serial).unwrap();
    let issuer = Issuer::self_signed(&root, "ca", key_type).unwrap();
    World {
        keys,
        root,
        issuer,
        ca_plan,
        ca_serial,
    }
}

fn plan(dns_names: &[&str]) -> Plan {
    let dns_names: Vec<String> = dns_names.iter().map(|&name| name.to_owned()).collect();
    let subject = match dns_names.first() {
        Some(name) => Subject::svid().with_common_name(name),
        None => Subject::svid(),
    };
    Plan {
        spiffe_id: SpiffeId::parse("spiffe://example.org/web").unwrap(),
        dns_names,
        subject,
        public_key: PrivateKey::generate(KeyType::EcP256).unwrap().1,
        validity: validity(3600),
    }
}

struct Made {
    plan: Plan,
    serial: Serial,
    tbs: Vec<u8>,
    certificate: Certificate,
}

async fn leaf(world: &World, plan: Plan) -> Made {
    let serial = Serial::random().unwrap();
    let tbs = leaf_tbs(&plan, &world.issuer, &serial);
    let bits = sign(&world.keys, &tbs).await;
    let certificate = assemble(&tbs, world.issuer.signature, &bits);
    Made {
        plan,
        serial,
        tbs,
        certificate,
    }
}

fn parsed(certificate: &Certificate) -> X509Certificate<'_> {
    x509_parser::parse_x509_certificate(certificate.der())
        .unwrap()
        .1
}

/// Proves: X509-01, X509-04, X509-17, X509-20, X509-21, X509-25, X509-27, X509-28, X509-29, X509-30, ID-20.
#[tokio::test]
async fn a_leaf_has_the_shape_of_spire() {
    let world = world(KeyType::EcP256).await;
    let mut long = plan(&["a.example.org", "*.example.org"]);
    let path = format!("/{}", "x".repeat(2048 - "spiffe://example.org/".len()));
    long.spiffe_id = TrustDomain::parse("example.org")
        .unwrap()
        .with_path(&path)
        .unwrap();
    assert_eq!(long.spiffe_id.as_str().len(), 2048);
    for plan in [plan(&["a.example.org", "*.example.org"]), plan(&[]), long] {
        let made = leaf(&world, plan).await;
        let x509 = parsed(&made.certificate);
        assert_eq!(x509.issuer(), parsed(&world.root).subject());
        assert!(x509.subject().to_string().starts_with("C=US, O=SPIRE"));
        let usage = x509.key_usage().unwrap().unwrap();
        assert!(usage.critical);
        assert_eq!(
            usage.value.to_string(),
            "Digital Signature, Key Encipherment, Key Agreement"
        );
        let extended = x509.extended_key_usage().unwrap().unwrap();
        assert!(extended.value.server_auth && extended.value.client_auth);
        let basic = x509.basic_constraints().unwrap().unwrap();
        assert!(!basic.value.ca);
        let san = x509.subject_alternative_name().unwrap().unwrap();
        let uris: Vec<&GeneralName<'_>> = san
            .value
            .general_names
            .iter()
            .filter(|name| matches!(name, GeneralName::URI(_)))
            .collect();
        assert_eq!(uris, [&GeneralName::URI(made.plan.spiffe_id.as_str())]);
        assert_eq!(san.value.general_names.len(), 1 + made.plan.dns_names.len());
        assert_eq!(x509.validity().not_before.timestamp(), NOW - 10);
        assert_eq!(x509.validity().not_after.timestamp(), NOW + 3600);
    }
}

/// Proves: X509-09, X509-10, X509-11, X509-12, X509-15, X509-22, X509-23, X509-24, X509-32, X509-18, X509-48.
#[tokio::test]
async fn a_ca_has_the_shape_of_spire() {
    for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let world = world(key_type).await;
        let x509 = parsed(&world.root);
        let serial = world.ca_serial.decimal();
        let name = format!("C=US, O=SPIFFE, serialNumber={serial}");
        assert_eq!(x509.subject().to_string(), name);
        assert_eq!(x509.issuer(), x509.subject());
        let usage = x509.key_usage().unwrap().unwrap();
        assert!(usage.critical);
        assert_eq!(usage.value.flags, 1 << 5 | 1 << 6);
        let basic = x509.basic_constraints().unwrap().unwrap();
        assert!(basic.critical && basic.value.ca);
        assert_eq!(basic.value.path_len_constraint, None);
        let san = x509.subject_alternative_name().unwrap().unwrap();
        assert_eq!(
            san.value.general_names,
            [GeneralName::URI("spiffe://example.org")]
        );
        assert!(x509.extended_key_usage().unwrap().is_none());
        // Nothing else: name constraints neither.
        assert_eq!(x509.extensions().len(), 4);
        check::signature(&world.root, world.issuer.public_key.spki()).unwrap();
        let authority = X509Authority::new(world.root.clone());
        assert_eq!(authority.authority_id().unwrap(), world.issuer.authority_id);
    }
}

#[tokio::test]
async fn leaves_of_every_kind_of_ca_verify_with_the_bundle() {
    for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let world = world(key_type).await;
        let made = leaf(&world, plan(&["a.example.org"])).await;
        check::leaf(
            &made.certificate,
            &made.tbs,
            &made.plan,
            &world.issuer,
            &made.serial,
        )
        .unwrap();
        check::signature(&made.certificate, world.issuer.public_key.spki()).unwrap();
        let mut bundle = Bundle::empty(TrustDomain::parse("example.org").unwrap());
        bundle
            .x509_authorities
            .push(X509Authority::new(world.root.clone()));
        let svid = X509Svid::parse(vec![made.certificate]).unwrap();
        for role in [Role::Client, Role::Server] {
            bundle
                .anchors()
                .verify(svid.clone(), role, from_unix(NOW))
                .unwrap();
        }
        let late = bundle
            .anchors()
            .verify(svid, Role::Client, from_unix(NOW + 3601));
        assert!(late.is_err());
    }
}

/// Proves: X509-07.
#[tokio::test]
async fn an_empty_subject_makes_the_names_critical() {
    let world = world(KeyType::EcP256).await;
    let mut plan = plan(&[]);
    plan.subject = Subject::default();
    let made = leaf(&world, plan).await;
    let x509 = parsed(&made.certificate);
    assert!(x509.subject_alternative_name().unwrap().unwrap().critical);
    check::leaf(
        &made.certificate,
        &made.tbs,
        &made.plan,
        &world.issuer,
        &made.serial,
    )
    .unwrap();
}

#[tokio::test]
async fn the_self_check_finds_every_field_that_differs() {
    let world = world(KeyType::EcP256).await;
    let made = leaf(&world, plan(&["a.example.org"])).await;
    type Change = fn(&mut Plan, &mut Issuer, &mut Serial);
    let cases: [(Change, &str); 10] = [
        (
            |plan, _, _| plan.spiffe_id = SpiffeId::parse("spiffe://example.org/db").unwrap(),
            "subject alternative names",
        ),
        (
            |plan, _, _| plan.dns_names.clear(),
            "subject alternative names",
        ),
        (
            |plan, _, _| plan.dns_names.push("b.example.org".to_owned()),
            "subject alternative names",
        ),
        (|plan, _, _| plan.subject = Subject::svid(), "subject"),
        (
            |plan, _, _| plan.public_key = PrivateKey::generate(KeyType::EcP256).unwrap().1,
            "public key",
        ),
        (
            |plan, _, _| plan.validity.not_after += Duration::from_secs(1),
            "notAfter",
        ),
        (
            |plan, _, _| plan.validity.not_before -= Duration::from_secs(1),
            "notBefore",
        ),
        (
            |_, issuer, _| issuer.key_id[0] ^= 1,
            "authority key identifier",
        ),
        (|_, issuer, _| issuer.subject.push(0), "issuer"),
        (|_, _, serial| *serial = Serial([7; 16]), "serial number"),
    ];
    for (change, field) in cases {
        let (mut plan, mut issuer, mut serial) =
            (made.plan.clone(), world.issuer.clone(), made.serial);
        change(&mut plan, &mut issuer, &mut serial);
        let error = check::leaf(&made.certificate, &made.tbs, &plan, &issuer, &serial);
        assert_eq!(error, Err(CheckError::Differs(field)));
    }
    let mut tbs = made.tbs.clone();
    tbs.push(0);
    let error = check::leaf(
        &made.certificate,
        &tbs,
        &made.plan,
        &world.issuer,
        &made.serial,
    );
    assert_eq!(
        error,
        Err(CheckError::Differs("the bytes that were logged"))
    );
}

#[tokio::test]
async fn every_bit_that_flips_in_a_leaf_is_found() {
    let world = world(KeyType::EcP256).await;
    let made = leaf(&world, plan(&["a.example.org"])).await;
    for at in 0..made.certificate.der().len() {
        let mut der = made.certificate.der().to_vec();
        der[at] ^= 1;
        let flipped = Certificate::from_der(&der);
        let found = check::leaf(&flipped, &made.tbs, &made.plan, &world.issuer, &made.serial)
            .and_then(|()| check::signature(&flipped, world.issuer.public_key.spki()));
        assert!(found.is_err(), "byte {at}");
    }
}

#[tokio::test]
async fn a_ca_signed_by_another_key_does_not_pass() {
    let world = world(KeyType::EcP256).await;
    let tbs = ca_tbs(&world.ca_plan, &world.ca_serial);
    let other = Memory::new();
    other.generate("ca", KeyType::EcP256).await.unwrap();
    let forged = assemble(&tbs, Signature::EcdsaSha256, &sign(&other, &tbs).await);
    let error = check::ca(&forged, &tbs, &world.ca_plan, &world.ca_serial);
    assert_eq!(error, Err(CheckError::Signature));
}

#[tokio::test]
async fn a_leaf_of_another_writer_does_not_pass() {
    let world = world(KeyType::EcP256).await;
    let made = leaf(&world, plan(&[])).await;
    let key = KeyPair::generate().unwrap();
    let foreign = CertificateParams::default().self_signed(&key).unwrap();
    let foreign = Certificate::from_der(foreign.der());
    let error = check::leaf(&foreign, &made.tbs, &made.plan, &world.issuer, &made.serial);
    assert!(error.is_err());
}

#[test]
fn serials_are_random_and_at_most_128_bits() {
    let serials: Vec<Serial> = (0..64).map(|_| Serial::random().unwrap()).collect();
    for (index, one) in serials.iter().enumerate() {
        assert!((1..=16).contains(&one.bytes().len()));
        assert!(!serials[..index].contains(one));
    }
    let small = Serial(258u128.to_be_bytes());
    assert_eq!(
        (small.bytes(), small.decimal()),
        (&[1u8, 2][..], "258".to_owned())
    );
}
