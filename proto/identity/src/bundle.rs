//! Trust bundles: the authorities of one trust domain (SPIFFE_Trust_Domain_and_Bundle.md).
//!
//! A bundle belongs to exactly one trust domain and is never merged with another's. The
//! sequence number grows with each change of content. Tainted marks are SPIRE's: a tainted
//! authority still verifies, but nothing signed by it should be served any longer.

use crate::id::TrustDomain;
use crate::key::PublicKey;
use crate::x509_svid::{Anchors, Certificate, X509Error};

/// The most authorities of one kind in a bundle.
pub const MAX_AUTHORITIES: usize = 256;

/// An X.509 authority of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X509Authority {
    /// Its CA certificate.
    pub certificate: Certificate,
    /// Whether it is tainted.
    pub tainted: bool,
}

/// A JWT signing key of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtAuthority {
    /// Its `kid`.
    pub key_id: String,
    /// The key.
    pub public_key: PublicKey,
    /// Seconds since the Unix epoch; 0 = not said.
    pub expires_at: i64,
    /// Whether it is tainted.
    pub tainted: bool,
}

/// The authorities of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Whose they are.
    pub trust_domain: TrustDomain,
    /// CA certificates, in the order in which they were added.
    pub x509_authorities: Vec<X509Authority>,
    /// JWT keys, in the order in which they were added.
    pub jwt_authorities: Vec<JwtAuthority>,
    /// Seconds after which a consumer should look again; 0 = not said.
    pub refresh_hint: i64,
    /// Grows with each change of content.
    pub sequence_number: u64,
}

impl X509Authority {
    /// An authority that is not tainted.
    #[must_use]
    pub fn new(certificate: Certificate) -> Self {
        Self {
            certificate,
            tainted: false,
        }
    }

    /// SPIRE's authority ID: the lower-case hex of the key identifier.
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub fn authority_id(&self) -> Result<String, X509Error> {
        let key_id = self.certificate.info()?.key_id;
        Ok(key_id.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Bundle {
    /// A bundle without authorities, sequence 0.
    #[must_use]
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            refresh_hint: 0,
            sequence_number: 0,
        }
    }

    /// Its CA certificates, prepared for path validation. Tainted ones count.
    #[must_use]
    pub fn anchors(&self) -> Anchors {
        let certificates = self.x509_authorities.iter().map(|one| &one.certificate);
        Anchors::new(self.trust_domain.clone(), certificates)
    }

    /// The CA certificates as one DER concatenation, as the Workload API sends them.
    #[must_use]
    pub fn x509_der(&self) -> Vec<u8> {
        self.x509_authorities
            .iter()
            .flat_map(|one| one.certificate.der().iter().copied())
            .collect()
    }

    /// The CA certificates as PEM, one behind the other.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let all = self.x509_authorities.iter();
        all.map(|one| one.certificate.to_pem()).collect()
    }

    /// Whether the authorities and the hint are those of `other`, whatever the sequence.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.x509_authorities == other.x509_authorities
            && self.jwt_authorities == other.jwt_authorities
            && self.refresh_hint == other.refresh_hint
    }
}
