//! As much of YAML 1.2 as a kubeconfig uses: one document of mappings, lists and scalars, read
//! into a tree that is asked by key.
//!
//! Invariant: an error says a line and nothing of what stands there, and scalars are wiped when
//! the tree goes, because the file holds secrets. Anchors' aliases, tags, keys that are no scalars
//! or stand twice, and a second document are errors: nobody writes them, and each is a way to be
//! misunderstood. Depth is bounded; the length is the caller's to bound.

use std::borrow::Cow;

use granit_parser::{Event, Parser, ScalarStyle};
use zeroize::Zeroizing;

/// How deep lists and mappings may be nested.
const MAX_DEPTH: usize = 32;

/// Where the text is not what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    /// No text at all.
    #[error("is not the YAML of a kubeconfig")]
    Encoding,
    /// At a line, counted from 1.
    #[error("line {0} is not what a kubeconfig has there")]
    Line(usize),
}

/// A value of the document.
pub(super) struct Node {
    line: usize,
    kind: Kind,
}

enum Kind {
    /// `plain`: without quotes, so that it may mean something else than a text.
    Scalar {
        text: Zeroizing<String>,
        plain: bool,
    },
    List(Vec<Node>),
    /// With the key that waits for its value.
    Map(Vec<(String, Node)>, Option<String>),
}

/// Reads the document; an empty one is a null.
///
/// # Errors
/// [`Wrong`]: it is not YAML, or more of it than is read here.
pub(super) fn read(bytes: &[u8]) -> Result<Node, Wrong> {
    let text = std::str::from_utf8(bytes).map_err(|_| Wrong::Encoding)?;
    let options = granit_parser::options! {
        block_nesting_limit: MAX_DEPTH,
        flow_nesting_limit: MAX_DEPTH,
    };
    let mut open = Vec::new();
    let mut root = None;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| Wrong::Line(error.marker().line()))?;
        let line = span.start.line();
        let whole = match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
            Event::DocumentStart(..) if root.is_none() => continue,
            Event::SequenceStart(_, _, None) => {
                open.push(Node::new(line, Kind::List(Vec::new())));
                continue;
            }
            Event::MappingStart(_, _, None) => {
                open.push(Node::new(line, Kind::Map(Vec::new(), None)));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop(),
            Event::Scalar(text, style, _, None) => Some(Node::scalar(line, text, style)),
            _ => None,
        };
        let whole = whole.ok_or(Wrong::Line(line))?;
        match open.last_mut() {
            Some(parent) => parent.take(whole)?,
            None => root = Some(whole),
        }
    }
    Ok(root.unwrap_or_else(|| Node::scalar(1, Cow::Borrowed(""), ScalarStyle::Plain)))
}

impl Node {
    fn new(line: usize, kind: Kind) -> Self {
        Self { line, kind }
    }

    fn scalar(line: usize, text: Cow<'_, str>, style: ScalarStyle) -> Self {
        let text = Zeroizing::new(text.into_owned());
        let plain = style == ScalarStyle::Plain;
        Self::new(line, Kind::Scalar { text, plain })
    }

    /// Adds what was read next inside.
    fn take(&mut self, child: Self) -> Result<(), Wrong> {
        let wrong = Wrong::Line(child.line);
        match &mut self.kind {
            Kind::List(items) => items.push(child),
            Kind::Map(fields, key) => match key.take() {
                Some(key) => fields.push((key, child)),
                None => {
                    let Kind::Scalar { text, .. } = &child.kind else {
                        return Err(wrong);
                    };
                    if fields.iter().any(|(known, _)| known == text.as_str()) {
                        return Err(wrong);
                    }
                    *key = Some(text.as_str().to_owned());
                }
            },
            Kind::Scalar { .. } => return Err(wrong),
        }
        Ok(())
    }

    /// Nothing is written there, or a null is.
    fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    fn wrong(&self) -> Wrong {
        Wrong::Line(self.line)
    }

    /// The value of a key; a null is as good as none.
    ///
    /// # Errors
    /// This is no mapping (nor a null).
    pub(super) fn get(&self, key: &str) -> Result<Option<&Self>, Wrong> {
        match &self.kind {
            Kind::Map(fields, _) => Ok(fields
                .iter()
                .find(|(name, value)| name == key && !value.is_null())
                .map(|(_, value)| value)),
            _ if self.is_null() => Ok(None),
            _ => Err(self.wrong()),
        }
    }

