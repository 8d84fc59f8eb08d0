//! Distinguished names, as Go's `crypto/x509/pkix` writes them.
//!
//! A [`Subject`] holds the nine attributes that Go's `pkix.Name` keeps, in its order, one
//! RDN per kind of attribute; everything else of a foreign name is dropped, as SPIRE drops
//! it. Sizes are bounded where a name comes from outside.

use serde::{Deserialize, Serialize};
use x509_parser::x509::X509Name;

use crate::der;

/// The most bytes in one value of a name that comes from a CSR.
pub const MAX_VALUE_BYTES: usize = 1024;
/// The most values in a name that comes from a CSR.
pub const MAX_VALUES: usize = 64;

/// The `ca_subject` of the configuration (SPIRE's key names).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SubjectConfig {
    /// `C`, two letters each.
    pub country: Vec<String>,
    /// `O`.
    pub organization: Vec<String>,
    /// `CN`.
    pub common_name: String,
}

/// The kinds of attributes, in the order in which they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attribute {
    /// `C`
    Country,
    /// `O`
    Organization,
    /// `OU`
    OrganizationalUnit,
    /// `L`
    Locality,
    /// `ST`
    Province,
    /// `STREET`
    StreetAddress,
    /// `postalCode`
    PostalCode,
    /// `CN`
    CommonName,
    /// `serialNumber`
    SerialNumber,
}

/// A distinguished name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject(Vec<(Attribute, String)>);

/// Why a name from outside is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// A value is longer than [`MAX_VALUE_BYTES`].
    #[error("subject has a value of {0} bytes, {MAX_VALUE_BYTES} are allowed")]
    ValueLength(usize),
    /// There are more values than [`MAX_VALUES`].
    #[error("subject has {0} values, {MAX_VALUES} are allowed")]
    Values(usize),
    /// A country is not two letters (X.520 section 6.3.1).
    #[error("country {0:?} is not two letters")]
    Country(String),
}

impl Attribute {
    const ALL: [Self; 9] = [
        Self::Country,
        Self::Organization,
        Self::OrganizationalUnit,
        Self::Locality,
        Self::Province,
        Self::StreetAddress,
        Self::PostalCode,
        Self::CommonName,
        Self::SerialNumber,
    ];

    /// The content octets of its OID: id-at (2.5.4) and one arc.
    fn oid(self) -> [u8; 3] {
        let arc = match self {
            Self::CommonName => 3,
            Self::SerialNumber => 5,
            Self::Country => 6,
            Self::Locality => 7,
            Self::Province => 8,
            Self::StreetAddress => 9,
            Self::Organization => 10,
            Self::OrganizationalUnit => 11,
            Self::PostalCode => 17,
        };
        [0x55, 0x04, arc]
    }

    fn by_oid(content: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.oid() == *content)
    }
}

impl Subject {
    /// `C=US,O=SPIRE`: what leaves carry.
    #[must_use]
    pub fn svid() -> Self {
        Self::default()
            .with(Attribute::Country, "US")
            .with(Attribute::Organization, "SPIRE")
    }

    /// The subject of a CA before its serial number: `config`, or `C=US,O=SPIFFE` when it
    /// says nothing.
    ///
    /// # Errors
    /// [`SubjectError`].
    pub fn ca(config: &SubjectConfig) -> Result<Self, SubjectError> {
        if *config == SubjectConfig::default() {
            return Ok(Self::default()
                .with(Attribute::Country, "US")
                .with(Attribute::Organization, "SPIFFE"));
        }
        let mut subject = Self::default();
        for country in &config.country {
            if country.len() != 2 || !country.bytes().all(|byte| byte.is_ascii_alphabetic()) {
                return Err(SubjectError::Country(country.clone()));
            }
            subject = subject.with(Attribute::Country, country);
        }
        for organization in &config.organization {
            subject = subject.with(Attribute::Organization, organization);
        }
        if !config.common_name.is_empty() {
            subject = subject.with(Attribute::CommonName, &config.common_name);
        }
        subject.checked()
    }

