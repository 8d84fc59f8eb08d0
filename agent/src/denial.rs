//! What the server's denial of this agent means, and the way out of it.
//!
//! The reason is the server's (`PermissionDeniedDetails` of the agent API); the way out depends on how the
//! node proved itself: a join token is consumed by its first use, other evidence stays good.
//! Decides nothing: who is denied ends, or attests anew, by the reason alone.

use vane_identity::id::SpiffeId;
use vane_wire::status::Reason;

/// Why the server denies this agent.
#[derive(Debug, thiserror::Error)]
#[error("the server denies this agent: {}: {message}", meaning(*.reason, *.way_back))]
pub struct Denial {
    /// The reason.
    pub reason: Reason,
    /// The server's words.
    pub message: String,
    /// How the node could get another SVID.
    pub way_back: WayBack,
}

/// How a node gets another SVID after a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WayBack {
    /// An operator lays out a join token that was not used.
    FreshToken,
    /// The agent shows the node's own evidence again when it starts.
    NextStart,
}

impl WayBack {
    /// Of an agent that attests by this method.
    #[must_use]
    pub fn of_method(name: &str) -> Self {
        match name {
            "join_token" => Self::FreshToken,
            _ => Self::NextStart,
        }
    }

    /// Of an agent with this ID, which names its method: `/spire/agent/<method>/…`.
    #[must_use]
    pub fn of_agent(id: &SpiffeId) -> Self {
        Self::of_method(id.path().split('/').nth(3).unwrap_or_default())
    }

    /// What it attests with.
    #[must_use]
    pub fn evidence(self) -> &'static str {
        match self {
            Self::FreshToken => "a join token, which has to be a fresh one",
            Self::NextStart => "the node's own evidence",
        }
    }

    /// What is to be done, for the end of a sentence about an SVID that is over.
    #[must_use]
    pub fn step(self) -> &'static str {
        match self {
            Self::FreshToken => "let it attest anew with a fresh join token",
            Self::NextStart => "it attests anew by itself when it starts again",
        }
    }
}

fn meaning(reason: Reason, way_back: WayBack) -> String {
    let step = way_back.step();
    match reason {
        Reason::AgentBanned => {
            format!("it is banned until `vane agent evict` lifts that; then {step}")
        }
        Reason::AgentNotAttested => format!("it is not known (evicted?); {step}"),
        Reason::AgentExpired => format!("its SVID has expired; {step}"),
        Reason::AgentNotActive => {
            format!("a newer SVID of it is in use (by a copy of its data_dir?); {step}")
        }
        Reason::AgentMustReattest => "it has to attest anew".to_owned(),
        Reason::Unknown => "no reason is given".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(reason: Reason, id: &str) -> String {
        let denial = Denial {
            reason,
            message: "PermissionDenied".to_owned(),
            way_back: WayBack::of_agent(&SpiffeId::parse(id).unwrap()),
        };
        denial.to_string()
    }

    #[test]
    fn only_who_came_by_a_join_token_is_told_of_one() {
        let all = [
            Reason::AgentBanned,
            Reason::AgentNotAttested,
            Reason::AgentExpired,
            Reason::AgentNotActive,
        ];
        for reason in all {
            let by_token = text(reason, "spiffe://example.org/spire/agent/join_token/1a2b");
            assert!(by_token.contains("a fresh join token"), "{by_token}");
            for method in ["k8s_psat/demo/uid", "x509pop/1a2b"] {
                let other = text(
                    reason,
                    &format!("spiffe://example.org/spire/agent/{method}"),
                );
                assert!(!other.contains("join token"), "{other}");
                assert!(other.contains("attests anew by itself"), "{other}");
            }
        }
        assert!(
            text(
                Reason::AgentBanned,
                "spiffe://example.org/spire/agent/x509pop/1"
            )
            .contains("vane agent evict")
        );
    }
}
