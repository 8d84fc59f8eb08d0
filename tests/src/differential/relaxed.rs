//! JSON as the table has it: keys need no quotes, and three abbreviations.
//!
//! `"@/a"` and `"@other.org/a"` are SPIFFE IDs (`{trust_domain, path}`; without a name the
//! trust domain is that of the server), `"%type:value"` is a selector.

use serde_json::{Value, json};

use crate::world::TRUST_DOMAIN;

/// Reads relaxed JSON.
pub fn parse(text: &str) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::from_str(&quote_keys(text))?;
    expand(&mut value);
    Ok(value)
}

/// Puts quotes around bare keys: letters before a colon, outside of strings.
fn quote_keys(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let (mut word, mut in_string, mut escaped) = (String::new(), false, false);
    for c in text.chars() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        if c.is_ascii_alphanumeric() || "_-.+".contains(c) {
            word.push(c);
            continue;
        }
        if c == ':' && !word.is_empty() {
            out.push_str(&format!("{word:?}"));
        } else {
            out.push_str(&word);
        }
        word.clear();
        out.push(c);
        in_string = c == '"';
    }
    out + &word
}

fn expand(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(expand),
        Value::Object(fields) => fields.values_mut().for_each(expand),
        Value::String(text) => {
            if let Some(expanded) = abbreviation(text) {
                *value = expanded;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn abbreviation(text: &str) -> Option<Value> {
    if let Some(id) = text.strip_prefix('@') {
        let (name, path) = id.find('/').map_or((id, ""), |at| id.split_at(at));
        let name = if name.is_empty() { TRUST_DOMAIN } else { name };
        return Some(json!({"trust_domain": name, "path": path}));
    }
    let (kind, value) = text.strip_prefix('%')?.split_once(':')?;
    Some(json!({"type": kind, "value": value}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_need_no_quotes_and_strings_stay() {
        let text = r#"{a_b:[{c:"d:e {f:1}",g:true}],"h":"\"i:"}"#;
        let expected = json!({"a_b": [{"c": "d:e {f:1}", "g": true}], "h": "\"i:"});
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn ids_and_selectors_are_written_short() {
        let expected = json!([
            {"trust_domain": "example.org", "path": "/a"},
            {"trust_domain": "other.org", "path": ""},
            {"type": "unix", "value": "uid:1"},
        ]);
        let got = parse(r#"["@/a","@other.org","%unix:uid:1"]"#);
        assert_eq!(got.unwrap(), expected);
    }
}
