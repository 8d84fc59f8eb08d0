//! Messages as bytes of `WatchResponse`.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use prost::Message as _;
use vane_identity::entry::EntryId;
use vane_wire::vane::sync::v1::watch_response::Response;
use vane_wire::vane::sync::v1::{
    Bundles, Delta, Heartbeat, InSync, List, Renew, WatchResponse, list,
};

use crate::state::{Listed, Message};

/// The bytes of `message`.
pub(super) fn message(message: &Message) -> Bytes {
    let response = Some(response(message));
    WatchResponse { response }.encode_to_vec().into()
}

fn response(message: &Message) -> Response {
    match message {
        Message::Bundles {
            bundles,
            removed,
            revision,
            full,
            last,
        } => Response::Bundles(Bundles {
            bundles: from_all(bundles),
            removed: removed.iter().map(ToString::to_string).collect(),
            bundle_revision: *revision,
            full: *full,
            last: *last,
        }),
        Message::List { items, last } => Response::List(List {
            items: items.iter().map(item).collect(),
            last: *last,
        }),
        Message::Delta {
            revision,
            upserts,
            removed,
        } => Response::Delta(Delta {
            revision: *revision,
            upserts: from_all(upserts),
            removed: texts(removed),
        }),
        Message::Renew {
            entries,
            authorities,
        } => Response::Renew(Renew {
            entry_ids: texts(entries),
            authority_ids: authorities.clone(),
        }),
        Message::Heartbeat { revision, time } => Response::Heartbeat(Heartbeat {
            revision: *revision,
            time: unix_millis(*time),
        }),
        Message::InSync {
            revision,
            set,
            bundles,
            epoch,
        } => Response::InSync(InSync {
            revision: *revision,
            set_digest: Bytes::copy_from_slice(&set.to_bytes()),
            epoch: Bytes::copy_from_slice(&epoch.0),
            bundle_digest: Bytes::copy_from_slice(&bundles.to_bytes()),
        }),
    }
}

fn from_all<'v, V, W: From<&'v V>>(values: &'v [Arc<V>]) -> Vec<W> {
    values.iter().map(|value| W::from(value)).collect()
}

fn texts(ids: &[EntryId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

fn item(listed: &Listed) -> list::Item {
    list::Item {
        id: listed.id.to_string(),
        revision_number: listed.revision_number,
        created_at: listed.created_at,
    }
}

fn unix_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}
