//! Refused calls in the log, without letting a flood of them fill the disk.
//!
//! A refusal is written whole while there is room in a bucket ([`BURST`], then [`PER_SECOND`]);
//! beyond that it is counted by method and status, and the counts are one line each
//! [`SUMMARY`]. So a flood costs at most about 40 MB a day, and nothing goes uncounted. A
//! caller never waits for it: whoever is refused has no right to the log's time.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use vane_authority::log::{Leaf, Log};
use vane_chassis::clock::Clock;

/// Refusals that are written whole at once.
pub const BURST: u32 = 100;
/// Refusals that are written whole each second after that.
pub const PER_SECOND: u32 = 1;
/// How often what was only counted is written.
pub const SUMMARY: Duration = Duration::from_secs(60);
/// The most characters of a refusal's text.
const TEXT: usize = 256;

/// Writes refusals. Clones share it.
#[derive(Debug, Clone)]
pub struct Refusals(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    bucket: Mutex<Bucket>,
    queue: mpsc::Sender<Leaf>,
    counted: Notify,
}

/// What is left of the room, and what had none.
#[derive(Debug)]
struct Bucket {
    room: f64,
    filled: Instant,
    counts: BTreeMap<(&'static str, &'static str), u64>,
}

/// Brings them to the log.
#[derive(Debug)]
pub struct Writer {
    refusals: Refusals,
    log: Arc<Log>,
    queue: mpsc::Receiver<Leaf>,
    summary: Duration,
}

impl Refusals {
    /// Refusals that `Writer::run` writes to `log`.
    #[must_use]
    pub fn new(log: Arc<Log>, clock: Arc<dyn Clock>) -> (Self, Writer) {
        let (queue, receiver) = mpsc::channel(BURST as usize);
        let bucket = Bucket {
            room: f64::from(BURST),
            filled: clock.monotonic(),
            counts: BTreeMap::new(),
        };
        let refusals = Self(Arc::new(Shared {
            clock,
            bucket: Mutex::new(bucket),
            queue,
            counted: Notify::new(),
        }));
        let writer = Writer {
            refusals: refusals.clone(),
            log,
            queue: receiver,
            summary: SUMMARY,
        };
        (refusals, writer)
    }

    /// Takes note of a call of `method` that was refused with the status `code` and `text`;
    /// `caller` is asked for his name only when it is written.
    pub fn note(
        &self,
        method: &'static str,
        code: &'static str,
        text: &str,
        caller: impl FnOnce() -> String,
    ) {
        if self.lock().take(self.0.clock.monotonic()) {
            let leaf = Leaf::Refusal {
                caller: caller(),
                action: method.to_owned(),
                status: code.to_owned(),
                text: text.chars().take(TEXT).collect(),
            };
            if self.0.queue.try_send(leaf).is_ok() {
                return;
            }
        }
        *self.lock().counts.entry((method, code)).or_default() += 1;
        self.0.counted.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.0.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was only counted, as a leaf; none when that is nothing.
    fn summary(&self) -> Option<Leaf> {
        let counts = std::mem::take(&mut self.lock().counts);
        if counts.is_empty() {
            return None;
        }
        let mut by: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for ((method, code), count) in counts {
            let codes = by.entry(method.to_owned()).or_default();
            codes.insert(code.to_owned(), count);
        }
        Some(Leaf::Refusals { counts: by })
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.room = (self.room + passed * f64::from(PER_SECOND)).min(f64::from(BURST));
        let has_room = self.room >= 1.0;
        if has_room {
            self.room -= 1.0;
        }
        has_room
    }
}

impl Writer {
    /// Writes until `stop`, then what is left.
    ///
    /// # Errors
    /// None: what the log does not take is told by the log.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        let shared = Arc::clone(&self.refusals.0);
        let pause = tokio::time::sleep(self.summary);
        tokio::pin!(pause);
        let mut waits = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(leaf) = self.queue.recv() => self.write(leaf).await,
                () = shared.counted.notified(), if !waits => {
                    waits = true;
                    pause.as_mut().reset(tokio::time::Instant::now() + self.summary);
                }
                () = &mut pause, if waits => {
                    waits = false;
                    self.summarise().await;
                }
            }
        }
        self.queue.close();
        while let Some(leaf) = self.queue.recv().await {
            self.write(leaf).await;
        }
        self.summarise().await;
        Ok(())
    }

    async fn summarise(&self) {
        if let Some(leaf) = self.refusals.summary() {
            self.write(leaf).await;
        }
    }

    async fn write(&self, leaf: Leaf) {
        if let Err(error) = self.log.append(&[leaf]).await {
            tracing::warn!(%error, "a refusal is not in the log");
        }
    }
}

