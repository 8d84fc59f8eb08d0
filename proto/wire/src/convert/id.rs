//! SPIFFE IDs, in the four roles in which a request names one.

use vane_identity::id::{IdError, SpiffeId, TrustDomain};

use crate::generated::spire::api::types;

/// Why a message names no SPIFFE ID, or one that is not allowed in its place. SPIRE's texts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdRefusal {
    /// The field is not set.
    #[error("request must specify SPIFFE ID")]
    Missing,
    /// It is no SPIFFE ID.
    #[error(transparent)]
    Malformed(#[from] IdError),
    /// It lies in another trust domain.
    #[error("\"{0}\" is not a member of trust domain \"{1}\"")]
    Foreign(SpiffeId, TrustDomain),
    /// It names the trust domain itself.
    #[error("\"{0}\" is not {2} in trust domain \"{1}\"; path is empty")]
    NoPath(SpiffeId, TrustDomain, Role),
    /// It names the trust domain itself where any member is wanted.
    #[error("\"{0}\" is not a member of trust domain \"{1}\"; path is empty")]
    MemberWithoutPath(SpiffeId, TrustDomain),
    /// A workload's ID lies in `/spire`.
    #[error("\"{0}\" is not a workload in trust domain \"{1}\"; path is in the reserved namespace")]
    Reserved(SpiffeId, TrustDomain),
    /// An agent's ID does not lie in `/spire/agent/`.
    #[error("\"{0}\" is not an agent in trust domain \"{1}\"; path is not in the agent namespace")]
    NotAgent(SpiffeId, TrustDomain),
}

/// What an ID was to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An agent.
    Agent,
    /// A workload.
    Workload,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Agent => "an agent",
            Self::Workload => "a workload",
        })
    }
}

impl From<&SpiffeId> for types::Spiffeid {
    fn from(id: &SpiffeId) -> Self {
        Self {
            trust_domain: id.trust_domain_name().to_owned(),
            path: id.path().to_owned(),
        }
    }
}

impl TryFrom<&types::Spiffeid> for SpiffeId {
    type Error = IdError;

    fn try_from(wire: &types::Spiffeid) -> Result<Self, IdError> {
        TrustDomain::parse(&wire.trust_domain)?.with_path(&wire.path)
    }
}

/// Any SPIFFE ID.
///
/// # Errors
/// [`IdRefusal::Missing`], [`IdRefusal::Malformed`].
pub fn any(wire: Option<&types::Spiffeid>) -> Result<SpiffeId, IdRefusal> {
    let id = SpiffeId::try_from(wire.ok_or(IdRefusal::Missing)?)?;
    Ok(id)
}

/// The ID of somebody in `own`: not the trust domain itself.
///
/// # Errors
/// As [`any`], and [`IdRefusal::Foreign`], [`IdRefusal::MemberWithoutPath`].
pub fn member(own: &TrustDomain, wire: Option<&types::Spiffeid>) -> Result<SpiffeId, IdRefusal> {
    let id = local(own, wire)?;
    if id.path().is_empty() {
        return Err(IdRefusal::MemberWithoutPath(id, own.clone()));
    }
    Ok(id)
}

/// The ID of an agent of `own`: below `/spire/agent/`.
///
/// # Errors
/// As [`any`], and [`IdRefusal::Foreign`], [`IdRefusal::NoPath`], [`IdRefusal::NotAgent`].
pub fn agent(own: &TrustDomain, wire: Option<&types::Spiffeid>) -> Result<SpiffeId, IdRefusal> {
    let id = local(own, wire)?;
    if id.path().is_empty() {
        return Err(IdRefusal::NoPath(id, own.clone(), Role::Agent));
    }
    if !id.is_agent() {
        return Err(IdRefusal::NotAgent(id, own.clone()));
    }
    Ok(id)
}

/// The ID of a workload of `own`: not in `/spire`.
///
/// # Errors
/// As [`any`], and [`IdRefusal::Foreign`], [`IdRefusal::NoPath`], [`IdRefusal::Reserved`].
pub fn workload(own: &TrustDomain, wire: Option<&types::Spiffeid>) -> Result<SpiffeId, IdRefusal> {
    let id = local(own, wire)?;
    if id.path().is_empty() {
        return Err(IdRefusal::NoPath(id, own.clone(), Role::Workload));
    }
    if id.is_reserved() {
        return Err(IdRefusal::Reserved(id, own.clone()));
    }
    Ok(id)
}

