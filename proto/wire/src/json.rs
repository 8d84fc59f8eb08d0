//! Messages as JSON, in the form that SPIRE's CLI prints (`-o json`), and back.
//!
//! Written: compact, keys sorted, protobuf's field names, scalars and lists also when unset,
//! 64-bit integers as strings, unset messages left out. Read: strictly, so that a misspelt
//! key is an error and not a silent default. [`entries`] reads the file of
//! `entry create --data` in both forms that SPIRE has for it.

use prost::{Message, Name};
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::{Map, Value};
use vane_identity::id::{IdError, SpiffeId};

use crate::descriptor::descriptor_pool;
use crate::generated::spire::api::server::entry::v1::ListEntriesResponse;
use crate::generated::spire::api::types;

#[cfg(test)]
mod tests;

/// Why a message cannot be written as JSON, or JSON is no such message.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The message is not among the descriptors of this build (records are not).
    #[error("{0} has no JSON form")]
    NoDescriptor(String),
    /// The message does not fit its own descriptor.
    #[error("message does not match its descriptor: {0}")]
    Message(#[from] prost::DecodeError),
    /// The text is no JSON, or JSON of another shape.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A SPIFFE ID in a file of entries.
    #[error("entry {entry}: invalid {field} {value:?}: {source}")]
    Id {
        /// Which entry, counted from 1.
        entry: usize,
        /// Which field of it.
        field: &'static str,
        /// What stands there.
        value: String,
        /// What is wrong with it.
        source: IdError,
    },
}

/// `message` as SPIRE's CLI prints it.
///
/// # Errors
/// [`JsonError::NoDescriptor`] for a message of `vane.store`.
pub fn to_string<M: Message + Name>(message: &M) -> Result<String, JsonError> {
    Ok(to_value(message)?.to_string())
}

/// `message` as a JSON value, for a caller that prints it in its own way.
///
/// # Errors
/// As [`to_string`].
pub fn to_value<M: Message + Name>(message: &M) -> Result<Value, JsonError> {
    let bytes = message.encode_to_vec();
    let dynamic = DynamicMessage::decode(descriptor::<M>()?, bytes.as_slice())?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(true);
    // Through a value, whose keys are sorted.
    let mut value = dynamic.serialize_with_options(serde_json::value::Serializer, &options)?;
    write_whole(&mut value);
    Ok(value)
}

/// The largest number up to which every integer is a double.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Whole doubles (the numbers of claims) without a point, as protojson has them.
fn write_whole(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let whole = number
                .as_f64()
                .filter(|it| it.fract() == 0.0 && it.abs() <= EXACT);
            #[expect(clippy::cast_possible_truncation, reason = "the range was checked")]
            if let Some(whole) = whole {
                *value = Value::from(whole as i64);
            }
        }
        Value::Array(all) => all.iter_mut().for_each(write_whole),
        Value::Object(map) => map.values_mut().for_each(write_whole),
        _ => {}
    }
}

/// The message that `text` says; keys that it does not have are refused.
///
/// # Errors
/// [`JsonError::Json`] with line and column where there is one.
pub fn from_str<M: Message + Name + Default>(text: &str) -> Result<M, JsonError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let message = read(&mut json)?;
    json.end()?;
    Ok(message)
}

fn read<'de, M, D>(json: D) -> Result<M, JsonError>
where
    M: Message + Name + Default,
    D: serde::Deserializer<'de, Error = serde_json::Error>,
{
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor::<M>()?, json, &options)?;
    Ok(dynamic.transcode_to()?)
}

fn descriptor<M: Name>() -> Result<MessageDescriptor, JsonError> {
    let name = M::full_name();
    descriptor_pool()
        .get_message_by_name(&name)
        .ok_or(JsonError::NoDescriptor(name))
}

/// The entries of a `--data` file: `{"entries": [...]}`, as SPIRE's CLI takes it (IDs as text,
/// `entry_id`, `entryExpiry`) or as ours prints a list (IDs as objects). Revision and creation
/// are read and mean nothing.
///
/// # Errors
/// [`JsonError::Id`], [`JsonError::Json`].
pub fn entries(text: &str) -> Result<Vec<types::Entry>, JsonError> {
    let mut file: Value = serde_json::from_str(text)?;
    let list = file.get_mut("entries").and_then(Value::as_array_mut);
    for (at, entry) in list.into_iter().flatten().enumerate() {
        if let Value::Object(entry) = entry {
            rename(entry, "entry_id", "id");
            rename(entry, "entryExpiry", "expires_at");
            split_id(entry, "spiffe_id", at + 1)?;
            split_id(entry, "parent_id", at + 1)?;
        }
    }
    Ok(read::<ListEntriesResponse, _>(file)?.entries)
}

/// Gives a key of SPIRE's file the name that it has in the API. Where both stand, the old one
/// stays and is refused as unknown.
fn rename(entry: &mut Map<String, Value>, file: &str, api: &str) {
    if entry.contains_key(api) {
        return;
    }
    if let Some(value) = entry.remove(file) {
        entry.insert(api.to_owned(), value);
    }
}

fn split_id(
    entry: &mut Map<String, Value>,
    field: &'static str,
    number: usize,
) -> Result<(), JsonError> {
    let Some(Value::String(text)) = entry.get(field) else {
        return Ok(());
    };
    let id = SpiffeId::parse(text).map_err(|source| JsonError::Id {
        entry: number,
        field,
        value: text.clone(),
        source,
    })?;
    let parts = serde_json::json!({"trust_domain": id.trust_domain_name(), "path": id.path()});
    entry.insert(field.to_owned(), parts);
    Ok(())
}
