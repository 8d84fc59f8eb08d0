//! A TOML file becomes a validated value, and is printed back without secrets.
//!
//! An error names file, line and column and, for an unknown key, the expected
//! ones (the types say `deny_unknown_fields`). Only a [`Secret`] expands
//! `${VAR}`, so that nothing else of a file depends on the environment. What
//! the keys mean is the business of each binary.

mod secret;

use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use secret::{Secret, SecretError};

/// The longest configuration file that is read, in bytes.
pub const MAX_FILE: u64 = 1 << 20;

/// A place in a configuration file, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named, or what else the text came from.
    pub origin: String,
    /// Line and column in characters, when the parser knows them.
    pub position: Option<(usize, usize)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        match self.position {
            Some((line, column)) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

/// Why a configuration was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}: {source}")]
    Read {
        /// The file as it was named.
        path: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file is longer than [`MAX_FILE`].
    #[error("configuration {path} has {size} bytes, more than {MAX_FILE}")]
    TooLong {
        /// The file as it was named.
        path: String,
        /// Its length in bytes.
        size: u64,
    },
    /// The text is no TOML, or not the TOML that was expected. The message
    /// never quotes the line, which may hold a secret.
    #[error("{place}: {message}")]
    Parse {
        /// Where.
        place: Place,
        /// What the parser or the type says.
        message: String,
    },
    /// A value that TOML cannot express.
    #[error("cannot print the configuration: {0}")]
    Print(#[from] toml::ser::Error),
}

/// Reads and parses the configuration file at `path`.
///
/// # Errors
/// [`ConfigError::Read`], [`ConfigError::TooLong`], [`ConfigError::Parse`].
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let named = path.display().to_string();
    let read = |source| ConfigError::Read {
        path: named.clone(),
        source,
    };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > MAX_FILE {
        return Err(ConfigError::TooLong { path: named, size });
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    parse(&text, &named)
}

/// Parses configuration text; `origin` is what an error calls it.
///
/// # Errors
/// [`ConfigError::Parse`].
pub fn parse<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Parse {
        place: Place {
            origin: origin.to_owned(),
            position: error.span().and_then(|span| position(text, span.start)),
        },
        message: error.message().trim_end().to_owned(),
    })
}

/// The effective configuration as TOML. A [`Secret`] prints as a placeholder.
///
/// # Errors
/// [`ConfigError::Print`].
pub fn print<T: Serialize>(config: &T) -> Result<String, ConfigError> {
    Ok(toml::to_string_pretty(config)?)
}

fn position(text: &str, offset: usize) -> Option<(usize, usize)> {
    let before = text.get(..offset)?;
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    Some((line, column))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        server: Server,
    }

    #[derive(Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    struct Server {
        bind_port: u16,
        #[serde(with = "humantime_serde")]
        ca_ttl: Duration,
        token: Secret,
    }

    impl Default for Server {
        fn default() -> Self {
            Self {
                bind_port: 8081,
                ca_ttl: Duration::from_secs(86_400),
                token: Secret::default(),
            }
        }
    }

    fn error(text: &str) -> String {
        parse::<Config>(text, "server.toml")
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_unknown_key_is_told_with_its_line_and_the_known_ones() {
        assert_eq!(
            error("[server]\nbind_port = 1\n  bind_prot = 8081\n"),
            "server.toml:3:3: unknown field `bind_prot`, expected one of `bind_port`, `ca_ttl`, `token`"
        );
    }

    #[test]
    fn a_wrong_value_and_broken_text_are_told_with_their_line() {
        let wrong = error("[server]\nca_ttl = \"soon\"\n");
        assert!(wrong.starts_with("server.toml:2:10: "), "{wrong}");
        let broken = error("[server\n");
        assert!(broken.starts_with("server.toml:1:8: "), "{broken}");
    }

    #[test]
    fn an_error_never_quotes_the_line_of_a_secret() {
        let text = error("[server]\ntoken = \"hunter2\" oops\n");
        assert!(!text.contains("hunter2"), "{text}");
        let text = error("[server]\ntoken = \"hunter2 ${UNFINISHED\"\n");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn the_effective_configuration_has_defaults_and_no_secrets() {
        let config: Config =
            parse("[server]\ntoken = \"hunter2\"\nca_ttl = \"1h 30m\"", "").unwrap();
        assert_eq!(config.server.token.expose(), "hunter2");
        assert_eq!(
            print(&config).unwrap(),
            "[server]\nbind_port = 8081\nca_ttl = \"1h 30m\"\ntoken = \"<secret>\"\n"
        );
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_file_is_loaded_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.toml");
        assert!(matches!(
            load::<Config>(&path),
            Err(ConfigError::Read { .. })
        ));
        std::fs::write(&path, "[server]\nbind_port = 7\n").unwrap();
        let config: Config = load(&path).unwrap();
        assert_eq!(config.server.bind_port, 7);
        std::fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
        assert!(matches!(
            load::<Config>(&path),
            Err(ConfigError::TooLong { .. })
        ));
    }
}
