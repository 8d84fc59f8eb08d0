//! The normal form of an answer: what two runs have in common.
//!
//! A value that each run makes anew becomes `<kind N>`, N in the order of first occurrence in
//! its answer, and `<kind N of request>` when a later answer of the section has it again: so
//! it still shows where the same value comes back. Times are kept relative to the answer, in
//! minutes once they are further off than that. A set that has no order is sorted. A field that
//! is not there stays away, so its presence counts.

use std::collections::HashMap;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey};
use serde_json::{Map, Value, json};

use super::{inputs, shapes};

/// Times within this of now are `<now>`, in seconds.
const NOW: i64 = 40;
/// Numbers further off than this are no times.
const ERA: i64 = 20 * 366 * 86_400;

/// What became of the values of a section so far: its first answer, and its number there.
pub type Seen = HashMap<(&'static str, Vec<u8>), (String, usize)>;

/// Makes the normal form of one answer.
pub struct Normal<'a> {
    /// Of which request.
    request: &'a str,
    /// What this run made itself, by its bytes.
    named: &'a HashMap<Vec<u8>, String>,
    /// Values that stand in the table stay.
    table: &'a str,
    seen: &'a mut Seen,
    counts: HashMap<&'static str, usize>,
}

impl<'a> Normal<'a> {
    /// For the answer to `request`; adds to `seen`.
    pub fn new(
        request: &'a str,
        seen: &'a mut Seen,
        named: &'a HashMap<Vec<u8>, String>,
        table: &'a str,
    ) -> Self {
        Self {
            request,
            named,
            table,
            seen,
            counts: HashMap::new(),
        }
    }

    /// The fields of `message` that are there.
    pub fn message(&mut self, message: &DynamicMessage) -> Value {
        let fields: Vec<_> = message.fields().collect();
        let mut shown = Map::new();
        for (field, value) in fields {
            shown.insert(field.name().to_owned(), self.value(&field, value));
        }
        for unknown in message.unknown_fields() {
            shown.insert(format!("unknown {}", unknown.number()), json!("…"));
        }
        Value::Object(shown)
    }

    fn value(&mut self, field: &FieldDescriptor, value: &prost_reflect::Value) -> Value {
        use prost_reflect::Value as Wire;
        match value {
            Wire::List(items) => {
                let mut items: Vec<_> = items.iter().collect();
                if is_unordered(field) {
                    items.sort_by_key(|item| id_of(item));
                }
                items
                    .into_iter()
                    .map(|item| self.value(field, item))
                    .collect()
            }
            Wire::Map(items) => self.map(field, items),
            Wire::Message(message) => self.message(message),
            Wire::String(text) => self.string(field.name(), text),
            Wire::Bytes(bytes) => self.bytes(bytes),
            Wire::I32(number) => self.number(field.name(), i64::from(*number)),
            Wire::I64(number) => self.number(field.name(), *number),
            Wire::U32(number) => self.number(field.name(), i64::from(*number)),
            Wire::U64(number) => self.number(field.name(), i64::try_from(*number).unwrap()),
            Wire::Bool(value) => json!(value),
            Wire::F32(value) => json!(value),
            Wire::F64(value) => json!(value),
            Wire::EnumNumber(number) => match field.kind() {
                Kind::Enum(kind) => kind
                    .get_value(*number)
                    .map_or_else(|| json!(number), |value| json!(value.name())),
                _ => json!(number),
            },
        }
    }

    fn map(
        &mut self,
        field: &FieldDescriptor,
        items: &HashMap<MapKey, prost_reflect::Value>,
    ) -> Value {
        let mut items: Vec<_> = items
            .iter()
            .map(|(key, value)| (key.as_str().unwrap_or_default().to_owned(), value))
            .collect();
        items.sort_by(|a, b| a.0.cmp(&b.0));
        let mut shown = Map::new();
        for (key, value) in items {
            shown.insert(key, self.value(field, value));
        }
        Value::Object(shown)
    }

    fn string(&mut self, field: &str, text: &str) -> Value {
        if let Some((header, claims)) = shapes::token(text) {
            return json!({
                "header": self.claims(header),
                "claims": self.claims(claims),
            });
        }
        let kind = match field {
            // Whether there is one.
            "next_page_token" => return json!("<page token>"),
            "key_id" | "authority_id" => "key ID",
            "x509svid_serial_number" => "serial",
            "subject" => return json!(without_serial(text)),
            _ => return self.text(text).into(),
        };
        if text.is_empty() || self.table.contains(&format!("\"{text}\"")) {
            return text.into();
        }
        self.placeholder(kind, text.as_bytes()).into()
    }

