//! Agent path templates: the part of Go's text/template that SPIRE's `agent_path_template`
//! needs (SPIRE.md 1.4, "Agent path templates").
//!
//! Text, `{{ .Field }}`, `{{ .Map.key }}`, pipes, and functions on strings. What a template
//! names is checked when it is read, so that a mistake is one of the configuration and not of
//! an attestation. A field that is not there is an error, never an empty text.

use aws_lc_rs::digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// The most bytes of a template.
const MAX_BYTES: usize = 4_096;
/// The most bytes of what it makes.
const MAX_RENDERED: usize = 2_048;

/// Functions: name, how many arguments stand before the text they work on.
const FUNCTIONS: &[(&str, usize)] = &[
    ("lower", 0),
    ("upper", 0),
    ("trim", 0),
    ("nospace", 0),
    ("sha1sum", 0),
    ("sha256sum", 0),
    ("trimPrefix", 1),
    ("trimSuffix", 1),
    ("trimAll", 1),
    ("trunc", 1),
    ("default", 1),
    ("replace", 2),
];

/// A template that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Vec<Command>),
}

/// One step of a pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Command {
    Operand(Operand),
    Call(&'static str, Vec<Operand>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operand {
    Field(String),
    Literal(String),
}

/// What is wrong with a template, or with what it is applied to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// It is longer than 4 KiB.
    #[error("the template has {0} bytes, {MAX_BYTES} are allowed")]
    TooLong(usize),
    /// A `{{` has no `}}`, or a quoted text no end.
    #[error("\"{0}\" is not closed")]
    Open(String),
    /// Something between the braces is not understood.
    #[error(
        "\"{0}\" is not understood: fields (.Name), quoted texts, numbers and pipes may stand between {{{{ and }}}}"
    )]
    Syntax(String),
    /// The method has no such field.
    #[error("there is no field .{field}, known are {known}")]
    Field {
        /// The field.
        field: String,
        /// What there is.
        known: String,
    },
    /// There is no such function, or not with so many arguments.
    #[error("\"{name}\" with {count} arguments is not known; functions are {known}")]
    Function {
        /// Its name.
        name: String,
        /// How many arguments it got.
        count: usize,
        /// What there is.
        known: String,
    },
    /// Its value is missing at this attestation.
    #[error("there is no value for .{0}")]
    NoValue(String),
    /// The result is too long for a SPIFFE ID.
    #[error("the path would have {0} bytes, {MAX_RENDERED} are allowed")]
    Rendered(usize),
}

impl Template {
    /// Reads a template that may name `fields`; one that ends in a dot stands for the keys of a
    /// map.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub(crate) fn parse(text: &str, fields: &[&str]) -> Result<Self, TemplateError> {
        if text.len() > MAX_BYTES {
            return Err(TemplateError::TooLong(text.len()));
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let open = || TemplateError::Open(format!("{{{{{after}"));
            let (inside, behind) = after.split_once("}}").ok_or_else(open)?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Value(pipe(inside, fields)?));
            rest = behind;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    /// The text with `value` of each field in its place.
    ///
    /// # Errors
    /// [`TemplateError::NoValue`], [`TemplateError::Rendered`].
    pub(crate) fn render(
        &self,
        value: impl Fn(&str) -> Option<String>,
    ) -> Result<String, TemplateError> {
        let mut rendered = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => rendered.push_str(text),
                Part::Value(commands) => rendered.push_str(&run(commands, &value)?),
            }
            if rendered.len() > MAX_RENDERED {
                return Err(TemplateError::Rendered(rendered.len()));
            }
        }
        Ok(rendered)
    }
}

fn pipe(text: &str, fields: &[&str]) -> Result<Vec<Command>, TemplateError> {
    let mut commands = Vec::new();
    let mut words = Vec::new();
    for word in words_of(text)? {
        if word == "|" {
            commands.push(command(
                &std::mem::take(&mut words),
                fields,
                commands.is_empty(),
            )?);
        } else {
            words.push(word);
        }
    }
    commands.push(command(&words, fields, commands.is_empty())?);
    Ok(commands)
}

