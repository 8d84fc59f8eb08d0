//! A small CA made with rcgen, and the rules of X509-SVID.md against it.

use std::sync::LazyLock;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::*;

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: Certificate,
}

pub(crate) struct Leaf {
    pub(crate) params: CertificateParams,
}

pub(crate) struct Signed {
    pub(crate) chain: Vec<Certificate>,
}

static ROOT: LazyLock<Ca> = LazyLock::new(|| Ca::root("spiffe://example.org"));

pub(crate) fn now() -> SystemTime {
    from_unix(1_800_000_000)
}

fn window(params: &mut CertificateParams, from: i64, to: i64) {
    let at = |seconds| time::OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).unwrap();
    (params.not_before, params.not_after) = (at(from), at(to));
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn ca_params(id: &str, constraint: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(constraint);
    params.subject_alt_names = vec![uri(id)];
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, format!("{id} {:?}", fresh()));
    window(&mut params, -100, 10_000);
    params
}

fn fresh() -> [u8; 8] {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    bytes
}

impl Ca {
    pub(crate) fn root(id: &str) -> Self {
        let (params, key) = (
            ca_params(id, BasicConstraints::Unconstrained),
            KeyPair::generate().unwrap(),
        );
        let certificate = Certificate::from_der(params.self_signed(&key).unwrap().der());
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    fn below(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate =
            Certificate::from_der(params.signed_by(&key, &self.issuer).unwrap().der());
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    fn sign(&self, leaf: &Leaf) -> Certificate {
        let key = KeyPair::generate().unwrap();
        Certificate::from_der(leaf.params.signed_by(&key, &self.issuer).unwrap().der())
    }

    fn anchors(&self) -> Anchors {
        Anchors::new(
            TrustDomain::parse("example.org").unwrap(),
            [&self.certificate],
        )
    }
}

impl Leaf {
    pub(crate) fn new(id: &str) -> Self {
        Self::with_sans(vec![uri(id)])
    }

    fn with_sans(sans: Vec<SanType>) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::ExplicitNoCa;
        params.subject_alt_names = sans;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        window(&mut params, -10, 3_600);
        Self { params }
    }

    fn edit(mut self, edit: impl FnOnce(&mut CertificateParams)) -> Self {
        edit(&mut self.params);
        self
    }

    pub(crate) fn sign(&self) -> Signed {
        Signed {
            chain: vec![ROOT.sign(self)],
        }
    }

    fn parse(&self) -> Result<X509Svid, X509Error> {
        X509Svid::parse(self.sign().chain)
    }
}

fn verify(chain: Vec<Certificate>, anchors: &Anchors) -> Result<VerifiedX509Svid, X509Error> {
    anchors.verify(X509Svid::parse(chain)?, Role::Client, now())
}

const WEB: &str = "spiffe://example.org/web";

/// Proves: X509-04, X509-08, X509-26, X509-31, X509-33, ID-26.
#[test]
fn a_leaf_of_its_own_trust_domain_verifies() {
    let verified = verify(Leaf::new(WEB).sign().chain, &ROOT.anchors()).unwrap();
    assert_eq!(verified.svid().id().as_str(), WEB);
    let more = Leaf::with_sans(vec![
        uri(WEB),
        SanType::DnsName("web.example.org".try_into().unwrap()),
        SanType::IpAddress("10.0.0.1".parse().unwrap()),
        SanType::Rfc822Name("web@example.org".try_into().unwrap()),
    ])
    .edit(|params| params.key_usages.push(KeyUsagePurpose::KeyAgreement));
    verify(more.sign().chain, &ROOT.anchors()).unwrap();
    let no_subject =
        Leaf::new(WEB).edit(|params| params.distinguished_name = rcgen::DistinguishedName::new());
    verify(no_subject.sign().chain, &ROOT.anchors()).unwrap();
}

/// Proves: X509-02, X509-03.
#[test]
fn a_leaf_has_exactly_one_uri() {
    let two = Leaf::with_sans(vec![uri(WEB), uri("spiffe://example.org/db")]);
    let foreign = Leaf::with_sans(vec![uri(WEB), uri("https://example.org/web")]);
    let same = Leaf::with_sans(vec![uri(WEB), uri(WEB)]);
    for leaf in [two, foreign, same] {
        assert_eq!(leaf.parse(), Err(X509Error::ManyUris));
    }
    let dns = Leaf::with_sans(vec![SanType::DnsName("a.b".try_into().unwrap())]);
    assert_eq!(dns.parse(), Err(X509Error::NoUri));
    assert_eq!(Leaf::with_sans(Vec::new()).parse(), Err(X509Error::NoUri));
}

/// Proves: X509-06, X509-39, X509-40, X509-41.
#[test]
fn the_uri_of_a_leaf_is_a_strict_spiffe_id_with_a_path() {
    let root_path = Leaf::new("spiffe://example.org").parse();
    assert!(matches!(root_path, Err(X509Error::NoPath(_))));
    for bad in [
        "https://example.org/a",
        "spiffe://example.org/",
        "spiffe://Example.org/a",
        "spiffe://example.org/a/",
        "spiffe://example.org/%41",
        "spiffe://example.org/a/../b",
    ] {
        assert!(
            matches!(Leaf::new(bad).parse(), Err(X509Error::Id(_))),
            "{bad}"
        );
    }
}

/// Proves: X509-05, X509-36, X509-37, X509-38.
#[test]
fn a_leaf_may_sign_nothing() {
    let ca = Leaf::new(WEB).edit(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(ca.parse(), Err(X509Error::LeafIsCa));
    let certs = Leaf::new(WEB).edit(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign));
    assert_eq!(certs.parse(), Err(X509Error::LeafSignsCertificates));
    let crls = Leaf::new(WEB).edit(|params| params.key_usages.push(KeyUsagePurpose::CrlSign));
    assert_eq!(crls.parse(), Err(X509Error::LeafSignsCrls));
}

/// Proves: X509-33, X509-35.
#[test]
fn validity_is_checked_on_leaf_and_intermediate() {
    let anchors = ROOT.anchors();
    for (from, to) in [(-20, -10), (10, 20)] {
        let leaf = Leaf::new(WEB).edit(|params| window(params, from, to));
        assert!(matches!(
            verify(leaf.sign().chain, &anchors),
            Err(X509Error::Path(_))
        ));
    }
    let mut old = ca_params("spiffe://example.org", BasicConstraints::Unconstrained);
    window(&mut old, -100, -10);
    let old = ROOT.below(old);
    let chain = vec![old.sign(&Leaf::new(WEB)), old.certificate.clone()];
    assert!(matches!(verify(chain, &anchors), Err(X509Error::Path(_))));
}

/// Proves: X509-13, X509-16, X509-34, X509-53.
#[test]
fn intermediates_are_used_within_their_limits_and_only_the_bundle_anchors() {
    let anchors = ROOT.anchors();
    let middle = ROOT.below(ca_params(
        "spiffe://example.org",
        BasicConstraints::Constrained(0),
    ));
    let leaf = middle.sign(&Leaf::new(WEB));
    verify(vec![leaf.clone(), middle.certificate.clone()], &anchors).unwrap();
    assert!(
        verify(vec![leaf.clone()], &anchors).is_err(),
        "the intermediate is missing"
    );
    verify(vec![leaf], &middle.anchors()).unwrap();

    let deeper = middle.below(ca_params(
        "spiffe://example.org",
        BasicConstraints::Unconstrained,
    ));
    let chain = vec![
        deeper.sign(&Leaf::new(WEB)),
        deeper.certificate.clone(),
        middle.certificate.clone(),
    ];
    assert!(verify(chain, &anchors).is_err(), "path length 0 was passed");

    let own = Ca::root("spiffe://example.org");
    let chain = vec![own.sign(&Leaf::new(WEB)), own.certificate.clone()];
    assert!(
        verify(chain, &anchors).is_err(),
        "the peer brought its own root"
    );
}

/// Proves: ID-26, WAPI-17, TDB-04, X509-42.
#[test]
fn a_leaf_of_another_trust_domain_is_refused_whoever_signed_it() {
    let foreign = Leaf::new("spiffe://other.org/web").sign().chain;
    let error = verify(foreign, &ROOT.anchors()).unwrap_err();
    assert!(matches!(error, X509Error::OtherTrustDomain { .. }));
}

/// Proves: X509-19.
#[test]
fn a_name_constraint_that_cannot_be_processed_is_never_ignored() {
    let mut params = ca_params("spiffe://example.org", BasicConstraints::Unconstrained);
    // permittedSubtrees [0] { GeneralSubtree { uniformResourceIdentifier [6] "other.org" } }
    let mut constraint = rcgen::CustomExtension::from_oid_content(
        &[2, 5, 29, 30],
        [
            &[0x30, 0x0f, 0xa0, 0x0d, 0x30, 0x0b, 0x86, 0x09][..],
            b"other.org",
        ]
        .concat(),
    );
    constraint.set_criticality(true);
    params.custom_extensions = vec![constraint];
    let constrained = ROOT.below(params);
    let chain = vec![
        constrained.sign(&Leaf::new(WEB)),
        constrained.certificate.clone(),
    ];
    assert!(matches!(
        verify(chain, &ROOT.anchors()),
        Err(X509Error::Path(_))
    ));
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    let leaf = Leaf::new(WEB).edit(|params| {
        let mut unknown = rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        unknown.set_criticality(true);
        params.custom_extensions = vec![unknown];
    });
    assert!(matches!(
        verify(leaf.sign().chain, &ROOT.anchors()),
        Err(X509Error::Path(_))
    ));
}

#[test]
fn a_leaf_for_servers_only_is_no_client() {
    let leaf = Leaf::new(WEB)
        .edit(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let svid = leaf.parse().unwrap();
    assert!(
        ROOT.anchors()
            .verify(svid.clone(), Role::Client, now())
            .is_err()
    );
    assert!(ROOT.anchors().verify(svid, Role::Server, now()).is_ok());
}

/// Proves: ID-31.
#[test]
fn a_flipped_bit_is_found() {
    let chain = Leaf::new(WEB).sign().chain;
    let der = chain[0].der();
    let at = der.windows(3).position(|bytes| bytes == b"web").unwrap();
    let mut changed = der.to_vec();
    changed[at] = b'x';
    let chain = vec![Certificate::from_der(&changed)];
    assert!(matches!(
        verify(chain, &ROOT.anchors()),
        Err(X509Error::Path(_))
    ));
}

#[test]
fn limits_come_before_parsing() {
    assert_eq!(X509Svid::parse(Vec::new()), Err(X509Error::Empty));
    let leaf = Leaf::new(WEB).sign().chain[0].clone();
    let long = vec![leaf.clone(); MAX_CHAIN + 1];
    assert!(matches!(
        X509Svid::parse(long),
        Err(X509Error::TooLarge { .. })
    ));
    let large = Certificate::from_der(&vec![0; MAX_CERTIFICATE_BYTES + 1]);
    assert!(matches!(
        X509Svid::parse(vec![leaf.clone(), large]),
        Err(X509Error::TooLarge { .. })
    ));
    let trailing = [leaf.der(), &[0]].concat();
    assert_eq!(
        X509Svid::parse(vec![Certificate::from_der(&trailing)]),
        Err(X509Error::Malformed)
    );
}

#[test]
fn serials_are_printed_as_decimal_numbers() {
    assert_eq!(serial_decimal(&[]), "0");
    assert_eq!(serial_decimal(&[1, 0]), "256");
    assert_eq!(
        serial_decimal(&[0xff; 16]),
        "340282366920938463463374607431768211455"
    );
}

#[test]
fn a_concatenation_of_certificates_is_split_where_each_ends() {
    let leaf = Leaf::new(WEB).sign().chain[0].clone();
    let both = [leaf.der(), ROOT.certificate.der()].concat();
    assert_eq!(
        Certificate::split(&both),
        Ok(vec![leaf.clone(), ROOT.certificate.clone()])
    );
    assert_eq!(Certificate::split(&[]), Ok(Vec::new()));
    let torn = &both[..both.len() - 1];
    assert_eq!(Certificate::split(torn), Err(X509Error::Malformed));
}
