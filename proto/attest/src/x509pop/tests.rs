//! Both halves against each other, and against what an attacker sends.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber, SignatureAlgorithm,
};
use serde::Deserialize as _;
use tempfile::TempDir;
use vane_chassis::clock::{Clock as _, System};
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::id::TrustDomain;
use vane_identity::x509_svid::Certificate;

use super::wire::MAX_MESSAGE;
use super::*;
use crate::Round;
use crate::possession::NONCE;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn own() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn now() -> SystemTime {
    System.now()
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn ca(name: &str) -> Ca {
    Ca::self_signed(ca_params(name), KeyPair::generate().unwrap()).unwrap()
}

fn leaf_params(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "node-1");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(SerialNumber::from(vec![0x0a, 0xbc]));
    let uris = uris
        .iter()
        .map(|&uri| SanType::URI(uri.try_into().unwrap()));
    params.subject_alt_names = uris.collect();
    params
}

/// A node with its files.
struct Files {
    dir: TempDir,
    prover: Node,
}

impl Files {
    fn new(key: &KeyPair, chain: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = ProverConfig {
            private_key_path: dir.path().join("key.pem"),
            certificate_path: dir.path().join("cert.pem"),
            intermediates_path: None,
            spiffe_endpoint_socket: None,
        };
        std::fs::write(&config.private_key_path, key.serialize_pem()).unwrap();
        std::fs::write(&config.certificate_path, chain.concat()).unwrap();
        let prover = Node {
            config,
            key: Mutex::default(),
        };
        Self { dir, prover }
    }
}

fn node(ca: &Ca, params: &CertificateParams) -> Files {
    node_with(ca, params, &rcgen::PKCS_ECDSA_P256_SHA256)
}

fn node_with(ca: &Ca, params: &CertificateParams, kind: &'static SignatureAlgorithm) -> Files {
    let key = KeyPair::generate_for(kind).unwrap();
    let leaf = params.signed_by(&key, ca).unwrap();
    Files::new(&key, &[leaf.pem()])
}

fn deps(bundle: Option<Bundle>) -> Deps {
    let bundle = bundle.map(Arc::new);
    Deps {
        trust_domain: own(),
        bundle: Arc::new(move || bundle.clone()),
    }
}

fn gate_of(change: impl FnOnce(&mut VerifierConfig), cas: &[&Ca]) -> Result<Gate, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let pem: String = cas.iter().map(|ca| ca.pem()).collect();
    std::fs::write(&path, pem).unwrap();
    let mut config = VerifierConfig {
        ca_bundle_path: Some(path),
        ..VerifierConfig::default()
    };
    change(&mut config);
    Gate::new(config, &deps(None))
}

fn gate(cas: &[&Ca]) -> Gate {
    gate_of(|_| {}, cas).unwrap()
}

fn claim<'a>(evidence: &'a [u8], rounds: &'a [Round]) -> Claim<'a> {
    Claim {
        evidence,
        rounds,
        peer: Some("192.0.2.1".parse().unwrap()),
        now: now(),
    }
}

async fn challenged(gate: &Gate, evidence: &[u8]) -> Result<Vec<u8>, VerifyError> {
    match gate.verify(&claim(evidence, &[])).await? {
        Step::Challenge(challenge) => Ok(challenge),
        Step::Attested(_) => panic!("attested without a challenge"),
    }
}

async fn attest(gate: &Gate, prover: &Node) -> Result<Attested, VerifyError> {
    let evidence = prover.evidence().await.unwrap();
    let challenge = challenged(gate, &evidence).await?;
    let response = prover.answer(&challenge).await.unwrap();
    let round = Round {
        challenge,
        response,
    };
    match gate.verify(&claim(&evidence, &[round])).await? {
        Step::Attested(attested) => Ok(attested),
        Step::Challenge(_) => panic!("a second challenge"),
    }
}

