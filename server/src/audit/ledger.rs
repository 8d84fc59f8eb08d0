//! Changes on their way to the log: stored, then logged, then acknowledged, and caught up at
//! the next start when the server ended in between (promise P9).
//!
//! The transaction of a change also writes what the log has to say about it
//! ([`vane_store::tables::pending`]). That row is durable, so the acknowledgement waits until the
//! change stands in the log, not until the log is synced; once it is, the row is written over by
//! a later change or deleted. What is found at start is looked for in
//! the end of the log's file by its change ID, so that nothing stands there twice.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt::Display;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use vane_authority::log::{Detail, Leaf, Log, LogError, Mode};
use vane_store::kv::{Kv, KvError, MAX_OPS, Txn};
use vane_store::tables::pending::{self, Marked};

use super::Change;
use super::slots::Slots;

/// So long what the log has waits to be forgotten by the store, so that later changes write over
/// it.
const GATHER: Duration = Duration::from_secs(1);
/// What a change ID stands behind in a line of the log.
const ID: &str = "change_id";
/// How much of the end of the log is searched at start: more than what is written within
/// [`GATHER`] and the time of a deletion.
const TAIL: u64 = 32 * 1024 * 1024;
/// A change whose text is longer is owed without its details.
const LONGEST: usize = 64 * 1024;

/// Why the log could not be caught up.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] KvError),
    /// The log does not take it.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The end of the log cannot be read.
    #[error("cannot read the log {path}: {source}; let the user of the server read it")]
    Read {
        /// Its file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Where changes are written down. Clones share it.
#[derive(Debug, Clone)]
pub struct Ledger {
    kv: Arc<dyn Kv>,
    log: Arc<Log>,
    server: Arc<str>,
    slots: Arc<Slots>,
}

/// A change that is about to be stored.
#[derive(Debug)]
pub struct Intent {
    /// Its row, when the store keeps what the log is owed.
    slot: Option<u64>,
    leaf: Leaf,
    kv: Marked,
}

impl Intent {
    /// The store to commit the change to: the same one, that keeps what the log is owed.
    #[must_use]
    pub fn kv(&self) -> &Marked {
        &self.kv
    }

    /// What that store adds, for a transaction that makes several changes.
    #[must_use]
    pub fn marker(&self) -> Txn {
        self.kv.marker()
    }
}

/// Forgets what the log has.
#[derive(Debug)]
pub struct Settler {
    kv: Arc<dyn Kv>,
    server: Arc<str>,
    slots: Arc<Slots>,
}

impl Ledger {
    /// A ledger of the server with the ID `server`, and who settles it.
    #[must_use]
    pub fn new(kv: Arc<dyn Kv>, log: Arc<Log>, server: &str) -> (Self, Settler) {
        let slots = Arc::<Slots>::default();
        let server: Arc<str> = server.into();
        let settler = Settler {
            kv: Arc::clone(&kv),
            server: Arc::clone(&server),
            slots: Arc::clone(&slots),
        };
        let ledger = Self {
            kv,
            log,
            server,
            slots,
        };
        (ledger, settler)
    }

    /// Begins a change that `caller` makes: commit it to [`Intent::kv`], then
    /// [`Ledger::log`] it.
    #[must_use]
    pub fn intend(&self, caller: &impl Display, change: Change<'_>) -> Intent {
        let leaf = change.leaf(caller);
        let kv = Arc::clone(&self.kv);
        let (slot, kv) = match self.log.mode() {
            Mode::Required => {
                let slot = self.slots.take();
                let text = text(&leaf);
                (Some(slot), Marked::new(kv, &self.server, &row(slot), &text))
            }
            // Nobody waits for it, so nothing is owed.
            Mode::BestEffort | Mode::Off => (None, Marked::plain(kv)),
        };
        Intent { slot, leaf, kv }
    }

    /// Writes changes that were stored.
    ///
    /// # Errors
    /// [`LogError`]: they are caught up at the next start.
    pub async fn log(&self, stored: Vec<Intent>) -> Result<(), LogError> {
        let (slots, leaves): (Vec<Option<u64>>, Vec<Leaf>) =
            stored.into_iter().map(|one| (one.slot, one.leaf)).unzip();
        let state = Arc::clone(&self.slots);
        let once_durable = move || state.are_logged(slots.into_iter().flatten());
        self.log.append_kept(&leaves, once_durable).await
    }

    /// Writes what the last run of this server stored and did not log; how many changes that
    /// were. `file` is the log's.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn catch_up(&self, file: &Path) -> Result<usize, LedgerError> {
        let mut known = None;
        let mut caught_up = 0;
        loop {
            let owed = pending::owed(&*self.kv, &self.server, MAX_OPS).await?;
            if owed.is_empty() {
                return Ok(caught_up);
            }
            let known = match &mut known {
                Some(known) => known,
                empty => empty.insert(self.known(file)?),
            };
            let leaves = owed.iter().map(|(row, text)| leaf(row, text));
            let is_missing = |leaf: &Leaf| !known.contains(id(leaf));
            let leaves: Vec<Leaf> = leaves.filter(is_missing).collect();
            self.log.append(&leaves).await?;
            caught_up += leaves.len();
            let rows: Vec<String> = owed.into_iter().map(|(row, _)| row).collect();
            let settled = pending::settle(&*self.kv, &self.server, &rows).await;
            settled.map_err(|error| KvError::Unavailable {
                cause: error.to_string(),
                way_out: "start the server again".to_owned(),
            })?;
        }
    }

    /// The IDs of changes in the end of the log.
    fn known(&self, file: &Path) -> Result<HashSet<String>, LedgerError> {
        if self.log.mode() == Mode::Off {
            return Ok(HashSet::new());
        }
        let tail = tail(file).map_err(|source| LedgerError::Read {
            path: file.display().to_string(),
            source,
        })?;
        let behind = format!("\"{ID}\":\"");
        let ids = tail.match_indices(&behind).filter_map(|(at, found)| {
            let rest = tail.get(at + found.len()..)?;
            Some(rest.split_once('"')?.0.to_owned())
        });
        // A damaged row has none, and is the same as no other.
        Ok(ids.filter(|id| !id.is_empty()).collect())
    }
}