fn local(own: &TrustDomain, wire: Option<&types::Spiffeid>) -> Result<SpiffeId, IdRefusal> {
    let id = any(wire)?;
    if !id.is_member_of(own) {
        return Err(IdRefusal::Foreign(id, own.clone()));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn wire(trust_domain: &str, path: &str) -> types::Spiffeid {
        types::Spiffeid {
            trust_domain: trust_domain.into(),
            path: path.into(),
        }
    }

    type Read = fn(&TrustDomain, Option<&types::Spiffeid>) -> Result<SpiffeId, IdRefusal>;

    #[test]
    fn each_role_accepts_and_refuses_in_spires_words() {
        const FOREIGN: &str =
            r#""spiffe://other.org/a" is not a member of trust domain "example.org""#;
        let table: [(Read, &str, &str, Result<&str, &str>); 12] = [
            (
                member,
                "example.org",
                "/a/b",
                Ok("spiffe://example.org/a/b"),
            ),
            (
                member,
                "example.org",
                "/spire/server",
                Ok("spiffe://example.org/spire/server"),
            ),
            (member, "other.org", "/a", Err(FOREIGN)),
            (
                member,
                "example.org",
                "",
                Err(
                    r#""spiffe://example.org" is not a member of trust domain "example.org"; path is empty"#,
                ),
            ),
            (
                agent,
                "example.org",
                "/spire/agent/x/y",
                Ok("spiffe://example.org/spire/agent/x/y"),
            ),
            (agent, "other.org", "/a", Err(FOREIGN)),
            (
                agent,
                "example.org",
                "",
                Err(
                    r#""spiffe://example.org" is not an agent in trust domain "example.org"; path is empty"#,
                ),
            ),
            (
                agent,
                "example.org",
                "/a",
                Err(
                    r#""spiffe://example.org/a" is not an agent in trust domain "example.org"; path is not in the agent namespace"#,
                ),
            ),
            (workload, "example.org", "/a", Ok("spiffe://example.org/a")),
            (workload, "other.org", "/a", Err(FOREIGN)),
            (
                workload,
                "example.org",
                "",
                Err(
                    r#""spiffe://example.org" is not a workload in trust domain "example.org"; path is empty"#,
                ),
            ),
            (
                workload,
                "example.org",
                "/spire/x",
                Err(
                    r#""spiffe://example.org/spire/x" is not a workload in trust domain "example.org"; path is in the reserved namespace"#,
                ),
            ),
        ];
        for (read, trust_domain, path, expected) in table {
            let got = read(&own(), Some(&wire(trust_domain, path)));
            let got = got
                .map(|id| id.to_string())
                .map_err(|error| error.to_string());
            assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned));
        }
    }

    #[test]
    fn a_missing_or_malformed_id_is_refused_with_its_reason() {
        assert_eq!(
            any(None).unwrap_err().to_string(),
            "request must specify SPIFFE ID"
        );
        let table = [
            ("", "/a", "trust domain is missing"),
            (
                "Example.org",
                "/a",
                "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
            ),
            (
                "spiffe://example.org",
                "/a",
                "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores",
            ),
            ("example.org", "a", "path must have a leading slash"),
            ("example.org", "/", "path cannot have a trailing slash"),
            ("example.org", "//a", "path cannot contain empty segments"),
            ("example.org", "/a/..", "path cannot contain dot segments"),
            (
                "example.org",
                "/a%41",
                "path segment characters are limited to letters, numbers, dots, dashes, and underscores",
            ),
        ];
        for (trust_domain, path, text) in table {
            let refused = any(Some(&wire(trust_domain, path))).unwrap_err();
            assert_eq!(refused.to_string(), text, "{trust_domain} {path}");
        }
    }

    #[test]
    fn the_id_of_a_trust_domain_has_an_empty_path_on_the_wire() {
        assert_eq!(types::Spiffeid::from(&own().id()), wire("example.org", ""));
        assert_eq!(
            SpiffeId::try_from(&wire("example.org", "")).unwrap(),
            own().id()
        );
    }
}
