//! A clock that notices when the wall clock was set, and tells everybody who keeps a schedule.
//!
//! Owns the one comparison of wall against monotonic time of a process: whoever waits for an
//! instant holds the [`Jumps`] of its clock beside [`sleep_until`](super::sleep_until) and
//! decides anew from `now` when one comes. A suspended machine is a jump forward, since
//! monotonic time stands still meanwhile. What is to be done about a jump is not decided here.
//!
//! Invariant: no reading of the wall clock is given out before the jump that led to it is told.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Clock, JUMP, Jump, nap};

/// The time between two looks: well below [`MAX_NAP`](super::MAX_NAP), so that a clock that
/// was set is known before a timer of the old one ends.
pub const LOOK: Duration = Duration::from_secs(5);

/// So long after a jump the wall clock is not believed alone: nobody is denied for good by it.
pub const DOUBT: Duration = Duration::from_secs(10 * 60);

/// Between two readings that belong together no more may pass; a thread may be stopped there.
const TOGETHER: Duration = Duration::from_millis(50);

/// Drift of so many microseconds is followed, so that it never sums up to a jump.
const DRIFT: u64 = 100_000;

/// So long after a jump nothing is done that cannot be taken back: a clock that was set wrong
/// by mistake is set right within minutes.
pub const SETTLE: Duration = Duration::from_secs(2 * 60);

/// A jump, and when it was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jumped {
    /// Where to and how far.
    pub jump: Jump,
    /// When it was noticed, in monotonic time.
    pub noticed: Instant,
}

/// What was seen since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    count: u64,
    last: Option<Jumped>,
}

/// A clock with its watch; see the module.
#[derive(Debug)]
pub struct Watched {
    clock: Arc<dyn Clock>,
    start: (SystemTime, Instant),
    /// How far the wall clock ran ahead of monotonic time since the start, in microseconds.
    ahead: AtomicI64,
    seen: watch::Sender<Seen>,
}

impl Watched {
    /// Watches `clock`: at each reading of it, and every [`LOOK`] while [`Watched::run`] runs.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let start = (clock.now(), clock.monotonic());
        Arc::new(Self {
            clock,
            start,
            ahead: AtomicI64::new(0),
            seen: watch::Sender::default(),
        })
    }

    /// Looks at the clock every [`LOOK`] until `stop`.
    ///
    /// # Errors
    /// None.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), Infallible> {
        let mut moved = self.clock.moved();
        loop {
            self.look();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = nap(LOOK, moved.as_mut()) => {}
            }
        }
    }

    /// The wall clock; a jump is told first, and drift is followed.
    fn look(&self) -> SystemTime {
        let (wall, monotonic) = self.readings();
        let (start_wall, start_monotonic) = self.start;
        let passed = micros(monotonic.saturating_duration_since(start_monotonic));
        let ahead = match wall.duration_since(start_wall) {
            Ok(since) => micros(since).saturating_sub(passed),
            Err(before) => passed
                .saturating_add(micros(before.duration()))
                .saturating_neg(),
        };
        let known = self.ahead.load(Ordering::Acquire);
        let jump = jump(ahead.saturating_sub(known));
        if jump.is_some() || ahead.abs_diff(known) > DRIFT {
            let first = self
                .ahead
                .compare_exchange(known, ahead, Ordering::AcqRel, Ordering::Acquire)
                .is_ok();
            // Whoever comes second finds it told, or it is being told.
            if let Some(jump) = jump.filter(|_| first) {
                self.tell(jump);
            }
        }
        wall
    }

    /// Both clocks at one moment.
    fn readings(&self) -> (SystemTime, Instant) {
        loop {
            let before = self.clock.monotonic();
            let wall = self.clock.now();
            let after = self.clock.monotonic();
            if after.saturating_duration_since(before) < TOGETHER {
                return (wall, before);
            }
        }
    }

    fn tell(&self, jump: Jump) {
        match jump {
            Jump::Forward(by) => {
                tracing::warn!(
                    seconds = by.as_secs_f64(),
                    "the wall clock went forward (set, or the machine slept): every schedule is run again"
                );
            }
            Jump::Backward(by) => {
                tracing::warn!(
                    seconds = by.as_secs_f64(),
                    "the wall clock was set back: every schedule is run again, what had expired stays so"
                );
            }
        }
        let noticed = self.clock.monotonic();
        self.seen.send_modify(|seen| {
            seen.count += 1;
            seen.last = Some(Jumped { jump, noticed });
        });
    }
}

