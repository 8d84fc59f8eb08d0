use rcgen::{CertificateParams, IsCa, KeyPair, SanType};
use vane_wire::workload::{X509svid, X509svidResponse};

use super::*;
use crate::svid::generation::swap;

/// A context with an identity for each of `paths`.
fn context(paths: &[&str]) -> X509Context {
    let svids = paths.iter().map(|path| {
        let id = format!("spiffe://example.org/{path}");
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::ExplicitNoCa;
        params.serial_number = Some(vec![1, 0].into());
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let leaf = params.self_signed(&key).unwrap().der().to_vec();
        let mut svid = X509svid::default();
        svid.spiffe_id = id;
        svid.bundle = leaf.clone().into();
        svid.x509_svid = leaf.into();
        svid.x509_svid_key = key.serialize_der();
        svid.hint = format!("hint of {path}");
        svid
    });
    let message = X509svidResponse {
        svids: svids.collect(),
        ..X509svidResponse::default()
    };
    X509Context::try_from(message).unwrap()
}

fn written(context: &X509Context, all: bool) -> Vec<(String, String)> {
    let dir = tempfile::tempdir().unwrap();
    swap(dir.path(), &files(context, all), System.now()).unwrap();
    let mut found: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|one| one.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    found.sort();
    found
}

#[test]
fn the_default_identity_is_written_alone_or_all_are_numbered() {
    let context = context(&["a", "b"]);
    let names = |all| -> Vec<String> {
        let files = written(&context, all).into_iter();
        files.map(|(name, _)| name).collect()
    };
    assert_eq!(names(false), ["bundle.pem", "svid.key", "svid.pem"]);
    assert_eq!(
        names(true),
        [
            "bundle.0.pem",
            "bundle.1.pem",
            "svid.0.key",
            "svid.0.pem",
            "svid.1.key",
            "svid.1.pem"
        ]
    );
    let files = written(&context, false);
    assert!(files[1].1.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert!(files[2].1.starts_with("-----BEGIN CERTIFICATE-----\n"));
    assert!(files[2].1.lines().all(|line| line.len() <= 64));
}

#[test]
fn what_is_printed_names_identity_serial_and_hint_and_no_key() {
    let context = context(&["a"]);
    let line = describe(&context.svids[0]);
    assert!(
        line.starts_with("spiffe://example.org/a  serial 256  expires "),
        "{line}"
    );
    assert!(line.ends_with("hint hint of a"), "{line}");
    let json = json(&context);
    let one = json["svids"][0].as_object().unwrap();
    let keys: Vec<_> = one.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["expires_at", "hint", "not_before", "serial", "spiffe_id"]
    );
    assert_eq!(one["serial"], "256");
}
