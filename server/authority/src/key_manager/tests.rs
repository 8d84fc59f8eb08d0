use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use aws_lc_rs::signature::{self, UnparsedPublicKey};
use vane_chassis::builtin::{Section, open_section};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

use super::*;

const ALL: [KeyType; 3] = [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048];

fn disk(dir: &tempfile::TempDir) -> Disk {
    Disk::open_in(dir.path()).unwrap()
}

fn private_temp() -> tempfile::TempDir {
    tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir()
        .unwrap()
}

fn bits(public: &PublicKey) -> Vec<u8> {
    let (_, spki) = SubjectPublicKeyInfo::from_der(public.spki()).unwrap();
    spki.subject_public_key.data.to_vec()
}

async fn check_contract(keys: &dyn KeyManager) {
    for key_type in ALL {
        let public = keys.generate("one", key_type).await.unwrap();
        let listed = keys.public_keys().await.unwrap();
        assert_eq!(listed.len(), 1, "the second of a name replaces the first");
        assert_eq!(listed[0].public_key, public);
        assert_eq!(listed[0].key_type, key_type);
        let messages: Vec<Vec<u8>> = (0..40u8).map(|n| vec![n; 9]).collect();
        let requests: Vec<SignRequest<'_>> = messages
            .iter()
            .map(|message| SignRequest {
                key_ref: "one",
                message,
                format: SignatureFormat::X509,
            })
            .collect();
        let signatures = keys.sign(&requests).await.unwrap();
        assert_eq!(signatures.len(), 40);
        let algorithm: &dyn signature::VerificationAlgorithm = match key_type {
            KeyType::EcP256 => &signature::ECDSA_P256_SHA256_ASN1,
            KeyType::EcP384 => &signature::ECDSA_P384_SHA384_ASN1,
            _ => &signature::RSA_PKCS1_2048_8192_SHA256,
        };
        let key = UnparsedPublicKey::new(algorithm, bits(&public));
        for (message, signature) in messages.iter().zip(&signatures) {
            key.verify(message, signature).unwrap();
        }
    }
    keys.remove("one").await.unwrap();
    keys.remove("one").await.unwrap();
    assert!(keys.public_keys().await.unwrap().is_empty());
    let request = SignRequest {
        key_ref: "one",
        message: b"x",
        format: SignatureFormat::Jws,
    };
    let error = keys.sign(&[request]).await.unwrap_err();
    assert_eq!(error.to_string(), "no key \"one\" in the key manager");
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    check_contract(&Memory::new()).await;
}

#[tokio::test]
async fn disk_keeps_the_contract() {
    check_contract(&disk(&private_temp())).await;
}

#[tokio::test]
async fn a_jws_signature_has_the_raw_form() {
    let keys = Memory::new();
    let public = keys.generate("k", KeyType::EcP256).await.unwrap();
    let request = SignRequest {
        key_ref: "k",
        message: b"header.payload",
        format: SignatureFormat::Jws,
    };
    let signed = keys.sign(&[request]).await.unwrap();
    assert_eq!(signed[0].len(), 64);
    UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, bits(&public))
        .verify(b"header.payload", &signed[0])
        .unwrap();
}

#[tokio::test]
async fn keys_on_disk_are_private_and_come_back_in_the_form_of_spire() {
    let dir = private_temp();
    let first = disk(&dir);
    let mut made = Vec::new();
    for (name, key_type) in [("x509-CA-A", KeyType::EcP256), ("JWT", KeyType::Rsa2048)] {
        made.push(first.generate(name, key_type).await.unwrap());
    }
    let path = dir.path().join("keys.json");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(json["keys"]["x509-CA-A"].is_string());
    assert_eq!(json.as_object().unwrap().len(), 1);

    let again = disk(&dir).public_keys().await.unwrap();
    assert_eq!(again.len(), 2);
    assert_eq!(again[1].public_key, made[0]);
    assert_eq!(again[0].public_key, made[1]);
}

#[tokio::test]
async fn a_damaged_key_file_is_refused_without_its_content() {
    let dir = private_temp();
    let path = dir.path().join("keys.json");
    for (text, reason) in [
        (
            "{\"keys\":{\"a\":\"c2VjcmV0\"}}",
            "key \"a\" is not a supported",
        ),
        ("{\"keys\":{\"a\":\"sec ret\"}}", "line 1 column"),
        ("{\"keys\":[\"secret\"]}", "line 1 column"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Disk::open_in(dir.path()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(
            !error.contains("sec") && !error.contains("c2VjcmV0"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_key_manager_is_opened_by_the_name_in_the_configuration() {
    let dir = private_temp();
    let deps = Deps {
        data_dir: dir.path().to_owned(),
    };
    for kind in ["disk", "memory"] {
        let section = Section::new(kind, toml::Table::new());
        let keys: Arc<dyn KeyManager> = open_section(BUILTINS, &section, &deps).await.unwrap();
        keys.generate("k", KeyType::EcP256).await.unwrap();
    }
    assert!(dir.path().join("keys.json").exists());
    let section = Section::new("aws_kms", toml::Table::new());
    let error = open_section(BUILTINS, &section, &deps).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown type \"aws_kms\", expected one of disk, memory"
    );
}

#[test]
fn debug_shows_no_key() {
    let key = local::LocalKey::generate(KeyType::EcP256).unwrap();
    assert_eq!(format!("{key:?}"), "LocalKey(EcP256)");
}
