//! Who may call which method: one table, deny by default.
//!
//! Invariant: what is not in [`METHODS`] is never reached; a test walks the descriptors of the
//! wire so that no method is missing. Who a caller *is* gets decided in `api` (it needs the
//! registry); here is only what that allows. Roles are SPIRE's (SPIRE.md 1.7).

use std::fmt;
use std::ops::BitOr;
use std::sync::Arc;

use vane_chassis::mtls::{Peer, PeerSvid};
use vane_identity::id::SpiffeId;

/// The roles that may call a method.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Allowed(u8);

/// Everybody, without a certificate too.
pub const ANY: Allowed = Allowed(1);
/// Whoever can open the admin socket.
pub const LOCAL: Allowed = Allowed(2);
/// An ID of `admin_ids`, or one with an entry that says `admin`.
pub const ADMIN: Allowed = Allowed(4);
/// An attested agent with its current certificate.
pub const AGENT: Allowed = Allowed(8);
/// An ID with an entry that says `downstream`.
pub const DOWNSTREAM: Allowed = Allowed(16);

const OPERATOR: Allowed = Allowed(LOCAL.0 | ADMIN.0);

/// Every method of the server's services, sorted, with who may call it.
pub const METHODS: &[(&str, Allowed)] = &[
    ("/grpc.health.v1.Health/Check", LOCAL),
    ("/grpc.health.v1.Health/List", LOCAL),
    ("/grpc.health.v1.Health/Watch", LOCAL),
    ("/spire.api.server.agent.v1.Agent/AttestAgent", ANY),
    ("/spire.api.server.agent.v1.Agent/BanAgent", OPERATOR),
    ("/spire.api.server.agent.v1.Agent/CountAgents", OPERATOR),
    ("/spire.api.server.agent.v1.Agent/CreateJoinToken", OPERATOR),
    ("/spire.api.server.agent.v1.Agent/DeleteAgent", OPERATOR),
    ("/spire.api.server.agent.v1.Agent/GetAgent", OPERATOR),
    ("/spire.api.server.agent.v1.Agent/ListAgents", OPERATOR),
    ("/spire.api.server.agent.v1.Agent/PostStatus", AGENT),
    ("/spire.api.server.agent.v1.Agent/RenewAgent", AGENT),
    ("/spire.api.server.bundle.v1.Bundle/AppendBundle", OPERATOR),
    (
        "/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle",
        OPERATOR,
    ),
    (
        "/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle",
        OPERATOR,
    ),
    (
        "/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle",
        OPERATOR,
    ),
    (
        "/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle",
        OPERATOR,
    ),
    ("/spire.api.server.bundle.v1.Bundle/CountBundles", OPERATOR),
    ("/spire.api.server.bundle.v1.Bundle/GetBundle", ANY),
    (
        "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle",
        Allowed(OPERATOR.0 | AGENT.0),
    ),
    (
        "/spire.api.server.bundle.v1.Bundle/ListFederatedBundles",
        OPERATOR,
    ),
    (
        "/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority",
        DOWNSTREAM,
    ),
    (
        "/spire.api.server.bundle.v1.Bundle/PublishWITAuthority",
        DOWNSTREAM,
    ),
    ("/spire.api.server.debug.v1.Debug/GetInfo", LOCAL),
    (
        "/spire.api.server.entry.v1.Entry/BatchCreateEntry",
        OPERATOR,
    ),
    (
        "/spire.api.server.entry.v1.Entry/BatchDeleteEntry",
        OPERATOR,
    ),
    (
        "/spire.api.server.entry.v1.Entry/BatchUpdateEntry",
        OPERATOR,
    ),
    ("/spire.api.server.entry.v1.Entry/CountEntries", OPERATOR),
    (
        "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries",
        AGENT,
    ),
    ("/spire.api.server.entry.v1.Entry/GetEntry", OPERATOR),
    ("/spire.api.server.entry.v1.Entry/ListEntries", OPERATOR),
    (
        "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries",
        AGENT,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority",
        OPERATOR,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority",
        OPERATOR,
    ),
    ("/spire.api.server.logger.v1.Logger/GetLogger", LOCAL),
    ("/spire.api.server.logger.v1.Logger/ResetLogLevel", LOCAL),
    ("/spire.api.server.logger.v1.Logger/SetLogLevel", LOCAL),
    ("/spire.api.server.svid.v1.SVID/BatchNewWITSVID", AGENT),
    ("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", AGENT),
    ("/spire.api.server.svid.v1.SVID/MintJWTSVID", OPERATOR),
    ("/spire.api.server.svid.v1.SVID/MintWITSVID", OPERATOR),
    ("/spire.api.server.svid.v1.SVID/MintX509SVID", OPERATOR),
    (
        "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA",
        DOWNSTREAM,
    ),
    ("/spire.api.server.svid.v1.SVID/NewJWTSVID", AGENT),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship",
        OPERATOR,
    ),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship",
        OPERATOR,
    ),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship",
        OPERATOR,
    ),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship",
        OPERATOR,
    ),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships",
        OPERATOR,
    ),
    (
        "/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle",
        OPERATOR,
    ),
    ("/vane.status.v1.Status/GetStatus", LOCAL),
    ("/vane.sync.v1.Sync/Watch", AGENT),
];

