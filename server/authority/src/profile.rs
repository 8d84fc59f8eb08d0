//! What an SVID may contain and how long it may live: raw configuration -> checked.
//!
//! [`Profile::plan`] turns a request into a [`Plan`], every field that a leaf will have; the
//! builder writes the plan and the self-check compares the certificate with it. Who may ask
//! for it was decided before. SPIRE.md 1.2, X509-SVID.md section 5. Tokens: see `token`.

mod token;

use std::time::{Duration, SystemTime};

use vane_identity::entry::{EntryError, MAX_DNS_NAMES, check_dns_name};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::jwt_svid::{MAX_AUDIENCE_BYTES, MAX_AUDIENCES};
use vane_identity::key::{KeyType, PublicKey};
use vane_identity::lifetime::Validity;

use crate::kind::Kind;
use crate::subject::{Subject, SubjectConfig, SubjectError};

pub use token::{TokenPlan, WantedToken};

/// SPIRE's default lifetime of a CA.
pub const DEFAULT_CA_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// SPIRE's default lifetime of an X.509-SVID.
pub const DEFAULT_X509_SVID_TTL: Duration = Duration::from_secs(60 * 60);
/// SPIRE's default lifetime of a JWT-SVID.
pub const DEFAULT_JWT_SVID_TTL: Duration = Duration::from_secs(5 * 60);
/// No lifetime is longer than ten years, so that no date overflows.
pub const MAX_TTL: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);
/// The longest `iss` of a JWT-SVID.
pub const MAX_ISSUER_BYTES: usize = 1024;
/// A CA with less time left than this signs nothing (NAMES 13).
pub const MIN_CA_LEFT: Duration = Duration::from_secs(2);

/// What the configuration says about certificates.
#[derive(Debug, Clone)]
pub struct ProfileConfig {
    /// The trust domain of everything that is signed.
    pub trust_domain: TrustDomain,
    /// Lifetime of a CA (`ca_ttl`).
    pub ca_ttl: Duration,
    /// Kind of the CA's key (`ca_key_type`).
    pub ca_key_type: KeyType,
    /// Name of the CA (`ca_subject`); empty = `C=US,O=SPIFFE`.
    pub ca_subject: SubjectConfig,
    /// Lifetime of an X.509-SVID whose entry names none (`default_x509_svid_ttl`).
    pub default_x509_svid_ttl: Duration,
    /// Lifetime of an agent's SVID (`agent_ttl`); `None` = `default_x509_svid_ttl`.
    pub agent_ttl: Option<Duration>,
    /// Whether there are no JWT-SVIDs (`disable_jwt_svids`).
    pub disable_jwt_svids: bool,
    /// Kind of the keys that sign JWT-SVIDs (`jwt_key_type`); `None` = `ca_key_type`.
    pub jwt_key_type: Option<KeyType>,
    /// The `iss` of JWT-SVIDs (`jwt_issuer`); empty = none.
    pub jwt_issuer: String,
    /// Lifetime of a JWT-SVID whose entry names none (`default_jwt_svid_ttl`).
    pub default_jwt_svid_ttl: Duration,
}

/// Checked configuration.
#[derive(Debug, Clone)]
pub struct Profile {
    trust_domain: TrustDomain,
    ca_ttl: Duration,
    ca_key_type: KeyType,
    ca_subject: Subject,
    default_ttl: Duration,
    agent_ttl: Duration,
    /// None when there are no JWT-SVIDs.
    jwt_key_type: Option<KeyType>,
    jwt_issuer: Option<String>,
    default_jwt_ttl: Duration,
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// A lifetime is below a second or over [`MAX_TTL`].
    #[error("{key} must be between 1s and ten years, got {got:?}")]
    Ttl {
        /// The key of the configuration.
        key: &'static str,
        /// Its value.
        got: Duration,
    },
    /// The CA's name.
    #[error("ca_subject: {0}")]
    Subject(#[from] SubjectError),
    /// The issuer of tokens is so long that it would fill them.
    #[error("jwt_issuer has {0} bytes, {MAX_ISSUER_BYTES} are allowed")]
    Issuer(usize),
}

/// What an SVID is for; decides its name, its default lifetime and which IDs it may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SvidKind {
    /// A workload's, from its entry.
    Workload {
        /// DNS SANs; the first becomes the common name.
        dns_names: Vec<String>,
    },
    /// An agent's own.
    Agent,
    /// The server's own.
    Server,
    /// One that an administrator asked for with a CSR.
    Minted {
        /// The requested name; empty = as a workload's.
        subject: Subject,
        /// DNS SANs; the first becomes the common name.
        dns_names: Vec<String>,
    },
}