fn refusal(outcome: Result<impl std::fmt::Debug, VerifyError>) -> String {
    let text = outcome.unwrap_err().to_string();
    let text = text.strip_prefix("nodeattestor(x509pop): ");
    text.expect("SPIRE's prefix").to_owned()
}

#[tokio::test]
async fn a_node_of_the_ca_becomes_the_agent_of_its_certificate() {
    let ca = ca("ca");
    let params = leaf_params(&["x509pop://example.org/rack/r1", "https://else.org/x"]);
    for kind in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P521_SHA256,
    ] {
        let files = node_with(&ca, &params, kind);
        let attested = attest(&gate(&[&ca]), &files.prover).await.unwrap();
        let leaf = certificates(&files.prover.config.certificate_path).unwrap();
        let print = possession::fingerprint(&leaf[0]);
        assert_eq!(attested.path, format!("/x509pop/{print}"));
        let root = possession::fingerprint(ca.der());
        let expected = [
            "subject:cn:node-1".to_owned(),
            format!("ca:fingerprint:{root}"),
            "serialnumber:0abc".to_owned(),
            "san:rack:r1".to_owned(),
        ];
        assert_eq!(attested.selectors, expected);
        assert!(matches!(attested.admission, Admission::Again));
    }
}

#[tokio::test]
async fn intermediates_lead_to_the_ca_and_have_their_fingerprints() {
    let root = ca("root");
    let key = KeyPair::generate().unwrap();
    let middle = Ca::signed_by(ca_params("middle"), key, &root).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = leaf_params(&[]).signed_by(&key, &middle).unwrap();
    let files = Files::new(&key, &[leaf.pem(), middle.pem()]);
    let attested = attest(&gate(&[&root]), &files.prover).await.unwrap();
    for der in [middle.der(), root.der()] {
        let print = format!("ca:fingerprint:{}", possession::fingerprint(der));
        assert!(attested.selectors.contains(&print));
    }
    // As SPIRE's agent: from a file of their own.
    let files = Files::new(&key, &[leaf.pem()]);
    let path = files.dir.path().join("more.pem");
    std::fs::write(&path, middle.pem()).unwrap();
    let prover = Node {
        config: ProverConfig {
            intermediates_path: Some(path),
            ..files.prover.config.clone()
        },
        key: Mutex::default(),
    };
    assert!(attest(&gate(&[&root]), &prover).await.is_ok());
    let without = attest(&gate(&[&root]), &files.prover).await;
    let text = "certificate verification failed: x509: certificate signed by unknown authority";
    assert_eq!(refusal(without), text);
    let limited = gate_of(|config| config.max_intermediates = 1, &[&root]).unwrap();
    let chain = [leaf.pem(), middle.pem(), middle.pem()];
    let long = Files::new(&key, &chain);
    let text = "too many intermediate certificates";
    assert_eq!(refusal(attest(&limited, &long.prover).await), text);
}

#[tokio::test]
async fn certificates_that_prove_nothing_have_each_their_error() {
    let (ours, other) = (ca("ca"), ca("ca"));
    let gate = gate(&[&ours]);
    let unknown = "certificate verification failed: x509: certificate signed by unknown authority";
    let foreign = attest(&gate, &node(&other, &leaf_params(&[])).prover).await;
    // Under the same name the signature is wrong, under another the CA is unknown.
    assert!(refusal(foreign).starts_with("certificate verification failed: x509: "));
    let foreign = attest(&gate, &node(&self::ca("other"), &leaf_params(&[])).prover).await;
    assert_eq!(refusal(foreign), unknown);

    let mut expired = leaf_params(&[]);
    expired.not_after = (now() - Duration::from_secs(60)).into();
    expired.not_before = (now() - Duration::from_secs(120)).into();
    let text = "certificate verification failed: x509: certificate has expired or is not yet valid";
    assert_eq!(
        refusal(attest(&gate, &node(&ours, &expired).prover).await),
        text
    );

    let mut unusable = leaf_params(&[]);
    unusable.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    let text = "unable to generate challenge: certificate not intended for digital signature use";
    assert_eq!(
        refusal(attest(&gate, &node(&ours, &unusable).prover).await),
        text
    );
}

