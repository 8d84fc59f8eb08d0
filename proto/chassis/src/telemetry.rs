//! Logs go to standard error, as text or JSON, at a level that can be changed
//! while the process runs.
//!
//! Sets the process-wide subscriber once; who logs what is not decided here.
//! Standard output stays free for what scripts read.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

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
    /// `error`, `warn`, `info`, `debug`, `trace` or `off`; also per module, as
    /// in `info,vane_server::api=debug`.
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
    subscriber.try_init().map_err(|_| TelemetryError::Twice)?;
    Ok(level)
}

fn subscriber<W>(
    log: &Log,
    writer: W,
) -> Result<(impl tracing::Subscriber + Send + Sync, Level), TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse(&log.level)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match log.format {
        Format::Text => lines.with_ansi(false).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    let level = Level(Arc::new(Reload {
        launched: log.level.clone(),
        current: Mutex::new(log.level.clone()),
        handle,
    }));
    Ok((
        tracing_subscriber::registry().with(filter).with(lines),
        level,
    ))
}

/// The level of the running log. Clones change the same log.
#[derive(Clone)]
pub struct Level(Arc<Reload>);

struct Reload {
    launched: String,
    current: Mutex<String>,
    handle: reload::Handle<EnvFilter, Registry>,
}

impl Level {
    /// Changes the level.
    ///
    /// # Errors
    /// [`TelemetryError::Level`], [`TelemetryError::Gone`].
    pub fn set(&self, level: &str) -> Result<(), TelemetryError> {
        let filter = parse(level)?;
        let mut current = self
            .0
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.0
            .handle
            .reload(filter)
            .map_err(|_| TelemetryError::Gone)?;
        level.clone_into(&mut current);
        Ok(())
    }

    /// Goes back to the level of the start.
    ///
    /// # Errors
    /// [`TelemetryError::Gone`].
    pub fn reset(&self) -> Result<(), TelemetryError> {
        self.set(&self.0.launched)
    }

    /// The level now.
    #[must_use]
    pub fn current(&self) -> String {
        let current = self.0.current.lock();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The level of the start.
    #[must_use]
    pub fn launched(&self) -> &str {
        &self.0.launched
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Level").field(&self.current()).finish()
    }
}

fn parse(level: &str) -> Result<EnvFilter, TelemetryError> {
    let wrong = |message: String| TelemetryError::Level {
        level: level.to_owned(),
        message,
    };
    // `EnvFilter` takes any single word for the name of a module, and none for
    // a level.
    let directives = level.contains(['=', ',']);
    if level.is_empty() || (!directives && LevelFilter::from_str(level).is_err()) {
        let expected = "expected error, warn, info, debug, trace or off";
        return Err(wrong(expected.to_owned()));
    }
    EnvFilter::builder()
        .parse(level)
        .map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, f: impl FnOnce(&Level)) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let log = Log {
            format,
            ..Log::default()
        };
        let (subscriber, level) = subscriber(&log, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || f(&level));
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_level_is_changed_and_reset_while_running() {
        let lines = logged(Format::Text, |level| {
            tracing::debug!("one");
            level.set("debug").unwrap();
            assert_eq!(level.current(), "debug");
            tracing::debug!("two");
            level.reset().unwrap();
            assert_eq!(level.current(), "info");
            tracing::debug!("three");
            tracing::info!("four");
        });
        let seen = ["one", "two", "three", "four"].map(|word| lines.contains(word));
        assert_eq!(seen, [false, true, false, true], "{lines}");
    }

    #[test]
    fn json_lines_carry_fields_beside_the_message() {
        let line = logged(Format::Json, |_| tracing::info!(entry_id = "e1", "made"));
        assert!(line.contains(r#""message":"made""#), "{line}");
        assert!(line.contains(r#""entry_id":"e1""#), "{line}");
    }

    #[test]
    fn a_level_that_is_none_is_refused_and_changes_nothing() {
        logged(Format::Text, |level| {
            for wrong in ["loud", "", "info,x=loud"] {
                assert!(level.set(wrong).is_err(), "{wrong}");
            }
            assert_eq!(level.current(), "info");
            level.set("warn,vane_chassis=trace").unwrap();
        });
    }
}