/// A method of [`METHODS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// Who may call it.
    pub allowed: Allowed,
}

impl Method {
    /// The method at `path`; None is a method that nobody may call.
    #[must_use]
    pub fn find(path: &str) -> Option<Self> {
        let at = METHODS.binary_search_by(|row| row.0.cmp(path)).ok()?;
        METHODS
            .get(at)
            .map(|&(path, allowed)| Self { path, allowed })
    }

    /// Where the method at `path` stands in [`METHODS`].
    #[must_use]
    pub fn index(path: &str) -> Option<usize> {
        METHODS.binary_search_by(|row| row.0.cmp(path)).ok()
    }

    /// Its service, without slashes.
    #[must_use]
    pub fn service(self) -> &'static str {
        split(self.path).map_or("", |(service, _)| service)
    }
}

/// Service and method of a path, if it has the form of one.
#[must_use]
pub fn split(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.rsplit_once('/')
}

/// Whether there is a method of `service`.
#[must_use]
pub fn is_service(service: &str) -> bool {
    METHODS
        .iter()
        .any(|(path, _)| split(path).is_some_and(|(known, _)| known == service))
}

impl Allowed {
    /// Whether it names a role of `roles`.
    #[must_use]
    pub const fn has(self, roles: Self) -> bool {
        self.0 & roles.0 != 0
    }

    /// Whether it names no other role than those of `roles`.
    #[must_use]
    pub const fn only(self, roles: Self) -> bool {
        self.0 & !roles.0 == 0
    }
}

impl BitOr for Allowed {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (ANY, "any"),
            (LOCAL, "local"),
            (ADMIN, "admin"),
            (AGENT, "agent"),
            (DOWNSTREAM, "downstream"),
        ];
        let held = names.iter().filter(|(role, _)| self.has(*role));
        f.debug_set().entries(held.map(|(_, name)| name)).finish()
    }
}

/// Who makes a call; in the request's extensions of every method that is reached.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Over which transport, with what credentials.
    pub transport: Transport,
    /// The agent it is, when the method is one for agents.
    pub agent: Option<AgentIdentity>,
    /// Whether it is an administrator by its ID.
    pub admin: bool,
    /// Whether it may ask for an intermediate CA.
    pub downstream: bool,
}

/// An attested agent, confirmed for this call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentIdentity {
    /// Its ID.
    pub id: SpiffeId,
    /// The serial number of its certificate, decimal.
    pub serial: Arc<str>,
}

/// Over what a call came.
#[derive(Debug, Clone)]
pub enum Transport {
    /// The admin socket: the file's permissions are the control.
    Local {
        /// User of the process that connected.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its process ID, when the kernel says it.
        pid: Option<i32>,
    },
    /// TLS, with the certificate that the handshake verified, if there was one.
    Tls(Peer),
}

impl Caller {
    /// A caller of whom nothing is known but the transport.
    #[must_use]
    pub fn new(transport: Transport) -> Self {
        Self {
            transport,
            agent: None,
            admin: false,
            downstream: false,
        }
    }

