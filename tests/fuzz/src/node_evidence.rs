//! What nodes send to prove themselves (`x509pop`, `k8s_psat`), before anything is known of them.
//!
//! The input is a form, then the evidence: as it is, as certificates each behind its length, as the
//! known leaf with octets changed, or as the answer to a challenge that the known leaf got.
//! Nobody here has a key, so nothing may be attested; and only the leaf that the CA signed, octet
//! for octet, may be challenged.

#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt as _;
use libfuzzer_sys::fuzz_target;
use vane_attest::{Claim, Deps, Round, Step, Verifier, VerifyError, k8s_psat, x509pop};
use vane_chassis::builtin::Builtin;
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::id::TrustDomain;
use vane_identity::lifetime::from_unix;
use vane_identity::x509_svid::Certificate;

/// Until 2126; their keys are gone. The leaf is of spiffe://example.org/spire-exchange/node.
const CA: &[u8] = include_bytes!("node_evidence/ca.der");
const LEAF: &[u8] = include_bytes!("node_evidence/leaf.der");
/// 2030.
const NOW: i64 = 1_893_456_000;

static X509POP: LazyLock<Arc<dyn Verifier>> = LazyLock::new(|| {
    let config = x509pop::VerifierConfig {
        mode: x509pop::Mode::Spiffe,
        ..x509pop::VerifierConfig::default()
    };
    x509pop::Gate::open(config, &deps())
        .now_or_never()
        .unwrap()
        .unwrap()
});

/// No cluster: what is behind the evidence are answers of an API server.
static K8S_PSAT: LazyLock<Arc<dyn Verifier>> = LazyLock::new(|| {
    let config = k8s_psat::VerifierConfig {
        clusters: BTreeMap::new(),
    };
    k8s_psat::Clusters::open(config, &deps())
        .now_or_never()
        .unwrap()
        .unwrap()
});

fn deps() -> Deps {
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let mut bundle = Bundle::empty(trust_domain.clone());
    bundle
        .x509_authorities
        .push(X509Authority::new(Certificate::from_der(CA)));
    let bundle = Arc::new(bundle);
    Deps {
        trust_domain,
        bundle: Arc::new(move || Some(Arc::clone(&bundle))),
    }
}

fuzz_target!(|input: &[u8]| {
    let [form, rest @ ..] = input else {
        return;
    };
    match form % 4 {
        0 => {
            let refused = verify(&**K8S_PSAT, rest, &[]);
            assert!(refused.is_err(), "there is no cluster");
            judge(&verify(&**X509POP, rest, &[]), None);
        }
        1 => chain(&pieces(rest)),
        2 => chain(&[changed(rest)]),
        _ => answer(rest),
    }
});

fn verify(verifier: &dyn Verifier, evidence: &[u8], rounds: &[Round]) -> Result<Step, VerifyError> {
    let claim = Claim {
        evidence,
        rounds,
        peer: None,
        now: from_unix(NOW),
    };
    verifier
        .verify(&claim)
        .now_or_never()
        .expect("nobody is asked")
}

/// Nothing is attested; who is challenged showed `leaf`, and that is the known one.
fn judge(step: &Result<Step, VerifyError>, leaf: Option<&[u8]>) {
    match step {
        Ok(Step::Attested(attested)) => panic!("{attested:?} without a key"),
        Ok(Step::Challenge(_)) => assert!(leaf.is_none_or(|leaf| leaf == LEAF)),
        Err(_) => {}
    }
}

fn chain(certificates: &[Vec<u8>]) {
    let leaf = certificates.first().map_or(&[][..], Vec::as_slice);
    judge(
        &verify(&**X509POP, &evidence(certificates), &[]),
        Some(leaf),
    );
}

fn evidence(certificates: &[Vec<u8>]) -> Vec<u8> {
    let encoded: Vec<String> = certificates
        .iter()
        .map(|der| STANDARD.encode(der))
        .collect();
    serde_json::to_vec(&serde_json::json!({ "certificates": encoded })).unwrap()
}

fn pieces(mut input: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let [high, low, rest @ ..] = input {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (piece, behind) = rest.split_at(length);
        all.push(piece.to_vec());
        input = behind;
    }
    all
}

/// The known leaf with octets replaced: each three of the input say where and by what.
fn changed(input: &[u8]) -> Vec<u8> {
    let mut leaf = LEAF.to_vec();
    for edit in input.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % leaf.len();
        leaf[at] = edit[2];
    }
    leaf
}

fn answer(response: &[u8]) {
    let evidence = evidence(&[LEAF.to_vec()]);
    let Ok(Step::Challenge(challenge)) = verify(&**X509POP, &evidence, &[]) else {
        panic!("the known leaf is challenged");
    };
    let round = Round {
        challenge,
        response: response.to_vec(),
    };
    assert!(
        verify(&**X509POP, &evidence, &[round]).is_err(),
        "an answer without a key"
    );
}