/// The most bytes of all audiences of one token: it still fits into a header of HTTP.
pub const MAX_AUDIENCES_BYTES: usize = 4 * 1024;

/// Which rule a request breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LintError {
    /// The ID is of another trust domain.
    #[error("\"{0}\" is not a member of trust domain \"{1}\"")]
    Foreign(SpiffeId, TrustDomain),
    /// The ID has no path (X509-SVID.md section 5.2).
    #[error("\"{0}\" has no path")]
    NoPath(SpiffeId),
    /// The ID is not one that this kind of SVID may have.
    #[error("\"{id}\" is not an ID for {kind}")]
    Kind {
        /// The ID.
        id: SpiffeId,
        /// The kind.
        kind: &'static str,
    },
    /// A DNS name cannot stand in a certificate, or there are too many.
    #[error(transparent)]
    Dns(#[from] EntryError),
    /// A token would be larger than readers take.
    #[error("the token would have {0} bytes without its signature, too many")]
    TooLarge(usize),
    /// A token is for nobody (JWT-SVID.md section 3.2).
    #[error("at least one audience is required")]
    NoAudience,
    /// There are too many audiences, or they are too long together or alone.
    #[error(
        "too large an audience: {count} of {bytes} bytes in all, allowed are {MAX_AUDIENCES} of {MAX_AUDIENCE_BYTES} each and {MAX_AUDIENCES_BYTES} in all"
    )]
    Audience {
        /// How many.
        count: usize,
        /// Their bytes together.
        bytes: usize,
    },
}

/// Every field of a leaf, except its serial and those of its issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The URI SAN.
    pub spiffe_id: SpiffeId,
    /// The DNS SANs.
    pub dns_names: Vec<String>,
    /// The name, common name included.
    pub subject: Subject,
    /// The key.
    pub public_key: PublicKey,
    /// When it is valid: from issue - 10 s, at most as long as its CA.
    pub validity: Validity,
}

/// What [`Profile::plan`] is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What for.
    pub kind: &'a SvidKind,
    /// For whom.
    pub spiffe_id: &'a SpiffeId,
    /// The key.
    pub public_key: &'a PublicKey,
    /// How long from now; zero = the default of the kind.
    pub ttl: Duration,
}

impl ProfileConfig {
    /// SPIRE's defaults.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            ca_ttl: DEFAULT_CA_TTL,
            ca_key_type: KeyType::default(),
            ca_subject: SubjectConfig::default(),
            default_x509_svid_ttl: DEFAULT_X509_SVID_TTL,
            agent_ttl: None,
            disable_jwt_svids: false,
            jwt_key_type: None,
            jwt_issuer: String::new(),
            default_jwt_svid_ttl: DEFAULT_JWT_SVID_TTL,
        }
    }
}