#[cfg(test)]
mod tests {
    use vane_chassis::clock::Manual;
    use vane_chassis::tasks::Tasks;

    use super::*;

    fn lines(path: &std::path::Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        let parse = |line| serde_json::from_str(line).unwrap();
        text.lines().map(parse).collect()
    }

    #[tokio::test]
    async fn a_flood_is_written_in_part_and_counted_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let clock = Arc::new(Manual::starting_now());
        let log = Arc::new(Log::open(&path, Arc::<Manual>::clone(&clock)).unwrap());
        let (refusals, writer) = Refusals::new(log, Arc::<Manual>::clone(&clock));
        let mut tasks = Tasks::new();
        let long = "x".repeat(1_000);
        for at in 0..10_000 {
            refusals.note("A/B", "PermissionDenied", &long, || format!("caller {at}"));
        }
        clock.advance(Duration::from_secs(3));
        for _ in 0..5 {
            refusals.note("A/C", "NotFound", "no", || "caller".to_owned());
        }
        tasks.spawn("refusals", writer.run(tasks.token()));
        tasks.token().cancel();
        tasks.join(Duration::from_secs(20)).await.unwrap();
        let lines = lines(&path);
        let written = lines
            .iter()
            .filter(|line| line["type"] == "refusal")
            .count();
        let last = lines.last().unwrap();
        assert_eq!(last["type"], "refusals");
        let counted = last["counts"]["A/B"]["PermissionDenied"].as_u64().unwrap()
            + last["counts"]["A/C"]["NotFound"].as_u64().unwrap();
        assert_eq!(written as u64 + counted, 10_005, "nothing is uncounted");
        assert_eq!(
            written, BURST as usize,
            "the queue and the bucket are as long"
        );
        assert_eq!(lines[0]["caller"], "caller 0");
        assert_eq!(lines[0]["text"].as_str().unwrap().len(), TEXT);
    }

    #[tokio::test]
    async fn what_was_counted_is_written_after_a_while_and_without_a_flood_nothing_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let clock: Arc<dyn Clock> = Arc::new(Manual::starting_now());
        let log = Arc::new(Log::open(&path, Arc::clone(&clock)).unwrap());
        let (refusals, mut writer) = Refusals::new(log, clock);
        writer.summary = Duration::from_millis(1);
        for _ in 0..=BURST {
            refusals.note("A/B", "PermissionDenied", "no", String::new);
        }
        let mut tasks = Tasks::new();
        tasks.spawn("refusals", writer.run(tasks.token()));
        let written = async {
            let count = || std::fs::read_to_string(&path).unwrap().lines().count();
            while count() <= BURST as usize {
                tokio::task::yield_now().await;
            }
        };
        let written = tokio::time::timeout(Duration::from_secs(20), written);
        written.await.unwrap();
        tasks.token().cancel();
        tasks.join(Duration::from_secs(20)).await.unwrap();
        let lines = lines(&path);
        assert_eq!(lines.len(), BURST as usize + 1);
        // Which of the two goes first when both are due is not said.
        let summary = lines
            .iter()
            .find(|line| line["type"] == "refusals")
            .unwrap();
        assert_eq!(summary["counts"]["A/B"]["PermissionDenied"], 1);
    }
}
