//! How long a caller waits for its turn: until the deadline it named.

use std::time::{Duration, Instant};

use http::HeaderMap;
use tonic::Code;
use vane_wire::status::Refusal;

use crate::rate_limit::{Exceeded, MAX_WAIT};

/// The header in which gRPC carries the caller's deadline.
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Until when the caller of a request waits; in the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    until: Instant,
}

impl Patience {
    /// The deadline that `headers` name, at most [`MAX_WAIT`] from `now`.
    pub(super) fn of(headers: &HeaderMap, now: Instant) -> Self {
        let named = headers
            .get(GRPC_TIMEOUT)
            .and_then(|value| parse(value.to_str().ok()?));
        let wait = named.unwrap_or(MAX_WAIT).min(MAX_WAIT);
        Self { until: now + wait }
    }

    /// What is left of it at `now`.
    pub(super) fn left(self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }
}

/// A number of at most 8 digits and a unit (gRPC over HTTP2, "Timeout").
fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Waits for the turn that was `reserved`.
///
/// # Errors
/// RESOURCE_EXHAUSTED `rejecting request due to <what> rate limiting: …`.
pub(super) async fn turn(what: &str, reserved: Result<Duration, Exceeded>) -> Result<(), Refusal> {
    let wait = reserved.map_err(|exceeded| {
        let tried = format!("rejecting request due to {what} rate limiting");
        Refusal::because(Code::ResourceExhausted, &tried, exceeded)
    })?;
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vane_chassis::clock::{Clock as _, System};

    use super::*;

    #[test]
    fn a_deadline_is_read_as_grpc_writes_it() {
        let table = [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3_000)),
            ("4m", Some(4)),
            ("5000u", Some(5)),
            ("6000000n", Some(6)),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1x", None),
            ("1é", None),
        ];
        for (text, millis) in table {
            assert_eq!(parse(text), millis.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn nobody_waits_longer_than_the_limit() {
        let now = System.monotonic();
        let mut headers = HeaderMap::new();
        assert_eq!(Patience::of(&headers, now).left(now), MAX_WAIT);
        headers.insert(GRPC_TIMEOUT, "2S".parse().unwrap());
        let patience = Patience::of(&headers, now);
        assert_eq!(patience.left(now), Duration::from_secs(2));
        assert_eq!(patience.left(now + Duration::from_secs(3)), Duration::ZERO);
        headers.insert(GRPC_TIMEOUT, "99999999H".parse().unwrap());
        assert_eq!(Patience::of(&headers, now).left(now), MAX_WAIT);
    }

    #[tokio::test]
    async fn a_turn_that_comes_too_late_is_refused_in_spires_words() {
        let exceeded = Exceeded::Deadline { per_second: 500 };
        let refusal = turn("certificate signing", Err(exceeded))
            .await
            .unwrap_err();
        assert_eq!(refusal.code(), Code::ResourceExhausted);
        let text = "rejecting request due to certificate signing rate limiting: ";
        assert!(refusal.message().starts_with(text), "{}", refusal.message());
    }
}
