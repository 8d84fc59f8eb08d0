//! Writes DER (X.690): just what certificates need.
//!
//! Everything is appended to one buffer; a constructed value writes its content first and
//! then puts tag and length before it, so that no caller counts bytes. Reading DER is
//! x509-parser's work: what is written here is always read back with it.

use time::OffsetDateTime;

pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const PRINTABLE_STRING: u8 = 0x13;
pub(crate) const UTF8_STRING: u8 = 0x0c;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Appends tag, length and what `content` writes.
pub(crate) fn nested(out: &mut Vec<u8>, tag: u8, content: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    content(out);
    let (octets, used) = length(out.len() - at);
    out.splice(at..at, octets.into_iter().take(used));
}

/// Appends tag, length and `content`.
pub(crate) fn primitive(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    let (octets, used) = length(content.len());
    out.push(tag);
    out.extend(octets.into_iter().take(used));
    out.extend_from_slice(content);
}

/// The length octets (X.690 section 10.1) and how many of them count. Lengths stay below
/// 2^32 because every input is limited long before.
fn length(len: usize) -> ([u8; 5], usize) {
    let [a, b, c, d] = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
    match (a, b, c) {
        (0, 0, 0) if d < 0x80 => ([d, 0, 0, 0, 0], 1),
        (0, 0, 0) => ([0x81, d, 0, 0, 0], 2),
        (0, 0, _) => ([0x82, c, d, 0, 0], 3),
        (0, _, _) => ([0x83, b, c, d, 0], 4),
        _ => ([0x84, a, b, c, d], 5),
    }
}

/// Appends an INTEGER that is not negative, from big endian bytes.
pub(crate) fn unsigned(out: &mut Vec<u8>, bytes: &[u8]) {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let magnitude = bytes.get(zeros..).unwrap_or_default();
    nested(out, INTEGER, |out| {
        if magnitude.first().is_none_or(|first| *first >= 0x80) {
            out.push(0);
        }
        out.extend_from_slice(magnitude);
    });
}

/// Appends a BIT STRING whose last `unused` bits do not count.
pub(crate) fn bit_string(out: &mut Vec<u8>, unused: u8, bytes: &[u8]) {
    nested(out, BIT_STRING, |out| {
        out.push(unused);
        out.extend_from_slice(bytes);
    });
}

/// Appends an OBJECT IDENTIFIER from its content octets.
pub(crate) fn oid(out: &mut Vec<u8>, content: &[u8]) {
    primitive(out, OBJECT_IDENTIFIER, content);
}

/// Appends a time in whole seconds: UTCTime until 2049, GeneralizedTime from 2050
/// (RFC 5280 section 4.1.2.5). A time that no calendar holds is written as the epoch.
pub(crate) fn time(out: &mut Vec<u8>, unix: i64) {
    let at = OffsetDateTime::from_unix_timestamp(unix).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let year = at.year();
    let (tag, year) = match year {
        1950..=2049 => (UTC_TIME, format!("{:02}", year % 100)),
        _ => (GENERALIZED_TIME, format!("{year:04}")),
    };
    let text = format!(
        "{year}{:02}{:02}{:02}{:02}{:02}Z",
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    );
    primitive(out, tag, text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    #[test]
    fn lengths_take_the_shortest_form() {
        let cases: [(usize, &[u8]); 6] = [
            (0, &[0x00]),
            (0x7f, &[0x7f]),
            (0x80, &[0x81, 0x80]),
            (0xff, &[0x81, 0xff]),
            (0x100, &[0x82, 0x01, 0x00]),
            (0x1_0000, &[0x83, 0x01, 0x00, 0x00]),
        ];
        for (len, expected) in cases {
            let content = vec![7; len];
            let flat = written(|out| primitive(out, OCTET_STRING, &content));
            assert_eq!(flat[1..=expected.len()], *expected);
            let deep = written(|out| nested(out, OCTET_STRING, |out| out.extend(&content)));
            assert_eq!(flat, deep);
        }
    }

    #[test]
    fn integers_are_minimal_and_never_negative() {
        assert_eq!(written(|out| unsigned(out, &[0, 0, 5])), [2, 1, 5]);
        assert_eq!(written(|out| unsigned(out, &[0x80])), [2, 2, 0, 0x80]);
        assert_eq!(written(|out| unsigned(out, &[])), [2, 1, 0]);
    }

    #[test]
    fn times_change_their_form_in_2050() {
        let utc = written(|out| time(out, 2_524_607_999));
        assert_eq!(&utc[2..], b"491231235959Z");
        let generalized = written(|out| time(out, 2_524_608_000));
        assert_eq!(&generalized[2..], b"20500101000000Z");
    }
}
