//! Implementations of a seam, chosen by name in the configuration.
//!
//! A plugin's file says `impl Builtin<dyn KeyManager, Deps> for Disk`; its
//! folder's `mod.rs` holds the table
//! `const BUILTINS: &[Row<dyn KeyManager, Deps>] = &[row::<disk::Disk, _, _>()];`
//! and the section `[key_manager] type = "disk"` of the configuration selects.
//! No registration happens behind the reader's back.
//!
//! Invariant: a section is never printed before its plugin has parsed it,
//! because only the plugin's type knows which options are secret.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::{Table, Value};

use crate::tasks::BoxError;

/// One implementation of the seam `T`, made from its options and `D`.
pub trait Builtin<T: ?Sized, D> {
    /// Its name in the configuration (`type = "…"`).
    const NAME: &'static str;

    /// Its options: `deny_unknown_fields`, secrets as `config::Secret`.
    type Config: DeserializeOwned + Serialize + Send;

    /// Makes it. Write it as `async fn open(…)`.
    ///
    /// # Errors
    /// [`OpenError::failed`] of whatever hindered it.
    fn open(
        config: Self::Config,
        deps: &D,
    ) -> impl Future<Output = Result<Arc<T>, OpenError>> + Send;
}

/// Why the implementation that a section names could not be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No row has this name.
    #[error("unknown type \"{name}\", expected one of {}", known.join(", "))]
    Unknown {
        /// The configured name.
        name: String,
        /// The names that there are.
        known: Vec<&'static str>,
    },
    /// The options are not those of this type.
    #[error("type \"{name}\": {message}")]
    Options {
        /// The configured name.
        name: &'static str,
        /// What is wrong with which option.
        message: String,
    },
    /// It exists but did not start.
    #[error(transparent)]
    Failed(BoxError),
}

impl OpenError {
    /// The error of an [`open`](Builtin::open) that did not succeed.
    #[must_use]
    pub fn failed(error: impl Into<BoxError>) -> Self {
        Self::Failed(error.into())
    }
}

/// What [`Row::open`] returns.
pub type Opening<'a, T> = Pin<Box<dyn Future<Output = Result<Arc<T>, OpenError>> + Send + 'a>>;

/// One line of a table of implementations.
pub struct Row<T: ?Sized, D> {
    /// The name in the configuration.
    pub name: &'static str,
    check: fn(Table) -> Result<Table, OpenError>,
    open: for<'a> fn(Table, &'a D) -> Opening<'a, T>,
}

/// The row of `X`.
#[must_use]
pub const fn row<X, T, D>() -> Row<T, D>
where
    X: Builtin<T, D>,
    T: ?Sized + Send + Sync,
    D: Sync,
{
    Row {
        name: X::NAME,
        check: check::<X, T, D>,
        open: open::<X, T, D>,
    }
}

fn check<X: Builtin<T, D>, T: ?Sized, D>(options: Table) -> Result<Table, OpenError> {
    let config: X::Config = options.try_into().map_err(options_error::<X, T, D>)?;
    Table::try_from(config).map_err(|error| OpenError::Options {
        name: X::NAME,
        message: error.to_string(),
    })
}

fn open<X, T, D>(options: Table, deps: &D) -> Opening<'_, T>
where
    X: Builtin<T, D>,
    T: ?Sized + Send + Sync,
    D: Sync,
{
    Box::pin(async move {
        let config = options.try_into().map_err(options_error::<X, T, D>)?;
        X::open(config, deps).await
    })
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn options_error<X: Builtin<T, D>, T: ?Sized, D>(error: toml::de::Error) -> OpenError {
    OpenError::Options {
        name: X::NAME,
        message: error.message().trim_end().to_owned(),
    }
}

impl<T: ?Sized, D> Row<T, D> {
    /// Makes the implementation from the section's options.
    ///
    /// # Errors
    /// [`OpenError::Options`] or [`OpenError::Failed`].
    pub async fn open(&self, section: &Section, deps: &D) -> Result<Arc<T>, OpenError> {
        (self.open)(section.options.clone(), deps).await
    }
}

impl<T: ?Sized, D> fmt::Debug for Row<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Row").field(&self.name).finish()
    }
}

/// The row called `name`.
///
/// # Errors
/// [`OpenError::Unknown`] with the names that there are.
pub fn find<'a, T: ?Sized, D>(
    rows: &'a [Row<T, D>],
    name: &str,
) -> Result<&'a Row<T, D>, OpenError> {
    rows.iter()
        .find(|row| row.name == name)
        .ok_or_else(|| OpenError::Unknown {
            name: name.to_owned(),
            known: rows.iter().map(|row| row.name).collect(),
        })
}

/// Finds the row that `section` names and makes its implementation.
///
/// # Errors
/// [`OpenError`].
pub async fn open_section<T: ?Sized, D>(
    rows: &[Row<T, D>],
    section: &Section,
    deps: &D,
) -> Result<Arc<T>, OpenError> {
    find(rows, &section.kind)?.open(section, deps).await
}

/// A section of the configuration that names an implementation:
/// `type = "…"` and that type's options.
///
/// Debug and Serialize show options only after [`check`](Self::check), as the
/// type's own configuration prints them: with defaults, without secrets.
#[derive(Clone)]
pub struct Section {
    kind: String,
    options: Table,
    shown: Table,
}

