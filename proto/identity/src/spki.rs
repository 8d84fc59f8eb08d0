//! SubjectPublicKeyInfo DER from the parts of a JWK (RFC 5480 section 2, RFC 8017 A.1.1).
//!
//! Only what a JWK can say: uncompressed points of the three NIST curves, and RSA keys of
//! 2048 to 8192 bits.

/// The NIST curves of JOSE (RFC 7518 section 6.2.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
}

const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const RSA_ENCRYPTION: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const MIN_RSA_BYTES: usize = 2048 / 8;
const MAX_RSA_BYTES: usize = 8192 / 8;

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    fn coordinate(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    fn oid(self) -> &'static [u8] {
        match self {
            Self::P256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
            Self::P384 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
            Self::P521 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23],
        }
    }

    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|curve| curve.name() == name)
    }

    pub(crate) fn by_coordinate(bytes: usize) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|curve| curve.coordinate() == bytes)
    }
}

/// The key of an uncompressed point, if the coordinates have the curve's length.
pub(crate) fn from_ec_point(curve: Curve, x: &[u8], y: &[u8]) -> Option<Vec<u8>> {
    if x.len() != curve.coordinate() || y.len() != curve.coordinate() {
        return None;
    }
    let algorithm = der(SEQUENCE, &[EC_PUBLIC_KEY, curve.oid()])?;
    let point = der(BIT_STRING, &[&[0x00, 0x04], x, y])?;
    der(SEQUENCE, &[&algorithm, &point])
}

/// The key of an RSA modulus and exponent, if the modulus has an accepted length.
pub(crate) fn from_rsa(modulus: &[u8], exponent: &[u8]) -> Option<Vec<u8>> {
    let modulus = without_leading_zeros(modulus);
    if !(MIN_RSA_BYTES..=MAX_RSA_BYTES).contains(&modulus.len()) || exponent.len() > 8 {
        return None;
    }
    let key = der(SEQUENCE, &[&unsigned(modulus)?, &unsigned(exponent)?])?;
    let algorithm = der(SEQUENCE, &[RSA_ENCRYPTION])?;
    let bits = der(BIT_STRING, &[&[0x00], &key])?;
    der(SEQUENCE, &[&algorithm, &bits])
}

/// `bytes` from the first that is not zero.
pub(crate) fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

fn unsigned(bytes: &[u8]) -> Option<Vec<u8>> {
    let bytes = without_leading_zeros(bytes);
    let sign: &[u8] = if *bytes.first()? >= 0x80 { &[0] } else { &[] };
    der(INTEGER, &[sign, bytes])
}

fn der(tag: u8, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match u16::try_from(len).ok()?.to_be_bytes() {
        [0, short] if short < 0x80 => out.push(short),
        [0, long] => out.extend([0x81, long]),
        [high, low] => out.extend([0x82, high, low]),
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Some(out)
}
