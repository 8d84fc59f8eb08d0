//! Deletes the rows of entries that expired, as SPIRE prunes: they left the sets at their
//! expiry already, this only frees the store of them. With `prune_attested_nodes_expired_for`
//! also agents whose certificate ended that long ago and that could attest again, so that the
//! nodes of a cluster leave the list with it. A banned agent stays: only an administrator lifts a
//! ban.
//!
//! A deletion cannot be taken back, so it waits for [`GRACE`] after the expiry and is left out
//! while the clock is in doubt. Each is a change like an administrator's: compared with the
//! row that was read, in the log, caught up.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio_util::sync::CancellationToken;
use vane_chassis::clock::Clock;
use vane_chassis::metrics::Metrics;
use vane_identity::entry::EntryId;
use vane_identity::id::SpiffeId;
use vane_identity::lifetime::to_unix;
use vane_store::kv::{CommitError, Kv};
use vane_store::tables::{agents, entries};

use crate::audit::Change;
use crate::audit::ledger::{Intent, Ledger};
use crate::state::{AgentFilter, State};

/// An expired entry stays in the store for so long.
pub const GRACE: Duration = Duration::from_secs(3_600);
/// Time between two looks.
const EVERY: Duration = Duration::from_secs(600);
/// Entries that are deleted at a time.
const BATCH: usize = 100;
/// Who does it, for the log.
const CALLER: &str = "server: expired entries";
const OF_AGENTS: &str = "server: expired agents";

/// The task; see the module.
pub struct Prune {
    /// When now is.
    pub clock: Arc<dyn Clock>,
    /// Which entries there are.
    pub state: Arc<State>,
    /// Where their rows are.
    pub kv: Arc<dyn Kv>,
    /// Where their deletion is written down.
    pub ledger: Ledger,
    /// How many were deleted.
    pub pruned: Counter,
    /// An agent is deleted when it expired so long ago; never when nothing is said.
    pub agents_after: Option<Duration>,
}

impl Prune {
    /// A counter of deleted entries that `metrics` shows.
    #[must_use]
    pub fn counter(metrics: &Metrics) -> Counter {
        let pruned = Counter::default();
        metrics.register(|registry| {
            let help = "Rows of expired entries deleted";
            registry.register("entries_pruned", help, pruned.clone());
        });
        pruned
    }

    /// Deletes until `stop`.
    ///
    /// # Errors
    /// None: what could not be deleted is tried again at the next look.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = async { self.look().await; self.look_at_agents().await } => {}
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    /// Deletes what is due now.
    pub(crate) async fn look(&self) {
        if self.clock.jumps().in_doubt(self.clock.monotonic()) {
            return;
        }
        let before = to_unix(self.clock.now() - GRACE);
        let mut after = None;
        loop {
            let (ids, next) = self.state.ended(before, after.as_ref());
            for some in ids.chunks(BATCH) {
                self.delete(some, before).await;
            }
            tokio::task::yield_now().await;
            match next {
                Some(next) => after = Some(next),
                None => return,
            }
        }
    }

    /// Deletes the agents that are due now.
    pub(crate) async fn look_at_agents(&self) {
        let Some(expired_for) = self.agents_after else {
            return;
        };
        if self.clock.jumps().in_doubt(self.clock.monotonic()) {
            return;
        }
        let before = to_unix(self.clock.now() - expired_for);
        let filter = AgentFilter {
            banned: Some(false),
            can_reattest: Some(true),
            expires_before: Some(before),
            ..AgentFilter::default()
        };
        let mut after = None;
        loop {
            let page = self.state.agents_page(&filter, after.as_ref(), BATCH).await;
            let mut deleted = Vec::new();
            for agent in &page.items {
                match self.delete_agent(&agent.spiffe_id, before).await {
                    Ok(intent) => deleted.extend(intent),
                    Err(error) => {
                        tracing::warn!(agent_id = %agent.spiffe_id, %error, "an expired agent is not deleted yet");
                    }
                }
            }
            if !deleted.is_empty() {
                tracing::info!(count = deleted.len(), "deleted expired agents");
                if let Err(error) = self.ledger.log(deleted).await {
                    tracing::error!(%error, "deletions of expired agents are logged at the next start");
                }
            }
            after = page.items.last().map(|agent| agent.spiffe_id.clone());
            if !page.more {
                return;
            }
        }
    }