fn words_of(text: &str) -> Result<Vec<String>, TemplateError> {
    let (mut words, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '|' => 1,
            '"' => {
                let inside = rest.get(1..).unwrap_or_default();
                let open = || TemplateError::Open(rest.to_owned());
                inside.find('"').ok_or_else(open)? + 2
            }
            _ => rest
                .find(|c: char| c.is_whitespace() || c == '|' || c == '"')
                .unwrap_or(rest.len()),
        };
        let (word, behind) = rest.split_at_checked(end).unwrap_or((rest, ""));
        words.push(word.to_owned());
        rest = behind.trim_start();
    }
    Ok(words)
}

fn command(words: &[String], fields: &[&str], is_first: bool) -> Result<Command, TemplateError> {
    let syntax = |words: &[String]| TemplateError::Syntax(words.join(" "));
    let Some((name, arguments)) = words.split_first() else {
        return Err(syntax(words));
    };
    if let Some(operand) = operand(name, fields)? {
        return match arguments.is_empty() && is_first {
            true => Ok(Command::Operand(operand)),
            false => Err(syntax(words)),
        };
    }
    // The text that a function works on comes through the pipe, or as its last argument.
    let count = arguments.len();
    let wanted = |before: &usize| *before + usize::from(is_first) == count;
    let found = FUNCTIONS
        .iter()
        .find(|(known, before)| known == name && wanted(before));
    let known = || {
        FUNCTIONS
            .iter()
            .map(|(name, _)| *name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let (function, _) = found.ok_or_else(|| TemplateError::Function {
        name: name.clone(),
        count,
        known: known(),
    })?;
    let read = |word: &String| operand(word, fields)?.ok_or_else(|| syntax(words));
    let arguments = arguments.iter().map(read).collect::<Result<_, _>>()?;
    Ok(Command::Call(function, arguments))
}

fn operand(word: &str, fields: &[&str]) -> Result<Option<Operand>, TemplateError> {
    if let Some(field) = word.strip_prefix('.') {
        let is_it = |known: &&str| {
            *known == field && !known.ends_with('.')
                || known.ends_with('.') && field.len() > known.len() && field.starts_with(*known)
        };
        if !fields.iter().any(is_it) {
            let known: Vec<_> = fields.iter().map(|name| format!(".{name}")).collect();
            return Err(TemplateError::Field {
                field: field.to_owned(),
                known: known.join(", "),
            });
        }
        return Ok(Some(Operand::Field(field.to_owned())));
    }
    if let Some(text) = word
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
    {
        return Ok(Some(Operand::Literal(text.to_owned())));
    }
    let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    Ok(is_number.then(|| Operand::Literal(word.to_owned())))
}

fn run(
    commands: &[Command],
    value: &impl Fn(&str) -> Option<String>,
) -> Result<String, TemplateError> {
    let read = |operand: &Operand| match operand {
        Operand::Literal(text) => Ok(text.clone()),
        Operand::Field(field) => value(field).ok_or_else(|| TemplateError::NoValue(field.clone())),
    };
    let mut piped = None;
    for command in commands {
        let result = match command {
            Command::Operand(operand) => read(operand)?,
            Command::Call(function, arguments) => {
                let mut texts: Vec<String> =
                    arguments.iter().map(read).collect::<Result<_, _>>()?;
                texts.extend(piped.take());
                apply(function, &texts)
            }
        };
        piped = Some(result);
    }
    Ok(piped.unwrap_or_default())
}

/// `arguments` ends with the text that the function works on.
fn apply(function: &str, arguments: &[String]) -> String {
    let Some((text, before)) = arguments.split_last() else {
        return String::new();
    };
    let first = before.first().map(String::as_str).unwrap_or_default();
    let second = before.get(1).map(String::as_str).unwrap_or_default();
    match function {
        "lower" => text.to_lowercase(),
        "upper" => text.to_uppercase(),
        "trim" => text.trim().to_owned(),
        "nospace" => text.chars().filter(|c| !c.is_whitespace()).collect(),
        "sha1sum" => hex(digest::digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref()),
        "sha256sum" => hex(digest::digest(&SHA256, text.as_bytes()).as_ref()),
        "trimPrefix" => text.strip_prefix(first).unwrap_or(text).to_owned(),
        "trimSuffix" => text.strip_suffix(first).unwrap_or(text).to_owned(),
        "trimAll" => text.trim_matches(|c| first.contains(c)).to_owned(),
        "trunc" => text
            .chars()
            .take(first.parse().unwrap_or(usize::MAX))
            .collect(),
        "default" if text.is_empty() => first.to_owned(),
        "replace" if !first.is_empty() => text.replace(first, second),
        _ => text.clone(),
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[&str] = &["PluginName", "Subject.CommonName", "URISanSelectors."];

    fn made(template: &str) -> Result<String, TemplateError> {
        let value = |field: &str| match field {
            "PluginName" => Some("x509pop".to_owned()),
            "Subject.CommonName" => Some(" Node One ".to_owned()),
            "URISanSelectors.rack" => Some("r1".to_owned()),
            _ => None,
        };
        Template::parse(template, FIELDS)?.render(value)
    }

    #[test]
    fn fields_pipes_and_functions_make_what_go_makes() {
        let table = [
            ("/{{ .PluginName }}/x", "/x509pop/x"),
            ("/{{.PluginName}}{{.PluginName}}", "/x509popx509pop"),
            (
                "/{{ .Subject.CommonName | trim | lower | replace \" \" \"-\" }}",
                "/node-one",
            ),
            ("/{{ upper .PluginName }}", "/X509POP"),
            ("/{{ trimPrefix \"x509\" .PluginName }}", "/pop"),
            ("/{{ .PluginName | trunc 4 }}", "/x509"),
            ("/{{ \"\" | default \"d\" }}", "/d"),
            ("/{{ .URISanSelectors.rack }}", "/r1"),
            (
                "/{{ \"a\" | sha1sum }}",
                "/86f7e437faa5a7fce15d1ddcb9eaeaea377667b8",
            ),
            ("/plain", "/plain"),
            (
                "/{{ nospace .Subject.CommonName | trimSuffix \"One\" }}",
                "/Node",
            ),
        ];
        for (template, path) in table {
            assert_eq!(made(template).as_deref(), Ok(path), "{template}");
        }
    }

    #[test]
    fn a_mistake_in_a_template_is_named_when_it_is_read() {
        let table = [
            ("{{ .PluginName", "is not closed"),
            (
                "{{ .Plugin }}",
                "there is no field .Plugin, known are .PluginName",
            ),
            ("{{ .URISanSelectors. }}", "there is no field"),
            (
                "{{ env \"HOME\" }}",
                "\"env\" with 1 arguments is not known",
            ),
            ("{{ lower }}", "\"lower\" with 0 arguments"),
            ("{{ .PluginName .PluginName }}", "is not understood"),
            ("{{ }}", "is not understood"),
            ("{{ .PluginName | }}", "is not understood"),
            ("{{ \"a }}", "is not closed"),
            ("{{- .PluginName }}", "is not known"),
        ];
        for (template, text) in table {
            let error = made(template).unwrap_err().to_string();
            assert!(error.contains(text), "{template}: {error}");
        }
    }

    #[test]
    fn a_value_that_is_missing_or_too_long_makes_no_path() {
        let missing = made("/{{ .URISanSelectors.row }}");
        assert_eq!(
            missing,
            Err(TemplateError::NoValue("URISanSelectors.row".to_owned()))
        );
        let template = Template::parse("/{{ .PluginName }}", FIELDS).unwrap();
        let long = template.render(|_| Some("a".repeat(3_000)));
        assert_eq!(long, Err(TemplateError::Rendered(3_001)));
        let template = "a".repeat(MAX_BYTES + 1);
        assert_eq!(
            Template::parse(&template, FIELDS),
            Err(TemplateError::TooLong(MAX_BYTES + 1))
        );
    }
}
