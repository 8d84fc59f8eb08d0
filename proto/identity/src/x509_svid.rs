//! X.509-SVIDs: reading, shape rules and path validation (X509-SVID.md sections 3 to 5).
//!
//! [`X509Svid::parse`] checks the shape of a leaf and proves nothing about its signer.
//! Only [`Anchors::verify`] makes a [`VerifiedX509Svid`]: its leaf chains to an anchor of its
//! own trust domain and is valid at the given time. Sizes and counts are limited before
//! anything is parsed.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::id::{IdError, SpiffeId, TrustDomain};
use crate::key::key_identifier;
use crate::lifetime::{Validity, from_unix};

/// The most certificates in a chain that is looked at.
pub const MAX_CHAIN: usize = 10;
/// The most bytes of one certificate that is looked at.
pub const MAX_CERTIFICATE_BYTES: usize = 64 * 1024;

/// One certificate as DER; clones share the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Certificate(Arc<[u8]>);

/// What is read from any certificate; says nothing about who signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The SPIFFE ID of its one URI SAN, if it has exactly one that is valid.
    pub spiffe_id: Option<SpiffeId>,
    /// Serial number, big endian, without leading zeros.
    pub serial: Vec<u8>,
    /// The time in which it is valid.
    pub validity: Validity,
    /// Whether basicConstraints says CA.
    pub is_ca: bool,
    /// RFC 5280 method-1 identifier of its key (SHA-1 of the subjectPublicKey bits).
    pub key_id: [u8; 20],
    /// The key identifier of its signer, if the extension names one.
    pub authority_key_id: Option<Vec<u8>>,
    /// Its SubjectPublicKeyInfo DER.
    pub spki: Vec<u8>,
}

/// A chain whose leaf has the shape of an X.509-SVID. Its signatures are not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X509Svid {
    id: SpiffeId,
    chain: Vec<Certificate>,
    info: CertificateInfo,
}

/// Proof that a chain is a valid X.509-SVID of its own trust domain at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedX509Svid(X509Svid);

/// The CA certificates of one trust domain, prepared for path validation.
#[derive(Clone)]
pub struct Anchors {
    trust_domain: TrustDomain,
    anchors: Arc<[TrustAnchor<'static>]>,
}

/// What the verified peer does in the handshake; its extended key usage must allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It is a TLS client.
    Client,
    /// It is a TLS server.
    Server,
}

/// Why a certificate is no X.509-SVID or does not verify.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum X509Error {
    /// There is no certificate.
    #[error("certificate chain is empty")]
    Empty,
    /// The chain or a certificate is over the limit.
    #[error("certificate chain is too large: {what} is {seen}, {max} are allowed")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// Seen.
        seen: usize,
        /// Allowed.
        max: usize,
    },
    /// The bytes are no DER certificate, or more than one.
    #[error("malformed certificate")]
    Malformed,
    /// The leaf has no URI SAN.
    #[error("certificate contains no URI SAN")]
    NoUri,
    /// The leaf has several URI SANs.
    #[error("certificate contains more than one URI SAN")]
    ManyUris,
    /// The URI SAN is no SPIFFE ID.
    #[error("certificate URI SAN is not a SPIFFE ID: {0}")]
    Id(#[from] IdError),
    /// The ID of a leaf has no path (X509-SVID.md section 5.2).
    #[error("leaf certificate SPIFFE ID {0} has no path")]
    NoPath(SpiffeId),
    /// The leaf is a CA.
    #[error("leaf certificate has CA flag set to true")]
    LeafIsCa,
    /// The leaf may sign certificates.
    #[error("leaf certificate has KeyCertSign key usage")]
    LeafSignsCertificates,
    /// The leaf may sign CRLs.
    #[error("leaf certificate has CRLSign key usage")]
    LeafSignsCrls,
    /// The certificate is no CA where one is wanted.
    #[error("certificate is not a CA")]
    NotCa,
    /// The anchors are those of another trust domain.
    #[error("SVID of trust domain {svid} cannot be verified with the bundle of {bundle}")]
    OtherTrustDomain {
        /// Of the SVID.
        svid: TrustDomain,
        /// Of the bundle.
        bundle: TrustDomain,
    },
    /// No path to an anchor, or one that is not valid now.
    #[error("certificate chain does not verify: {0}")]
    Path(webpki::Error),
    /// `now` lies before the Unix epoch.
    #[error("the time is before 1970")]
    Time,
}

impl X509Error {
    /// Whether the chain is in order but for the time at which it was looked at: one of the
    /// two clocks may be wrong.
    #[must_use]
    pub fn is_of_another_time(&self) -> bool {
        matches!(
            self,
            Self::Path(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })
        )
    }
}