impl Section {
    /// A section with these options, for defaults and tests.
    #[must_use]
    pub fn new(kind: impl Into<String>, options: Table) -> Self {
        Self {
            kind: kind.into(),
            options,
            shown: Table::new(),
        }
    }

    /// The configured type.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Parses the options as those of the named type, without making it.
    ///
    /// # Errors
    /// [`OpenError::Unknown`] or [`OpenError::Options`].
    pub fn check<T: ?Sized, D>(&mut self, rows: &[Row<T, D>]) -> Result<(), OpenError> {
        let row = find(rows, &self.kind)?;
        self.shown = (row.check)(self.options.clone())?;
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Section {
    fn deserialize<De: Deserializer<'de>>(deserializer: De) -> Result<Self, De::Error> {
        let mut options = Table::deserialize(deserializer)?;
        match options.remove("type") {
            Some(Value::String(kind)) => Ok(Self::new(kind, options)),
            Some(_) => Err(De::Error::custom("`type` must be a string")),
            None => Err(De::Error::missing_field("type")),
        }
    }
}

impl Serialize for Section {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + self.shown.len()))?;
        map.serialize_entry("type", &self.kind)?;
        for (key, value) in &self.shown {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Section")
            .field("kind", &self.kind)
            .field("shown", &self.shown)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Secret};

    trait Greeter: Send + Sync {
        fn greet(&self) -> String;
    }

    impl fmt::Debug for dyn Greeter {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.greet())
        }
    }

    struct Deps {
        name: &'static str,
    }

    struct Polite(String);

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct PoliteConfig {
        word: String,
        password: Secret,
    }

    impl Default for PoliteConfig {
        fn default() -> Self {
            Self {
                word: "good day".to_owned(),
                password: Secret::default(),
            }
        }
    }

    impl Greeter for Polite {
        fn greet(&self) -> String {
            self.0.clone()
        }
    }

    impl Builtin<dyn Greeter, Deps> for Polite {
        const NAME: &'static str = "polite";
        type Config = PoliteConfig;
        async fn open(config: PoliteConfig, deps: &Deps) -> Result<Arc<dyn Greeter>, OpenError> {
            Ok(Arc::new(Polite(format!("{}, {}", config.word, deps.name))))
        }
    }

    struct Mute;

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct MuteConfig {}

    impl Builtin<dyn Greeter, Deps> for Mute {
        const NAME: &'static str = "mute";
        type Config = MuteConfig;
        async fn open(_: MuteConfig, _: &Deps) -> Result<Arc<dyn Greeter>, OpenError> {
            Err(OpenError::failed("says nothing"))
        }
    }

    const BUILTINS: &[Row<dyn Greeter, Deps>] = &[row::<Polite, _, _>(), row::<Mute, _, _>()];
    const DEPS: Deps = Deps { name: "Ann" };

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        greeter: Section,
    }

    fn section(options: &str) -> Section {
        let text = format!("[greeter]\n{options}");
        config::parse::<Config>(&text, "t.toml").unwrap().greeter
    }

    async fn error(options: &str) -> String {
        open_section(BUILTINS, &section(options), &DEPS)
            .await
            .unwrap_err()
            .to_string()
    }

    #[tokio::test]
    async fn a_section_opens_the_type_that_it_names() {
        let section = section("type = \"polite\"\nword = \"hello\"");
        let greeter = open_section(BUILTINS, &section, &DEPS).await.unwrap();
        assert_eq!(greeter.greet(), "hello, Ann");
    }

    #[tokio::test]
    async fn mistakes_are_answered_with_what_would_be_right() {
        assert_eq!(
            error("type = \"rude\"").await,
            "unknown type \"rude\", expected one of polite, mute"
        );
        assert_eq!(
            error("type = \"polite\"\nwrod = \"x\"").await,
            "type \"polite\": unknown field `wrod`, expected `word` or `password`"
        );
        assert_eq!(error("type = \"mute\"").await, "says nothing");
        let error = config::parse::<Config>("[greeter]\nword = \"x\"", "t.toml").unwrap_err();
        assert_eq!(error.to_string(), "t.toml:1:1: missing field `type`");
    }

    #[test]
    fn an_unchecked_section_shows_no_option_and_a_checked_one_no_secret() {
        let mut config = Config {
            greeter: section("type = \"polite\"\npassword = \"hunter2\""),
        };
        assert_eq!(
            config::print(&config).unwrap(),
            "[greeter]\ntype = \"polite\"\n"
        );
        assert!(!format!("{config:?}").contains("hunter2"));
        config.greeter.check(BUILTINS).unwrap();
        assert_eq!(
            config::print(&config).unwrap(),
            "[greeter]\ntype = \"polite\"\npassword = \"<secret>\"\nword = \"good day\"\n"
        );
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn checking_finds_the_same_mistakes_without_opening() {
        let mut mute = section("type = \"mute\"");
        mute.check(BUILTINS).unwrap();
        let mut wrong = section("type = \"mute\"\nloud = true");
        assert!(wrong.check(BUILTINS).is_err());
    }
}