    /// Whether it came through the admin socket.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.transport, Transport::Local { .. })
    }

    /// Its X.509-SVID, when it showed one.
    #[must_use]
    pub fn svid(&self) -> Option<&Arc<PeerSvid>> {
        match &self.transport {
            Transport::Local { .. } => None,
            Transport::Tls(peer) => peer.svid.as_ref(),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Local { uid, pid, .. } => match pid {
                Some(pid) => write!(f, "uid:{uid} pid:{pid}"),
                None => write!(f, "uid:{uid}"),
            },
            Transport::Tls(peer) => match &peer.svid {
                Some(svid) => f.write_str(svid.spiffe_id.as_str()),
                None => write!(f, "{}", peer.address),
            },
        }
    }
}

/// Why a call is denied. Those about agents make an agent drop what it has, so they are
/// answered only after a read of the store confirmed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Denial {
    /// None of the method's roles is held.
    NotAllowed,
    /// The agent's certificate has ended.
    AgentExpired,
    /// The agent has no record.
    AgentNotAttested,
    /// The agent's certificate is not its current one.
    AgentNotActive,
    /// The agent is banned.
    AgentBanned,
}

impl Denial {
    /// A word for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::AgentExpired => "agent_expired",
            Self::AgentNotAttested => "agent_not_attested",
            Self::AgentNotActive => "agent_not_active",
            Self::AgentBanned => "agent_banned",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use vane_identity::x509_svid::Certificate;

    use super::*;

    #[test]
    fn the_table_is_sorted_and_names_nothing_twice() {
        assert!(METHODS.is_sorted_by(|a, b| a.0 < b.0));
    }

    /// Walks the descriptors of everything that travels.
    #[test]
    fn every_method_of_every_server_service_is_in_the_table() {
        let mut seen = 0;
        for service in vane_wire::descriptor_pool().services() {
            let name = service.full_name().to_owned();
            if !(name.starts_with("spire.api.server.") || name.starts_with("vane.")) {
                assert!(
                    !is_service(&name) || name.starts_with("grpc.health."),
                    "{name}"
                );
                continue;
            }
            for method in service.methods() {
                let path = format!("/{name}/{}", method.name());
                assert!(Method::find(&path).is_some(), "{path} is missing");
                seen += 1;
            }
        }
        let health = 3;
        assert_eq!(
            seen + health,
            METHODS.len(),
            "the table has methods that do not exist"
        );
    }

    #[test]
    fn what_is_not_in_the_table_is_not_found() {
        for path in [
            "",
            "/",
            "/spire.api.server.agent.v1.Agent",
            "/x/y",
            "x/y",
            "//",
        ] {
            assert_eq!(Method::find(path), None, "{path}");
        }
    }

    #[test]
    fn only_two_methods_are_open_to_everybody() {
        let open: Vec<_> = METHODS.iter().filter(|(_, who)| who.has(ANY)).collect();
        assert_eq!(open.len(), 2, "{open:?}");
    }

    #[test]
    fn a_caller_is_named_by_what_is_proven() {
        let local = Transport::Local {
            uid: 1000,
            gid: 1000,
            pid: Some(7),
        };
        assert_eq!(Caller::new(local).to_string(), "uid:1000 pid:7");
        let address = "192.0.2.1:7".parse().unwrap();
        let nobody = Peer {
            address,
            svid: None,
        };
        assert_eq!(
            Caller::new(Transport::Tls(nobody)).to_string(),
            "192.0.2.1:7"
        );
        let svid = PeerSvid {
            spiffe_id: SpiffeId::parse("spiffe://example.org/a").unwrap(),
            serial: "7".to_owned(),
            not_after: SystemTime::UNIX_EPOCH,
            leaf: Certificate::from_der(&[]),
            intermediates: Vec::new(),
        };
        let known = Peer {
            address,
            svid: Some(Arc::new(svid)),
        };
        let known = Caller::new(Transport::Tls(known));
        assert_eq!(known.to_string(), "spiffe://example.org/a");
    }
}
