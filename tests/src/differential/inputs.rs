//! What a request needs of this run: keys, certificate requests, times, earlier answers.
//!
//! A string of the table that begins with `$` stands for
//!
//! ```text
//! $csr(KEY uri=spiffe://… dns=a.b cn=X)     a certificate request, signed by KEY
//! $badcsr(KEY …)                            the same with a wrong signature
//! $pkix(KEY)  $rsa                          a public key
//! $ca(NAME)                                 a CA certificate, the same one whenever it is named
//! $now+3600  $date+3600                     Unix seconds; the time of ListAgents' filter
//! $long(N)                                  N times the letter a
//! $step.field.0.field                       what an earlier answer of the section had there
//! ```

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnType, IsCa, KeyUsagePurpose, SanType};
use serde_json::Value;
use vane_chassis::clock::{Clock as _, System};
use vane_identity::lifetime::to_unix;

use crate::remote::Key;

/// What requests were given so far.
#[derive(Default)]
pub struct Inputs {
    keys: HashMap<String, Key>,
    authorities: HashMap<String, Vec<u8>>,
    /// The answers of this section, as the servers gave them.
    answers: HashMap<String, Value>,
    /// Names of the bytes that were made here.
    pub names: HashMap<Vec<u8>, String>,
}

/// The clock of this machine, which the servers share.
pub fn now() -> i64 {
    to_unix(System.now())
}

impl Inputs {
    /// Forgets the answers: a section refers to its own only.
    pub fn new_section(&mut self) {
        self.answers.clear();
    }

    /// Keeps an answer for what refers to it.
    pub fn keep(&mut self, step: &str, answer: Value) {
        self.answers.insert(step.to_owned(), answer);
    }

    /// A key; born when it is first named.
    pub fn key(&mut self, name: &str) -> &Key {
        let keys = &mut self.keys;
        keys.entry(name.to_owned()).or_insert_with(Key::generate)
    }

    /// Replaces what stands for something else.
    ///
    /// # Errors
    /// A reference to something that is not in its answer.
    pub fn fill(&mut self, value: &mut Value) -> Result<(), String> {
        match value {
            Value::Array(items) => items.iter_mut().try_for_each(|one| self.fill(one)),
            Value::Object(fields) => fields.values_mut().try_for_each(|one| self.fill(one)),
            Value::String(text) => {
                if let Some(what) = text.strip_prefix('$') {
                    *value = self.value(what)?;
                }
                Ok(())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }

    fn value(&mut self, what: &str) -> Result<Value, String> {
        if let Some((function, arguments)) = what.split_once('(') {
            let arguments = arguments.trim_end_matches(')');
            return Ok(self.made(function, arguments));
        }
        if let Some(offset) = what.strip_prefix("now") {
            return Ok(Value::String((now() + seconds(offset)).to_string()));
        }
        if let Some(offset) = what.strip_prefix("date") {
            return Ok(Value::String(date(now() + seconds(offset))));
        }
        if what == "rsa" {
            return Ok(Value::String(RSA.to_owned()));
        }
        self.refer(what)
    }

    /// The value at a path `step.field.index…` of the answers.
    ///
    /// # Errors
    /// There is none.
    pub fn refer(&self, path: &str) -> Result<Value, String> {
        let missing = || format!("there is no ${path}");
        let mut parts = path.split('.');
        let step = parts.next().ok_or_else(missing)?;
        let mut value = self.answers.get(step).ok_or_else(missing)?;
        for part in parts {
            let inner = match part.parse::<usize>() {
                Ok(index) => value.get(index),
                Err(_) => value.get(part),
            };
            value = inner.ok_or_else(missing)?;
        }
        Ok(value.clone())
    }

    fn made(&mut self, function: &str, arguments: &str) -> Value {
        let (first, rest) = arguments.split_once(' ').unwrap_or((arguments, ""));
        let der = match function {
            "csr" => self.csr(first, rest),
            "badcsr" => {
                let mut der = self.csr(first, rest);
                // Inside the last integer of the signature.
                let at = der.len() - 5;
                der[at] ^= 1;
                der
            }
            "pkix" => {
                let der = self.key(first).public();
                self.names.insert(der.clone(), format!("key {first}"));
                der
            }
            "ca" => self.authority(first),
            "long" => return Value::String("a".repeat(first.parse().unwrap())),
            _ => panic!("no such function: {function}"),
        };
        Value::String(STANDARD.encode(der))
    }

    fn csr(&mut self, key: &str, names: &str) -> Vec<u8> {
        let names: Vec<(&str, &str)> = names
            .split_whitespace()
            .map(|word| word.split_once('=').expect("kind=name"))
            .collect();
        self.key(key).request(|params| {
            for (kind, name) in names {
                match kind {
                    "uri" => params.subject_alt_names.push(SanType::URI(text(name))),
                    "dns" => params.subject_alt_names.push(SanType::DnsName(text(name))),
                    "cn" => params.distinguished_name.push(DnType::CommonName, name),
                    _ => panic!("no such name: {kind}"),
                }
            }
        })
    }

    fn authority(&mut self, name: &str) -> Vec<u8> {
        if let Some(der) = self.authorities.get(name) {
            return der.clone();
        }
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let uri = SanType::URI(text("spiffe://other.org"));
        params.subject_alt_names.push(uri);
        let pair = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&pair).unwrap().der().to_vec();
        self.names.insert(der.clone(), format!("ca {name}"));
        self.authorities.insert(name.to_owned(), der.clone());
        der
    }
}

fn text(name: &str) -> rcgen::string::Ia5String {
    name.try_into().unwrap()
}

fn seconds(offset: &str) -> i64 {
    if offset.is_empty() {
        return 0;
    }
    offset.parse().expect("an offset in seconds")
}

/// `2006-01-02 15:04:05 -0700 -07` in UTC.
fn date(unix: i64) -> String {
    let time = x509_parser::time::ASN1Time::from_timestamp(unix).unwrap();
    let time = time.to_datetime();
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    let month = u8::from(month);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 +00")
}

/// The public half of an RSA key of 2,048 bits that nobody has.
const RSA: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAtBo09iQHduQEwzqLiplsqfLNDPwfzDlXz8GVhZ/HFXh/YBxZysghp3N5cV7PMyBc5xSdmrQRG3n1pWyjoZmEbThOhZ13Lwn/cfop+XuDYUzLRMIc6DThQvAclfkq3/PjLMp/hOIfDYr4Rdu4eSn0uZ69QuLfrFcLot6mKFDHePKKKJnlehQznvaadxoYoC7dCNAOHFIUnt47HbyTd3QFT8LTEwDDRO5gdO2LHOeR4n05sgqW+GF0W8TWUsL+B/07vqcIIKyP9hvJvI4DVUXKJISI+2Jtcv+N7BUgkCcMfFP6qBL6WEuSBh/uo8LIpli0fH4FJsM3PxEyzYHmySr7XwIDAQAB";