#[tokio::test]
async fn a_root_that_expired_is_trusted_no_more() {
    let mut params = ca_params("old");
    params.not_after = (now() - Duration::from_secs(60)).into();
    let old = Ca::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let outcome = attest(&gate(&[&old]), &node(&old, &leaf_params(&[])).prover).await;
    let text = "certificate verification failed: x509: certificate has expired or is not yet valid";
    assert_eq!(refusal(outcome), text);
}

#[tokio::test]
async fn an_answer_is_good_for_its_challenge_and_for_its_key_only() {
    let ca = ca("ca");
    let gate = gate(&[&ca]);
    let (one, two) = (node(&ca, &leaf_params(&[])), node(&ca, &leaf_params(&[])));
    let evidence = one.prover.evidence().await.unwrap();
    two.prover.evidence().await.unwrap();
    let first = challenged(&gate, &evidence).await.unwrap();
    let second = challenged(&gate, &evidence).await.unwrap();
    assert_ne!(first, second, "every challenge is another");
    let answer = one.prover.answer(&first).await.unwrap();
    let judged = |challenge: &[u8], response: &[u8]| {
        let round = Round {
            challenge: challenge.to_vec(),
            response: response.to_vec(),
        };
        let (gate, evidence) = (&gate, &evidence);
        async move { gate.verify(&claim(evidence, &[round])).await.map(drop) }
    };
    assert!(judged(&first, &answer).await.is_ok());
    let failed = "challenge response verification failed: ";
    let text = format!("{failed}ECDSA signature verify failed");
    assert_eq!(refusal(judged(&second, &answer).await), text, "replayed");
    let stolen = two.prover.answer(&first).await.unwrap();
    assert_eq!(
        refusal(judged(&first, &stolen).await),
        text,
        "of another key"
    );

    let nonce = STANDARD.encode([0; 32]);
    let table = [
        (
            String::new(),
            "unable to unmarshal challenge response".to_owned(),
        ),
        ("{}".to_owned(), format!("{failed}expecting ECDSA response")),
        (
            format!(r#"{{"rsa_signature":{{"nonce":"{nonce}","signature":""}}}}"#),
            format!("{failed}expecting ECDSA response"),
        ),
        (
            r#"{"ecdsa_signature":{"nonce":"AA==","r":"AQ==","s":"AQ=="}}"#.to_owned(),
            format!("{failed}invalid response nonce"),
        ),
        (
            format!(r#"{{"ecdsa_signature":{{"nonce":"{nonce}","r":"","s":""}}}}"#),
            text.clone(),
        ),
        (
            format!(
                r#"{{"ecdsa_signature":{{"nonce":"{nonce}","r":"{}","s":"AQ=="}}}}"#,
                STANDARD.encode([1; 4096])
            ),
            text.clone(),
        ),
        (
            "x".repeat(MAX_MESSAGE + 1),
            "unable to unmarshal challenge response".to_owned(),
        ),
    ];
    for (response, text) in table {
        let outcome = judged(&first, response.as_bytes()).await;
        assert_eq!(refusal(outcome), text, "{response:.60}");
    }
}

#[tokio::test]
async fn evidence_that_is_none_is_refused_before_it_costs_anything() {
    let ca = ca("ca");
    let gate = gate(&[&ca]);
    let many = format!(
        r#"{{"certificates":[{}"AA=="]}}"#,
        r#""AA==","#.repeat(5_000)
    );
    let table = [
        ("x".to_owned(), "failed to unmarshal data"),
        ("{}".to_owned(), "no certificate to attest"),
        (
            r#"{"certificates":null}"#.to_owned(),
            "no certificate to attest",
        ),
        (
            r#"{"certificates":["AA=="]}"#.to_owned(),
            "unable to parse leaf certificate",
        ),
        (
            r#"{"certificates":["*"]}"#.to_owned(),
            "unable to parse leaf certificate",
        ),
        (many, "too many intermediate certificates"),
        (" ".repeat(MAX_MESSAGE + 1), "failed to unmarshal data"),
    ];
    for (evidence, text) in table {
        let outcome = challenged(&gate, evidence.as_bytes()).await;
        assert_eq!(refusal(outcome), text, "{evidence:.60}");
    }
}

static LONGEST: aws_lc_rs::signature::RsaSignatureEncoding = aws_lc_rs::signature::RSA_PSS_SHA256
    .with_pss_salt_length(aws_lc_rs::signature::RsaPssSaltLength::Max);

#[tokio::test]
async fn go_signs_rsa_with_the_longest_salt_and_others_with_a_short_one() {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    let key = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let public = possession::PublicKey {
        kind: possession::KeyKind::Rsa,
        bits: aws_lc_rs::signature::KeyPair::public_key(&key)
            .as_ref()
            .to_vec(),
    };
    let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).unwrap();
    let der = PrivateKeyDer::Pkcs8(der.as_ref().to_vec().into());
    let own = PrivateKey::read(&der, &public).unwrap();
    let (a, b) = ([1; NONCE], [2; NONCE]);
    let short = own.sign(&a, &b).unwrap();
    assert!(possession::verify(&public, &a, &b, &short));
    assert!(!possession::verify(&public, &b, &a, &short));
    let mut signature = vec![0; key.public_modulus_len()];
    let random = aws_lc_rs::rand::SystemRandom::new();
    key.sign(&LONGEST, &random, &[a, b].concat(), &mut signature)
        .unwrap();
    assert!(possession::verify(
        &public,
        &a,
        &b,
        &Signature::Rsa(signature)
    ));
}

#[tokio::test]
async fn in_mode_spiffe_the_own_bundle_is_trusted_and_the_path_behind_the_prefix_counts() {
    let ca = ca("spire");
    let mut bundle = Bundle::empty(own());
    let root = Certificate::from_der(ca.der());
    bundle.x509_authorities = vec![X509Authority::new(root)];
    let config = VerifierConfig {
        mode: Mode::Spiffe,
        ..VerifierConfig::default()
    };
    let gate = Gate::new(config.clone(), &deps(Some(bundle))).unwrap();
    let good = node(
        &ca,
        &leaf_params(&["spiffe://example.org/spire-exchange/rack/1"]),
    );
    let attested = attest(&gate, &good.prover).await.unwrap();
    assert_eq!(attested.path, "/x509pop/rack/1");
    let table = [
        (
            "spiffe://example.org/web",
            "x509 cert doesnt match SVID prefix",
        ),
        (
            "spiffe://example.org/spire-exchange/",
            "x509 cert doesnt match SVID prefix",
        ),
        (
            "spiffe://other.org/spire-exchange/a",
            "valid SVID x509 cert not found",
        ),
        (
            "spiffe://example.org.evil.org/spire-exchange/a",
            "valid SVID x509 cert not found",
        ),
        (
            "https://example.org/spire-exchange/a",
            "valid SVID x509 cert not found",
        ),
    ];
    for (uri, text) in table {
        let bad = node(&ca, &leaf_params(&[uri]));
        assert_eq!(refusal(attest(&gate, &bad.prover).await), text, "{uri}");
    }
    let empty = Gate::new(config, &deps(None)).unwrap();
    let text = "certificate verification failed: x509: certificate signed by unknown authority";
    assert_eq!(refusal(attest(&empty, &good.prover).await), text);
}

#[tokio::test]
async fn a_template_names_the_agent_and_an_address_may_be_wanted() {
    let ca = ca("ca");
    let named = |template: &'static str| {
        gate_of(
            |config| config.agent_path_template = Some(template.to_owned()),
            &[&ca],
        )
    };
    let files = node(&ca, &leaf_params(&["x509pop://example.org/rack/r1"]));
    let gate = named("/{{ .URISanSelectors.rack }}/{{ .Subject.CommonName | upper }}").unwrap();
    assert_eq!(
        attest(&gate, &files.prover).await.unwrap().path,
        "/r1/NODE-1"
    );
    let gate = named("/{{ .URISanSelectors.row }}").unwrap();
    let text = "failed to make spiffe id: there is no value for .URISanSelectors.row";
    assert_eq!(refusal(attest(&gate, &files.prover).await), text);
    assert!(named("/{{ .Nothing }}").is_err() && named("{{ .Fingerprint }}").is_err());

    let wanting = gate_of(|config| config.verify_client_ip = true, &[&ca]).unwrap();
    let text = "client IP 192.0.2.1 does not match any certificate IP SAN";
    assert_eq!(refusal(attest(&wanting, &files.prover).await), text);
    let mut params = leaf_params(&[]);
    let address = SanType::IpAddress("192.0.2.1".parse().unwrap());
    params.subject_alt_names.push(address);
    assert!(attest(&wanting, &node(&ca, &params).prover).await.is_ok());
}

