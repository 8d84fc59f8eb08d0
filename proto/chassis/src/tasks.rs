//! Every task has an owner, a name and an end.
//!
//! [`Tasks`] holds the long-lived parts of a process: the first that fails
//! cancels the others, and a panic is a failure with the task's name.
//! [`TaskSet`] holds many short ones (a connection each) whose end concerns
//! nobody; their memory is freed as they finish.
//!
//! The only place that spawns. Cancellation is a token that the tasks watch
//! themselves; what has not ended at the deadline is aborted and named.

use std::any::Any;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// An error of any task.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How long aborted tasks have to be gone.
const ABORT: Duration = Duration::from_secs(1);

type Name = Cow<'static, str>;
type Ended = Result<(Id, Result<(), BoxError>), JoinError>;

/// How a group of tasks ended badly.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A task returned an error: the first one that did.
    #[error("{task}: {source}")]
    Failed {
        /// The task's name.
        task: Name,
        /// What it returned.
        source: BoxError,
    },
    /// A task panicked.
    #[error("{task} panicked: {message}")]
    Panicked {
        /// The task's name.
        task: Name,
        /// What the panic said.
        message: String,
    },
    /// Tasks that were told to stop did not, and were aborted.
    #[error("not stopped within {deadline:?}: {}", tasks.join(", "))]
    Deadline {
        /// How long they had.
        deadline: Duration,
        /// Their names, sorted.
        tasks: Vec<Name>,
    },
}

/// The long-lived tasks of a process.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<Result<(), BoxError>>,
    names: HashMap<Id, Name>,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet, and a token of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// No tasks yet; they stop when `stop` is cancelled, and a failure among
    /// them cancels it.
    #[must_use]
    pub fn with_token(stop: CancellationToken) -> Self {
        Self {
            stop,
            ..Self::default()
        }
    }

    /// The token that tells the tasks to stop.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task. Returning an error or panicking cancels the token at
    /// once, whether or not somebody waits in [`join`](Self::join); returning
    /// `Ok` ends only this task.
    pub fn spawn<E>(
        &mut self,
        name: impl Into<Name>,
        future: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<BoxError> + 'static,
    {
        let guard = self.stop.clone().drop_guard();
        let handle = self.set.spawn(async move {
            let ended = future.await.map_err(Into::into);
            if ended.is_ok() {
                guard.disarm();
            }
            ended
        });
        self.names.insert(handle.id(), name.into());
    }

    /// Waits until all tasks have ended by themselves, or the token is
    /// cancelled and they have ended within `deadline` of that.
    ///
    /// # Errors
    /// The first failure. Later ones, and tasks aborted at the deadline after
    /// a failure, are logged.
    pub async fn join(mut self, deadline: Duration) -> Result<(), TaskError> {
        let stop = self.stop.clone();
        let mut first = None;
        loop {
            tokio::select! {
                biased;
                ended = self.set.join_next_with_id() => match ended {
                    Some(ended) => self.note(ended, &mut first),
                    None => return first.map_or(Ok(()), Err),
                },
                () = stop.cancelled() => break,
            }
        }
        if tokio::time::timeout(deadline, self.drain(&mut first))
            .await
            .is_err()
        {
            keep_first(&mut first, self.unfinished(deadline));
            self.set.abort_all();
            let gone = async { while self.set.join_next().await.is_some() {} };
            // Who blocks its thread does not hear an abort either.
            let _ = tokio::time::timeout(ABORT, gone).await;
        }
        first.map_or(Ok(()), Err)
    }

    async fn drain(&mut self, first: &mut Option<TaskError>) {
        while let Some(ended) = self.set.join_next_with_id().await {
            self.note(ended, first);
        }
    }

    fn note(&mut self, ended: Ended, first: &mut Option<TaskError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let task = self.names.remove(&id).unwrap_or_default();
        match ended {
            Ok((_, Ok(()))) => tracing::debug!(%task, "task ended"),
            Ok((_, Err(source))) => keep_first(first, TaskError::Failed { task, source }),
            Err(error) => {
                if let Ok(panic) = error.try_into_panic() {
                    let message = panic_message(&*panic);
                    keep_first(first, TaskError::Panicked { task, message });
                }
            }
        }
    }

    fn unfinished(&self, deadline: Duration) -> TaskError {
        let mut tasks: Vec<_> = self.names.values().cloned().collect();
        tasks.sort();
        TaskError::Deadline { deadline, tasks }
    }
}

fn keep_first(first: &mut Option<TaskError>, error: TaskError) {
    if first.is_none() {
        *first = Some(error);
    } else {
        tracing::warn!(%error, "task failed after the first");
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        return (*text).to_owned();
    }
    panic
        .downcast_ref::<String>()
        .cloned()
        .unwrap_or_else(|| "no message".to_owned())
}

