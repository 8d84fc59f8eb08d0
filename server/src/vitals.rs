//! What this server shows of itself: to `/live` and `/ready`, to Prometheus, and to
//! `vane server status`. Everything is looked at when somebody asks; nothing is kept here.
//!
//! Ours are the names behind `vane_server_`; what SPIRE has a name for is shown under that,
//! too (SPIRE.md section 6.1), as far as there is such a thing here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use tokio::sync::watch;
use vane_authority::authority::Authority;
use vane_authority::kind::Kind;
use vane_authority::log::Log;
use vane_chassis::clock::Clock;
use vane_chassis::health::{Finding, Report};
use vane_chassis::metrics::{Metrics, gauge};
use vane_identity::id::TrustDomain;
use vane_identity::lifetime::{from_unix, to_unix};
use vane_store::observed::Observed;
use vane_wire::record::{AuthorityRecord, AuthorityState};

use crate::health::{self, Snapshot};
use crate::publish::Unpublished;
use crate::state::State;

/// When the own SVID ends, and when it is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnTimes {
    /// Its last valid instant.
    pub not_after: SystemTime,
    /// When it is renewed.
    pub due: SystemTime,
}

/// The parts that are looked at.
#[derive(Debug)]
pub struct Vitals {
    /// When now is.
    pub clock: Arc<dyn Clock>,
    /// When the server started.
    pub started: Instant,
    /// Whose server it is.
    pub trust_domain: TrustDomain,
    /// The store, and the folder of its files, when it has one.
    pub store: Arc<Observed>,
    /// See [`Vitals::store`].
    pub store_dir: Option<PathBuf>,
    /// The store's content in memory.
    pub state: Arc<State>,
    /// What signs.
    pub authority: Arc<Authority>,
    /// What is written before.
    pub log: Arc<Log>,
    /// The own SVID's times as they change.
    pub own_svid: watch::Receiver<OwnTimes>,
    /// How old the state may be for everything.
    pub max_staleness: Duration,
    /// What publishers of the bundle cannot do, as it changes.
    pub unpublished: Vec<watch::Receiver<Option<Unpublished>>>,
}

/// Something that is replaced in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// `x509_authority`, `jwt_authority` or `own_svid`.
    pub kind: &'static str,
    /// Its ID; the SPIFFE ID of an SVID.
    pub id: String,
    /// Where an authority stands.
    pub state: &'static str,
    /// When it ends.
    pub expires_at: SystemTime,
    /// When something is done about it.
    pub next_at: Option<SystemTime>,
}

impl Vitals {
    /// The parts now, for [`health::judge`].
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let monotonic = self.clock.monotonic();
        Snapshot {
            store: self.store.error(),
            confirmed_age: self.state.confirmed_age(monotonic),
            max_staleness: self.max_staleness,
            signs_for: self.signs_for(),
            log: self.log.health(),
            jump: self.clock.jumps().recent(monotonic),
            unpublished: self.unpublished(),
        }
    }

    /// What is wrong now.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        health::judge(&self.snapshot())
    }

    /// The same as a report.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::new(self.findings())
    }

    /// What is rotated, soonest first.
    #[must_use]
    pub fn rotations(&self) -> Vec<Rotation> {
        let own = *self.own_svid.borrow();
        let server = self.trust_domain.server_id();
        let mut all = vec![Rotation {
            kind: "own_svid",
            id: server.map(|id| id.to_string()).unwrap_or_default(),
            state: "",
            expires_at: own.not_after,
            next_at: Some(own.due),
        }];
        let records = self.authority.authorities().borrow().clone();
        all.extend(records.iter().map(|record| {
            Rotation {
                kind: kind(record),
                id: record.id.clone(),
                state: state(record.state),
                expires_at: from_unix(record.not_after),
                next_at: self
                    .authority
                    .next_rotation(Kind::of(record))
                    .filter(|_| record.state == AuthorityState::Active),
            }
        }));
        all.sort_by_key(|one| one.next_at.unwrap_or(one.expires_at));
        all
    }

    /// Bytes of the store's files.
    #[must_use]
    pub fn store_bytes(&self) -> u64 {
        self.store_dir.as_deref().map_or(0, |dir| size(dir, 2))
    }

    fn unpublished(&self) -> Vec<Unpublished> {
        let all = self.unpublished.iter();
        all.filter_map(|one| one.borrow().clone()).collect()
    }

    fn active(&self) -> Option<AuthorityRecord> {
        let records = self.authority.authorities().borrow().clone();
        let mut records = records.iter();
        let found =
            records.find(|one| one.state == AuthorityState::Active && Kind::of(one) == Kind::X509);
        found.cloned()
    }

    fn signs_for(&self) -> Option<Duration> {
        let active = self.active()?;
        let end = from_unix(active.not_after);
        Some(end.duration_since(self.clock.now()).unwrap_or_default())
    }

    /// Shows them in `metrics`.
    pub fn register(self: &Arc<Self>, metrics: &Metrics) {
        let (ours, theirs) = (Ours(Arc::clone(self)), Theirs(Arc::clone(self)));
        metrics.register(|registry| registry.register_collector(Box::new(ours)));
        metrics.register_spire(|registry| registry.register_collector(Box::new(theirs)));
    }
}

fn kind(record: &AuthorityRecord) -> &'static str {
    match Kind::of(record) {
        Kind::X509 => "x509_authority",
        Kind::Jwt => "jwt_authority",
    }
}

