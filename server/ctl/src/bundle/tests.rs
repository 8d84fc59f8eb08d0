use clap::Parser;
use vane_identity::id::TrustDomain;

use super::change::parse;
use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    bundle: Bundle,
}

fn is_taken(line: &str) -> bool {
    Line::try_parse_from(["bundle"].into_iter().chain(line.split_whitespace())).is_ok()
}

#[test]
fn the_verbs_have_the_flags_of_spire() {
    for good in [
        "show",
        "show --format spiffe -o json",
        "list",
        "list --id other.org --format pem",
        "count",
        "set --id spiffe://other.org --path f --format spiffe",
        "delete --id other.org",
        "delete --id other.org --mode restrict",
        "delete --id other.org --mode dissociate",
        "delete --id other.org --mode delete",
    ] {
        assert!(is_taken(good), "{good}");
    }
    for bad in [
        "set",
        "delete",
        "delete --id a --mode all",
        "show --format der",
    ] {
        assert!(!is_taken(bad), "{bad}");
    }
}

#[test]
fn a_bundle_is_read_in_both_forms() {
    let name = || TrustDomain::parse("other.org").unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    let from_pem = parse(name(), Form::Pem, &pem).unwrap();
    assert_eq!(from_pem.x509_authorities.len(), 1);
    let jwks = String::from_utf8(from_pem.to_jwks().unwrap()).unwrap();
    let from_jwks = parse(name(), Form::Spiffe, &jwks).unwrap();
    assert_eq!(from_jwks.x509_authorities, from_pem.x509_authorities);
    for (form, text) in [
        (Form::Pem, jwks.as_str()),
        (Form::Spiffe, &pem),
        (Form::Pem, ""),
    ] {
        assert!(parse(name(), form, text).is_err());
    }
}
