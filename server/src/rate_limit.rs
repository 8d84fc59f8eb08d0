//! How often who may call: token buckets as pure functions of `now` (DESIGN "Limits of the
//! server").
//!
//! Invariant: a table never holds more than [`MAX_KEYS`] buckets. Full buckets are forgotten,
//! and while there are more busy keys than that, the rest share one bucket. A reservation is
//! made or refused at once and in order, so that nobody is overtaken by a later caller; the
//! waiting itself is the business of `api`.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vane_identity::id::SpiffeId;

/// The most buckets of one table.
pub const MAX_KEYS: usize = 65_536;
/// How long a caller waits who named no deadline.
pub const MAX_WAIT: Duration = Duration::from_secs(30);
/// A full table is searched for full buckets at most this often.
const SWEEP: Duration = Duration::from_secs(1);

/// SVIDs signed for one agent.
pub const SIGNING: Rate = Rate::new(500, 1_000);
/// Tokens signed for one agent.
pub const TOKENS: Rate = Rate::new(500, 1_000);
/// Calls without a certificate from one address.
pub const ANONYMOUS: Rate = Rate::new(200, 1_000);
/// Attestations with one join token.
pub const TOKEN: Rate = Rate::new(10, 10);
/// PostStatus of one agent.
pub const POST_STATUS: Rate = Rate::new(10, 10);
/// Synchronisations of one SPIRE agent, which asks every 5 s.
pub const SYNC: Rate = Rate::new(50, 100);
/// Denials of one agent that are confirmed by a read of the store.
pub const DENIAL: Rate = Rate::new(5, 10);

/// So many units a second in the long run, and how many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units a second.
    pub per_second: u32,
    /// Units at once after a rest.
    pub burst: u32,
}

/// Why a call may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// More units in one call than the limit ever grants.
    #[error("rate limit: {asked} at once, at most {burst} are granted")]
    Burst {
        /// Asked for.
        asked: usize,
        /// The most.
        burst: u32,
    },
    /// The turn comes after the caller's deadline.
    #[error("rate limit of {per_second}/s exceeded, and the deadline comes before the turn")]
    Deadline {
        /// The rate.
        per_second: u32,
    },
}

impl Rate {
    const fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second, burst }
    }

    /// The time that `units` take at this rate.
    fn time(self, units: u32) -> Duration {
        Duration::from_secs(u64::from(units)) / self.per_second.max(1)
    }

    /// Takes `units` from the bucket that is full again at `full_at`: says how long to wait and
    /// when the bucket will be full, or refuses and takes nothing.
    fn take(
        self,
        full_at: Instant,
        units: usize,
        now: Instant,
        patience: Duration,
    ) -> Result<(Duration, Instant), Exceeded> {
        let burst = Exceeded::Burst {
            asked: units,
            burst: self.burst,
        };
        let units = u32::try_from(units).map_err(|_| burst)?;
        if units > self.burst {
            return Err(burst);
        }
        let full_at = full_at.max(now) + self.time(units);
        let wait = full_at
            .saturating_duration_since(now)
            .saturating_sub(self.time(self.burst));
        if wait > patience {
            return Err(Exceeded::Deadline {
                per_second: self.per_second,
            });
        }
        Ok((wait, full_at))
    }
}

/// The buckets of one limit, by key.
#[derive(Debug)]
pub struct Table<K> {
    rate: Rate,
    max_keys: usize,
    buckets: Mutex<Buckets<K>>,
}

/// When each bucket is full again.
#[derive(Debug)]
struct Buckets<K> {
    full_at: HashMap<K, Instant>,
    /// The bucket of those for whom there is no room.
    shared: Option<Instant>,
    swept_at: Option<Instant>,
}

