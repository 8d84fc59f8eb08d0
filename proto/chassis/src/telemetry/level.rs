//! Levels of logs as SPIRE names and numbers them (`spire.api.types.LogLevel`).

use tracing::level_filters::LevelFilter;

/// How much is logged, in SPIRE's words. Nothing of ours is logged as fatal or panic: they
/// silence the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    Panic = 1,
    /// Nothing.
    Fatal = 2,
    /// Somebody must act.
    Error = 3,
    /// Something is tried again.
    Warn = 4,
    /// The life of the process.
    Info = 5,
    /// Each call.
    Debug = 6,
    /// Everything; a release build has no more than of debug.
    Trace = 7,
}

impl LogLevel {
    /// From silence to everything.
    pub const ALL: [Self; 7] = [
        Self::Panic,
        Self::Fatal,
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
    ];

    /// The level with SPIRE's number.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.number() == number)
    }

    /// SPIRE's number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// As configurations write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Fatal => "fatal",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// The level of this name, in upper or lower case.
    pub(super) fn named(name: &str) -> Option<Self> {
        let named = |one: &Self| one.name().eq_ignore_ascii_case(name);
        let silent = name.eq_ignore_ascii_case("off").then_some(Self::Panic);
        Self::ALL.into_iter().find(named).or(silent)
    }

    /// As the `log` crate has it.
    pub(super) const fn of_libraries(self) -> log::LevelFilter {
        match self {
            Self::Panic | Self::Fatal => log::LevelFilter::Off,
            Self::Error => log::LevelFilter::Error,
            Self::Warn => log::LevelFilter::Warn,
            Self::Info => log::LevelFilter::Info,
            Self::Debug => log::LevelFilter::Debug,
            Self::Trace => log::LevelFilter::Trace,
        }
    }

    pub(super) const fn filter(self) -> LevelFilter {
        match self {
            Self::Panic | Self::Fatal => LevelFilter::OFF,
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}
