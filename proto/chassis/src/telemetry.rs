//! Logs go to standard error, as text or JSON, at a level that can be changed
//! while the process runs.
//!
//! Sets the process-wide subscriber once, also for libraries that use the `log` crate (rustls,
//! sled); who logs what is not decided here.
//! Standard output stays free for what scripts read. Levels have SPIRE's names
//! and numbers (`spire.api.types.LogLevel`), for the Logger services.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry};

mod level;

pub use level::LogLevel;

use crate::panics;

/// The level of the log that [`init`] set up.
static RUNNING: OnceLock<Level> = OnceLock::new();

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The `[telemetry]` section's part about logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace` (`off`, and SPIRE's `fatal` and `panic`, are
    /// silence); also per module, as in `info,vane_server::api=debug`. A release build has nothing
    /// of `trace`, which is about libraries' insides and shows headers and messages.
    pub level: String,
    /// `text` or `json`.
    pub format: Format,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: Format::default(),
        }
    }
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is not one.
    #[error("log level \"{level}\": {message}")]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        message: String,
    },
    /// A subscriber was set already.
    #[error("logging is set up already")]
    Twice,
    /// The subscriber of this handle is gone.
    #[error("logging has ended")]
    Gone,
}

/// Sets up the process's log. Call once, first thing in `main`.
///
/// # Errors
/// [`TelemetryError::Level`], [`TelemetryError::Twice`].
pub fn init(log: &Log) -> Result<Level, TelemetryError> {
    let (subscriber, level) = subscriber(log, std::io::stderr)?;
    // Takes the records of `log`, too.
    subscriber.try_init().map_err(|_| TelemetryError::Twice)?;
    log::set_max_level(level.0.launched.most.of_libraries());
    RUNNING
        .set(level.clone())
        .map_err(|_| TelemetryError::Twice)?;
    panics::log();
    Ok(level)
}

/// The level of the process's log; a [`Level::detached`] one while [`init`] was not called.
#[must_use]
pub fn running() -> Level {
    RUNNING
        .get()
        .cloned()
        .unwrap_or_else(|| Level::detached(LogLevel::Info))
}

fn subscriber<W>(
    log: &Log,
    writer: W,
) -> Result<(impl tracing::Subscriber + Send + Sync, Level), TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let wanted = Wanted::parse(&log.level)?;
    let (filter, handle) = reload::Layer::new(wanted.filter.clone());
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match log.format {
        Format::Text => lines.with_ansi(false).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    let level = Level::new(wanted, Some(handle));
    Ok((
        tracing_subscriber::registry().with(filter).with(lines),
        level,
    ))
}

/// The level of the running log. Clones change the same log.
#[derive(Clone)]
pub struct Level(Arc<Reload>);

struct Reload {
    launched: Wanted,
    current: Mutex<LogLevel>,
    handle: Option<reload::Handle<Targets, Registry>>,
}

/// What a text asks for.
#[derive(Clone)]
struct Wanted {
    /// Of modules that are not named.
    level: LogLevel,
    /// The highest of any module.
    most: LogLevel,
    filter: Targets,
}

impl Level {
    fn new(launched: Wanted, handle: Option<reload::Handle<Targets, Registry>>) -> Self {
        Self(Arc::new(Reload {
            current: Mutex::new(launched.level),
            launched,
            handle,
        }))
    }

    /// A level that no log follows: of a process whose log somebody else set up.
    #[must_use]
    pub fn detached(level: LogLevel) -> Self {
        Self::new(level.into(), None)
    }

    /// Changes the level, of all modules.
    ///
    /// # Errors
    /// [`TelemetryError::Gone`].
    pub fn set(&self, level: LogLevel) -> Result<(), TelemetryError> {
        self.apply(level.into())
    }

    /// Goes back to the level of the start, with what it said of single modules.
    ///
    /// # Errors
    /// [`TelemetryError::Gone`].
    pub fn reset(&self) -> Result<(), TelemetryError> {
        self.apply(self.0.launched.clone())
    }

    /// The level now.
    #[must_use]
    pub fn current(&self) -> LogLevel {
        *self
            .0
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The level of the start.
    #[must_use]
    pub fn launched(&self) -> LogLevel {
        self.0.launched.level
    }

    fn apply(&self, wanted: Wanted) -> Result<(), TelemetryError> {
        let current = self.0.current.lock();
        let mut current = current.unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = &self.0.handle {
            handle
                .reload(wanted.filter)
                .map_err(|_| TelemetryError::Gone)?;
            log::set_max_level(wanted.most.of_libraries());
        }
        *current = wanted.level;
        Ok(())
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Level").field(&self.current()).finish()
    }
}

impl From<LogLevel> for Wanted {
    fn from(level: LogLevel) -> Self {
        Self {
            level,
            most: level,
            filter: Targets::new().with_default(level.filter()),
        }
    }
}

impl Wanted {
    /// Reads a level, or levels of modules after or instead of it: `info,vane_server::api=debug`.
    fn parse(text: &str) -> Result<Self, TelemetryError> {
        let wrong = |message: &str| TelemetryError::Level {
            level: text.to_owned(),
            message: message.to_owned(),
        };
        let expected = "expected error, warn, info, debug, trace or off";
        let mut wanted = Self::from(LogLevel::Panic);
        for part in text.split(',') {
            let Some((module, level)) = part.split_once('=') else {
                wanted.level = LogLevel::named(part).ok_or_else(|| wrong(expected))?;
                wanted.most = wanted.most.max(wanted.level);
                wanted.filter = wanted.filter.with_default(wanted.level.filter());
                continue;
            };
            let level = LogLevel::named(level).ok_or_else(|| wrong(expected))?;
            if module.is_empty() {
                return Err(wrong("the name of a module is missing before ="));
            }
            wanted.most = wanted.most.max(level);
            wanted.filter = wanted.filter.with_target(module, level.filter());
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests;
