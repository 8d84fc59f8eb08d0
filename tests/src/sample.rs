//! Waiting for what has no event: a look every few milliseconds, with a deadline.

use std::time::Duration;

use crate::process::within;

const INTERVAL: Duration = Duration::from_millis(10);

/// Looks until `is` says yes.
pub async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let mut looks = tokio::time::interval(INTERVAL);
    within(what, async {
        while !is() {
            looks.tick().await;
        }
    })
    .await;
}
