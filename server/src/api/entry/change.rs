//! Creating, updating and deleting one entry.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tonic::Code;
use uuid::{NoContext, Timestamp, Uuid};
use vane_identity::entry::{Entry, EntryId};
use vane_identity::lifetime::to_unix;
use vane_store::kv::{CommitError, KvError, Revision, Txn};
use vane_store::tables::entries::{self, CreateError, UpdateError};
use vane_store::tables::row::Row;
use vane_store::tables::{bundles, federation};
use vane_wire::convert;
use vane_wire::spire::api::types;
use vane_wire::status::{self, Refusal};

use super::not_found;
use crate::api::Parts;
use crate::audit::Change;
use crate::audit::ledger::Intent;
use crate::caller::Caller;

/// How often a change is tried again that lost against another one.
const TRIES: usize = 16;
const CREATE: &str = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
/// What a refused creation was.
const CREATING: &str = "failed to create entry";

/// What became of an entry that was to be created.
enum Creation {
    /// It is new, since this revision of the store.
    Made(Entry, Revision, Option<Box<Intent>>),
    /// This one was there.
    Similar(Entry),
}

/// The status of an item and the entry that is shown with it.
pub(super) type Shown = (types::Status, Option<types::Entry>);

/// Creates entries, each in a transaction of its own, all at once; one with the same SPIFFE
/// ID, parent and selectors is returned beside ALREADY_EXISTS (SPIRE.md trap 4). Those that
/// were made are written to the log together.
pub(super) async fn create(parts: &Parts, caller: &Caller, wires: &[types::Entry]) -> Vec<Shown> {
    let try_one = |wire| try_create(parts, caller, wire);
    let creations: FuturesOrdered<_> = wires.iter().map(try_one).collect();
    let mut creations: Vec<Result<Creation, Refusal>> = creations.collect().await;
    let acknowledged = acknowledge(parts, &mut creations).await;
    let show = |creation: Result<Creation, Refusal>| match (creation, &acknowledged) {
        (Ok(Creation::Made(entry, ..)), Ok(())) => (status::ok(), Some(changed(&entry))),
        (Ok(Creation::Made(..)), Err(refusal)) => (refusal.clone().item(), None),
        (Ok(Creation::Similar(entry)), _) => {
            let text = "similar entry already exists";
            let status = Refusal::new(Code::AlreadyExists, text).item();
            (status, Some((&entry).into()))
        }
        (Err(refusal), _) => {
            parts.refused(CREATE, caller, &refusal);
            (refusal.item(), None)
        }
    };
    creations.into_iter().map(show).collect()
}

/// The answer to a change: as SPIRE's, with sorted DNS names. Everywhere else they have the order
/// in which they were given, which decides the common name.
fn changed(entry: &Entry) -> types::Entry {
    let mut shown = types::Entry::from(entry);
    shown.dns_names.sort_unstable();
    shown
}

async fn acknowledge(
    parts: &Parts,
    creations: &mut [Result<Creation, Refusal>],
) -> Result<(), Refusal> {
    let made = creations.iter_mut().filter_map(|creation| match creation {
        Ok(Creation::Made(_, revision, intent)) => Some((*intent.take()?, *revision)),
        Ok(Creation::Similar(_)) | Err(_) => None,
    });
    let (stored, revisions): (Vec<_>, Vec<_>) = made.unzip();
    match revisions.into_iter().max() {
        Some(last) => parts.acknowledge_all(stored, last, CREATING).await,
        None => Ok(()),
    }
}

/// A UUID that begins with the time (version 7; SPIRE's are version 4): entries that are new
/// stand together in the store, and lists show them in the order of their creation, to the
/// millisecond.
fn fresh_id(now: SystemTime) -> Uuid {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(
        NoContext,
        now.as_secs(),
        now.subsec_nanos(),
    ))
}

async fn try_create(
    parts: &Parts,
    caller: &Caller,
    wire: &types::Entry,
) -> Result<Creation, Refusal> {
    let tried = CREATING;
    let now = parts.clock.now();
    let fresh = EntryId::parse(&fresh_id(now).to_string())
        .map_err(|error| Refusal::because(Code::Internal, tried, error))?;
    let entry = convert::entry::create(wire, &parts.trust_domain, to_unix(now), || fresh)
        .map_err(|error| Refusal::of("failed to convert entry", &error))?;
    once_each(&entry, tried)?;
    for _ in 0..TRIES {
        let link = link(parts, &entry, tried).await?;
        let intent = parts.intend(caller, Change::EntryCreated(&entry));
        match entries::create(intent.kv(), &entry, link).await {
            Ok(revision) => {
                return Ok(Creation::Made(entry, revision, Some(Box::new(intent))));
            }
            Err(CreateError::Similar(row)) => return Ok(Creation::Similar(row.value)),
            Err(CreateError::Changed) => {}
            Err(error @ CreateError::IdTaken(_)) => {
                return Err(Refusal::because(Code::AlreadyExists, tried, error));
            }
            Err(CreateError::Commit(error)) => return Err(parts.store_refusal(tried, &error)),
        }
    }
    Err(busy(tried))
}