#[test]
fn a_configuration_that_says_too_little_or_too_much_is_refused() {
    let ca = ca("ca");
    let error = |change: fn(&mut VerifierConfig)| gate_of(change, &[&ca]).unwrap_err().to_string();
    type Change = fn(&mut VerifierConfig);
    let table: [(Change, &str); 6] = [
        (|c| c.ca_bundle_path = None, "must be set"),
        (|c| c.ca_bundle_paths.push("/x".into()), "only one of"),
        (|c| c.mode = Mode::Spiffe, "cannot be set with mode"),
        (
            |c| c.max_intermediates = 0,
            "max_intermediates must be greater",
        ),
        (
            |c| c.spiffe_prefix = "x".to_owned(),
            "must begin with a slash",
        ),
        (
            |c| c.ca_bundle_path = Some("/nothing.pem".into()),
            "cannot read /nothing.pem",
        ),
    ];
    for (change, text) in table {
        assert!(error(change).contains(text), "{}", error(change));
    }
}

#[tokio::test]
async fn what_a_node_cannot_prove_itself_with_is_named_with_its_file() {
    let ca = ca("ca");
    let files = node(&ca, &leaf_params(&[]));
    let other = KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(&files.prover.config.private_key_path, other).unwrap();
    let error = files.prover.evidence().await.unwrap_err().to_string();
    assert!(
        error.ends_with("it is not the key of the certificate"),
        "{error}"
    );
    let none = files.prover.answer(b"{}").await.unwrap_err();
    assert!(
        matches!(none, ProveError::UnexpectedChallenge(_)),
        "nothing was sent"
    );
    std::fs::write(&files.prover.config.certificate_path, "").unwrap();
    let error = files.prover.evidence().await.unwrap_err();
    assert!(matches!(error, ProveError::NoCertificate { .. }));
    std::fs::remove_file(&files.prover.config.certificate_path).unwrap();
    let error = files.prover.evidence().await.unwrap_err().to_string();
    assert!(error.starts_with("cannot read "), "{error}");
}

#[test]
fn another_agents_socket_is_refused_with_the_way_to_use_its_svid() {
    let mut config = serde_json::json!({"private_key_path": "k", "certificate_path": "c"});
    assert!(ProverConfig::deserialize(&config).is_ok());
    config["spiffe_endpoint_socket"] = "unix:///run/vane/agent.sock".into();
    let refused = ProverConfig::deserialize(&config).unwrap_err().to_string();
    assert!(refused.contains("svid watch --write"), "{refused}");
}