impl Settler {
    /// Forgets what the log has until `stop`.
    ///
    /// # Errors
    /// None: what stays is found in the log at the next start.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        loop {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.slots.logged.notified() => tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(GATHER) => {}
                },
            }
            self.settle().await;
            if stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    async fn settle(&self) {
        loop {
            let slots = self.slots.to_delete(MAX_OPS);
            if slots.is_empty() {
                return;
            }
            let rows: Vec<String> = slots.iter().map(|slot| row(*slot)).collect();
            if let Err(error) = pending::settle(&*self.kv, &self.server, &rows).await {
                tracing::debug!(%error, "logged changes are forgotten at the next start");
                return;
            }
            self.slots.are_deleted(slots);
        }
    }
}

/// A row's name.
fn row(slot: u64) -> String {
    slot.to_string()
}

/// A change's ID; empty in a row that somebody damaged.
fn id(leaf: &Leaf) -> &str {
    let Leaf::Admin { change_id, .. } = leaf else {
        return "";
    };
    change_id
}

/// What the store keeps about a change until it is logged.
fn text(leaf: &Leaf) -> Vec<u8> {
    let whole = serde_json::to_vec(leaf).unwrap_or_default();
    if whole.len() <= LONGEST {
        return whole;
    }
    let mut short = leaf.clone();
    if let Leaf::Admin { detail, .. } = &mut short {
        *detail = Detail::of(&json!({ "cut": whole.len() }));
    }
    serde_json::to_vec(&short).unwrap_or_default()
}

/// The leaf that was owed as `text` in `row`, marked as late.
fn leaf(row: &str, text: &[u8]) -> Leaf {
    let mut owed: Value = serde_json::from_slice(text).unwrap_or_default();
    let word = |name, or: &str| {
        let text = owed.get(name).and_then(Value::as_str);
        text.unwrap_or(or).to_owned()
    };
    let (caller, action) = (word("caller", "unknown"), word("action", "unknown"));
    let change_id = word(ID, "");
    let mut detail = match owed.get_mut("detail") {
        Some(detail) => detail.take(),
        None => json!({ "row": row }),
    };
    if let Some(detail) = detail.as_object_mut() {
        detail.insert("caught_up".to_owned(), Value::Bool(true));
    }
    Leaf::Admin {
        caller,
        action,
        change_id,
        detail: Detail::of(&detail),
    }
}

