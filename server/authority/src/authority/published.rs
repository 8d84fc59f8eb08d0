//! What the bundle says of an authority, by its kind.

use vane_identity::bundle::{Bundle, JwtAuthority, X509Authority};
use vane_identity::key::PublicKey;
use vane_wire::record::{AuthorityKind, AuthorityRecord};

/// Puts the authority into the bundle, unless it is there.
pub(super) fn add(record: &AuthorityRecord, bundle: &mut Bundle) {
    match &record.kind {
        AuthorityKind::X509 { certificate_der } => {
            let all = &mut bundle.x509_authorities;
            if all.iter().all(|one| one.certificate != *certificate_der) {
                all.push(X509Authority::new(certificate_der.clone()));
            }
        }
        AuthorityKind::Jwt { public_key_pkix } => {
            let all = &mut bundle.jwt_authorities;
            if all.iter().all(|one| one.key_id != record.id) {
                all.push(JwtAuthority {
                    key_id: record.id.clone(),
                    public_key: public_key_pkix.clone(),
                    expires_at: record.not_after,
                    tainted: false,
                });
            }
        }
    }
}

/// Marks the authority tainted in the bundle.
pub(super) fn taint(record: &AuthorityRecord, bundle: &mut Bundle) {
    match &record.kind {
        AuthorityKind::X509 { certificate_der } => {
            let all = bundle.x509_authorities.iter_mut();
            let matching = all.filter(|one| one.certificate == *certificate_der);
            matching.for_each(|one| one.tainted = true);
        }
        AuthorityKind::Jwt { .. } => {
            let all = bundle.jwt_authorities.iter_mut();
            let matching = all.filter(|one| one.key_id == record.id);
            matching.for_each(|one| one.tainted = true);
        }
    }
}

/// Takes the authority out of the bundle.
pub(super) fn remove(record: &AuthorityRecord, bundle: &mut Bundle) {
    match &record.kind {
        AuthorityKind::X509 { certificate_der } => {
            let all = &mut bundle.x509_authorities;
            all.retain(|one| one.certificate != *certificate_der);
        }
        AuthorityKind::Jwt { .. } => bundle.jwt_authorities.retain(|one| one.key_id != record.id),
    }
}

/// Its key; `None` when its certificate cannot be read.
pub(super) fn public_key(record: &AuthorityRecord) -> Option<PublicKey> {
    match &record.kind {
        AuthorityKind::X509 { certificate_der } => {
            let info = certificate_der.info().ok()?;
            Some(PublicKey::from_spki(&info.spki))
        }
        AuthorityKind::Jwt { public_key_pkix } => Some(public_key_pkix.clone()),
    }
}
