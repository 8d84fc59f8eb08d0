//! Asks the kubelet for its pods: one request at a time, and only while somebody needs to know.
//!
//! A kubelet that starts lists no pods at first, then some: what it does not list any more is
//! believed to be gone once it was missing for 30 s. A pod that was deleted is listed until its
//! processes have ended.
//!
//! A request begins when a caller's process is in a pod that is not known, when a container is not
//! known yet (`wants`), and every 30 s while streams are open. Between two there is a
//! pause as long as the last one took, so that callers cannot make the kubelet work all the time;
//! after a failure a longer one. `/pods` of the kubelet has no pages and no watch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use vane_chassis::backoff::{Backoff, Policy, PolicyError};
use vane_chassis::kubernetes::{Bounds, Client, Path};

use super::pod::{Pod, PodList, Pods};
use super::table::{Read, Table};
use crate::cgroup::{Place, PodUid};

/// A node's pods: 250 with 20 KiB each are 5 MiB.
const BOUNDS: Bounds = Bounds {
    deadline: Duration::from_secs(4),
    max_bytes: 64 * 1024 * 1024,
};
/// The shortest pause between two requests.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// The shortest and the longest pause after a failure.
const FAILED: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// So long a pod that is not listed any more is still believed in.
const DOUBT: Duration = Duration::from_secs(30);

/// Asks until `stop`. `settled` says whether all is known of a process at a place in a pod.
pub(super) async fn run(
    table: &Table,
    client: &Client,
    settled: impl Fn(&Place, &Pod) -> bool,
    stop: &CancellationToken,
) -> Result<(), PolicyError> {
    let path = Path::of(&["pods"]);
    let mut backoff = Backoff::new(Policy::new(FAILED.0, FAILED.1, 2.0)?, fastrand::Rng::new());
    let mut rested = Instant::now();
    let mut missed = Missed::default();
    loop {
        let due = table.due(Instant::now()).map(|due| due.max(rested));
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = table.woken() => continue,
            () = at(due) => {}
        }
        let (begun, covers) = (Instant::now(), table.asked());
        let asked = Box::pin(client.get::<PodList>(&path, BOUNDS));
        let Some(answer) = stop.run_until_cancelled(asked).await else {
            return Ok(());
        };
        let pause = match answer {
            Ok(list) => {
                let pods = list.items.into_iter().filter_map(|item| item.pod);
                let pods = missed.fill(&table.pods(), pods.collect(), begun);
                table.publish(pods, Read::At(begun), covers, &settled);
                backoff.reset();
                begun.elapsed().max(MIN_PAUSE)
            }
            Err(error) => {
                match table.trouble() {
                    None => tracing::warn!(%error, "the kubelet does not tell its pods"),
                    Some(_) => tracing::debug!(%error, "the kubelet still does not tell its pods"),
                }
                table.fail(error, covers);
                backoff.next_delay().max(FAILED.0)
            }
        };
        rested = Instant::now() + pause;
    }
}

/// Since when pods are not listed that were.
#[derive(Debug, Default)]
struct Missed(HashMap<PodUid, Instant>);

impl Missed {
    /// `listed`, and those of `before` that are missing for less than [`DOUBT`].
    fn fill(&mut self, before: &Pods, mut listed: Pods, now: Instant) -> Pods {
        let mut missed = HashMap::new();
        for pod in before.iter().filter(|pod| !listed.has(&pod.uid)) {
            let since = self.0.get(&pod.uid).copied().unwrap_or(now);
            if now < since + DOUBT {
                missed.insert(pod.uid.clone(), since);
            }
        }
        for pod in before.iter().filter(|pod| missed.contains_key(&pod.uid)) {
            listed.keep(Arc::clone(pod));
        }
        self.0 = missed;
        listed
    }
}

/// At that time; never without one.
pub(super) async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pods(uids: &[&str]) -> Pods {
        let items = uids.iter().map(|uid| json!({"metadata": {"uid": uid}}));
        let list = json!({"items": items.collect::<Vec<_>>()});
        let list: PodList = serde_json::from_value(list).unwrap();
        list.items.into_iter().filter_map(|item| item.pod).collect()
    }

    #[test]
    fn a_pod_that_is_not_listed_any_more_is_believed_in_for_a_while() {
        let (one, two) = (
            "0b1c2d3e-4f50-4a61-8b72-93a4b5c6d7e8",
            "ffffffff-4f50-4a61-8b72-93a4b5c6d7e8",
        );
        let has = |pods: &Pods| [one, two].map(|uid| pods.has(&PodUid::parse(uid).unwrap()));
        let (start, mut missed) = (Instant::now(), Missed::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let full = pods(&[one, two]);
        // A kubelet that starts: nothing, then half, then all.
        let mut now = missed.fill(&full, pods(&[]), at(0));
        assert_eq!(has(&now), [true, true]);
        now = missed.fill(&now, pods(&[one]), at(10));
        assert_eq!(has(&now), [true, true]);
        now = missed.fill(&now, pods(&[one, two]), at(20));
        assert!(missed.0.is_empty());
        // One that is gone.
        now = missed.fill(&now, pods(&[one]), at(40));
        now = missed.fill(&now, pods(&[one]), at(69));
        assert_eq!(has(&now), [true, true]);
        now = missed.fill(&now, pods(&[one]), at(70));
        assert_eq!(has(&now), [true, false]);
        now = missed.fill(&now, pods(&[one]), at(71));
        assert_eq!(has(&now), [true, false]);
    }
}
