//! Where two answers differ, and which of that is meant.
//!
//! A difference is a place: `code`, `message`, `details`, `count` (of messages), or a path into
//! a message (`results.0.status.message`; of a stream's later messages `#1.entries`). The list
//! of allowed ones gives a reason, then the places, with `*` for anything:
//!
//! ```text
//! why this may differ, in a sentence
//!   section.request  results.*.status.message
//! ```
//!
//! A difference that is not in the list is a failure, and so is a line to which nothing differs
//! any more.

use std::collections::BTreeSet;

use serde_json::Value;

use super::answers::{Answer, Answers};

/// Something that differs.
#[derive(Debug, PartialEq)]
pub struct Difference {
    /// `section.request`.
    pub request: String,
    /// Where.
    pub place: String,
    /// What was recorded there.
    pub theirs: String,
    /// What we have there.
    pub ours: String,
}

/// A line of the list of allowed differences.
#[derive(Debug, PartialEq)]
pub struct Allowed {
    /// Why.
    pub reason: String,
    request: String,
    place: String,
}

/// What is wrong when two files of answers are compared.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Differences that nobody allowed.
    pub unexpected: Vec<Difference>,
    /// Lines of the list that allow nothing.
    pub idle: Vec<String>,
    /// Requests that only one side has.
    pub unmatched: Vec<String>,
    /// How many requests were answered in the same way, and how many differ as allowed.
    pub same: usize,
    /// See `same`.
    pub allowed: usize,
}

/// Reads the list of allowed differences.
///
/// # Panics
/// When a line has no reason or no place.
pub fn allowed(text: &str) -> Vec<Allowed> {
    let mut list = Vec::new();
    let (mut reason, mut reasoned) = (String::new(), false);
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some(places) = line.strip_prefix(' ') else {
            if reasoned {
                reason.clear();
                reasoned = false;
            }
            reason = format!("{reason} {line}").trim().to_owned();
            continue;
        };
        reasoned = true;
        assert!(!reason.is_empty(), "no reason: {line}");
        let mut words = places.split_whitespace();
        let request = words.next().expect("a request").to_owned();
        let before = list.len();
        list.extend(words.map(|place| Allowed {
            reason: reason.clone(),
            request: request.clone(),
            place: place.to_owned(),
        }));
        assert!(list.len() > before, "no place: {line}");
    }
    list
}

/// Compares what was recorded with what we answer.
pub fn compare(theirs: &Answers, ours: &Answers, allowed: &[Allowed]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut used = BTreeSet::new();
    let (left, right) = (theirs.by_name(), ours.by_name());
    let names = left.keys().chain(right.keys()).collect::<BTreeSet<_>>();
    for name in names {
        let (Some(left), Some(right)) = (left.get(name), right.get(name)) else {
            verdict.unmatched.push((*name).to_owned());
            continue;
        };
        let all = differences(name, left, right);
        if all.is_empty() {
            verdict.same += 1;
            continue;
        }
        let before = verdict.unexpected.len();
        for difference in all {
            let fits = |one: &&Allowed| one.covers(&difference);
            let lines: Vec<usize> = (0..allowed.len())
                .filter(|at| fits(&&allowed[*at]))
                .collect();
            if lines.is_empty() {
                verdict.unexpected.push(difference);
            }
            used.extend(lines);
        }
        verdict.allowed += usize::from(verdict.unexpected.len() == before);
    }
    let idle = (0..allowed.len()).filter(|at| !used.contains(at));
    verdict.idle = idle
        .map(|at| format!("{}  {}", allowed[at].request, allowed[at].place))
        .collect();
    verdict
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.unexpected.is_empty() && self.idle.is_empty() && self.unmatched.is_empty()
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for one in &self.unexpected {
            writeln!(f, "  {}  {}", one.request, one.place)?;
            writeln!(f, "#   SPIRE {}\n#   ours  {}", one.theirs, one.ours)?;
        }
        for one in &self.idle {
            writeln!(f, "nothing differs any more: {one}")?;
        }
        for one in &self.unmatched {
            writeln!(f, "only one side has {one}: record anew")?;
        }
        let (same, allowed) = (self.same, self.allowed);
        let wrong = self.unexpected.len();
        write!(
            f,
            "{same} the same, {allowed} differ as allowed, {wrong} wrong places"
        )
    }
}

