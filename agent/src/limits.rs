//! How many connections and streams the public socket holds, and for whom.
//!
//! Owns the counts. Invariant: what a guard counted is taken back when the
//! guard is dropped, whatever ends the connection, and a key without
//! connections is forgotten, so the table is as large as what is open. Nobody
//! can use up the places of another: a process has its own bound, and so have
//! all processes of one pod, whatever users and cgroups it makes, and outside
//! of pods those of one user in one cgroup (a fork bomb is one customer).
//! It does not close or refuse anything itself.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;

use crate::cgroup::{self, PodUid, Roots};
use crate::peer::{ProcessFacts, ProcessKey};

/// Connections of one connecting process.
pub const PER_PROCESS: usize = 1_000;
/// Connections of one [`Customer`].
pub const PER_GROUP: usize = 4_000;
/// Streams open at once on one connection.
pub const PER_CONNECTION_STREAMS: usize = 100;
/// Descriptors that a connection costs: its socket, the peer's pidfd and /proc directory.
pub const DESCRIPTORS: u64 = 3;

/// The bounds. Each is the most that is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections of one process.
    pub per_process: usize,
    /// Connections of one [`Customer`].
    pub per_group: usize,
    /// Connections in all.
    pub total: usize,
    /// Streams of one connection.
    pub streams: usize,
}

impl Bounds {
    /// The defaults where so many descriptors may be open: connections may use 80 % of them.
    /// Where that is little, one process may have half of it and one group three quarters, so
    /// that nobody can keep all others out.
    #[must_use]
    pub fn for_descriptors(descriptors: u64) -> Self {
        let total = (descriptors / 5).saturating_mul(4) / DESCRIPTORS;
        let total = usize::try_from(total).unwrap_or(usize::MAX).max(1);
        Self {
            per_process: PER_PROCESS.min((total / 2).max(1)),
            per_group: PER_GROUP.min((total - total / 4).max(1)),
            total,
            streams: PER_CONNECTION_STREAMS,
        }
    }
}

/// Which bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OverLimit {
    /// Of the connecting process.
    #[error("too many connections of this process")]
    Process,
    /// Of the user in the cgroup.
    #[error("too many connections of this user in this cgroup")]
    Group,
    /// Of the pod.
    #[error("too many connections of this pod")]
    Pod,
    /// Of the agent.
    #[error("too many connections")]
    Total,
    /// Of the connection: RESOURCE_EXHAUSTED.
    #[error("too many streams on this connection")]
    Streams,
}

impl OverLimit {
    /// The text as a constant, as `unix_listener::Refusal` wants it.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Process => "too many connections of this process",
            Self::Group => "too many connections of this user in this cgroup",
            Self::Pod => "too many connections of this pod",
            Self::Total => "too many connections",
            Self::Streams => "too many streams on this connection",
        }
    }
}

/// Whose connections are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Customer {
    /// All processes of a pod.
    Pod(PodUid),
    /// All processes of one effective uid in one cgroup.
    Group(u32, Arc<str>),
}

impl Customer {
    /// Whose process has these facts; pods begin below `roots`.
    fn of(facts: &ProcessFacts, roots: &Roots) -> Self {
        match cgroup::place(&facts.cgroup, roots) {
            Ok(Some(place)) => Self::Pod(place.pod),
            _ => Self::Group(facts.uid.effective, facts.cgroup.as_str().into()),
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    processes: HashMap<ProcessKey, usize>,
    groups: HashMap<Customer, usize>,
    total: usize,
}

/// The table. Cheap to clone; all clones are one table.
#[derive(Debug, Clone)]
pub struct Limits {
    bounds: Bounds,
    roots: Roots,
    table: Arc<Mutex<Table>>,
    /// Shows how many are open.
    shown: Gauge,
}

impl Limits {
    /// An empty table.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            roots: Roots::default(),
            table: Arc::default(),
            shown: Gauge::default(),
        }
    }

    /// The same where the kubelet makes its cgroups below `roots`.
    #[must_use]
    pub fn below(self, roots: Roots) -> Self {
        Self { roots, ..self }
    }

    /// The same with a gauge that shows how many connections are open.
    #[must_use]
    pub fn shown(self, shown: Gauge) -> Self {
        Self { shown, ..self }
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.lock().total
    }

