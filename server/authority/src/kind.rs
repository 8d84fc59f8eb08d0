//! The two kinds of authorities. They go the same way by the same schedule; a kind only names
//! its keys here, its limits in `profile`, its signing in `issue`, and its place in the bundle
//! in `authority`.

use vane_wire::record::{AuthorityKind, AuthorityRecord, AuthorityState};

/// What an authority signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// X.509-SVIDs, with a self-signed CA.
    X509,
    /// JWT-SVIDs, with a key.
    Jwt,
}

impl Kind {
    /// All that there are; X.509 first, since without it nobody can connect.
    pub const ALL: [Self; 2] = [Self::X509, Self::Jwt];

    /// The kind of a record.
    #[must_use]
    pub fn of(record: &AuthorityRecord) -> Self {
        match record.kind {
            AuthorityKind::X509 { .. } => Self::X509,
            AuthorityKind::Jwt { .. } => Self::Jwt,
        }
    }

    /// Its name in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
        }
    }

    /// The names of its two keys in the key manager, SPIRE's.
    fn key_refs(self) -> [&'static str; 2] {
        match self {
            Self::X509 => ["x509-CA-A", "x509-CA-B"],
            Self::Jwt => ["JWT-Signer-A", "JWT-Signer-B"],
        }
    }

    /// The name that the active one of `records` does not use; a prepared one is replaced.
    pub(crate) fn free_key_ref(self, records: &[AuthorityRecord]) -> &'static str {
        let [a, b] = self.key_refs();
        let mut active = records
            .iter()
            .filter(|record| record.state == AuthorityState::Active);
        if active.any(|record| record.key_ref == a) {
            b
        } else {
            a
        }
    }
}
