//! Changes that are stored and not yet known to be in the log: `l/<server ID>/<row>` holds what
//! the log has to say.
//!
//! Invariant: the row is written by the transaction that makes the change, and deleted or
//! written over only after the log has the change durably. So a server that ended in between finds at its next
//! start what it owes the log. What is in a row is the business of whoever writes the log.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::row;
use crate::kv::{
    CommitError, Epoch, Item, Kv, KvError, MAX_OPS, Page, Revision, Txn, Watch, WatchError,
};
use crate::record::{self, refusal};

/// The prefix of the table's keys.
pub const PREFIX: &[u8] = b"l/";

fn prefix(server: &str) -> Bytes {
    row::key(PREFIX, format!("{server}/").as_bytes())
}

fn key(server: &str, name: &str) -> Bytes {
    row::key(PREFIX, format!("{server}/{name}").as_bytes())
}

/// A store that adds the row of one change to whatever is committed through it.
#[derive(Debug)]
pub struct Marked {
    kv: Arc<dyn Kv>,
    marker: Option<Txn>,
}

impl Marked {
    /// Adds to what is committed to `kv`: `server` owes its log `text`, kept in the row `name`.
    #[must_use]
    pub fn new(kv: Arc<dyn Kv>, server: &str, name: &str, text: &[u8]) -> Self {
        let marker = Txn::new().put(key(server, name), record::frame(text));
        Self {
            kv,
            marker: Some(marker),
        }
    }

    /// What it adds, for a transaction that makes several changes.
    #[must_use]
    pub fn marker(&self) -> Txn {
        self.marker.clone().unwrap_or_default()
    }

    /// Adds nothing: there is no log that waits.
    #[must_use]
    pub fn plain(kv: Arc<dyn Kv>) -> Self {
        Self { kv, marker: None }
    }
}

#[async_trait]
impl Kv for Marked {
    async fn get(&self, key: &[u8]) -> Result<Option<Item>, KvError> {
        self.kv.get(key).await
    }

    async fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page, KvError> {
        self.kv.scan(prefix, after, limit).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        match &self.marker {
            Some(marker) => self.kv.commit(txn.and(marker.clone())).await,
            None => self.kv.commit(txn).await,
        }
    }

    fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, WatchError> {
        self.kv.watch(prefix, from)
    }

    fn epoch(&self) -> Epoch {
        self.kv.epoch()
    }

    fn revision(&self) -> Revision {
        self.kv.revision()
    }
}

/// What `server` owes its log: at most `limit` rows with their texts, in order of name.
///
/// # Errors
/// [`KvError`], also when a row is damaged.
pub async fn owed(
    kv: &dyn Kv,
    server: &str,
    limit: usize,
) -> Result<Vec<(String, Bytes)>, KvError> {
    let prefix = prefix(server);
    let page = kv.scan(&prefix, None, limit).await?;
    let read = |item: &Item| {
        let text = record::unframe(&item.value).map_err(|error| refusal(&item.key, error))?;
        let name = item.key.get(prefix.len()..).unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        Ok((name, Bytes::copy_from_slice(text)))
    };
    page.items.iter().map(read).collect()
}

/// Forgets these rows of `server`: the log has what they say.
///
/// # Errors
/// [`CommitError`]; those that stay are owed again.
pub async fn settle(kv: &dyn Kv, server: &str, rows: &[String]) -> Result<(), CommitError> {
    for some in rows.chunks(MAX_OPS) {
        let delete = |txn: Txn, name: &String| txn.delete(key(server, name));
        kv.commit(some.iter().fold(Txn::new(), delete)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryKv;

    #[tokio::test]
    async fn a_change_is_owed_from_its_commit_until_it_is_settled() {
        let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new().unwrap());
        let marked = |change| Marked::new(Arc::clone(&kv), "s1", change, b"text");
        marked("b").commit(Txn::new().put("x", "1")).await.unwrap();
        marked("a").commit(Txn::new().put("y", "1")).await.unwrap();
        Marked::new(Arc::clone(&kv), "s2", "c", b"")
            .commit(Txn::new().put("z", "1"))
            .await
            .unwrap();
        Marked::plain(Arc::clone(&kv))
            .commit(Txn::new().put("z", "2"))
            .await
            .unwrap();
        let conflict = Txn::new().when(crate::kv::Compare::Absent("x".into()));
        marked("d").commit(conflict).await.unwrap_err();
        let text = Bytes::from_static(b"text");
        let owes = async |server| owed(&*kv, server, 10).await.unwrap();
        assert_eq!(
            owes("s1").await,
            [("a".into(), text.clone()), ("b".into(), text.clone())]
        );
        settle(&*kv, "s1", &["b".to_owned(), "gone".to_owned()])
            .await
            .unwrap();
        assert_eq!(owes("s1").await, [("a".to_owned(), text)]);
        assert_eq!(owes("s2").await.len(), 1);
    }
}
