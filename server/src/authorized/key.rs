//! The ID of an entry in memory: 16 bytes for the text of a UUID, else the text.
//!
//! Keys are ordered as their texts, which is the order of listings and page tokens: the
//! lower-case hex of a UUID sorts as its bytes do.

use std::cmp::Ordering;

use uuid::Uuid;
use uuid::fmt::Hyphenated;
use vane_identity::entry::EntryId;

/// The key of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    /// An ID that is the lower-case text of a UUID.
    Uuid([u8; 16]),
    /// Any other.
    Text(EntryId),
}

impl Key {
    /// The key of `id`.
    pub(crate) fn of(id: &EntryId) -> Self {
        match Uuid::try_parse(id.as_str()) {
            Ok(uuid) if encode(uuid.as_bytes(), &mut [0; Hyphenated::LENGTH]) == id.as_str() => {
                Self::Uuid(*uuid.as_bytes())
            }
            _ => Self::Text(id.clone()),
        }
    }

    /// The ID.
    pub(crate) fn id(&self) -> EntryId {
        match self {
            Self::Text(id) => id.clone(),
            Self::Uuid(bytes) => {
                let mut buffer = [0; Hyphenated::LENGTH];
                #[expect(
                    clippy::expect_used,
                    reason = "36 hex digits and dashes are an entry ID"
                )]
                EntryId::parse(encode(bytes, &mut buffer)).expect("the text of a UUID")
            }
        }
    }

    /// Calls `read` with the text, without an allocation.
    pub(crate) fn with_text<T>(&self, read: impl FnOnce(&str) -> T) -> T {
        match self {
            Self::Text(id) => read(id.as_str()),
            Self::Uuid(bytes) => read(encode(bytes, &mut [0; Hyphenated::LENGTH])),
        }
    }
}

fn encode<'b>(uuid: &[u8; 16], buffer: &'b mut [u8; Hyphenated::LENGTH]) -> &'b str {
    Uuid::from_bytes(*uuid).hyphenated().encode_lower(buffer)
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Uuid(mine), Self::Uuid(theirs)) => mine.cmp(theirs),
            (Self::Text(mine), Self::Text(theirs)) => mine.cmp(theirs),
            _ => self.with_text(|mine| other.with_text(|theirs| mine.cmp(theirs))),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_their_text_again_and_sort_as_texts() {
        let texts = [
            "0",
            "00000000-0000-0000-0000-000000000000",
            "00000000-0000-0000-0000-00000000000A",
            "00000000-0000-0000-0000-00000000000a",
            "00000000000000000000000000000000",
            "9fffffff-0000-0000-0000-000000000000",
            "A",
            "a0000000-0000-0000-0000-000000000000",
            "zebra",
        ];
        let keys: Vec<Key> = texts
            .iter()
            .map(|text| Key::of(&EntryId::parse(text).unwrap()))
            .collect();
        let said: Vec<String> = keys.iter().map(|key| key.id().to_string()).collect();
        assert_eq!(said, texts);
        assert!(keys.is_sorted());
        let short = keys.iter().filter(|key| matches!(key, Key::Uuid(_)));
        assert_eq!(short.count(), 4);
    }
}