/// Many short tasks of one kind.
///
/// Dropping the set aborts what still runs.
pub struct TaskSet {
    name: &'static str,
    tracker: TaskTracker,
    abort: CancellationToken,
    _abort_on_drop: DropGuard,
}

impl TaskSet {
    /// An empty set; `name` says in the log whose task panicked.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        let abort = CancellationToken::new();
        Self {
            name,
            tracker: TaskTracker::new(),
            _abort_on_drop: abort.clone().drop_guard(),
            abort,
        }
    }

    /// Starts a task that this set aborts at its own end.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        let told = TellPanic(self.name);
        self.tracker.spawn(async move {
            let _told = told;
            abort.run_until_cancelled_owned(future).await;
        });
    }

    /// How many run now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Waits up to `deadline` for all to end, then aborts the rest; returns
    /// how many were aborted.
    pub async fn join(self, deadline: Duration) -> usize {
        self.tracker.close();
        if tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .is_ok()
        {
            return 0;
        }
        let left = self.count();
        self.abort.cancel();
        let _ = tokio::time::timeout(ABORT, self.tracker.wait()).await;
        left
    }
}

impl fmt::Debug for TaskSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskSet")
            .field("name", &self.name)
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

/// Logs the panic that drops it.
struct TellPanic(&'static str);

impl Drop for TellPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.0, "task panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    async fn until(stop: CancellationToken) -> Result<(), Infallible> {
        stop.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn the_first_failure_stops_the_others_and_is_returned() {
        let mut tasks = Tasks::new();
        tasks.spawn("waits", until(tasks.token()));
        tasks.spawn("fails", async { Err("no disk") });
        let error = tasks.join(SOON).await.unwrap_err();
        assert_eq!(error.to_string(), "fails: no disk");
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_with_the_name_of_its_task() {
        let mut tasks = Tasks::new();
        let stop = tasks.token();
        tasks.spawn("waits", until(tasks.token()));
        tasks.spawn("breaks", async {
            if true {
                panic!("boom {}", 1);
            }
            Ok::<_, Infallible>(())
        });
        stop.cancelled().await;
        let error = tasks.join(SOON).await.unwrap_err();
        assert_eq!(error.to_string(), "breaks panicked: boom 1");
    }

    #[tokio::test]
    async fn tasks_that_end_well_do_not_stop_the_others() {
        let mut tasks = Tasks::new();
        let stop = tasks.token();
        tasks.spawn("once", async { Ok::<_, Infallible>(()) });
        let (done, waited) = tokio::sync::oneshot::channel();
        tasks.spawn("later", async move {
            tokio::task::yield_now().await;
            done.send(()).map_err(|()| "nobody waits")
        });
        tasks.join(SOON).await.unwrap();
        waited.await.unwrap();
        assert!(!stop.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_stop_in_time_is_aborted_and_named() {
        let mut tasks = Tasks::new();
        let held = Arc::new(());
        let kept = Arc::clone(&held);
        tasks.spawn("deaf", async move {
            let _kept = kept;
            std::future::pending::<Result<(), Infallible>>().await
        });
        tasks.token().cancel();
        let error = tasks.join(Duration::from_secs(3)).await.unwrap_err();
        assert_eq!(error.to_string(), "not stopped within 3s: deaf");
        assert_eq!(Arc::strong_count(&held), 1, "the task is gone");
    }

    #[tokio::test]
    async fn a_set_forgets_finished_tasks_without_being_asked() {
        let set = TaskSet::new("connection");
        for _ in 0..1000 {
            set.spawn(async {});
        }
        while set.count() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(set.join(SOON).await, 0);
    }

    #[tokio::test]
    async fn a_panic_in_a_set_ends_only_its_own_task() {
        let set = TaskSet::new("connection");
        set.spawn(async { panic!("one bad peer") });
        let (done, waited) = tokio::sync::oneshot::channel();
        set.spawn(async move { done.send(()).unwrap() });
        waited.await.unwrap();
        assert_eq!(set.join(SOON).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_aborts_at_its_deadline_and_when_dropped() {
        let set = TaskSet::new("connection");
        set.spawn(std::future::pending());
        assert_eq!(set.join(Duration::from_secs(1)).await, 1);

        let set = TaskSet::new("connection");
        let (alive, gone) = tokio::sync::oneshot::channel::<()>();
        set.spawn(async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        drop(set);
        assert!(gone.await.is_err(), "the task was dropped with its set");
    }
}
