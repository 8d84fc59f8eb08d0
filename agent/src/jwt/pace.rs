//! How often a customer has tokens made: one that asks for ever new audiences leaves the rest of
//! the server's rate (500 a second for each agent) to the others on the node.
//!
//! A customer is a pod, or all processes of one user in one cgroup, as for connections. What is
//! cached costs nothing, nor does a token that is replaced ahead or that others wait for already.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::limits::Customer;

/// New tokens of a customer in a second, over time.
pub(super) const RATE: u32 = 100;
/// And at once.
const BURST: u32 = 200;

/// When each customer has its whole burst again.
#[derive(Debug, Default)]
pub(super) struct Paces(HashMap<Customer, Instant>);

impl Paces {
    /// Takes one of `customer`'s tokens; false when there is none left at `now`.
    pub(super) fn take(&mut self, customer: &Customer, now: Instant) -> bool {
        self.0.retain(|_, whole_at| *whole_at > now);
        let whole_at = self.0.get(customer).copied().unwrap_or(now);
        let one = Duration::from_secs(1) / RATE;
        if whole_at.saturating_duration_since(now) > one * (BURST - 1) {
            return false;
        }
        self.0.insert(customer.clone(), whole_at + one);
        true
    }
}

#[cfg(test)]
mod tests {
    use vane_chassis::clock::{Clock as _, System};

    use super::*;

    #[test]
    fn a_burst_then_a_rate_and_nobody_pays_for_another() {
        let customer = |uid| Customer::Group(uid, "a".into());
        let (one, other) = (customer(1), customer(2));
        let (mut paces, begun) = (Paces::default(), System.monotonic());
        let most = |paces: &mut Paces, customer: &Customer, now| {
            (0..1_000).take_while(|_| paces.take(customer, now)).count()
        };
        assert_eq!(most(&mut paces, &one, begun), 200);
        assert_eq!(most(&mut paces, &other, begun), 200);
        let later = begun + Duration::from_millis(500);
        assert_eq!(most(&mut paces, &one, later), 50);
        let whole = begun + Duration::from_secs(5);
        assert_eq!(most(&mut paces, &one, whole), 200);
        assert_eq!(paces.0.len(), 1, "who is whole again is forgotten");
    }
}