impl<K: Eq + Hash> Table<K> {
    /// An empty table.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self::with_room(rate, MAX_KEYS)
    }

    fn with_room(rate: Rate, max_keys: usize) -> Self {
        Self {
            rate,
            max_keys,
            buckets: Mutex::new(Buckets {
                full_at: HashMap::new(),
                shared: None,
                swept_at: None,
            }),
        }
    }

    /// Takes `units` for `key` and says how long the caller must wait before it goes on.
    ///
    /// # Errors
    /// [`Exceeded`] when that is longer than `patience`, or more than the burst; nothing is
    /// taken then.
    pub fn reserve(
        &self,
        key: K,
        units: usize,
        now: Instant,
        patience: Duration,
    ) -> Result<Duration, Exceeded> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.of(key, self.max_keys, now);
        let (wait, full_at) = self.rate.take(*bucket, units, now, patience)?;
        *bucket = full_at;
        Ok(wait)
    }

    /// How many keys have a bucket.
    #[must_use]
    pub fn len(&self) -> usize {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.full_at.len()
    }

    /// Whether nobody has a bucket.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Eq + Hash> Buckets<K> {
    /// The bucket of `key`, or the shared one when there is no room.
    fn of(&mut self, key: K, max_keys: usize, now: Instant) -> &mut Instant {
        if self.full_at.len() >= max_keys && !self.full_at.contains_key(&key) {
            self.sweep(now);
        }
        if self.full_at.len() < max_keys || self.full_at.contains_key(&key) {
            return self.full_at.entry(key).or_insert(now);
        }
        self.shared.get_or_insert(now)
    }

    fn sweep(&mut self, now: Instant) {
        let recent = |at: Instant| now.saturating_duration_since(at) < SWEEP;
        if self.swept_at.is_some_and(recent) {
            return;
        }
        self.swept_at = Some(now);
        self.full_at.retain(|_, full_at| *full_at > now);
    }
}

/// All limits of a server; who switched one off gets no waiting from it.
#[derive(Debug)]
pub struct Limits {
    attestation: bool,
    signing: bool,
    anonymous: Table<IpAddr>,
    token: Table<[u8; 32]>,
    signers: Table<SpiffeId>,
    tokens: Table<SpiffeId>,
    status: Table<SpiffeId>,
    sync: Table<SpiffeId>,
    denials: Table<SpiffeId>,
}

impl Limits {
    /// `[ratelimit] attestation, signing`: SPIRE's two switches.
    #[must_use]
    pub fn new(attestation: bool, signing: bool) -> Self {
        Self {
            attestation,
            signing,
            anonymous: Table::new(ANONYMOUS),
            token: Table::new(TOKEN),
            signers: Table::new(SIGNING),
            tokens: Table::new(TOKENS),
            status: Table::new(POST_STATUS),
            sync: Table::new(SYNC),
            denials: Table::new(DENIAL),
        }
    }

    /// The wait of a call without a certificate from `address` (an IPv6 host counts as its /64).
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn anonymous(
        &self,
        address: IpAddr,
        now: Instant,
        patience: Duration,
    ) -> Result<Duration, Exceeded> {
        if !self.attestation {
            return Ok(Duration::ZERO);
        }
        self.anonymous.reserve(host(address), 1, now, patience)
    }

    /// The wait of an attestation with the token whose SHA-256 is `token`.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn token(
        &self,
        token: [u8; 32],
        now: Instant,
        patience: Duration,
    ) -> Result<Duration, Exceeded> {
        if !self.attestation {
            return Ok(Duration::ZERO);
        }
        self.token.reserve(token, 1, now, patience)
    }

    /// The wait of `agent` for `units` signatures.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn signing(
        &self,
        agent: &SpiffeId,
        units: usize,
        now: Instant,
        patience: Duration,
    ) -> Result<Duration, Exceeded> {
        if !self.signing {
            return Ok(Duration::ZERO);
        }
        self.signers.reserve(agent.clone(), units, now, patience)
    }

    /// The wait of `agent` for the signature of one JWT-SVID; `signing` switches it as well.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn tokens(
        &self,
        agent: &SpiffeId,
        now: Instant,
        patience: Duration,
    ) -> Result<Duration, Exceeded> {
        if !self.signing {
            return Ok(Duration::ZERO);
        }
        self.tokens.reserve(agent.clone(), 1, now, patience)
    }

    /// The wait of `agent` for a PostStatus.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn post_status(
        &self,
        agent: &SpiffeId,
        now: Instant,
        patience: Duration,
    ) -> Result<Duration, Exceeded> {
        self.status.reserve(agent.clone(), 1, now, patience)
    }

    /// The wait of `agent` for reading its set.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn sync(
        &self,
        agent: &SpiffeId,
        now: Instant,
        patience: Duration,
    ) -> Result<Duration, Exceeded> {
        self.sync.reserve(agent.clone(), 1, now, patience)
    }

    /// Whether one more denial of `agent` may be confirmed by a read now; never waits.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn denial(&self, agent: &SpiffeId, now: Instant) -> Result<(), Exceeded> {
        self.denials
            .reserve(agent.clone(), 1, now, Duration::ZERO)
            .map(drop)
    }
}