/// The end of `file`; nothing when there is none.
fn tail(file: &Path) -> io::Result<String> {
    let mut file = match std::fs::File::open(file) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use vane_chassis::clock::{Clock, System};
    use vane_chassis::tasks::Tasks;
    use vane_identity::id::SpiffeId;
    use vane_store::memory::MemoryKv;

    use super::*;
    use crate::caller::{Caller, Transport};

    struct World {
        dir: tempfile::TempDir,
        kv: Arc<dyn Kv>,
    }

    impl World {
        fn new() -> Self {
            Self {
                dir: tempfile::tempdir().unwrap(),
                kv: Arc::new(MemoryKv::new().unwrap()),
            }
        }

        /// The server starts.
        fn start(&self) -> (Ledger, Settler) {
            let clock: Arc<dyn Clock> = Arc::new(System);
            let log = Arc::new(Log::open(&self.file(), clock).unwrap());
            Ledger::new(Arc::clone(&self.kv), log, "s1")
        }

        fn file(&self) -> std::path::PathBuf {
            self.dir.path().join("log")
        }

        fn lines(&self) -> Vec<Value> {
            let text = std::fs::read_to_string(self.file()).unwrap();
            let parse = |line| serde_json::from_str(line).unwrap();
            text.lines().map(parse).collect()
        }

        async fn owed(&self) -> usize {
            pending::owed(&*self.kv, "s1", 1_000).await.unwrap().len()
        }
    }

    fn intend(ledger: &Ledger, agent: &str) -> Intent {
        let id = SpiffeId::parse(&format!("spiffe://example.org/spire/agent/{agent}")).unwrap();
        let caller = Caller::new(Transport::Local {
            uid: 7,
            gid: 7,
            pid: None,
        });
        ledger.intend(&caller, Change::AgentBanned(&id))
    }

    async fn store(intent: &Intent, key: &'static str) {
        intent.kv().commit(Txn::new().put(key, "x")).await.unwrap();
    }

    #[tokio::test]
    async fn a_change_that_was_stored_and_not_logged_is_logged_at_the_next_start_once() {
        let world = World::new();
        let (ledger, _) = world.start();
        let lost = intend(&ledger, "lost");
        store(&lost, "a").await;
        let logged = intend(&ledger, "logged");
        store(&logged, "b").await;
        // Logged, and not forgotten by the store: the process ends before a settler runs.
        ledger.log(vec![logged]).await.unwrap();
        drop((ledger, lost));
        for _ in 0..2 {
            let (ledger, _) = world.start();
            ledger.catch_up(&world.file()).await.unwrap();
        }
        let lines = world.lines();
        let agents: Vec<_> = lines
            .iter()
            .map(|line| {
                (
                    line["detail"]["agent_id"].as_str().unwrap(),
                    &line["detail"]["caught_up"],
                )
            })
            .collect();
        let expected = [
            ("spiffe://example.org/spire/agent/logged", &Value::Null),
            ("spiffe://example.org/spire/agent/lost", &Value::Bool(true)),
        ];
        assert_eq!(agents, expected);
        assert_eq!(lines[1]["caller"], "uid:7");
        assert_eq!(lines[1]["action"], "Agent/BanAgent");
        assert_eq!(world.owed().await, 0);
    }

    #[tokio::test]
    async fn rows_that_were_damaged_are_each_logged() {
        let world = World::new();
        for row in ["1", "2"] {
            let damaged = Marked::new(Arc::clone(&world.kv), "s1", row, b"{}");
            damaged.commit(Txn::new().put("k", "x")).await.unwrap();
            let (ledger, _) = world.start();
            assert_eq!(ledger.catch_up(&world.file()).await.unwrap(), 1);
        }
        let lines = world.lines();
        let rows: Vec<_> = lines.iter().map(|line| &line["detail"]["row"]).collect();
        assert_eq!(rows, ["1", "2"]);
    }

    #[tokio::test]
    async fn what_the_log_has_is_forgotten_behind_the_acknowledgement() {
        let world = World::new();
        let (ledger, settler) = world.start();
        let mut tasks = Tasks::new();
        tasks.spawn("settler", settler.run(tasks.token()));
        for _ in 0..250 {
            let one = intend(&ledger, "x");
            store(&one, "k").await;
            ledger.log(vec![one]).await.unwrap();
        }
        // All before it are durable then.
        ledger.log.append(&[leaf("0", b"{}")]).await.unwrap();
        tasks.token().cancel();
        tasks.join(Duration::from_secs(20)).await.unwrap();
        assert_eq!(world.owed().await, 0);
        assert_eq!(world.lines().len(), 251);
    }

    #[test]
    fn a_text_that_would_not_fit_is_owed_without_its_details() {
        let leaf = Leaf::Admin {
            caller: "c".to_owned(),
            action: "a".to_owned(),
            change_id: "the-id".to_owned(),
            detail: Detail::of(&json!({ "x": "y".repeat(LONGEST) })),
        };
        let short = text(&leaf);
        assert!(short.len() < 200);
        let late = super::leaf("7", &short);
        assert_eq!(id(&late), "the-id");
        let Leaf::Admin { detail, .. } = late else {
            panic!("no change");
        };
        let detail: Value = serde_json::from_str(detail.as_str()).unwrap();
        assert_eq!(detail["caught_up"], true);
        assert!(detail["cut"].as_u64() > Some(LONGEST as u64));
    }
}
