//! Writes TBSCertificates (RFC 5280 section 4.1), extensions in the order of Go.

use vane_identity::key::PublicKey;
use vane_identity::lifetime::{Validity, to_unix};
use vane_identity::x509_svid::Certificate;

use super::{CaPlan, Issuer, Plan, Serial, Signature, key_id};
use crate::der;

const VERSION_3: [u8; 5] = [0xa0, 0x03, 0x02, 0x01, 0x02];
const TRUE: [u8; 3] = [0x01, 0x01, 0xff];
/// digitalSignature, keyEncipherment, keyAgreement.
const LEAF_USAGE: [u8; 4] = [0x03, 0x02, 0x03, 0xa8];
/// keyCertSign, cRLSign.
const CA_USAGE: [u8; 4] = [0x03, 0x02, 0x01, 0x06];
/// `SEQUENCE {}`: cA is FALSE by default.
const NOT_CA: [u8; 2] = [0x30, 0x00];
/// `SEQUENCE { TRUE }`, no path length.
const IS_CA: [u8; 5] = [0x30, 0x03, 0x01, 0x01, 0xff];
/// id-kp-serverAuth, id-kp-clientAuth.
const LEAF_EXTENDED_USAGE: [u8; 22] = [
    0x30, 0x14, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01, 0x06, 0x08, 0x2b, 0x06,
    0x01, 0x05, 0x05, 0x07, 0x03, 0x02,
];
/// Context tags.
const EXTENSIONS: u8 = 0xa3;
const SAN_DNS: u8 = 0x82;
const SAN_URI: u8 = 0x86;
const AKI_KEY_ID: u8 = 0x80;

/// The last arc of id-ce (2.5.29).
mod id_ce {
    pub(super) const SUBJECT_KEY_ID: u8 = 14;
    pub(super) const KEY_USAGE: u8 = 15;
    pub(super) const SAN: u8 = 17;
    pub(super) const BASIC_CONSTRAINTS: u8 = 19;
    pub(super) const AUTHORITY_KEY_ID: u8 = 35;
    pub(super) const EXTENDED_KEY_USAGE: u8 = 37;
}

/// What leaves and CAs have in common.
struct Head<'a> {
    serial: &'a Serial,
    signature: Signature,
    issuer: &'a [u8],
    subject: &'a [u8],
    validity: Validity,
    public_key: &'a PublicKey,
}

/// The to-be-signed bytes of a leaf.
#[must_use]
pub fn leaf_tbs(plan: &Plan, issuer: &Issuer, serial: &Serial) -> Vec<u8> {
    let subject = plan.subject.to_der();
    let head = Head {
        serial,
        signature: issuer.signature,
        issuer: &issuer.subject,
        subject: &subject,
        validity: plan.validity,
        public_key: &plan.public_key,
    };
    // RFC 5280 section 4.2.1.6: critical when the subject is an empty sequence.
    let san_critical = plan.subject.is_empty();
    tbs(&head, |out| {
        extension(out, id_ce::KEY_USAGE, true, |out| out.extend(LEAF_USAGE));
        extension(out, id_ce::EXTENDED_KEY_USAGE, false, |out| {
            out.extend(LEAF_EXTENDED_USAGE);
        });
        extension(out, id_ce::BASIC_CONSTRAINTS, true, |out| {
            out.extend(NOT_CA);
        });
        subject_key_id(out, &plan.public_key);
        authority_key_id(out, &issuer.key_id);
        let uri = plan.spiffe_id.as_str();
        extension(out, id_ce::SAN, san_critical, |out| {
            names(out, &plan.dns_names, uri);
        });
    })
}

/// The to-be-signed bytes of a self-signed CA.
#[must_use]
pub fn ca_tbs(plan: &CaPlan, serial: &Serial) -> Vec<u8> {
    authority_tbs(plan, serial, None)
}

