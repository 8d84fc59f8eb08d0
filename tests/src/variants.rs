//! Wrong requests, made from the descriptors: every field of a message, and for each what can
//! be wrong with it.
//!
//! A variant is made on the wire, not in a message: an explicit zero, a field a hundred
//! thousand times or of another wire type cannot be said otherwise. All other fields keep the
//! value of a base that is valid.

use std::fmt;

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{
    Cardinality, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _,
    Value,
};
use vane_identity::entry::{
    MAX_DNS_NAME_BYTES, MAX_DNS_NAMES, MAX_ENTRY_ID_BYTES, MAX_FEDERATES_WITH, MAX_HINT_BYTES,
    MAX_SELECTORS,
};
use vane_identity::id::{MAX_SPIFFE_ID_BYTES, MAX_TRUST_DOMAIN_BYTES};
use vane_identity::jwt_svid::{MAX_AUDIENCE_BYTES, MAX_AUDIENCES};
use vane_identity::selector::{MAX_TYPE_BYTES, MAX_VALUE_BYTES};
use vane_wire::convert::agent::MAX_AGENT_VERSION_BYTES;
use vane_wire::convert::selector::MAX_FILTER_TRUST_DOMAINS;

/// The trust domain that no world has.
pub const FOREIGN: &str = "other.org";
/// Many.
pub const MANY: usize = 100_000;

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// It is not there.
    Absent,
    /// It is there and empty: zero, no octets, or one empty item.
    Empty,
    /// One more than is allowed: octets of a text, items of a list; the largest number.
    Over,
    /// An item of a list is one octet too long.
    LongItem,
    /// A number below zero, which proto3 can say in every integer field.
    Negative,
    /// Something of another trust domain.
    Foreign,
    /// It is of another wire type.
    WrongType,
    /// It is there 100,000 times, as it is.
    Many,
    /// It is there 100,000 times and empty.
    ManyEmpty,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Absent,
        Self::Empty,
        Self::Over,
        Self::LongItem,
        Self::Negative,
        Self::Foreign,
        Self::WrongType,
        Self::Many,
        Self::ManyEmpty,
    ];
}

/// A field of a message, or of a message inside it.
#[derive(Clone)]
pub struct Field(Vec<FieldDescriptor>);

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(FieldDescriptor::name).collect();
        f.write_str(&names.join("."))
    }
}

/// Every field of `message` and of the messages in it; a message inside itself once.
pub fn fields(message: &MessageDescriptor) -> Vec<Field> {
    let mut all = Vec::new();
    walk(message, &mut Vec::new(), &mut all);
    all
}

fn walk(message: &MessageDescriptor, above: &mut Vec<FieldDescriptor>, all: &mut Vec<Field>) {
    for field in message.fields() {
        above.push(field.clone());
        all.push(Field(above.clone()));
        if let Kind::Message(inner) = field.kind()
            && !above[..above.len() - 1]
                .iter()
                .any(|outer| outer.kind() == field.kind())
        {
            walk(&inner, above, all);
        }
        above.pop();
    }
}

/// `base` with `fault` at `field`; None where it would be no fault of its own.
pub fn variant(base: &DynamicMessage, field: &Field, fault: Fault) -> Option<Bytes> {
    let encoded = with_fault(base, &field.0, fault)?;
    Some(encoded.into())
}

fn with_fault(message: &DynamicMessage, path: &[FieldDescriptor], fault: Fault) -> Option<Vec<u8>> {
    let (target, inner) = path.split_first()?;
    let mut out = Vec::new();
    for field in message.descriptor().fields() {
        if field != *target {
            out.extend(field_bytes(message, &field));
            continue;
        }
        if inner.is_empty() {
            out.extend(wrong(message, &field, fault)?);
            continue;
        }
        let mut below = children(message, &field).into_iter();
        let first = below.next().unwrap_or_else(|| empty_message(&field));
        put_bytes(&mut out, &field, &with_fault(&first, inner, fault)?);
        for other in below {
            put_bytes(&mut out, &field, &prost::Message::encode_to_vec(&other));
        }
    }
    Some(out)
}

