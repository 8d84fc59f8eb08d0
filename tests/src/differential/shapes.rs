//! Certificates and tokens, taken apart so that their shape can be compared.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};
use x509_parser::x509::SubjectPublicKeyInfo;

/// The certificate, when `der` is one: all of it but serial, keys, signature and times.
pub fn certificate(der: &[u8]) -> Option<Value> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    if !rest.is_empty() || certificate.version() != X509Version::V3 {
        return None;
    }
    let validity = certificate.validity();
    let lifetime = validity.not_after.timestamp() - validity.not_before.timestamp();
    let mut extensions = Map::new();
    for extension in certificate.extensions() {
        let critical = if extension.critical { " critical" } else { "" };
        let (name, shown) = extension_shape(extension.parsed_extension());
        let name = name.unwrap_or_else(|| extension.oid.to_id_string());
        extensions.insert(format!("{name}{critical}"), shown);
    }
    Some(json!({
        "subject": subject(&certificate),
        "lifetime": in_words(lifetime),
        "algorithm": certificate.signature_algorithm.algorithm.to_id_string(),
        "extensions": extensions,
    }))
}

/// Exactly, unless it may have been cut by that of a CA.
fn in_words(seconds: i64) -> String {
    if seconds < 7_200 {
        return format!("{seconds} s");
    }
    format!("{} min", (seconds as f64 / 60.0).round())
}

/// Without the serial number, which a CA has in its name.
fn subject(certificate: &X509Certificate<'_>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for attribute in certificate.subject().iter_attributes() {
        let oid = attribute.attr_type().to_id_string();
        let name = match oid.as_str() {
            "2.5.4.3" => "CN",
            "2.5.4.5" => "serialNumber",
            "2.5.4.6" => "C",
            "2.5.4.10" => "O",
            "2.5.4.45" => "x500UniqueIdentifier",
            other => other,
        };
        let value = attribute.as_str().unwrap_or("?");
        let value = if name == "serialNumber" || name == "x500UniqueIdentifier" {
            "…"
        } else {
            value
        };
        parts.push(format!("{name}={value}"));
    }
    parts.join(",")
}

fn extension_shape(extension: &ParsedExtension<'_>) -> (Option<String>, Value) {
    let known = |name: &str, value: Value| (Some(name.to_owned()), value);
    match extension {
        ParsedExtension::SubjectAlternativeName(names) => {
            let names = names.general_names.iter().map(ToString::to_string);
            known("subjectAltName", names.collect())
        }
        ParsedExtension::BasicConstraints(constraints) => {
            let path = constraints.path_len_constraint;
            known(
                "basicConstraints",
                json!({"ca": constraints.ca, "path": path}),
            )
        }
        ParsedExtension::KeyUsage(usage) => known("keyUsage", usage.to_string().into()),
        ParsedExtension::ExtendedKeyUsage(usage) => {
            let shown = [
                (usage.any, "any"),
                (usage.server_auth, "serverAuth"),
                (usage.client_auth, "clientAuth"),
            ];
            let shown = shown.iter().filter(|(set, _)| *set).map(|(_, name)| *name);
            known("extKeyUsage", shown.collect())
        }
        ParsedExtension::SubjectKeyIdentifier(id) => {
            known("subjectKeyIdentifier", id.0.len().into())
        }
        ParsedExtension::AuthorityKeyIdentifier(id) => {
            let length = id.key_identifier.as_ref().map(|id| id.0.len());
            known("authorityKeyIdentifier", length.into())
        }
        _ => (None, Value::Null),
    }
}

/// Whether `der` is a public key.
pub fn is_public_key(der: &[u8]) -> bool {
    SubjectPublicKeyInfo::from_der(der).is_ok_and(|(rest, _)| rest.is_empty())
}

/// Header and claims, when `text` is a signed token.
pub fn token(text: &str) -> Option<(Value, Value)> {
    let mut parts = text.split('.');
    let (header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let read = |part: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
        serde_json::from_slice::<Value>(&bytes).ok()
    };
    let (header, claims) = (read(header)?, read(claims)?);
    (parts.next().is_none() && header.is_object()).then_some((header, claims))
}