impl Certificate {
    /// Takes DER bytes over; they are not looked at.
    #[must_use]
    pub fn from_der(der: &[u8]) -> Self {
        Self(der.into())
    }

    /// Splits a concatenation of DER certificates, as the Workload API sends chains and bundles.
    ///
    /// # Errors
    /// [`X509Error::Malformed`], [`X509Error::TooLarge`] for a certificate over the limit.
    pub fn split(mut der: &[u8]) -> Result<Vec<Self>, X509Error> {
        let mut all = Vec::new();
        while !der.is_empty() {
            let (rest, _) = X509Certificate::from_der(der).map_err(|_| X509Error::Malformed)?;
            let (one, _) = der.split_at(der.len() - rest.len());
            at_most("certificate bytes", one.len(), MAX_CERTIFICATE_BYTES)?;
            all.push(Self::from_der(one));
            der = rest;
        }
        Ok(all)
    }

    /// As PEM (RFC 7468), lines of 64 characters.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let body = STANDARD.encode(&self.0);
        let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(rest.len().min(64));
            text.push_str(line);
            text.push('\n');
            rest = more;
        }
        text + "-----END CERTIFICATE-----\n"
    }

    /// The DER bytes.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0
    }

    /// Reads what the product uses of a certificate.
    ///
    /// # Errors
    /// [`X509Error::Malformed`], [`X509Error::TooLarge`].
    pub fn info(&self) -> Result<CertificateInfo, X509Error> {
        let certificate = parse(&self.0)?;
        let spiffe_id = one_uri(&certificate)
            .and_then(|uri| Ok(SpiffeId::parse(uri)?))
            .ok();
        Ok(info_of(&certificate, spiffe_id))
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({} bytes)", self.0.len())
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, X509Error> {
    at_most("certificate bytes", der.len(), MAX_CERTIFICATE_BYTES)?;
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| X509Error::Malformed)?;
    if !rest.is_empty() {
        return Err(X509Error::Malformed);
    }
    Ok(certificate)
}

fn at_most(what: &'static str, seen: usize, max: usize) -> Result<(), X509Error> {
    if seen > max {
        return Err(X509Error::TooLarge { what, seen, max });
    }
    Ok(())
}

fn info_of(certificate: &X509Certificate<'_>, spiffe_id: Option<SpiffeId>) -> CertificateInfo {
    let serial = certificate.tbs_certificate.serial.to_bytes_be();
    let validity = certificate.validity();
    CertificateInfo {
        spiffe_id,
        serial,
        validity: Validity {
            not_before: from_unix(validity.not_before.timestamp()),
            not_after: from_unix(validity.not_after.timestamp()),
        },
        is_ca: certificate.is_ca(),
        key_id: key_identifier(&certificate.public_key().subject_public_key.data),
        authority_key_id: authority_key_id(certificate),
        spki: certificate.public_key().raw.to_vec(),
    }
}

fn authority_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(it) => {
                it.key_identifier.as_ref().map(|id| id.0.to_vec())
            }
            _ => None,
        })
}

fn one_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, X509Error> {
    let san = certificate
        .subject_alternative_name()
        .map_err(|_| X509Error::Malformed)?
        .ok_or(X509Error::NoUri)?;
    let mut uris = san
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    let first = uris.next().ok_or(X509Error::NoUri)?;
    match uris.next() {
        Some(_) => Err(X509Error::ManyUris),
        None => Ok(first),
    }
}

impl X509Svid {
    /// Reads a chain, leaf first, and checks the shape of its leaf.
    ///
    /// # Errors
    /// The rule of X509-SVID.md section 5 that the leaf breaks, or a limit.
    pub fn parse(chain: Vec<Certificate>) -> Result<Self, X509Error> {
        Self::parse_with(chain, |_| Ok(()))
    }

    /// As [`X509Svid::parse`], and `look` says first whether the leaf, which is parsed only
    /// once for both, is what it should be.
    ///
    /// # Errors
    /// As [`X509Svid::parse`], or that of `look`.
    pub fn parse_with<E: From<X509Error>>(
        chain: Vec<Certificate>,
        look: impl FnOnce(&X509Certificate<'_>) -> Result<(), E>,
    ) -> Result<Self, E> {
        at_most("chain length", chain.len(), MAX_CHAIN)?;
        for certificate in &chain {
            at_most(
                "certificate bytes",
                certificate.der().len(),
                MAX_CERTIFICATE_BYTES,
            )?;
        }
        let leaf = chain.first().ok_or(X509Error::Empty)?;
        let certificate = parse(leaf.der())?;
        look(&certificate)?;
        let id = SpiffeId::parse(one_uri(&certificate)?).map_err(X509Error::from)?;
        if id.path().is_empty() {
            return Err(X509Error::NoPath(id).into());
        }
        check_leaf_usage(&certificate)?;
        let info = info_of(&certificate, Some(id.clone()));
        Ok(Self { id, chain, info })
    }

    /// The SPIFFE ID of the leaf.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The chain, leaf first, without a root.
    #[must_use]
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    /// What was read from the leaf.
    #[must_use]
    pub fn leaf(&self) -> &CertificateInfo {
        &self.info
    }
}

fn check_leaf_usage(certificate: &X509Certificate<'_>) -> Result<(), X509Error> {
    if certificate.is_ca() {
        return Err(X509Error::LeafIsCa);
    }
    let usage = certificate.key_usage().map_err(|_| X509Error::Malformed)?;
    match usage {
        Some(usage) if usage.value.key_cert_sign() => Err(X509Error::LeafSignsCertificates),
        Some(usage) if usage.value.crl_sign() => Err(X509Error::LeafSignsCrls),
        _ => Ok(()),
    }
}

impl VerifiedX509Svid {
    /// The only constructor: the caller asserts that path validation succeeded.
    fn assertion(svid: X509Svid) -> Self {
        Self(svid)
    }

