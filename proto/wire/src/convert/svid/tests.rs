use super::*;
use crate::convert::test_ca;

const ID: &str = "spiffe://example.org/web";

fn sent() -> types::X509svid {
    types::X509svid {
        cert_chain: vec![test_ca::leaf(ID).into(), test_ca::root().to_vec().into()],
        id: Some((&SpiffeId::parse(ID).unwrap()).into()),
        expires_at: test_ca::NOT_AFTER,
        hint: String::new(),
    }
}

#[test]
fn an_svid_comes_back_with_its_chain_and_expiry() {
    let wire = sent();
    let svid = X509Svid::try_from(&wire).unwrap();
    assert_eq!(to_wire(&svid), wire);
}

#[test]
fn an_svid_that_is_not_of_the_id_beside_it_is_refused() {
    let mut wire = sent();
    wire.id.as_mut().unwrap().path = "/db".into();
    let refused = X509Svid::try_from(&wire).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "X.509-SVID of spiffe://example.org/web was sent as that of spiffe://example.org/db"
    );
}

#[test]
fn an_svid_without_chain_or_id_is_refused() {
    let bare = types::X509svid::default();
    let refused = X509Svid::try_from(&bare).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "malformed X.509-SVID: certificate chain is empty"
    );
    let refused = X509Svid::try_from(&types::X509svid { id: None, ..sent() }).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "invalid SPIFFE ID: request must specify SPIFFE ID"
    );
}

#[test]
fn a_ca_certificate_is_no_svid() {
    let mut wire = sent();
    wire.cert_chain.remove(0);
    assert!(matches!(
        X509Svid::try_from(&wire),
        Err(SvidRefusal::Chain(_))
    ));
}