    /// The text of a key; what has no quotes is the text that stands there.
    ///
    /// # Errors
    /// This is no mapping, or the value no scalar.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, Wrong> {
        match self.get(key)? {
            None => Ok(None),
            Some(Self {
                kind: Kind::Scalar { text, .. },
                ..
            }) => Ok(Some(text)),
            Some(other) => Err(other.wrong()),
        }
    }

    /// The flag of a key; false where there is none.
    ///
    /// # Errors
    /// This is no mapping, or the value neither true nor false.
    pub(super) fn flag(&self, key: &str) -> Result<bool, Wrong> {
        let Some(value) = self.get(key)? else {
            return Ok(false);
        };
        match &value.kind {
            Kind::Scalar { text, plain: true } => match text.as_str() {
                "true" | "True" | "TRUE" => Ok(true),
                "false" | "False" | "FALSE" => Ok(false),
                _ => Err(value.wrong()),
            },
            _ => Err(value.wrong()),
        }
    }

    /// The list of a key; empty where there is none.
    ///
    /// # Errors
    /// This is no mapping, or the value no list.
    pub(super) fn list(&self, key: &str) -> Result<&[Self], Wrong> {
        match self.get(key)? {
            None => Ok(&[]),
            Some(Self {
                kind: Kind::List(items),
                ..
            }) => Ok(items),
            Some(other) => Err(other.wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubectl_writes_is_read() {
        let text = "# written by a tool\napiVersion: v1\nclusters:\n- cluster:\n    server: https://h:6443\n    \
                    insecure-skip-tls-verify: true\n  name: \"a: b\"\nusers: null\npreferences: {}\nn: 17\ntoken: >-\n  ab\n";
        let file = read(text.as_bytes()).unwrap();
        let first = &file.list("clusters").unwrap()[0];
        assert_eq!(first.text("name"), Ok(Some("a: b")));
        let cluster = first.get("cluster").unwrap().unwrap();
        assert_eq!(cluster.text("server"), Ok(Some("https://h:6443")));
        assert_eq!(cluster.flag("insecure-skip-tls-verify"), Ok(true));
        assert_eq!(cluster.flag("other"), Ok(false));
        assert!(file.list("users").unwrap().is_empty());
        assert_eq!(file.text("n"), Ok(Some("17")));
        assert_eq!(file.text("token"), Ok(Some("ab")));
        assert!(file.get("preferences").unwrap().is_some());
    }

    #[test]
    fn json_is_yaml() {
        let file = read(br#"{"a": {"b": [{"c": "d\u0041"}, null, false]}}"#).unwrap();
        let list = file.get("a").unwrap().unwrap().list("b").unwrap();
        assert_eq!(list[0].text("c"), Ok(Some("dA")));
        assert_eq!(list[1].text("c"), Ok(None));
        assert_eq!(list.len(), 3);
    }

    #[test]
    fn nothing_written_is_nothing_there() {
        for text in ["", "---\n", "# nothing\n", "~"] {
            let file = read(text.as_bytes()).unwrap();
            assert!(file.get("a").unwrap().is_none(), "{text:?}");
        }
    }

    #[test]
    fn what_could_be_misunderstood_is_an_error_with_its_line() {
        let deep = format!("a:\n  {}", "[".repeat(MAX_DEPTH + 1));
        for (text, line) in [
            ("a: 1\nb: 2\na: 3\n", 3),
            ("a: &x 1\nb: *x\n", 2),
            ("a: !!binary YQ==\n", 1),
            ("a: 1\n---\nb: 2\n", 2),
            ("a: 1\n? [b]\n: 2\n", 2),
            ("a: 1\nb: [\n", 2),
            (&deep, 2),
        ] {
            assert_eq!(
                read(text.as_bytes()).err(),
                Some(Wrong::Line(line)),
                "{text}"
            );
        }
        assert_eq!(read(b"a: \xff").err(), Some(Wrong::Encoding));
    }

    #[test]
    fn a_value_of_another_kind_is_an_error_with_its_line() {
        let file = read(b"text: a\nlist: [1]\nquoted: 'true'\n").unwrap();
        assert_eq!(file.text("list"), Err(Wrong::Line(2)));
        assert_eq!(file.list("text").err(), Some(Wrong::Line(1)));
        assert_eq!(file.flag("text"), Err(Wrong::Line(1)));
        assert_eq!(file.flag("quoted"), Err(Wrong::Line(3)));
        assert_eq!(
            file.get("text").unwrap().unwrap().get("a").err(),
            Some(Wrong::Line(1))
        );
    }
}
