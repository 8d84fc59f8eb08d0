//! How an answer is printed: a table for people, SPIRE's JSON for scripts (NAMES 5).

use std::io::Write as _;
use std::time::SystemTime;

use clap::ValueEnum;
use prost::{Message, Name};
use vane_identity::lifetime::from_unix;

use crate::failure::Failure;

/// Who reads the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// People.
    Table,
    /// Scripts: SPIRE's protojson.
    Json,
}

/// Prints `text` and a line end; a reader that went away is no failure.
pub(crate) fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    raw(&format!("{}\n", text.as_ref()))
}

/// Prints `text` as it is.
pub(crate) fn raw(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write the answer: {error}")))
        }
        _ => Ok(()),
    }
}

/// Says something beside the answer, on stderr; nobody may be reading.
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr(), "{}", text.as_ref());
}

/// Prints a message as SPIRE's CLI does.
pub(crate) fn json<M: Message + Name>(message: &M) -> Result<(), Failure> {
    line(value(message)?.to_string())
}

/// A message as a JSON value, in SPIRE's form.
pub(crate) fn value<M: Message + Name>(message: &M) -> Result<serde_json::Value, Failure> {
    vane_wire::json::to_value(message)
        .map_err(|error| Failure::new(format!("cannot print the answer as JSON: {error}")))
}

/// Prints a table; when it has no rows, `nothing` instead.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>, nothing: &str) -> Result<(), Failure> {
    if rows.is_empty() {
        return line(nothing);
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    let text = table.to_string();
    text.lines().try_for_each(|one| line(one.trim()))
}

/// Prints `name  value` lines, the names aligned.
pub(crate) fn fields(all: &[(&str, String)]) -> Result<(), Failure> {
    let width = all
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    all.iter()
        .filter(|(_, value)| !value.is_empty())
        .try_for_each(|(name, value)| line(format!("{name:width$}  {value}")))
}

/// Unix seconds as RFC 3339 in UTC, or `never` for 0.
pub(crate) fn time(unix: i64) -> String {
    if unix == 0 {
        return "never".to_owned();
    }
    humantime::format_rfc3339_seconds(from_unix(unix)).to_string()
}

/// How long from `now` until `unix`: `in 12s`, `12s ago`.
pub(crate) fn distance(unix: i64, now: SystemTime) -> String {
    let at = from_unix(unix);
    let short = |time: std::time::Duration| {
        humantime::format_duration(std::time::Duration::from_secs(time.as_secs())).to_string()
    };
    match at.duration_since(now) {
        Ok(left) => format!("in {}", short(left)),
        Err(past) => format!("{} ago", short(past.duration())),
    }
}

/// When something ends: `2026-01-01T00:00:00Z (in 5m)`.
pub(crate) fn expiry(unix: i64, now: SystemTime) -> String {
    format!("{} ({})", time(unix), distance(unix, now))
}

/// A SPIFFE ID of the wire as text.
pub(crate) fn id(id: Option<&vane_wire::spire::api::types::Spiffeid>) -> String {
    id.map(|id| format!("spiffe://{}{}", id.trust_domain, id.path))
        .unwrap_or_default()
}
