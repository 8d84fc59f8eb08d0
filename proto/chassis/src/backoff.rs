//! How long to wait before the next try.
//!
//! Full jitter (a uniform share of an exponentially growing ceiling), so that
//! five thousand agents cut off together do not come back together. The random
//! source is injected: tests seed it. Nothing here sleeps.

use std::time::Duration;

/// Bounds of the wait between tries. Checked once, when made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    initial: Duration,
    max: Duration,
    factor: f64,
}

/// What is wrong with the numbers of a [`Policy`].
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// With a zero initial wait the ceiling never grows.
    #[error("the initial wait must not be zero")]
    ZeroInitial,
    /// The ceiling would start above its own bound.
    #[error("the initial wait {initial:?} is longer than the longest {max:?}")]
    InitialAboveMax {
        /// The first ceiling.
        initial: Duration,
        /// The last ceiling.
        max: Duration,
    },
    /// A factor of less than one shrinks the ceiling; NaN is none.
    #[error("the factor {0} is not a number from 1 to 100")]
    Factor(f64),
}

impl Policy {
    /// The ceiling of the wait is `initial`, then `factor` times more after
    /// each try, never above `max`.
    ///
    /// # Errors
    /// [`PolicyError`] when the three do not make sense together.
    pub fn new(initial: Duration, max: Duration, factor: f64) -> Result<Self, PolicyError> {
        if initial.is_zero() {
            return Err(PolicyError::ZeroInitial);
        }
        if initial > max {
            return Err(PolicyError::InitialAboveMax { initial, max });
        }
        if !(1.0..=100.0).contains(&factor) {
            return Err(PolicyError::Factor(factor));
        }
        Ok(Self {
            initial,
            max,
            factor,
        })
    }
}

/// The state of one loop of tries.
#[derive(Clone, Debug)]
pub struct Backoff {
    policy: Policy,
    ceiling: Duration,
    rng: fastrand::Rng,
}

impl Backoff {
    /// A loop that has not failed yet.
    #[must_use]
    pub fn new(policy: Policy, rng: fastrand::Rng) -> Self {
        Self {
            policy,
            ceiling: policy.initial,
            rng,
        }
    }

    /// The wait before the next try: anything from zero to the ceiling.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self.ceiling;
        let grown = ceiling.as_secs_f64() * self.policy.factor;
        self.ceiling = if grown < self.policy.max.as_secs_f64() {
            Duration::from_secs_f64(grown)
        } else {
            self.policy.max
        };
        ceiling.mul_f64(self.rng.f64())
    }

    /// A try succeeded: the next wait starts small again.
    pub fn reset(&mut self) {
        self.ceiling = self.policy.initial;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(initial_ms: u64, max_ms: u64, factor: f64) -> Result<Policy, PolicyError> {
        let ms = Duration::from_millis;
        Policy::new(ms(initial_ms), ms(max_ms), factor)
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        assert_eq!(policy(0, 10, 2.0), Err(PolicyError::ZeroInitial));
        assert!(matches!(
            policy(11, 10, 2.0),
            Err(PolicyError::InitialAboveMax { .. })
        ));
        for factor in [0.5, f64::NAN, f64::INFINITY, -2.0] {
            assert!(matches!(policy(1, 10, factor), Err(PolicyError::Factor(_))));
        }
        assert!(policy(10, 10, 1.0).is_ok());
    }

    #[test]
    fn waits_stay_below_a_ceiling_that_doubles_up_to_the_longest() {
        let ceilings_ms = [100, 200, 400, 800, 1000, 1000, 1000];
        for seed in 0..200 {
            let rng = fastrand::Rng::with_seed(seed);
            let mut backoff = Backoff::new(policy(100, 1000, 2.0).unwrap(), rng);
            for ceiling in ceilings_ms {
                assert!(backoff.next_delay() <= Duration::from_millis(ceiling));
            }
        }
    }

    #[test]
    fn waits_use_the_whole_range_below_the_ceiling() {
        let rng = fastrand::Rng::with_seed(1);
        let mut backoff = Backoff::new(policy(1000, 1000, 1.0).unwrap(), rng);
        let waits: Vec<_> = (0..1000).map(|_| backoff.next_delay()).collect();
        assert!(waits.iter().any(|w| *w < Duration::from_millis(50)));
        assert!(waits.iter().any(|w| *w > Duration::from_millis(950)));
    }

    #[test]
    fn success_starts_over() {
        let rng = fastrand::Rng::with_seed(1);
        let mut backoff = Backoff::new(policy(1, 10_000, 10.0).unwrap(), rng);
        for _ in 0..5 {
            backoff.next_delay();
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(1));
    }
}