    /// Takes a place for a connection of `process` with these facts.
    ///
    /// # Errors
    /// All of [`OverLimit`] but [`OverLimit::Streams`]; nothing is counted then.
    pub fn connect(
        &self,
        process: ProcessKey,
        facts: &ProcessFacts,
    ) -> Result<ConnectionGuard, OverLimit> {
        let group = Customer::of(facts, &self.roots);
        let mut table = self.lock();
        if is_full(&table.processes, &process, self.bounds.per_process) {
            return Err(OverLimit::Process);
        }
        if is_full(&table.groups, &group, self.bounds.per_group) {
            return Err(match group {
                Customer::Pod(_) => OverLimit::Pod,
                Customer::Group(..) => OverLimit::Group,
            });
        }
        if table.total >= self.bounds.total {
            return Err(OverLimit::Total);
        }
        *table.processes.entry(process).or_default() += 1;
        *table.groups.entry(group.clone()).or_default() += 1;
        table.total += 1;
        drop(table);
        self.shown.inc();
        Ok(ConnectionGuard {
            limits: self.clone(),
            process,
            group,
            streams: Arc::new(AtomicUsize::new(0)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_full<K: Hash + Eq>(counts: &HashMap<K, usize>, key: &K, bound: usize) -> bool {
    counts.get(key).copied().unwrap_or_default() >= bound
}

fn take_back<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The place of one connection.
#[derive(Debug)]
pub struct ConnectionGuard {
    limits: Limits,
    process: ProcessKey,
    group: Customer,
    streams: Arc<AtomicUsize>,
}

impl ConnectionGuard {
    /// Who connected.
    #[must_use]
    pub fn customer(&self) -> &Customer {
        &self.group
    }

    /// Takes a place for a stream on this connection.
    ///
    /// # Errors
    /// [`OverLimit::Streams`].
    pub fn stream(&self) -> Result<StreamGuard, OverLimit> {
        let bound = self.limits.bounds.streams;
        self.streams
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < bound).then_some(open + 1)
            })
            .map(|_| StreamGuard(self.streams.clone()))
            .map_err(|_| OverLimit::Streams)
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut table = self.limits.lock();
        take_back(&mut table.processes, &self.process);
        take_back(&mut table.groups, &self.group);
        table.total = table.total.saturating_sub(1);
        self.limits.shown.dec();
    }
}

/// The place of one stream.
#[derive(Debug)]
pub struct StreamGuard(Arc<AtomicUsize>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{FileId, Ids};

    const BOUNDS: Bounds = Bounds {
        per_process: 2,
        per_group: 3,
        total: 4,
        streams: 2,
    };

    fn facts(uid: u32, cgroup: &str) -> ProcessFacts {
        let ids = Ids {
            real: uid,
            effective: uid,
            saved: uid,
            fs: uid,
        };
        ProcessFacts {
            exe: FileId {
                device: 1,
                inode: 1,
            },
            uid: ids,
            gid: ids,
            groups: [].into(),
            start_time: 1,
            cgroup: cgroup.to_owned(),
        }
    }

    fn process(pid: i32) -> ProcessKey {
        ProcessKey { pid, start_time: 1 }
    }

    #[test]
    fn each_bound_refuses_on_its_own_and_counts_nothing_then() {
        let limits = Limits::new(BOUNDS);
        let connect = |pid, uid, cgroup| limits.connect(process(pid), &facts(uid, cgroup));
        let first = connect(1, 7, "a").unwrap();
        let _second = connect(1, 7, "a").unwrap();
        assert_eq!(connect(1, 7, "a").unwrap_err(), OverLimit::Process);
        let _third = connect(2, 7, "a").unwrap();
        assert_eq!(connect(2, 7, "a").unwrap_err(), OverLimit::Group);
        let _other_cgroup = connect(2, 7, "b").unwrap();
        assert_eq!(connect(3, 8, "a").unwrap_err(), OverLimit::Total);
        assert_eq!(limits.connections(), 4);
        drop(first);
        let _other_user = connect(3, 8, "a").unwrap();
        assert_eq!(limits.connections(), 4);
    }

    /// A pod that makes users, containers and cgroups of its own is one customer all the same.
    #[test]
    fn all_of_a_pod_share_its_places() {
        let limits = Limits::new(BOUNDS);
        let connect = |pid, uid, below: &str| {
            let cgroup = format!("0::/kubepods/pod0b1c2d3e-4f50-4a61-8b72-93a4b5c6d7e8/{below}\n");
            limits.connect(process(pid), &facts(uid, &cgroup))
        };
        let _guards =
            [connect(1, 1, "a"), connect(2, 2, "b"), connect(3, 3, "a/b")].map(Result::unwrap);
        assert_eq!(connect(4, 4, "c").unwrap_err(), OverLimit::Pod);
        let _other = limits
            .connect(process(5), &facts(1, "0::/other\n"))
            .unwrap();
    }

    #[test]
    fn nothing_is_remembered_of_who_has_left() {
        let limits = Limits::new(BOUNDS);
        for pid in 0..1_000 {
            let _guard = limits.connect(process(pid), &facts(7, "a")).unwrap();
        }
        let table = limits.lock();
        assert_eq!(
            (table.processes.len(), table.groups.len(), table.total),
            (0, 0, 0)
        );
    }

    #[test]
    fn streams_are_bounded_per_connection() {
        let limits = Limits::new(BOUNDS);
        let connection = limits.connect(process(1), &facts(7, "a")).unwrap();
        let one = connection.stream().unwrap();
        let _two = connection.stream().unwrap();
        assert_eq!(connection.stream().unwrap_err(), OverLimit::Streams);
        drop(one);
        let _three = connection.stream().unwrap();
        let other = limits.connect(process(1), &facts(7, "a")).unwrap();
        let _on_the_other = other.stream().unwrap();
    }

    #[test]
    fn four_fifths_of_the_descriptors_are_for_connections() {
        assert_eq!(Bounds::for_descriptors(1_024).total, 272);
        assert_eq!(Bounds::for_descriptors(u64::MAX).per_process, PER_PROCESS);
        assert_eq!(Bounds::for_descriptors(0).total, 1);
    }

    #[test]
    fn few_descriptors_are_not_all_for_one_process_or_group() {
        let bounds = |descriptors| {
            let it = Bounds::for_descriptors(descriptors);
            (it.per_process, it.per_group, it.total)
        };
        assert_eq!(bounds(1_024), (136, 204, 272));
        assert_eq!(bounds(20_000), (1_000, 4_000, 5_333));
        assert_eq!(bounds(0), (1, 1, 1));
    }

    #[test]
    fn the_constant_text_is_the_error_text() {
        for over in [
            OverLimit::Process,
            OverLimit::Group,
            OverLimit::Total,
            OverLimit::Streams,
        ] {
            assert_eq!(over.reason(), over.to_string());
        }
    }
}
