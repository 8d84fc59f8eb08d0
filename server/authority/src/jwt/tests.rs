use vane_identity::key::PrivateKey;

use super::*;

fn always() -> Validity {
    let not_before = std::time::SystemTime::UNIX_EPOCH;
    Validity {
        not_before,
        not_after: not_before,
    }
}

#[test]
fn key_ids_are_random_and_of_letters_and_digits() {
    let ids: std::collections::HashSet<String> = (0..100).map(|_| new_key_id().unwrap()).collect();
    assert_eq!(ids.len(), 100);
    for id in ids {
        assert_eq!(id.len(), KEY_ID_CHARS);
        assert!(id.bytes().all(|byte| ALPHABET.contains(&byte)));
    }
}

#[test]
fn a_signature_of_another_form_is_found_without_verifying_it() {
    let (_, public) = PrivateKey::generate(KeyType::EcP256).unwrap();
    let issuer = Issuer::new("kid", "ref", &public, always()).unwrap();
    assert_eq!(issuer.check_signature("a.b", &[0; 64], false), Ok(()));
    let bad = Err(CheckError::Signature);
    assert_eq!(issuer.check_signature("a.b", &[0; 71], false), bad);
    assert_eq!(issuer.check_signature("a.b", &[0; 64], true), bad);
    let none = PublicKey::from_spki(b"no key");
    assert_eq!(Issuer::new("kid", "ref", &none, always()), Err(BadIssuer));
}
