//! Follows the pods of the node at the API server: a list, then a watch from there on.
//!
//! A watch that breaks or ends goes on from the last resource version that was seen; one that is
//! too old means a new list. What was known meanwhile stays. A connection that died without a
//! word is noticed within [`SILENCE`].

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use vane_chassis::backoff::{Backoff, Policy, PolicyError};
use vane_chassis::kubernetes::{Bounds, Client, Error, Event, Path, Watch};

use super::kubelet::at;
use super::pod::{Item, Pod, PodList, Pods};
use super::table::{Read, Table};
use crate::cgroup::Place;

/// For a page of the list, and for one event.
const BOUNDS: Bounds = Bounds {
    deadline: Duration::from_secs(20),
    max_bytes: 64 * 1024 * 1024,
};
/// Pods of a page.
const PAGE: &str = "100";
/// The most pages: a kubelet runs 110 pods unless it is told otherwise.
const MAX_PAGES: usize = 50;
/// How long a watch lasts; its server ends it then.
const LASTS: &str = "60";
/// The longest wait for a word.
const SILENCE: Duration = Duration::from_secs(75);
/// A watch that lasted so long was a good one.
const STEADY: Duration = Duration::from_secs(10);
/// The first and the longest wait after a failure, or after a watch that ended early.
const FAILED: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Who follows.
pub(super) struct Follower<'a, S> {
    pub(super) table: &'a Table,
    pub(super) client: &'a Client,
    /// The node's name.
    pub(super) node: &'a str,
    /// Whether all is known of a process at a place in a pod.
    pub(super) settled: S,
}

impl<S: Fn(&Place, &Pod) -> bool> Follower<'_, S> {
    /// Follows until `stop`.
    pub(super) async fn run(&self, stop: &CancellationToken) -> Result<(), PolicyError> {
        let policy = Policy::new(FAILED.0, FAILED.1, 2.0)?;
        let mut backoff = Backoff::new(policy, fastrand::Rng::new());
        let mut seen = None;
        loop {
            let began = Instant::now();
            let following = Box::pin(self.follow(&mut seen));
            let Some(ended) = stop.run_until_cancelled(following).await else {
                return Ok(());
            };
            let is_steady = began.elapsed() >= STEADY;
            if is_steady {
                backoff.reset();
            }
            if let Err(error) = ended {
                // What cannot be read would come again from the same version.
                if matches!(error, Error::Malformed { .. } | Error::TooLong { .. }) {
                    seen = None;
                }
                if error.is_gone() {
                    seen = None;
                } else {
                    match self.table.trouble() {
                        None => {
                            tracing::warn!(%error, "the API server does not tell the pods of this node");
                        }
                        Some(_) => {
                            tracing::debug!(%error, "the API server still does not tell the pods of this node");
                        }
                    }
                    self.table.fail(error, u64::MAX);
                }
            } else if is_steady {
                continue;
            }
            let pause = backoff.next_delay();
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// From what was `seen`, or from a new list, until the watch ends.
    async fn follow(&self, seen: &mut Option<Seen>) -> Result<(), Error> {
        let seen = match seen {
            Some(seen) => seen,
            None => {
                let listed = self.list().await?;
                self.publish(&listed.pods);
                seen.insert(listed)
            }
        };
        let path = self.path(&[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", LASTS),
            ("resourceVersion", &seen.version),
        ]);
        let mut watch = Watch::<Item>::open(self.client, &path, BOUNDS, SILENCE).await?;
        self.publish(&seen.pods);
        loop {
            let event = tokio::select! {
                event = watch.next() => event?,
                () = at(self.table.due(Instant::now())) => {
                    self.table.tick();
                    continue;
                }
                () = self.table.woken() => continue,
            };
            let Some(event) = event else { return Ok(()) };
            if seen.apply(event) {
                self.publish(&seen.pods);
            }
        }
    }

    async fn list(&self) -> Result<Seen, Error> {
        let (mut pods, mut next) = (Pods::default(), String::new());
        for _ in 0..MAX_PAGES {
            let path = self.path(&[("limit", PAGE), ("continue", &next)]);
            let page = self.client.get::<PodList>(&path, BOUNDS).await?;
            let items = page.items.into_iter().filter_map(|item| item.pod);
            items.for_each(|pod| pods.put(pod));
            next = page.metadata.next;
            if next.is_empty() {
                let version = page.metadata.resource_version;
                return Ok(Seen { pods, version });
            }
        }
        Err(Error::Request(
            "this node has more than 5,000 pods, which no kubelet runs".into(),
        ))
    }

    fn path(&self, parameters: &[(&str, &str)]) -> Path {
        let given = parameters.iter().filter(|(_, value)| !value.is_empty());
        let given: Vec<(&str, &str)> = given.copied().collect();
        Path::of(&["api", "v1", "pods"])
            .with(&[("fieldSelector", &format!("spec.nodeName={}", self.node))])
            .with(&given)
    }

    fn publish(&self, pods: &Pods) {
        self.table
            .publish(pods.clone(), Read::Live, u64::MAX, &self.settled);
    }
}

/// What the watch is at.
struct Seen {
    pods: Pods,
    /// Resource version.
    version: String,
}

impl Seen {
    /// Whether the pods changed.
    fn apply(&mut self, event: Event<Item>) -> bool {
        let (item, is_there) = match event {
            Event::Added(item) | Event::Modified(item) => (item, true),
            Event::Deleted(item) => (item, false),
            Event::Bookmark(version) => {
                self.version = version;
                return false;
            }
        };
        self.version = item.resource_version;
        match item.pod {
            Some(pod) if is_there => self.pods.put(pod),
            Some(pod) => self.pods.remove(&pod.uid),
            None => return false,
        }
        true
    }
}