fn children(message: &DynamicMessage, field: &FieldDescriptor) -> Vec<DynamicMessage> {
    if !message.has_field(field) {
        return Vec::new();
    }
    match message.get_field(field).into_owned() {
        Value::Message(one) => vec![one],
        Value::List(all) => all
            .into_iter()
            .filter_map(|value| value.as_message().cloned())
            .collect(),
        _ => Vec::new(),
    }
}

fn empty_message(field: &FieldDescriptor) -> DynamicMessage {
    match field.kind() {
        Kind::Message(inner) => DynamicMessage::new(inner),
        other => panic!("{field:?} is a {other:?}"),
    }
}

/// One field as it is on the wire, with nothing around it.
fn field_bytes(message: &DynamicMessage, field: &FieldDescriptor) -> Vec<u8> {
    let mut alone = DynamicMessage::new(message.descriptor());
    if message.has_field(field) {
        alone.set_field(field, message.get_field(field).into_owned());
    }
    prost::Message::encode_to_vec(&alone)
}

fn wrong(message: &DynamicMessage, field: &FieldDescriptor, fault: Fault) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match fault {
        Fault::Absent => {}
        Fault::Empty => put_empty(&mut out, field),
        Fault::WrongType => put_wrong_type(&mut out, field),
        Fault::Many => out = present(message, field).repeat(MANY),
        Fault::ManyEmpty => {
            put_empty(&mut out, field);
            out = out.repeat(MANY);
        }
        Fault::Negative if is_integer(field) => put_varint(&mut out, field, u64::MAX),
        Fault::Negative => return None,
        Fault::Foreign => foreign(&mut out, message, field)?,
        Fault::Over => over(&mut out, message, field)?,
        Fault::LongItem => {
            let most = item_octets(field).filter(|_| field.is_list())?;
            put_bytes(&mut out, field, &vec![b'a'; most + 1]);
        }
    }
    Some(out)
}

/// The field as the base has it; as little as can be when the base does not.
fn present(message: &DynamicMessage, field: &FieldDescriptor) -> Vec<u8> {
    let bytes = field_bytes(message, field);
    if !bytes.is_empty() {
        return bytes;
    }
    let mut out = Vec::new();
    put_empty(&mut out, field);
    out
}

fn put_empty(out: &mut Vec<u8>, field: &FieldDescriptor) {
    if is_length_delimited(field) {
        put_bytes(out, field, b"");
    } else {
        put_varint(out, field, 0);
    }
}

fn put_wrong_type(out: &mut Vec<u8>, field: &FieldDescriptor) {
    encode_key(field.number(), WireType::ThirtyTwoBit, out);
    out.extend([1, 2, 3, 4]);
}

