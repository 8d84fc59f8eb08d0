//! What a bench found, for people and for scripts.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::machine;

/// What is allowed.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

/// One figure.
#[derive(Serialize)]
pub(crate) struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bar: Option<Bar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
    /// Whether `check` ends with 1 when it is not met.
    gate: bool,
}

/// The figures of one bench with their conditions.
#[derive(Serialize)]
pub(crate) struct Report {
    bench: &'static str,
    conditions: BTreeMap<&'static str, String>,
    figures: Vec<Figure>,
}

impl Bar {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::AtLeast(least) => write!(f, ">= {least}"),
        }
    }
}

impl Report {
    /// An empty report about this machine.
    pub(crate) fn new(bench: &'static str) -> Self {
        Self {
            bench,
            conditions: machine::conditions(),
            figures: Vec::new(),
        }
    }

    /// Under what it was measured.
    pub(crate) fn condition(&mut self, name: &'static str, value: impl ToString) {
        self.conditions.insert(name, value.to_string());
    }

    /// A figure without a bar.
    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.add(name.into(), value, unit, None, false);
    }

    /// A figure that DESIGN or the issue promises; it depends on the machine.
    pub(crate) fn promise(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        bar: Bar,
    ) {
        self.add(name.into(), value, unit, Some(bar), false);
    }

    /// A counter or ratio that `check` insists on.
    pub(crate) fn gate(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        bar: Bar,
    ) {
        self.add(name.into(), value, unit, Some(bar), true);
    }

    fn add(&mut self, name: String, value: f64, unit: &'static str, bar: Option<Bar>, gate: bool) {
        self.figures.push(Figure {
            name,
            value: (value * 1e3).round() / 1e3,
            unit,
            bar,
            met: bar.map(|bar| bar.is_met_by(value)),
            gate,
        });
    }

    /// Gates and how many of them are not met.
    pub(crate) fn gates(&self) -> (usize, usize) {
        let gates = self.figures.iter().filter(|one| one.gate);
        let missed = gates.clone().filter(|one| one.met == Some(false));
        (gates.count(), missed.count())
    }

    /// Prints it to standard output.
    pub(crate) fn print(&self, json: bool) {
        match json {
            true => println!("{}", serde_json::to_string(self).unwrap()),
            false => println!("{self}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.bench)?;
        for (name, value) in &self.conditions {
            writeln!(f, "  {name}: {value}")?;
        }
        for one in &self.figures {
            write!(f, "  {:<52} {:>12.3} {:<8}", one.name, one.value, one.unit)?;
            if let (Some(bar), Some(met)) = (one.bar, one.met) {
                let kind = if one.gate { "gate" } else { "promise" };
                let met = if met { "met" } else { "SHORT" };
                write!(f, " {kind} {bar}: {met}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