    fn claims(&mut self, claims: Value) -> Value {
        let Value::Object(claims) = claims else {
            return claims;
        };
        let mut shown = Map::new();
        for (name, value) in claims {
            let value = match (name.as_str(), &value) {
                ("kid", Value::String(id)) => self.placeholder("key ID", id.as_bytes()).into(),
                ("jti", Value::String(id)) => self.placeholder("token", id.as_bytes()).into(),
                ("exp" | "iat", Value::Number(time)) => {
                    time.as_i64().map_or_else(|| value.clone(), relative)
                }
                _ => value,
            };
            shown.insert(name, value);
        }
        Value::Object(shown)
    }

    /// A text, such as a status' message, with the UUIDs in it replaced.
    pub fn text(&mut self, text: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = (0..rest.len()).find(|at| uuid(rest, *at).is_some()) {
            let id = uuid(rest, at).unwrap_or_default();
            shown.push_str(&rest[..at]);
            shown.push_str(&self.placeholder("UUID", id.as_bytes()));
            rest = &rest[at + id.len()..];
        }
        shown + rest
    }

    fn bytes(&mut self, bytes: &[u8]) -> Value {
        if let Some(name) = self.named.get(bytes) {
            return format!("<{name}>").into();
        }
        if let Some(shape) = shapes::certificate(bytes) {
            return shape;
        }
        if shapes::is_public_key(bytes) {
            return self.placeholder("key", bytes).into();
        }
        self.placeholder("bytes", bytes).into()
    }

    fn number(&mut self, field: &str, number: i64) -> Value {
        let is_time = field.ends_with("_at") && (number - inputs::now()).abs() < ERA;
        match field {
            "sequence_number" => self.placeholder("sequence", &number.to_be_bytes()).into(),
            "uptime" => json!("<uptime>"),
            _ if is_time && !self.table.contains(&number.to_string()) => relative(number),
            _ => json!(number),
        }
    }

    fn placeholder(&mut self, kind: &'static str, value: &[u8]) -> String {
        let key = (kind, value.to_vec());
        if let Some((request, number)) = self.seen.get(&key) {
            return if request == self.request {
                format!("<{kind} {number}>")
            } else {
                format!("<{kind} {number} of {request}>")
            };
        }
        let count = self.counts.entry(kind).or_insert(0);
        *count += 1;
        self.seen.insert(key, (self.request.to_owned(), *count));
        format!("<{kind} {count}>")
    }
}

/// The entries of an agent are a set.
fn is_unordered(field: &FieldDescriptor) -> bool {
    let parent = field.parent_message();
    field.name() == "entries" && parent.name().contains("AuthorizedEntries")
}

fn id_of(item: &prost_reflect::Value) -> String {
    let id = item.as_message().and_then(|entry| {
        let id = entry.get_field_by_name("id")?;
        id.as_str().map(str::to_owned)
    });
    id.unwrap_or_default()
}

fn relative(time: i64) -> Value {
    let delta = time - inputs::now();
    if delta.abs() < NOW {
        return json!("<now>");
    }
    json!(format!("<now {:+} min>", (delta as f64 / 60.0).round()))
}

/// A subject as Debug shows it: a CA has its serial number in it.
fn without_serial(subject: &str) -> String {
    let part = |part: &str| match part.strip_prefix("SERIALNUMBER=") {
        Some(_) => "SERIALNUMBER=…".to_owned(),
        None => part.to_owned(),
    };
    subject.split(',').map(part).collect::<Vec<_>>().join(",")
}

/// The UUID at `at`, when one stands there.
fn uuid(text: &str, at: usize) -> Option<&str> {
    let candidate = text.get(at..at + 36)?;
    let fits = candidate.bytes().enumerate().all(|(n, byte)| match n {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    fits.then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_value_has_the_same_placeholder() {
        let (mut seen, named) = (Seen::new(), HashMap::new());
        let (a, b) = (
            "6c1f3a52-8a0e-4c5b-9a58-0d6f6a9c1f01",
            "7c1f3a52-8a0e-4c5b-9a58-0d6f6a9c1f01",
        );
        let text = format!("x{a}/{b} {a}");
        let mut first = Normal::new("first", &mut seen, &named, "");
        assert_eq!(first.text(&text), "x<UUID 1>/<UUID 2> <UUID 1>");
        let mut second = Normal::new("second", &mut seen, &named, "");
        assert_eq!(second.text(b), "<UUID 2 of first>");
    }

    #[test]
    fn a_time_is_told_from_now() {
        let (mut seen, named) = (Seen::new(), HashMap::new());
        let mut normal = Normal::new("r", &mut seen, &named, "expires_at:2000000000");
        let now = inputs::now();
        assert_eq!(normal.number("created_at", now - 3), json!("<now>"));
        assert_eq!(
            normal.number("expires_at", now + 3_590),
            json!("<now +60 min>")
        );
        assert_eq!(
            normal.number("expires_at", 2_000_000_000),
            json!(2_000_000_000)
        );
        assert_eq!(normal.number("revision_number", 1), json!(1));
    }
}