/// The jump that a difference of so many microseconds is; none when it is drift.
fn jump(difference: i64) -> Option<Jump> {
    let distance = Duration::from_micros(difference.unsigned_abs());
    if distance <= JUMP {
        return None;
    }
    Some(match difference > 0 {
        true => Jump::Forward(distance),
        false => Jump::Backward(distance),
    })
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Clock for Watched {
    fn now(&self) -> SystemTime {
        self.look()
    }

    fn monotonic(&self) -> Instant {
        self.clock.monotonic()
    }

    fn moved(&self) -> Option<watch::Receiver<()>> {
        self.clock.moved()
    }

    fn jumps(&self) -> Jumps {
        Jumps(Some(self.seen.subscribe()))
    }
}

/// The jumps of a clock from the moment in which this was taken.
#[derive(Clone, Debug)]
pub struct Jumps(Option<watch::Receiver<Seen>>);

impl Jumps {
    /// Those of a clock that nobody watches: none.
    #[must_use]
    pub fn never() -> Self {
        Self(None)
    }

    /// Waits for a jump that was not told yet. Cancel safe.
    pub async fn next(&mut self) {
        let came = match &mut self.0 {
            Some(seen) => seen.changed().await.is_ok(),
            None => false,
        };
        if !came {
            std::future::pending::<()>().await;
        }
    }

    /// How many there were since the process started.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |seen| seen.borrow().count)
    }

    /// The last one of this process.
    #[must_use]
    pub fn last(&self) -> Option<Jumped> {
        self.0.as_ref().and_then(|seen| seen.borrow().last)
    }

    /// How long it is from `now` until [`SETTLE`] has passed since the last jump; zero when it
    /// has.
    #[must_use]
    pub fn settles_in(&self, now: Instant) -> Duration {
        self.last().map_or(Duration::ZERO, |last| {
            SETTLE.saturating_sub(now.saturating_duration_since(last.noticed))
        })
    }

    /// The last jump and how long ago it was noticed, while that is less than [`DOUBT`] at `now`.
    #[must_use]
    pub fn recent(&self, now: Instant) -> Option<(Jump, Duration)> {
        let last = self.last()?;
        let ago = now.saturating_duration_since(last.noticed);
        (ago < DOUBT).then_some((last.jump, ago))
    }

    /// Whether there is a [`recent`](Self::recent) jump at `now`.
    #[must_use]
    pub fn in_doubt(&self, now: Instant) -> bool {
        self.recent(now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Manual;
    use super::*;
    use crate::tasks::Tasks;

    const SOON: Duration = Duration::from_secs(20);

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[tokio::test]
    async fn who_keeps_a_schedule_is_told_of_each_jump_once_and_of_no_time_that_passed() {
        let manual = Arc::new(Manual::starting_now());
        let watched = Watched::new(Arc::<Manual>::clone(&manual));
        let mut jumps = watched.jumps();
        let mut tasks = Tasks::new();
        tasks.spawn("clock", Arc::clone(&watched).run(tasks.token()));
        for (set, want) in [
            (secs(3_600), Jump::Forward(secs(3_600))),
            (secs(86_400), Jump::Forward(secs(86_400))),
        ] {
            manual.advance(secs(7 * 86_400));
            manual.set(manual.now() + set);
            tokio::time::timeout(SOON, jumps.next()).await.unwrap();
            assert_eq!(jumps.last().unwrap().jump, want);
            manual.set(manual.now() - set);
            tokio::time::timeout(SOON, jumps.next()).await.unwrap();
            assert_eq!(jumps.last().unwrap().jump, Jump::Backward(set));
        }
        assert_eq!(jumps.count(), 4);
        assert!(jumps.in_doubt(manual.monotonic()));
        manual.advance(DOUBT);
        assert!(!jumps.in_doubt(manual.monotonic()));
        tasks.token().cancel();
        tasks.join(secs(5)).await.unwrap();
        let quiet = tokio::time::timeout(Duration::ZERO, jumps.next());
        assert!(quiet.await.is_err(), "time that passes is no jump");
    }

    #[test]
    fn time_that_passes_is_no_jump_and_a_moved_wall_clock_is() {
        let clock = Arc::new(Manual::starting_now());
        let watched = Watched::new(Arc::<Manual>::clone(&clock));
        let jumps = watched.jumps();
        clock.advance(secs(86_400));
        for _ in 0..10 {
            clock.set(clock.now() + secs(2));
            watched.now();
        }
        assert_eq!(jumps.count(), 0, "two seconds are drift");
        clock.set(clock.now() + secs(60));
        assert_eq!(watched.now(), clock.now());
        let last = |jumps: &Jumps| jumps.last().map(|last| last.jump);
        assert_eq!(last(&jumps), Some(Jump::Forward(secs(60))));
        watched.now();
        assert_eq!(jumps.count(), 1, "a jump is told once");
        clock.set(clock.now() - secs(3));
        watched.now();
        assert_eq!(last(&jumps), Some(Jump::Backward(secs(3))));
        assert_eq!(jumps.settles_in(clock.monotonic()), SETTLE);
        clock.advance(SETTLE);
        assert_eq!(jumps.settles_in(clock.monotonic()), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_slept_is_noticed_at_the_next_look() {
        /// Wall time goes on while monotonic time stands still.
        #[derive(Debug)]
        struct Slept(std::sync::atomic::AtomicBool, Instant);
        impl Clock for Slept {
            fn now(&self) -> SystemTime {
                let slept = self.0.load(std::sync::atomic::Ordering::Relaxed);
                SystemTime::UNIX_EPOCH + secs(1_000 + u64::from(slept) * 7_200)
            }
            fn monotonic(&self) -> Instant {
                self.1
            }
        }
        let start = super::super::System.monotonic();
        let slept = Arc::new(Slept(false.into(), start));
        let watched = Watched::new(Arc::<Slept>::clone(&slept));
        let mut jumps = watched.jumps();
        let mut tasks = Tasks::new();
        tasks.spawn("clock", Arc::clone(&watched).run(tasks.token()));
        let asleep = tokio::time::Instant::now();
        slept.0.store(true, std::sync::atomic::Ordering::Relaxed);
        jumps.next().await;
        assert!(asleep.elapsed() <= LOOK);
        assert_eq!(jumps.last().unwrap().jump, Jump::Forward(secs(7_200)));
    }

    #[tokio::test]
    async fn a_clock_that_nobody_watches_never_jumps() {
        let mut jumps = Manual::starting_now().jumps();
        let next = tokio::time::timeout(Duration::from_millis(1), jumps.next());
        assert!(next.await.is_err());
        assert_eq!((jumps.count(), jumps.last()), (0, None));
    }
}