    /// Deletes the agent, unless it attested or was banned meanwhile.
    async fn delete_agent(
        &self,
        id: &SpiffeId,
        before: i64,
    ) -> Result<Option<Intent>, CommitError> {
        let Some(row) = agents::get(&*self.kv, id).await? else {
            return Ok(None);
        };
        let agent = &row.value;
        let end = agent.not_after.max(agent.new_not_after);
        if agent.banned || !agent.can_reattest || end >= before {
            return Ok(None);
        }
        let intent = self.ledger.intend(&OF_AGENTS, Change::AgentDeleted(id));
        match intent.kv().commit(agents::deletion(&row)).await {
            Ok(_) => Ok(Some(intent)),
            Err(CommitError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, ids: &[EntryId], before: i64) {
        let mut deleted = Vec::new();
        for id in ids {
            match self.delete_one(id, before).await {
                Ok(intent) => deleted.extend(intent),
                Err(error) => {
                    tracing::warn!(entry_id = %id, %error, "an expired entry is not deleted yet");
                }
            }
        }
        if deleted.is_empty() {
            return;
        }
        let count = deleted.len();
        self.pruned.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        tracing::info!(count, "deleted expired entries");
        if let Err(error) = self.ledger.log(deleted).await {
            tracing::error!(%error, "deletions of expired entries are logged at the next start");
        }
    }

    /// Deletes the entry, unless it was changed so that it is not expired.
    async fn delete_one(&self, id: &EntryId, before: i64) -> Result<Option<Intent>, CommitError> {
        let Some(row) = entries::get(&*self.kv, id).await? else {
            return Ok(None);
        };
        if !(1..before).contains(&row.value.expires_at) {
            return Ok(None);
        }
        let intent = self.ledger.intend(&CALLER, Change::EntryPruned(&row.value));
        match entries::delete(intent.kv(), &row).await {
            Ok(_) => Ok(Some(intent)),
            Err(CommitError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use vane_authority::log::Log;

    use super::*;
    use crate::authorized::tests::{agent, entry, workload};
    use crate::state::tests::{World, put_agent, record_of};
    use vane_identity::selector::SelectorSet;
    use vane_wire::record::AgentRecord;

    #[tokio::test]
    async fn an_entry_is_deleted_a_while_after_its_end_and_logged() {
        let world = World::new().await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let clock: Arc<dyn Clock> = Arc::<vane_chassis::clock::Manual>::clone(&world.clock);
        let log = Arc::new(Log::open(&file, Arc::clone(&clock)).unwrap());
        let kv: Arc<dyn Kv> = Arc::<vane_store::memory::MemoryKv>::clone(&world.kv);
        let (ledger, _settler) = Ledger::new(Arc::clone(&kv), log, "s");
        let prune = Prune {
            clock,
            state: Arc::clone(&world.state),
            kv,
            ledger,
            pruned: Counter::default(),
            agents_after: None,
        };
        for number in 1..=150 {
            let mut short = entry(number, workload(number), agent(0), 1);
            short.expires_at = world.now() + 5;
            world.put(&short).await;
        }
        let stays = entry(200, workload(200), agent(0), 1);
        world.put(&stays).await;
        world.pass(Duration::from_secs(10));
        prune.look().await;
        world.state.pump();
        assert_eq!(
            world.state.counts().entries,
            151,
            "a clock may be wrong for a while"
        );
        world.pass(GRACE);
        prune.look().await;
        world.state.pump();
        assert_eq!(world.state.counts().entries, 1);
        assert!(world.state.entry(&stays.id).is_some());
        assert_eq!(prune.pruned.get(), 150);
        let text = std::fs::read_to_string(file).unwrap();
        let pruned = text.lines().filter(|line| line.contains("Entry/Prune"));
        assert_eq!(pruned.count(), 150);
        assert!(text.contains(CALLER));
    }

    /// A node that is gone leaves the list; one that is banned, of use, or cannot come back by
    /// itself does not.
    #[tokio::test]
    async fn agents_that_ended_long_ago_are_deleted_but_for_banned_ones() {
        let world = World::new().await;
        let dir = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::<vane_chassis::clock::Manual>::clone(&world.clock);
        let log = Arc::new(Log::open(&dir.path().join("log"), Arc::clone(&clock)).unwrap());
        let kv: Arc<dyn Kv> = Arc::<vane_store::memory::MemoryKv>::clone(&world.kv);
        let (ledger, _settler) = Ledger::new(Arc::clone(&kv), log, "s");
        let prune = Prune {
            clock,
            state: Arc::clone(&world.state),
            kv,
            ledger,
            pruned: Counter::default(),
            agents_after: Some(Duration::from_secs(100)),
        };
        let soon = world.now() + 5;
        let of = |number: u8, change: &dyn Fn(&mut AgentRecord)| {
            let mut record = record_of(&agent(number), SelectorSet::default());
            (record.can_reattest, record.not_after) = (true, soon);
            change(&mut record);
            record
        };
        for record in [
            of(1, &|_| {}),
            of(2, &|it| it.banned = true),
            of(3, &|it| it.can_reattest = false),
            of(4, &|it| it.new_not_after = soon + 1_000),
        ] {
            world.commit(put_agent(&record)).await;
        }
        for (passes, left) in [(104, 4), (2, 3)] {
            world.pass(Duration::from_secs(passes));
            prune.look_at_agents().await;
            world.state.pump();
            assert_eq!(world.state.counts().agents, left);
        }
        assert!(world.state.agent(&agent(1)).is_none());
    }
}
