use prost::Message as _;
use vane_identity::bundle::{Bundle, JwtAuthority, X509Authority};
use vane_identity::entry::{AdditionalAttributes, Entry, EntryId};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::PublicKey;
use vane_identity::selector::{Selector, SelectorSet};
use vane_identity::x509_svid::Certificate;

use super::*;

fn selectors() -> SelectorSet {
    [("unix", "uid:1000"), ("unix", "gid:5")]
        .map(|(kind, value)| Selector::new(kind, value).unwrap())
        .into_iter()
        .collect()
}

fn entry() -> Entry {
    Entry {
        id: EntryId::parse("0001").unwrap(),
        spiffe_id: SpiffeId::parse("spiffe://example.org/web").unwrap(),
        parent_id: SpiffeId::parse("spiffe://example.org/spire/agent/x").unwrap(),
        selectors: selectors(),
        x509_svid_ttl: 60,
        federates_with: vec![TrustDomain::parse("other.org").unwrap()],
        admin: true,
        downstream: true,
        expires_at: 1_900_000_000,
        dns_names: vec!["web.example.org".into(), "a".into()],
        revision_number: 7,
        store_svid: true,
        jwt_svid_ttl: u32::MAX,
        hint: "internal".into(),
        created_at: 1_800_000_000,
        additional_attributes: Some(AdditionalAttributes::default()),
    }
}

fn agent() -> AgentRecord {
    AgentRecord {
        spiffe_id: SpiffeId::parse("spiffe://example.org/spire/agent/join_token/t").unwrap(),
        attestation_type: "join_token".into(),
        serial: "123".into(),
        new_serial: Some("456".into()),
        not_after: 10,
        new_not_after: 20,
        selectors: selectors(),
        banned: true,
        can_reattest: true,
        agent_version: "0.1.0".into(),
        csr_key_sha256: Some([7; 32]),
        previous: Some(Previous {
            serial: "122".into(),
            until: 9,
        }),
    }
}

fn token() -> JoinTokenRecord {
    let id = SpiffeId::parse("spiffe://example.org/node").unwrap();
    JoinTokenRecord {
        agent_id: Some(id.clone()),
        expires_at: 99,
        used: Some(TokenUse {
            csr_key_sha256: [1; 32],
            agent_id: id,
        }),
    }
}

fn authority(kind: AuthorityKind, state: AuthorityState) -> AuthorityRecord {
    AuthorityRecord {
        id: "00ff".into(),
        kind,
        state,
        owner: "server-1".into(),
        key_ref: "x509-CA-A".into(),
        issued_at: 1,
        not_after: 2,
        activated_at: 3,
    }
}

fn x509() -> AuthorityKind {
    AuthorityKind::X509 {
        certificate_der: Certificate::from_der(&[0x30, 0x00]),
    }
}

fn jwt() -> AuthorityKind {
    AuthorityKind::Jwt {
        public_key_pkix: PublicKey::from_spki(&[0x30, 0x01]),
    }
}

fn assert_round_trip<R: Record + PartialEq + std::fmt::Debug>(record: &R) {
    assert_eq!(&R::decode(&record.encode()).unwrap(), record);
}

#[test]
fn an_entry_with_every_field_set_comes_back() {
    assert_round_trip(&entry());
}

#[test]
fn an_entry_without_optional_fields_comes_back() {
    let bare = Entry {
        federates_with: Vec::new(),
        dns_names: Vec::new(),
        additional_attributes: None,
        hint: String::new(),
        ..entry()
    };
    assert_round_trip(&bare);
}

#[test]
fn a_bundle_comes_back_with_its_tainted_marks() {
    let mut bundle = Bundle::empty(TrustDomain::parse("example.org").unwrap());
    bundle.sequence_number = u64::MAX;
    bundle.refresh_hint = 300;
    bundle.x509_authorities = vec![X509Authority {
        certificate: Certificate::from_der(&[1, 2, 3]),
        tainted: true,
    }];
    bundle.jwt_authorities = vec![JwtAuthority {
        key_id: "kid".into(),
        public_key: PublicKey::from_spki(&[4, 5]),
        expires_at: 9,
        tainted: true,
    }];
    assert_round_trip(&bundle);
}

#[test]
fn an_agent_comes_back_renewed_or_not() {
    assert_round_trip(&agent());
    assert_round_trip(&AgentRecord {
        serial: String::new(),
        new_serial: None,
        csr_key_sha256: None,
        previous: None,
        ..agent()
    });
}

#[test]
fn a_join_token_comes_back_used_or_not() {
    assert_round_trip(&token());
    assert_round_trip(&JoinTokenRecord {
        agent_id: None,
        expires_at: 1,
        used: None,
    });
}

#[test]
fn an_authority_comes_back_in_every_kind_and_state() {
    let states = [
        AuthorityState::Prepared,
        AuthorityState::Active,
        AuthorityState::Old,
        AuthorityState::Tainted,
        AuthorityState::Revoked,
    ];
    for state in states {
        assert_round_trip(&authority(x509(), state));
        assert_round_trip(&authority(jwt(), state));
    }
}

#[test]
fn a_state_of_a_later_version_is_refused_by_its_number() {
    let mut wire =
        v1::Authority::decode(&*authority(x509(), AuthorityState::Old).encode()).unwrap();
    wire.state = 99;
    let refused = AuthorityRecord::decode(&wire.encode_to_vec()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "record has 99 as state, which this version does not know"
    );
}

#[test]
fn a_hash_of_the_wrong_length_is_refused() {
    let mut wire = v1::JoinToken::decode(&*token().encode()).unwrap();
    wire.used.as_mut().unwrap().csr_key_sha256.pop();
    let refused = JoinTokenRecord::decode(&wire.encode_to_vec()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "record has 31 bytes of used.csr_key_sha256, 32 are needed"
    );
}

#[test]
fn damaged_bytes_are_refused_whatever_is_cut_off_or_flipped() {
    let bytes = entry().encode();
    for at in 0..bytes.len() {
        let _ = Entry::decode(&bytes[..at]);
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x80;
        let _ = Entry::decode(&flipped);
    }
    assert!(Entry::decode(&[]).is_err());
    assert!(Entry::decode(&bytes[..bytes.len() - 1]).is_err());
}
