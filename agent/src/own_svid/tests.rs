use std::os::unix::fs::PermissionsExt as _;

use rcgen::{CertificateParams, IsCa, KeyPair, SanType};
use vane_chassis::files::private_dir;
use vane_identity::bundle::X509Authority;

use super::*;

const ID: &str = "spiffe://example.org/spire/agent/join_token/t";

fn own() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn svid() -> OwnSvid {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let leaf = Certificate::from_der(params.self_signed(&key).unwrap().der());
    OwnSvid::new(
        vec![leaf],
        PrivateKey::from_pkcs8(key.serialize_der()),
        false,
        from_unix(1_800_000_000),
    )
    .unwrap()
}

fn disk(dir: &std::path::Path) -> Disk {
    Disk::new(private_dir(&dir.join("agent")).unwrap(), own())
}

#[test]
fn svid_key_and_bundle_come_back_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, svid) = (disk(dir.path()), svid());
    let mut bundle = Bundle::empty(own());
    bundle.x509_authorities = vec![X509Authority::new(svid.chain[0].clone())];
    disk.keep_key(&svid.key, None).unwrap();
    disk.keep(Some(&svid), Some(&bundle)).unwrap();
    let kept = disk.load().unwrap();
    let back = kept.svid.unwrap();
    assert_eq!(back.id.as_str(), ID);
    assert_eq!(back.key.pkcs8(), svid.key.pkcs8());
    assert_eq!(back.received_at, svid.received_at);
    assert_eq!(kept.bundle.unwrap(), bundle);
    for file in [KEYS, DATA] {
        let mode = std::fs::metadata(dir.path().join("agent").join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn of_two_keys_the_one_that_fits_the_certificate_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, old, new) = (disk(dir.path()), svid(), svid());
    disk.keep_key(&old.key, None).unwrap();
    disk.keep(Some(&old), None).unwrap();
    // Killed between the key and the SVID: the old pair is still whole.
    disk.keep_key(&new.key, Some(&old.key)).unwrap();
    assert_eq!(
        disk.load().unwrap().svid.unwrap().key.pkcs8(),
        old.key.pkcs8()
    );
    disk.keep(Some(&new), None).unwrap();
    assert_eq!(
        disk.load().unwrap().svid.unwrap().key.pkcs8(),
        new.key.pkcs8()
    );
    let third = svid();
    disk.keep_key(&third.key, Some(&new.key)).unwrap();
    assert_eq!(
        disk.load().unwrap().svid.unwrap().key.pkcs8(),
        new.key.pkcs8()
    );
}

#[test]
fn a_key_whose_attestation_was_not_answered_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, svid) = (disk(dir.path()), svid());
    disk.keep_key(&svid.key, None).unwrap();
    let kept = disk.load().unwrap();
    assert!(kept.svid.is_none());
    assert_eq!(kept.key.unwrap().pkcs8(), svid.key.pkcs8());
}

#[test]
fn what_is_broken_is_named_and_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path());
    let path = dir.path().join("agent").join(DATA);
    std::fs::write(&path, "{").unwrap();
    let error = disk.load().unwrap_err().to_string();
    assert!(
        error.contains(DATA) && error.contains("move it away"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{");
    std::fs::remove_file(&path).unwrap();
    assert!(disk.load().unwrap().svid.is_none());
}