    /// The SVID.
    #[must_use]
    pub fn svid(&self) -> &X509Svid {
        &self.0
    }

    /// The SVID, giving the proof up.
    #[must_use]
    pub fn into_svid(self) -> X509Svid {
        self.0
    }
}

impl Anchors {
    /// Prepares the CA certificates of `trust_domain`. One that is no certificate is left out
    /// (TDB-18: a bad entry spoils that entry only), so that the set may come out empty.
    #[must_use]
    pub fn new<'a>(
        trust_domain: TrustDomain,
        certificates: impl IntoIterator<Item = &'a Certificate>,
    ) -> Self {
        let anchors = certificates
            .into_iter()
            .filter_map(|certificate| {
                let der = CertificateDer::from(certificate.der());
                // Name constraints stay in: webpki then refuses what it cannot process,
                // and nothing is ignored (X509-19).
                webpki::anchor_from_trusted_cert(&der)
                    .ok()
                    .map(|anchor| anchor.to_owned())
            })
            .collect();
        Self {
            trust_domain,
            anchors,
        }
    }

    /// Whose anchors they are.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whether nothing can be verified with them (TDB-16: an empty bundle revokes all).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// Validates the path from `svid` to one of the anchors at `now` (RFC 5280 section 6).
    ///
    /// # Errors
    /// [`X509Error::OtherTrustDomain`], or [`X509Error::Path`] with webpki's reason.
    pub fn verify(
        &self,
        svid: X509Svid,
        role: Role,
        now: SystemTime,
    ) -> Result<VerifiedX509Svid, X509Error> {
        if !svid.id.is_member_of(&self.trust_domain) {
            return Err(X509Error::OtherTrustDomain {
                svid: svid.id.trust_domain(),
                bundle: self.trust_domain.clone(),
            });
        }
        self.verify_path(&svid, role, now)?;
        Ok(VerifiedX509Svid::assertion(svid))
    }

    fn verify_path(&self, svid: &X509Svid, role: Role, now: SystemTime) -> Result<(), X509Error> {
        let ders: Vec<CertificateDer<'_>> = svid
            .chain
            .iter()
            .map(|certificate| CertificateDer::from(certificate.der()))
            .collect();
        let (leaf, intermediates) = ders.split_first().ok_or(X509Error::Empty)?;
        let leaf = EndEntityCert::try_from(leaf).map_err(X509Error::Path)?;
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let path = leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &self.anchors,
            intermediates,
            unix_time(now)?,
            usage,
            None,
            None,
        );
        path.map(drop).map_err(X509Error::Path)
    }
}

fn unix_time(now: SystemTime) -> Result<UnixTime, X509Error> {
    let since: Duration = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| X509Error::Time)?;
    Ok(UnixTime::since_unix_epoch(since))
}

impl fmt::Debug for Anchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Anchors({}, {})", self.trust_domain, self.anchors.len())
    }
}

/// `serial` as SPIRE prints it: a decimal number.
#[must_use]
pub fn serial_decimal(serial: &[u8]) -> String {
    // RFC 5280 allows 20 octets; those that are made here have at most 16.
    if serial.len() <= size_of::<u128>() {
        let number = serial
            .iter()
            .fold(0u128, |number, byte| number << 8 | u128::from(*byte));
        return number.to_string();
    }
    let mut digits = vec![0u8];
    for byte in serial {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            let value = u32::from(*digit) * 256 + carry;
            *digit = u8::try_from(value % 10).unwrap_or_default();
            carry = value / 10;
        }
        while carry > 0 {
            digits.push(u8::try_from(carry % 10).unwrap_or_default());
            carry /= 10;
        }
    }
    digits
        .iter()
        .rev()
        .map(|digit| char::from(b'0' + digit))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
