//! The file of answers, one block a request, made to be read and compared by people too.
//!
//! ```text
//! # free text; a line `server: …` says who answered
//! = section.request
//! InvalidArgument "missing ID"
//! details [{"@type":…}]
//! {"field":…}                                one line a message
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

/// What a server answered, in normal form.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// The status code's name.
    pub code: String,
    /// The status' message.
    pub message: String,
    /// Its details, when there are any.
    pub details: Option<Value>,
    /// The messages before it.
    pub messages: Vec<Value>,
}

/// Answers by `section.request`, in the order of the table.
#[derive(Debug, Default)]
pub struct Answers {
    /// Who answered, and when it was recorded.
    pub server: String,
    /// The answers.
    pub list: Vec<(String, Answer)>,
}

const HEAD: &str = "\
# What a real server answered to requests.txt, in normal form. Written by
# `vane-differential record`; not to be changed by hand.
";

impl Answers {
    /// As a file.
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEAD}server: {}\n", self.server);
        for (name, answer) in &self.list {
            let _ = writeln!(text, "\n= {name}\n{}", answer.to_text());
        }
        text
    }

    /// Reads a file.
    ///
    /// # Panics
    /// When it is not of the form that [`Answers::to_text`] has.
    pub fn parse(text: &str) -> Self {
        let mut answers = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if line.starts_with('#') {
                continue;
            }
            if let Some(server) = line.strip_prefix("server: ") {
                answers.server = server.to_owned();
            } else if let Some(name) = line.strip_prefix("= ") {
                answers.list.push((name.to_owned(), Answer::default()));
            } else {
                let (_, answer) = answers.list.last_mut().expect("a name first");
                answer.read_line(line);
            }
        }
        answers
    }

    /// By name.
    pub fn by_name(&self) -> BTreeMap<&str, &Answer> {
        let pairs = self.list.iter();
        pairs
            .map(|(name, answer)| (name.as_str(), answer))
            .collect()
    }
}

impl Answer {
    fn to_text(&self) -> String {
        let mut text = self.code.clone();
        if self.code != "Ok" {
            let _ = write!(text, " {}", Value::from(self.message.clone()));
        }
        if let Some(details) = &self.details {
            let _ = write!(text, "\ndetails {details}");
        }
        for message in &self.messages {
            let _ = write!(text, "\n{message}");
        }
        text
    }

    fn read_line(&mut self, line: &str) {
        let read = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        if line.starts_with('{') {
            self.messages.push(read(line));
        } else if let Some(details) = line.strip_prefix("details ") {
            self.details = Some(read(details));
        } else {
            let (code, message) = line.split_once(' ').unwrap_or((line, "\"\""));
            code.clone_into(&mut self.code);
            read(message)
                .as_str()
                .expect("a text")
                .clone_into(&mut self.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let good = Answer {
            code: "Ok".to_owned(),
            messages: vec![json!({"a": [1]}), json!({})],
            ..Answer::default()
        };
        let bad = Answer {
            code: "PermissionDenied".to_owned(),
            message: "no \"way\"\n".to_owned(),
            details: Some(json!([{"reason": 1}])),
            ..Answer::default()
        };
        let answers = Answers {
            server: "X 1".to_owned(),
            list: vec![("s.good".to_owned(), good), ("s.bad".to_owned(), bad)],
        };
        let read = Answers::parse(&answers.to_text());
        assert_eq!((read.server, read.list), (answers.server, answers.list));
    }
}