/// The to-be-signed bytes of a CA below `issuer`.
#[must_use]
pub fn intermediate_tbs(plan: &CaPlan, issuer: &Issuer, serial: &Serial) -> Vec<u8> {
    authority_tbs(plan, serial, Some(issuer))
}

fn authority_tbs(plan: &CaPlan, serial: &Serial, issuer: Option<&Issuer>) -> Vec<u8> {
    let subject = plan.subject.to_der();
    let head = Head {
        serial,
        signature: plan.signature,
        issuer: issuer.map_or(&subject, |issuer| &issuer.subject),
        subject: &subject,
        validity: plan.validity,
        public_key: &plan.public_key,
    };
    let id = plan.trust_domain.id();
    tbs(&head, |out| {
        extension(out, id_ce::KEY_USAGE, true, |out| out.extend(CA_USAGE));
        extension(out, id_ce::BASIC_CONSTRAINTS, true, |out| out.extend(IS_CA));
        subject_key_id(out, &plan.public_key);
        if let Some(issuer) = issuer {
            authority_key_id(out, &issuer.key_id);
        }
        extension(out, id_ce::SAN, false, |out| names(out, &[], id.as_str()));
    })
}

/// Joins what was signed with its signature.
#[must_use]
pub fn assemble(tbs: &[u8], signature: Signature, bits: &[u8]) -> Certificate {
    let mut out = Vec::with_capacity(tbs.len() + bits.len() + 32);
    der::nested(&mut out, der::SEQUENCE, |out| {
        out.extend_from_slice(tbs);
        algorithm(out, signature);
        der::bit_string(out, 0, bits);
    });
    Certificate::from_der(&out)
}

fn tbs(head: &Head<'_>, extensions: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(768);
    der::nested(&mut out, der::SEQUENCE, |out| {
        out.extend(VERSION_3);
        der::unsigned(out, head.serial.bytes());
        algorithm(out, head.signature);
        out.extend_from_slice(head.issuer);
        der::nested(out, der::SEQUENCE, |out| {
            der::time(out, to_unix(head.validity.not_before));
            der::time(out, to_unix(head.validity.not_after));
        });
        out.extend_from_slice(head.subject);
        out.extend_from_slice(head.public_key.spki());
        der::nested(out, EXTENSIONS, |out| {
            der::nested(out, der::SEQUENCE, extensions);
        });
    });
    out
}

/// RSA has a NULL as parameters, ECDSA has none (RFC 4055, RFC 5758).
fn algorithm(out: &mut Vec<u8>, signature: Signature) {
    der::nested(out, der::SEQUENCE, |out| {
        der::oid(out, signature.oid());
        if signature == Signature::RsaSha256 {
            out.extend([0x05, 0x00]);
        }
    });
}

fn extension(out: &mut Vec<u8>, arc: u8, critical: bool, value: impl FnOnce(&mut Vec<u8>)) {
    der::nested(out, der::SEQUENCE, |out| {
        der::oid(out, &[0x55, 0x1d, arc]);
        if critical {
            out.extend(TRUE);
        }
        der::nested(out, der::OCTET_STRING, value);
    });
}

fn subject_key_id(out: &mut Vec<u8>, key: &PublicKey) {
    extension(out, id_ce::SUBJECT_KEY_ID, false, |out| {
        der::primitive(out, der::OCTET_STRING, &key_id(key));
    });
}

fn authority_key_id(out: &mut Vec<u8>, issuer_key_id: &[u8; 20]) {
    extension(out, id_ce::AUTHORITY_KEY_ID, false, |out| {
        der::nested(out, der::SEQUENCE, |out| {
            der::primitive(out, AKI_KEY_ID, issuer_key_id);
        });
    });
}

fn names(out: &mut Vec<u8>, dns_names: &[String], uri: &str) {
    der::nested(out, der::SEQUENCE, |out| {
        for name in dns_names {
            der::primitive(out, SAN_DNS, name.as_bytes());
        }
        der::primitive(out, SAN_URI, uri.as_bytes());
    });
}