impl Profile {
    /// Checks a configuration.
    ///
    /// # Errors
    /// [`ProfileError`] with the key.
    pub fn new(config: &ProfileConfig) -> Result<Self, ProfileError> {
        let agent_ttl = config.agent_ttl.unwrap_or(config.default_x509_svid_ttl);
        check_ttl("ca_ttl", config.ca_ttl)?;
        check_ttl("default_x509_svid_ttl", config.default_x509_svid_ttl)?;
        check_ttl("agent_ttl", agent_ttl)?;
        check_ttl("default_jwt_svid_ttl", config.default_jwt_svid_ttl)?;
        if config.jwt_issuer.len() > MAX_ISSUER_BYTES {
            return Err(ProfileError::Issuer(config.jwt_issuer.len()));
        }
        let jwt_key_type = config.jwt_key_type.unwrap_or(config.ca_key_type);
        Ok(Self {
            trust_domain: config.trust_domain.clone(),
            ca_ttl: config.ca_ttl,
            ca_key_type: config.ca_key_type,
            ca_subject: Subject::ca(&config.ca_subject)?,
            default_ttl: config.default_x509_svid_ttl,
            agent_ttl,
            jwt_key_type: (!config.disable_jwt_svids).then_some(jwt_key_type),
            jwt_issuer: Some(config.jwt_issuer.clone()).filter(|issuer| !issuer.is_empty()),
            default_jwt_ttl: config.default_jwt_svid_ttl,
        })
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The lifetime of a CA.
    #[must_use]
    pub fn ca_ttl(&self) -> Duration {
        self.ca_ttl
    }

    /// Whether SVIDs of a kind are signed at all.
    #[must_use]
    pub fn signs(&self, kind: Kind) -> bool {
        kind == Kind::X509 || self.jwt_key_type.is_some()
    }

    /// The kind of the keys of authorities.
    #[must_use]
    pub fn key_type(&self, kind: Kind) -> KeyType {
        match kind {
            Kind::X509 => self.ca_key_type,
            Kind::Jwt => self.jwt_key_type.unwrap_or(self.ca_key_type),
        }
    }

    /// The name of a CA without its serial number.
    #[must_use]
    pub fn ca_subject(&self) -> &Subject {
        &self.ca_subject
    }

    /// The lifetimes that a CA may cut: those above a sixth of `ca_ttl` (SPIRE warns about
    /// them at start: an SVID made just before the activation of the next CA would outlive
    /// its own).
    #[must_use]
    pub fn too_long_ttls(&self) -> Vec<(&'static str, Duration)> {
        let limit = self.ca_ttl / 6;
        [
            ("default_x509_svid_ttl", self.default_ttl),
            ("agent_ttl", self.agent_ttl),
            ("default_jwt_svid_ttl", self.default_jwt_ttl),
        ]
        .into_iter()
        .filter(|(_, ttl)| *ttl > limit)
        .collect()
    }

    /// Decides every field of a leaf issued `now` by a CA that ends at `ca_not_after`.
    ///
    /// # Errors
    /// [`LintError`]: the request asks for what no certificate may contain.
    pub fn plan(
        &self,
        wanted: &Wanted<'_>,
        now: SystemTime,
        ca_not_after: SystemTime,
    ) -> Result<Plan, LintError> {
        self.lint(wanted.kind, wanted.spiffe_id)?;
        check_dns_names(wanted.kind.dns_names())?;
        let ttl = match wanted.ttl {
            Duration::ZERO => self.default_ttl(wanted.kind),
            ttl => ttl.min(MAX_TTL),
        };
        let dns_names = wanted.kind.dns_names();
        Ok(Plan {
            spiffe_id: wanted.spiffe_id.clone(),
            dns_names: dns_names.to_vec(),
            subject: subject(wanted.kind, dns_names.first()),
            public_key: wanted.public_key.clone(),
            validity: Validity::issued_at(now, ttl, ca_not_after),
        })
    }

    fn default_ttl(&self, kind: &SvidKind) -> Duration {
        match kind {
            SvidKind::Agent => self.agent_ttl,
            SvidKind::Workload { .. } | SvidKind::Server | SvidKind::Minted { .. } => {
                self.default_ttl
            }
        }
    }

    fn lint(&self, kind: &SvidKind, id: &SpiffeId) -> Result<(), LintError> {
        if !id.is_member_of(&self.trust_domain) {
            return Err(LintError::Foreign(id.clone(), self.trust_domain.clone()));
        }
        if id.path().is_empty() {
            return Err(LintError::NoPath(id.clone()));
        }
        if !kind.allows(id) {
            return Err(LintError::Kind {
                id: id.clone(),
                kind: kind.name(),
            });
        }
        Ok(())
    }
}

impl SvidKind {
    /// The DNS names of this kind.
    #[must_use]
    pub fn dns_names(&self) -> &[String] {
        match self {
            Self::Workload { dns_names } | Self::Minted { dns_names, .. } => dns_names,
            Self::Agent | Self::Server => &[],
        }
    }

    /// Its name in logs and errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Workload { .. } => "workload",
            Self::Agent => "agent",
            Self::Server => "server",
            Self::Minted { .. } => "minted",
        }
    }

    fn allows(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Workload { .. } | Self::Minted { .. } => !id.is_reserved(),
            Self::Agent => id.is_agent(),
            Self::Server => id.path() == "/spire/server",
        }
    }
}

fn check_ttl(key: &'static str, got: Duration) -> Result<(), ProfileError> {
    if got < Duration::from_secs(1) || got > MAX_TTL {
        return Err(ProfileError::Ttl { key, got });
    }
    Ok(())
}

fn check_dns_names(names: &[String]) -> Result<(), LintError> {
    if names.len() > MAX_DNS_NAMES {
        return Err(LintError::Dns(EntryError::TooMany {
            what: "DNS names",
            count: names.len(),
            max: MAX_DNS_NAMES,
        }));
    }
    for name in names {
        check_dns_name(name)?;
    }
    Ok(())
}

/// The name of a leaf: the first DNS name becomes the common name, also of a name that was
/// given (as in SPIRE).
fn subject(kind: &SvidKind, first_dns_name: Option<&String>) -> Subject {
    let base = match kind {
        SvidKind::Minted { subject, .. } if !subject.is_empty() => subject.clone(),
        _ => Subject::svid(),
    };
    match first_dns_name {
        Some(name) => base.with_common_name(name),
        None => base,
    }
}

#[cfg(test)]
mod tests;