fn state(state: AuthorityState) -> &'static str {
    match state {
        AuthorityState::Prepared => "prepared",
        AuthorityState::Active => "active",
        AuthorityState::Old => "old",
        AuthorityState::Tainted => "tainted",
        AuthorityState::Revoked => "revoked",
    }
}

/// Bytes of the files in `dir`, so many folders deep.
fn size(dir: &Path, deep: u8) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() && deep > 0 => size(&entry.path(), deep - 1),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    });
    sizes.sum()
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn total(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Counter)?
        .encode_counter::<NoLabelSet, _, u64>(&value, None)
}

#[derive(Debug)]
struct Ours(Arc<Vitals>);

impl Collector for Ours {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(vitals) = self;
        let to = &mut encoder;
        let counts = vitals.state.counts();
        gauge(
            to,
            "entries",
            "Entries, expired ones too.",
            count(counts.entries),
        )?;
        gauge(
            to,
            "agents",
            "Attested agents, banned ones too.",
            count(counts.agents),
        )?;
        gauge(
            to,
            "bundles",
            "Bundles, the own one too.",
            count(counts.bundles),
        )?;
        gauge(
            to,
            "agents_connected",
            "Agents with a stream.",
            count(counts.connected),
        )?;
        let revision = i64::try_from(vitals.state.revision()).unwrap_or(i64::MAX);
        gauge(
            to,
            "state_revision",
            "Everything up to here is in hot state.",
            revision,
        )?;
        let age = vitals.state.confirmed_age(vitals.clock.monotonic());
        let mut one = to.encode_descriptor(
            "state_age_seconds",
            "Since hot state was known to be that of the store.",
            None,
            MetricType::Gauge,
        )?;
        one.encode_gauge(&age.as_secs_f64())?;
        expiries(to, &vitals.rotations())?;
        vitals.report().encode(to)?;
        store(to, vitals)?;
        log(to, vitals)
    }
}

fn expiries(to: &mut DescriptorEncoder<'_>, rotations: &[Rotation]) -> fmt::Result {
    let help = "End of what signs and of the own SVID, Unix seconds.";
    let mut all =
        to.encode_descriptor("expiry_timestamp_seconds", help, None, MetricType::Gauge)?;
    let signs = |one: &&Rotation| matches!(one.state, "" | "active");
    for one in rotations.iter().filter(signs) {
        let labels = [("kind", one.kind)];
        all.encode_family(&labels)?
            .encode_gauge(&to_unix(one.expires_at))?;
    }
    let help = "When they are rotated next, Unix seconds.";
    let name = "rotation_timestamp_seconds";
    let mut all = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for one in rotations.iter().filter(signs) {
        if let Some(next) = one.next_at {
            let labels = [("kind", one.kind)];
            all.encode_family(&labels)?.encode_gauge(&to_unix(next))?;
        }
    }
    Ok(())
}

fn store(to: &mut DescriptorEncoder<'_>, vitals: &Vitals) -> fmt::Result {
    let help = "Time until a commit is durable.";
    let commits = vitals.store.commits();
    let descriptor =
        to.encode_descriptor("store_commit_seconds", help, None, MetricType::Histogram)?;
    commits.encode(descriptor)?;
    let failures = vitals.store.failures();
    total(
        to,
        "store_failures",
        "Calls that the store could not answer.",
        failures,
    )?;
    let bytes = i64::try_from(vitals.store_bytes()).unwrap_or(i64::MAX);
    gauge(to, "store_bytes", "Size of the store's files.", bytes)
}

fn log(to: &mut DescriptorEncoder<'_>, vitals: &Vitals) -> fmt::Result {
    let help = "Time until an append is answered: durable, or of an admin change written.";
    let descriptor =
        to.encode_descriptor("log_append_seconds", help, None, MetricType::Histogram)?;
    vitals.log.latency().encode(descriptor)?;
    let failures = vitals.log.failures();
    total(
        to,
        "log_failures",
        "Groups that could not be written.",
        failures,
    )?;
    let waiting = i64::try_from(vitals.log.health().waiting).unwrap_or(i64::MAX);
    gauge(to, "log_waiting", "Appends that wait.", waiting)
}

#[derive(Debug)]
struct Theirs(Arc<Vitals>);

impl Collector for Theirs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(vitals) = self;
        let to = &mut encoder;
        let counts = vitals.state.counts();
        let help = "SPIRE's name: entries in memory.";
        gauge(
            to,
            "entry_entries_by_entryid_cache_count",
            help,
            count(counts.entries),
        )?;
        let help = "SPIRE's name: agents in memory.";
        gauge(
            to,
            "node_agents_by_id_cache_count",
            help,
            count(counts.agents),
        )?;
        let Some(active) = vitals.active() else {
            return Ok(());
        };
        let labels = [("trust_domain_id", vitals.trust_domain.as_str())];
        let help = "SPIRE's name: end of the active X.509 authority, Unix seconds.";
        let name = "manager_x509_ca_rotate_expiration";
        let mut one = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
        one.encode_family(&labels)?
            .encode_gauge(&active.not_after)?;
        let help = "SPIRE's name: seconds until then.";
        let name = "manager_x509_ca_rotate_ttl";
        let left = vitals.signs_for().unwrap_or_default();
        let mut one = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
        one.encode_family(&labels)?
            .encode_gauge(&left.as_secs_f64())
    }
}