fn put_bytes(out: &mut Vec<u8>, field: &FieldDescriptor, bytes: &[u8]) {
    encode_key(field.number(), WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend(bytes);
}

fn put_varint(out: &mut Vec<u8>, field: &FieldDescriptor, value: u64) {
    encode_key(field.number(), WireType::Varint, out);
    encode_varint(value, out);
}

fn is_length_delimited(field: &FieldDescriptor) -> bool {
    matches!(field.kind(), Kind::String | Kind::Bytes | Kind::Message(_))
}

fn is_integer(field: &FieldDescriptor) -> bool {
    matches!(
        field.kind(),
        Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64
    )
}

fn foreign(out: &mut Vec<u8>, message: &DynamicMessage, field: &FieldDescriptor) -> Option<()> {
    match field.kind() {
        Kind::Message(inner) if inner.full_name() == "spire.api.types.SPIFFEID" => {
            let mut id = children(message, field)
                .into_iter()
                .next()
                .unwrap_or_else(|| empty_message(field));
            id.set_field_by_name("trust_domain", Value::String(FOREIGN.to_owned()));
            put_bytes(out, field, &prost::Message::encode_to_vec(&id));
        }
        Kind::String if names_trust_domains(field) => put_bytes(out, field, FOREIGN.as_bytes()),
        Kind::Bytes if field.name() == "csr" => {
            let csr = crate::remote::Key::generate().csr(Some("spiffe://other.org/x"));
            put_bytes(out, field, &csr);
        }
        Kind::String | Kind::Bytes => put_bytes(out, field, b"spiffe://other.org/x"),
        _ => return None,
    }
    Some(())
}

fn names_trust_domains(field: &FieldDescriptor) -> bool {
    matches!(
        field.name(),
        "trust_domain" | "trust_domains" | "federates_with"
    )
}

fn over(out: &mut Vec<u8>, message: &DynamicMessage, field: &FieldDescriptor) -> Option<()> {
    if field.is_list() {
        let first = children(message, field).into_iter().next();
        for n in 0..=items(field)? {
            put_bytes(out, field, &item(field, first.as_ref(), n));
        }
        return Some(());
    }
    match field.kind() {
        // A path is one by its slash.
        Kind::String if field.name() == "path" => {
            let path = format!("/{}", "a".repeat(item_octets(field)?));
            put_bytes(out, field, path.as_bytes());
        }
        Kind::String | Kind::Bytes => put_bytes(out, field, &vec![b'a'; item_octets(field)? + 1]),
        Kind::Bool => put_varint(out, field, 2),
        Kind::Enum(_) => put_varint(out, field, 99),
        Kind::Int32 => put_varint(out, field, i32::MAX as u64),
        Kind::Int64 => put_varint(out, field, i64::MAX as u64),
        Kind::Uint32 | Kind::Uint64 => put_varint(out, field, u64::MAX - 1),
        _ => return None,
    }
    Some(())
}

/// The `n`-th of many items that differ from each other.
fn item(field: &FieldDescriptor, first: Option<&DynamicMessage>, n: usize) -> Vec<u8> {
    let Some(first) = first else {
        return format!("n{n}.example.org").into_bytes();
    };
    let mut one = first.clone();
    if field.kind().as_message().map(MessageDescriptor::full_name)
        == Some("spire.api.types.Selector")
    {
        one.set_field_by_name("value", Value::String(format!("uid:{n}")));
    }
    prost::Message::encode_to_vec(&one)
}

/// The most items of a list.
fn items(field: &FieldDescriptor) -> Option<usize> {
    assert_eq!(field.cardinality(), Cardinality::Repeated);
    Some(match field.full_name() {
        "spire.api.types.Entry.selectors" | "spire.api.types.SelectorMatch.selectors" => {
            MAX_SELECTORS
        }
        "spire.api.types.Entry.dns_names" => MAX_DNS_NAMES,
        "spire.api.types.Entry.federates_with" => MAX_FEDERATES_WITH,
        "spire.api.types.FederatesWithMatch.trust_domains" => MAX_FILTER_TRUST_DOMAINS,
        // The burst of the signing limit.
        "spire.api.server.svid.v1.BatchNewX509SVIDRequest.params" => 1_000,
        "vane.sync.v1.Need.entry_ids" => 1_000,
        "spire.api.server.svid.v1.MintJWTSVIDRequest.audience"
        | "spire.api.server.svid.v1.NewJWTSVIDRequest.audience" => MAX_AUDIENCES,
        name if name.starts_with("spire.api.server.entry.v1.Batch") => 10_000,
        _ => return None,
    })
}

/// The most octets of a text, or of an item in a list of texts.
fn item_octets(field: &FieldDescriptor) -> Option<usize> {
    if !matches!(field.kind(), Kind::String | Kind::Bytes) {
        return None;
    }
    Some(match (field.parent_message().name(), field.name()) {
        ("SPIFFEID", "trust_domain") => MAX_TRUST_DOMAIN_BYTES,
        ("SPIFFEID", "path") => MAX_SPIFFE_ID_BYTES,
        ("Selector", "type") => MAX_TYPE_BYTES,
        ("Selector", "value") => MAX_VALUE_BYTES,
        (_, "id" | "ids" | "entry_id" | "entry_ids") => MAX_ENTRY_ID_BYTES,
        (_, "hint") => MAX_HINT_BYTES,
        ("StringValue", "value") => MAX_HINT_BYTES,
        (_, "dns_names") => MAX_DNS_NAME_BYTES,
        (_, "federates_with" | "trust_domains") => MAX_TRUST_DOMAIN_BYTES,
        (_, "audience") => MAX_AUDIENCE_BYTES,
        (_, "csr") => vane_authority::csr::MAX_CSR_BYTES,
        (_, "agent_version") => MAX_AGENT_VERSION_BYTES,
        (_, "token" | "payload") => 255,
        (_, "epoch" | "set_digest" | "bundle_digest") => 16,
        // No limit of its own: as long as the longest that has one.
        _ => MAX_VALUE_BYTES,
    })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use vane_wire::descriptor_pool;
    use vane_wire::spire::api::types;

    use super::*;

    fn entry() -> DynamicMessage {
        let entry = crate::admin::entry(
            "spiffe://example.org/a",
            "spiffe://example.org/b",
            &["unix:uid:1"],
        );
        let descriptor = descriptor_pool()
            .get_message_by_name("spire.api.types.Entry")
            .unwrap();
        DynamicMessage::decode(descriptor, entry.encode_to_vec().as_slice()).unwrap()
    }

    fn field(name: &str) -> Field {
        let all = fields(&entry().descriptor());
        all.into_iter().find(|one| one.to_string() == name).unwrap()
    }

    fn with(name: &str, fault: Fault) -> types::Entry {
        let bytes = variant(&entry(), &field(name), fault).unwrap();
        types::Entry::decode(bytes).unwrap()
    }

    #[test]
    fn a_variant_differs_from_its_base_in_one_field() {
        let base = types::Entry::decode(entry().encode_to_vec().as_slice()).unwrap();
        let absent = with("spiffe_id", Fault::Absent);
        assert_eq!(absent.spiffe_id, None);
        assert_eq!(
            (absent.parent_id, absent.selectors),
            (base.parent_id.clone(), base.selectors)
        );
        let foreign = with("parent_id", Fault::Foreign).parent_id.unwrap();
        assert_eq!(
            (foreign.trust_domain.as_str(), foreign.path.as_str()),
            (FOREIGN, "/b")
        );
        let inner = with("selectors.value", Fault::Empty).selectors.remove(0);
        assert_eq!((inner.r#type.as_str(), inner.value.as_str()), ("unix", ""));
    }

    #[test]
    fn a_variant_says_what_a_message_cannot() {
        assert_eq!(with("selectors", Fault::Many).selectors.len(), MANY);
        assert_eq!(
            with("selectors", Fault::Over).selectors.len(),
            MAX_SELECTORS + 1
        );
        assert_eq!(with("x509_svid_ttl", Fault::Negative).x509_svid_ttl, -1);
        assert_eq!(with("hint", Fault::Over).hint.len(), MAX_HINT_BYTES + 1);
        let wrong = variant(&entry(), &field("hint"), Fault::WrongType).unwrap();
        assert!(types::Entry::decode(wrong).is_err());
        let empty = variant(&entry(), &field("hint"), Fault::Empty).unwrap();
        let absent = variant(&entry(), &field("hint"), Fault::Absent).unwrap();
        assert_eq!(empty.len(), absent.len() + 2, "the zero is on the wire");
    }

    #[test]
    fn every_field_of_an_entry_is_found() {
        let names: Vec<String> = fields(&entry().descriptor())
            .iter()
            .map(Field::to_string)
            .collect();
        assert_eq!(names.len(), 16 + 2 + 2 + 2 + 2, "{names:?}");
    }
}