impl Allowed {
    fn covers(&self, difference: &Difference) -> bool {
        glob(&self.request, &difference.request) && glob(&self.place, &difference.place)
    }
}

/// Whether `text` fits `pattern`, in which `*` is any text.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.any(|at| glob(rest, &text[at..]))
        }),
    }
}

fn differences(request: &str, theirs: &Answer, ours: &Answer) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut note = |place: &str, theirs: String, ours: String| {
        if theirs != ours {
            found.push(Difference {
                request: request.to_owned(),
                place: place.to_owned(),
                theirs,
                ours,
            });
        }
    };
    note("code", theirs.code.clone(), ours.code.clone());
    let quoted = |text: &str| format!("{text:?}");
    note("message", quoted(&theirs.message), quoted(&ours.message));
    note(
        "details",
        shown(theirs.details.as_ref()),
        shown(ours.details.as_ref()),
    );
    let (left, right) = (&theirs.messages, &ours.messages);
    // A refusal without messages is told by its code.
    if theirs.code == ours.code {
        note("count", left.len().to_string(), right.len().to_string());
    }
    for (at, (left, right)) in left.iter().zip(right).enumerate() {
        let start = if at == 0 {
            String::new()
        } else {
            format!("#{at}.")
        };
        walk(&start, Some(left), Some(right), &mut note);
    }
    found
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}

fn walk(
    place: &str,
    theirs: Option<&Value>,
    ours: Option<&Value>,
    note: &mut impl FnMut(&str, String, String),
) {
    let inside = |name: &str| format!("{place}{name}.");
    match (theirs, ours) {
        (Some(Value::Object(left)), Some(Value::Object(right))) => {
            let names = left.keys().chain(right.keys()).collect::<BTreeSet<_>>();
            for name in names {
                walk(&inside(name), left.get(name), right.get(name), note);
            }
        }
        (Some(Value::Array(left)), Some(Value::Array(right))) if left.len() == right.len() => {
            for (at, (left, right)) in left.iter().zip(right).enumerate() {
                walk(&inside(&at.to_string()), Some(left), Some(right), note);
            }
        }
        _ => note(place.trim_end_matches('.'), shown(theirs), shown(ours)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answers(message: Value) -> Answers {
        let answer = Answer {
            code: "Ok".to_owned(),
            messages: vec![message],
            ..Answer::default()
        };
        Answers {
            server: String::new(),
            list: vec![("s.r".to_owned(), answer)],
        }
    }

    fn places(verdict: &Verdict) -> Vec<&str> {
        let places = verdict.unexpected.iter();
        places.map(|one| one.place.as_str()).collect()
    }

    #[test]
    fn presence_length_and_value_are_differences_of_a_place() {
        let theirs = answers(json!({"a": {}, "b": [{"c": 1}], "d": [1]}));
        let ours = answers(json!({"b": [{"c": 2}], "d": []}));
        let verdict = compare(&theirs, &ours, &[]);
        assert_eq!(places(&verdict), ["a", "b.0.c", "d"]);
    }

    #[test]
    fn the_list_must_be_exact() {
        let (theirs, ours) = (
            answers(json!({"a": 1, "b": 1})),
            answers(json!({"a": 2, "b": 1})),
        );
        let list = allowed("# comment\nwe count\nfrom two\n  s.*  a\n\nold\n  s.r  b\n");
        assert_eq!(list[0].reason, "we count from two");
        let verdict = compare(&theirs, &ours, &list);
        assert!(verdict.unexpected.is_empty());
        assert_eq!(verdict.idle, ["s.r  b"]);
        assert!(!verdict.is_good());
        assert!(compare(&theirs, &ours, &list[..1]).is_good());
    }

    #[test]
    fn a_request_of_one_side_only_is_wrong() {
        let verdict = compare(&answers(json!({})), &Answers::default(), &[]);
        assert_eq!(verdict.unmatched, ["s.r"]);
    }

    #[test]
    fn a_star_is_any_text() {
        assert!(glob("a.*.c*", "a.b.b.c") && glob("*", "") && glob("a", "a"));
        assert!(!glob("a.*.c", "a.c") && !glob("a", "ab"));
    }
}