/// What counts as one host: a single IPv4 address, an IPv6 network of 64 bits.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = u128::from(v6) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use vane_chassis::clock::{Clock, System};

    use super::*;

    const NOW_OR_NEVER: Duration = Duration::ZERO;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_goes_through_and_the_rate_holds_after_it() {
        let table = Table::new(Rate::new(500, 1_000));
        let start = System.monotonic();
        let take = |units, now, patience| table.reserve("agent", units, now, patience);
        assert_eq!(take(1_000, start, NOW_OR_NEVER), Ok(Duration::ZERO));
        assert_eq!(
            take(1, start, NOW_OR_NEVER),
            Err(Exceeded::Deadline { per_second: 500 })
        );
        let wait = take(500, start, Duration::from_secs(2));
        assert_eq!(
            wait,
            Ok(Duration::from_secs(1)),
            "half the bucket is a second"
        );
        let wait = take(100, start, Duration::from_secs(2));
        assert_eq!(
            wait,
            Ok(Duration::from_millis(1_200)),
            "behind the one before"
        );
        assert_eq!(
            take(1_000, at(start, 10_000), NOW_OR_NEVER),
            Ok(Duration::ZERO)
        );
    }

    #[test]
    fn a_refusal_takes_nothing() {
        let table = Table::new(Rate::new(10, 10));
        let now = System.monotonic();
        assert_eq!(
            table.reserve(1, 11, now, MAX_WAIT),
            Err(Exceeded::Burst {
                asked: 11,
                burst: 10
            })
        );
        assert!(table.reserve(1, usize::MAX, now, MAX_WAIT).is_err());
        assert_eq!(table.reserve(1, 10, now, NOW_OR_NEVER), Ok(Duration::ZERO));
        for _ in 0..100 {
            assert!(table.reserve(1, 5, now, NOW_OR_NEVER).is_err());
        }
        assert_eq!(
            table.reserve(1, 1, at(now, 100), NOW_OR_NEVER),
            Ok(Duration::ZERO)
        );
    }

    #[test]
    fn keys_do_not_disturb_each_other_and_their_number_is_bounded() {
        let table = Table::with_room(Rate::new(1, 2), 4);
        let now = System.monotonic();
        for key in 0..4 {
            assert_eq!(table.reserve(key, 2, now, NOW_OR_NEVER), Ok(Duration::ZERO));
        }
        assert_eq!(table.reserve(4, 2, now, NOW_OR_NEVER), Ok(Duration::ZERO));
        assert!(
            table.reserve(5, 1, now, NOW_OR_NEVER).is_err(),
            "one for all others"
        );
        assert_eq!(table.len(), 4);
        assert_eq!(
            table.reserve(6, 2, at(now, 5_000), NOW_OR_NEVER),
            Ok(Duration::ZERO)
        );
        assert_eq!(table.len(), 1, "those that are full again are forgotten");
    }

    #[test]
    fn what_is_switched_off_never_waits() {
        let limits = Limits::new(false, false);
        let agent = SpiffeId::parse("spiffe://example.org/spire/agent/a").unwrap();
        let now = System.monotonic();
        for _ in 0..5 {
            let address = IpAddr::from([192, 0, 2, 1]);
            assert_eq!(
                limits.anonymous(address, now, NOW_OR_NEVER),
                Ok(Duration::ZERO)
            );
            assert_eq!(limits.token([7; 32], now, NOW_OR_NEVER), Ok(Duration::ZERO));
            let wait = limits.signing(&agent, 5_000, now, NOW_OR_NEVER);
            assert_eq!(wait, Ok(Duration::ZERO));
        }
    }

    #[test]
    fn an_ipv6_host_counts_as_its_network_and_a_mapped_one_as_ipv4() {
        let host = |text: &str| host(text.parse().unwrap());
        assert_eq!(host("2001:db8:1:2:3:4:5:6"), host("2001:db8:1:2::9"));
        assert_ne!(host("2001:db8:1:3::1"), host("2001:db8:1:2::1"));
        assert_eq!(host("::ffff:192.0.2.1"), host("192.0.2.1"));
    }
}
