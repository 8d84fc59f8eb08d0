//! The table of requests: data, one request a line.
//!
//! ```text
//! [section]                                  a registry without entries, agents, bundles
//! name  caller  Service/Method  {json}       a request; [{…},{…}] is a stream of them
//! name  caller  Service/Method  raw:ff00     bytes that need not be a message
//! for x in a b c                             the next request once for each, <x> replaced
//! until field.0 name caller S/M {json}       the request again and again until its answer has
//!                                            this: SPIRE's caches follow after seconds
//! until denied name caller S/M {json}        … until it is PERMISSION_DENIED
//! caller NAME KEY $step.field.0              NAME calls over TLS with this chain and key
//! ```
//!
//! Lines that begin with a blank continue the one before; `#` begins a comment line. `local`
//! is the admin socket, `nobody` TLS without a certificate. What a string may stand for is told
//! in [`relaxed`](super::relaxed) and [`inputs`](super::inputs).

use serde_json::Value;

use super::relaxed;

/// Requests that build on each other, and on nothing else.
#[derive(Debug)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// A line of the table.
#[derive(Debug)]
pub enum Step {
    /// A request.
    Request(Request),
    /// From now on there is a caller with a certificate.
    Caller {
        /// How requests name him.
        name: String,
        /// The name of his key.
        key: String,
        /// Where the chain stands.
        chain: String,
    },
}

/// A request of the table.
#[derive(Debug)]
pub struct Request {
    /// Its name, unique in the section.
    pub name: String,
    /// `local`, `nobody` or a [`Step::Caller`].
    pub caller: String,
    /// `Service/Method`, or with its package.
    pub method: String,
    /// What is sent.
    pub body: Body,
    /// What the answer must have before it counts.
    pub until: Option<String>,
}

/// What a request says.
#[derive(Debug)]
pub enum Body {
    /// These messages.
    Messages(Vec<Value>),
    /// One message of these bytes.
    Raw(Vec<u8>),
}

/// Reads the table.
///
/// # Panics
/// When a line is not of the table's form: it is a file of this repository.
pub fn parse(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut repeat: Option<(String, Vec<String>)> = None;
    for line in logical_lines(text) {
        if let Some(name) = line.strip_prefix('[') {
            let name = name.trim_end_matches(']').to_owned();
            let steps = Vec::new();
            sections.push(Section { name, steps });
            continue;
        }
        if let Some(rest) = line.strip_prefix("for ") {
            let (name, values) = rest.split_once(" in ").expect("for NAME in VALUES");
            let values = values.split_whitespace().map(str::to_owned).collect();
            repeat = Some((name.trim().to_owned(), values));
            continue;
        }
        let steps = &mut sections.last_mut().expect("a section first").steps;
        match repeat.take() {
            Some((name, values)) => {
                let mark = format!("<{name}>");
                steps.extend(values.iter().map(|v| step(&line.replace(&mark, v))));
            }
            None => steps.push(step(&line)),
        }
    }
    sections
}

fn logical_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        match lines.last_mut() {
            Some(last) if line.starts_with([' ', '\t']) => {
                last.push(' ');
                last.push_str(line.trim());
            }
            _ => lines.push(line.trim_end().to_owned()),
        }
    }
    lines
}

/// The first word, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_once(char::is_whitespace).unwrap_or((text, ""))
}

fn step(line: &str) -> Step {
    let (until, line) = match line.strip_prefix("until ") {
        Some(rest) => {
            let (until, rest) = word(rest);
            (Some(until.to_owned()), rest)
        }
        None => (None, line),
    };
    let (first, rest) = word(line);
    let (second, rest) = word(rest);
    let (third, rest) = word(rest);
    assert!(!third.is_empty(), "too short: {line}");
    let rest = rest.trim();
    if first == "caller" {
        return Step::Caller {
            name: second.to_owned(),
            key: third.to_owned(),
            chain: rest.to_owned(),
        };
    }
    Step::Request(Request {
        name: first.to_owned(),
        caller: second.to_owned(),
        method: third.to_owned(),
        body: body(rest).unwrap_or_else(|error| panic!("{error}: {line}")),
        until,
    })
}

fn body(text: &str) -> Result<Body, serde_json::Error> {
    if let Some(hex) = text.strip_prefix("raw:") {
        return Ok(Body::Raw(bytes(hex)));
    }
    let text = if text.is_empty() { "{}" } else { text };
    Ok(Body::Messages(match relaxed::parse(text)? {
        Value::Array(messages) => messages,
        message => vec![message],
    }))
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .chars()
        .map(|digit| u8::try_from(digit.to_digit(16).expect("hex")).unwrap())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_continue_and_be_repeated() {
        let text = "# comment\n[a]\nfor x in b c\none-<x>  local  S/M\n  {f:\n  [\"<x>\"]}\n\
            two nobody S/M raw:0aff\ncaller n k $one-b.f.0\n[d]\n";
        let sections = parse(text);
        assert_eq!((sections.len(), sections[0].steps.len()), (2, 4));
        let shown = format!("{:?}", sections[0].steps);
        for part in ["one-b", r#"String("c")"#, "Raw([10, 255])", "$one-b.f.0"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }
}
