//! Paths of resources, put together from names that came from outside.

use std::fmt::{self, Write as _};

/// A path below a server's root. What is given to it is escaped, so that no name can lead
/// somewhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The path of these segments, in order. A segment that is empty, `.` or `..` stays one
    /// segment that names nothing.
    #[must_use]
    pub fn of(segments: &[&str]) -> Self {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            match *segment {
                "" => path.push_str("%00"),
                "." => path.push_str("%2E%00"),
                ".." => path.push_str("%2E%2E%00"),
                other => escape(&mut path, other),
            }
        }
        Self(path)
    }

    /// The same with parameters.
    #[must_use]
    pub fn with(self, parameters: &[(&str, &str)]) -> Self {
        let mut path = self.0;
        let mut sign = if path.contains('?') { '&' } else { '?' };
        for (name, value) in parameters {
            path.push(sign);
            escape(&mut path, name);
            path.push('=');
            escape(&mut path, value);
            sign = '&';
        }
        Self(path)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            // Writing to a String does not fail.
            other => {
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
}
