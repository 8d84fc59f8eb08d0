//! What time it is, and how long to wait for it.
//!
//! The only place that asks the operating system for the time: everything
//! above takes `now` as an argument or holds an `Arc<dyn Clock>`, so that a
//! decision can be tested at any instant.
//!
//! Invariant: nothing sleeps longer than [`MAX_NAP`] without looking at the
//! wall clock again, because a suspended laptop or a corrected clock moves the
//! wall time under a running timer. A process has one [`Watched`] clock, which
//! tells every keeper of a schedule when the wall clock [`Jump`]ed.

mod watched;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

pub use watched::{DOUBT, Jumped, Jumps, LOOK, SETTLE, Watched};

/// The longest sleep between two looks at the wall clock.
pub const MAX_NAP: Duration = Duration::from_secs(15);

/// The difference of wall against monotonic time that counts as a jump.
pub const JUMP: Duration = Duration::from_secs(2);

/// A source of wall and monotonic time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock: what certificates and expiries are compared with.
    fn now(&self) -> SystemTime;

    /// Time that only goes forward: what durations are measured with.
    fn monotonic(&self) -> Instant;

    /// Tells when the clock was moved by hand. A real clock never is.
    fn moved(&self) -> Option<watch::Receiver<()>> {
        None
    }

    /// Tells when the wall clock jumped. Only a [`Watched`] clock knows.
    fn jumps(&self) -> Jumps {
        Jumps::never()
    }
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Clock for System {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that stands still until it is moved, for tests and simulations.
///
/// Sleepers ([`sleep_until`]) are woken when it moves.
#[derive(Debug)]
pub struct Manual {
    times: Mutex<(SystemTime, Instant)>,
    moved: watch::Sender<()>,
}

impl Manual {
    /// A clock that shows `now`.
    #[must_use]
    pub fn new(now: SystemTime) -> Self {
        let (moved, _) = watch::channel(());
        Self {
            times: Mutex::new((now, System.monotonic())),
            moved,
        }
    }

    /// A clock that starts at the real time of this call.
    #[must_use]
    pub fn starting_now() -> Self {
        Self::new(System.now())
    }

    /// Lets `by` pass: wall and monotonic time move together.
    pub fn advance(&self, by: Duration) {
        self.change(|(wall, monotonic)| (wall + by, monotonic + by));
    }

    /// Sets the wall clock alone, forward or backward: a jump.
    pub fn set(&self, now: SystemTime) {
        self.change(|(_, monotonic)| (now, monotonic));
    }

    fn change(&self, f: impl FnOnce((SystemTime, Instant)) -> (SystemTime, Instant)) {
        {
            let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
            *times = f(*times);
        }
        self.moved.send_replace(());
    }

    fn times(&self) -> (SystemTime, Instant) {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for Manual {
    fn now(&self) -> SystemTime {
        self.times().0
    }

    fn monotonic(&self) -> Instant {
        self.times().1
    }

    fn moved(&self) -> Option<watch::Receiver<()>> {
        Some(self.moved.subscribe())
    }
}

/// Waits until the wall clock shows `at` or later.
///
/// Looks at the clock at least every [`MAX_NAP`], so that a jump forward is
/// noticed at most that late. Dropping the future is harmless.
pub async fn sleep_until(clock: &dyn Clock, at: SystemTime) {
    let mut moved = clock.moved();
    while let Some(left) = left(clock.now(), at) {
        nap(left, moved.as_mut()).await;
    }
}

/// Sleeps for `length`, or until the clock is moved by hand.
async fn nap(length: Duration, moved: Option<&mut watch::Receiver<()>>) {
    match moved {
        None => tokio::time::sleep(length).await,
        Some(moved) => {
            // An error means that the clock is gone; the nap still ends.
            let _ = tokio::time::timeout(length, moved.changed()).await;
        }
    }
}

/// How long to sleep before the next look at the clock; `None` when `at` came.
fn left(now: SystemTime, at: SystemTime) -> Option<Duration> {
    let left = at.duration_since(now).ok().filter(|d| !d.is_zero())?;
    Some(left.min(MAX_NAP))
}

/// A movement of the wall clock that time passing does not explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jump {
    /// The wall clock went this much further than monotonic time did.
    Forward(Duration),
    /// The wall clock stayed this much behind monotonic time.
    Backward(Duration),
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const T0: SystemTime = SystemTime::UNIX_EPOCH;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_nap_is_never_longer_than_fifteen_seconds() {
        assert_eq!(left(T0, T0 + secs(3600)), Some(secs(15)));
        assert_eq!(left(T0, T0 + secs(3)), Some(secs(3)));
        assert_eq!(left(T0, T0), None);
        assert_eq!(left(T0 + secs(1), T0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_jumps_ahead_ends_the_sleep_early() {
        /// A wall clock that jumps an hour ahead at its second reading.
        #[derive(Debug)]
        struct Jumping(Mutex<u32>);
        impl Clock for Jumping {
            fn now(&self) -> SystemTime {
                let mut looks = self.0.lock().unwrap();
                *looks += 1;
                if *looks > 1 { T0 + secs(3600) } else { T0 }
            }
            fn monotonic(&self) -> Instant {
                System.monotonic()
            }
        }
        let started = tokio::time::Instant::now();
        sleep_until(&Jumping(Mutex::new(0)), T0 + secs(3600)).await;
        assert_eq!(started.elapsed(), MAX_NAP);
    }

    #[tokio::test]
    async fn moving_a_manual_clock_wakes_its_sleepers() {
        let clock = Arc::new(Manual::new(T0));
        let sleeper = {
            let clock = Arc::clone(&clock);
            async move { sleep_until(&*clock, T0 + secs(3600)).await }
        };
        let mover = async {
            tokio::task::yield_now().await;
            clock.advance(secs(1800));
            tokio::task::yield_now().await;
            clock.advance(secs(1800));
        };
        tokio::time::timeout(secs(10), async { tokio::join!(sleeper, mover) })
            .await
            .expect("woken by the clock and not by a timer");
    }
}