/// Updates the fields of an entry that `mask` names.
///
/// # Errors
/// NOT_FOUND `failed to update entry`, and what conversion and store say.
pub(super) async fn update(
    parts: &Parts,
    caller: &Caller,
    wire: &types::Entry,
    mask: Option<&types::EntryMask>,
) -> Result<types::Entry, Refusal> {
    let tried = "failed to update entry";
    let missing = || Refusal::new(Code::NotFound, tried);
    let Ok(id) = EntryId::parse(&wire.id) else {
        // SPIRE reads a whole entry before it looks for it.
        return Err(misread(parts, wire, mask).unwrap_or_else(missing));
    };
    for _ in 0..TRIES {
        let row = read(parts, &id, tried).await?.ok_or_else(missing)?;
        let entry = convert::entry::merge(&row.value, wire, mask, &parts.trust_domain)
            .map_err(|error| Refusal::of("failed to convert entry", &error))?;
        once_each(&entry, tried)?;
        let link = link(parts, &entry, tried).await?;
        let intent = parts.intend(caller, Change::EntryUpdated(&entry));
        match entries::update(intent.kv(), &row, &entry, link).await {
            Ok(revision) => {
                parts.acknowledge(intent, revision, tried).await?;
                return Ok(changed(&entry));
            }
            Err(UpdateError::Similar(_)) => {
                let why = "similar entry already exists";
                return Err(Refusal::because(Code::AlreadyExists, tried, why));
            }
            Err(UpdateError::Changed) => {}
            Err(UpdateError::Commit(error)) => return Err(parts.store_refusal(tried, &error)),
        }
    }
    Err(busy(tried))
}

/// Deletes an entry.
///
/// # Errors
/// NOT_FOUND `entry not found`, and what the store says.
pub(super) async fn delete(parts: &Parts, caller: &Caller, id: &str) -> Result<(), Refusal> {
    let tried = "failed to delete entry";
    if id.is_empty() {
        return Err(Refusal::new(Code::InvalidArgument, "missing entry ID"));
    }
    let id = EntryId::parse(id).map_err(|_| not_found())?;
    for _ in 0..TRIES {
        let row = read(parts, &id, tried).await?.ok_or_else(not_found)?;
        let intent = parts.intend(caller, Change::EntryDeleted(&row.value));
        match entries::delete(intent.kv(), &row).await {
            Ok(revision) => return parts.acknowledge(intent, revision, tried).await,
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(parts.store_refusal(tried, &error)),
        }
    }
    Err(busy(tried))
}

async fn read(parts: &Parts, id: &EntryId, tried: &str) -> Result<Option<Row<Entry>>, Refusal> {
    let row = entries::get(&*parts.kv, id).await;
    row.map_err(|error| parts.store_refusal(tried, &error.into()))
}

/// Why an update by a whole entry, without a mask, would be refused whatever entry it is for.
fn misread(parts: &Parts, wire: &types::Entry, mask: Option<&types::EntryMask>) -> Option<Refusal> {
    if mask.is_some() {
        return None;
    }
    let fields = types::Entry {
        id: String::new(),
        ..wire.clone()
    };
    let any = EntryId::parse("any").ok()?;
    let error = convert::entry::create(&fields, &parts.trust_domain, 0, || any).err()?;
    Some(Refusal::of("failed to convert entry", &error))
}

/// What makes sure that the bundles `entry` federates with are there when it is written.
async fn link(parts: &Parts, entry: &Entry, tried: &str) -> Result<Txn, Refusal> {
    if entry.federates_with.is_empty() {
        return Ok(Txn::new());
    }
    let store = |error: KvError| parts.store_refusal(tried, &error.into());
    let seen = federation::bundles(&*parts.kv).await.map_err(store)?;
    // Hot state may say that a bundle is there once it has every deletion up to the mark.
    let is_hot = parts.state.has(seen.revision());
    for trust_domain in &entry.federates_with {
        if is_hot && parts.state.bundle(trust_domain).is_some() {
            continue;
        }
        let row = bundles::get(&*parts.kv, trust_domain)
            .await
            .map_err(store)?;
        if row.is_none() {
            let why = format!("unable to find federated bundle \"{}\"", trust_domain.id());
            return Err(Refusal::because(Code::Internal, tried, why));
        }
    }
    let mark = Uuid::new_v4().into_bytes();
    Ok(federation::entry_written(entry, &seen, mark))
}

/// A DNS name stands in a certificate once (as SPIRE, whose store has each name once).
fn once_each(entry: &Entry, tried: &str) -> Result<(), Refusal> {
    let twice = |name| {
        let why = format!("the DNS name {name:?} is there twice");
        Refusal::because(Code::AlreadyExists, tried, why)
    };
    entry.doubled_dns_name().map(twice).map_or(Ok(()), Err)
}

fn busy(tried: &str) -> Refusal {
    let why = "it was changed by others meanwhile, try again";
    Refusal::because(Code::Aborted, tried, why)
}