    /// Reads the known attributes of `name`; those that are no text are dropped.
    ///
    /// # Errors
    /// [`SubjectError::Values`], [`SubjectError::ValueLength`].
    pub fn from_x509(name: &X509Name<'_>) -> Result<Self, SubjectError> {
        let mut values: Vec<(Attribute, String)> = name
            .iter_attributes()
            .filter_map(|one| {
                let attribute = Attribute::by_oid(one.attr_type().as_bytes())?;
                Some((attribute, one.as_str().ok()?.to_owned()))
            })
            .collect();
        values.sort_by_key(|(attribute, _)| *attribute);
        Self(values).checked()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one value.
    #[must_use]
    pub fn with(mut self, attribute: Attribute, value: &str) -> Self {
        let at = self.0.partition_point(|(other, _)| *other <= attribute);
        self.0.insert(at, (attribute, value.to_owned()));
        self
    }

    /// Makes `name` the one common name.
    #[must_use]
    pub fn with_common_name(mut self, name: &str) -> Self {
        self.0.retain(|(kind, _)| *kind != Attribute::CommonName);
        self.with(Attribute::CommonName, name)
    }

    /// Makes `unit` the one organizational unit.
    #[must_use]
    pub fn with_organizational_unit(mut self, unit: &str) -> Self {
        self.0
            .retain(|(kind, _)| *kind != Attribute::OrganizationalUnit);
        self.with(Attribute::OrganizationalUnit, unit)
    }

    fn checked(self) -> Result<Self, SubjectError> {
        if self.0.len() > MAX_VALUES {
            return Err(SubjectError::Values(self.0.len()));
        }
        match self
            .0
            .iter()
            .find(|(_, value)| value.len() > MAX_VALUE_BYTES)
        {
            Some((_, value)) => Err(SubjectError::ValueLength(value.len())),
            None => Ok(self),
        }
    }

    /// The DER of the name (RFC 5280 section 4.1.2.4).
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        der::nested(&mut out, der::SEQUENCE, |out| {
            for rdn in self.0.chunk_by(|(a, _), (b, _)| a == b) {
                write_rdn(out, rdn);
            }
        });
        out
    }
}

/// Writes the values of one kind of attribute as one RDN: a SET OF, so in the order of
/// their encodings (X.690 section 11.6).
fn write_rdn(out: &mut Vec<u8>, rdn: &[(Attribute, String)]) {
    let mut encoded: Vec<Vec<u8>> = rdn.iter().map(encode_value).collect();
    encoded.sort();
    der::nested(out, der::SET, |out| {
        for value in encoded {
            out.extend(value);
        }
    });
}

fn encode_value((attribute, value): &(Attribute, String)) -> Vec<u8> {
    let tag = match value.bytes().all(is_printable) {
        true => der::PRINTABLE_STRING,
        false => der::UTF8_STRING,
    };
    let mut out = Vec::with_capacity(value.len() + 12);
    der::nested(&mut out, der::SEQUENCE, |out| {
        der::oid(out, &attribute.oid());
        der::primitive(out, tag, value.as_bytes());
    });
    out
}

/// The characters of PrintableString (X.680 section 41.4); as in Go, neither `*` nor `&`.
fn is_printable(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&byte)
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::FromDer;

    use super::*;

    fn text(subject: &Subject) -> String {
        let der = subject.to_der();
        let (rest, name) = X509Name::from_der(&der).unwrap();
        assert!(rest.is_empty());
        name.to_string()
    }

    #[test]
    fn names_are_written_in_the_order_of_go() {
        let subject = Subject::svid()
            .with(Attribute::SerialNumber, "7")
            .with_common_name("a.example.org");
        assert_eq!(
            text(&subject),
            "C=US, O=SPIRE, CN=a.example.org, serialNumber=7"
        );
    }

    #[test]
    fn a_common_name_is_replaced_and_values_of_one_kind_share_an_rdn() {
        let subject = Subject::default()
            .with_common_name("one")
            .with_common_name("two")
            .with(Attribute::OrganizationalUnit, "z")
            .with(Attribute::OrganizationalUnit, "a");
        assert_eq!(text(&subject), "OU=a + OU=z, CN=two");
    }

    #[test]
    fn what_is_not_printable_is_utf8() {
        let der = Subject::default()
            .with_common_name("*.example.org")
            .to_der();
        assert!(der.contains(&der::UTF8_STRING));
        let der = Subject::default()
            .with_common_name("web.example.org")
            .to_der();
        assert!(!der.contains(&der::UTF8_STRING));
    }

    #[test]
    fn a_name_read_back_is_the_same_and_its_sizes_are_bounded() {
        let subject = Subject::svid().with_common_name("x");
        let der = subject.to_der();
        let (_, name) = X509Name::from_der(&der).unwrap();
        assert_eq!(Subject::from_x509(&name), Ok(subject));

        let der = Subject::default()
            .with_common_name(&"x".repeat(1025))
            .to_der();
        let (_, name) = X509Name::from_der(&der).unwrap();
        assert_eq!(
            Subject::from_x509(&name),
            Err(SubjectError::ValueLength(1025))
        );
    }

    #[test]
    fn the_ca_subject_is_spiffe_or_what_is_configured() {
        assert_eq!(
            text(&Subject::ca(&SubjectConfig::default()).unwrap()),
            "C=US, O=SPIFFE"
        );
        let config = SubjectConfig {
            country: vec!["CH".to_owned()],
            organization: vec!["ACME".to_owned()],
            common_name: "root".to_owned(),
        };
        assert_eq!(
            text(&Subject::ca(&config).unwrap()),
            "C=CH, O=ACME, CN=root"
        );
        let config = SubjectConfig {
            country: vec!["Switzerland".to_owned()],
            ..SubjectConfig::default()
        };
        assert!(Subject::ca(&config).is_err());
    }
}
