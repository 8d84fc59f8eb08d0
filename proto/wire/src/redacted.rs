//! `Debug` of the messages that hold keys or bearer tokens, without them, and their
//! erasure on drop.
//!
//! Lengths are shown, contents never. Messages that hold a private key are zeroized when
//! dropped (so their fields cannot be moved out: use `mem::take`); tokens, which are passed
//! on as text, are only kept out of `Debug`.

use std::fmt;

use zeroize::Zeroize;

use crate::generated::spire::api::agent::delegatedidentity::v1::X509svidWithKey;
use crate::generated::spire::api::server::agent::v1::CreateJoinTokenRequest;
use crate::generated::spire::api::types::{AttestationData, JoinToken, Jwtsvid, Witsvid};
use crate::generated::vane::agent;
use crate::generated::workload;

/// Stands for a secret of so many bytes.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes hidden]", self.0)
    }
}

/// Writes `Debug` for a message: fields shown, then fields hidden.
macro_rules! debug_without {
    ($type:ty, $name:literal, show $($shown:ident)*, hide $($hidden:ident)+) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($name)
                    $(.field(stringify!($shown), &self.$shown))*
                    $(.field(stringify!($hidden), &Hidden(self.$hidden.len())))+
                    .finish()
            }
        }
    };
}

debug_without!(workload::X509svid, "X509svid",
    show spiffe_id x509_svid hint, hide x509_svid_key);
debug_without!(workload::Witsvid, "Witsvid",
    show spiffe_id hint, hide wit_svid wit_svid_key);
debug_without!(workload::Jwtsvid, "Jwtsvid",
    show spiffe_id hint, hide svid);
debug_without!(workload::ValidateJwtsvidRequest, "ValidateJwtsvidRequest",
    show audience, hide svid);
debug_without!(X509svidWithKey, "X509svidWithKey",
    show x509_svid, hide x509_svid_key);
debug_without!(AttestationData, "AttestationData",
    show r#type, hide payload);
debug_without!(JoinToken, "JoinToken",
    show expires_at, hide value);
debug_without!(Jwtsvid, "Jwtsvid",
    show id expires_at issued_at hint, hide token);
debug_without!(Witsvid, "Witsvid",
    show id expires_at issued_at hint, hide token);
debug_without!(CreateJoinTokenRequest, "CreateJoinTokenRequest",
    show ttl agent_id, hide token);
debug_without!(agent::v1::X509Svid, "X509Svid",
    show entry_id not_after renew_at, hide chain key);
debug_without!(agent::v1::JwtSvid, "JwtSvid",
    show entry_id audience expires_at, hide token);

impl Drop for agent::v1::X509Svid {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Drop for agent::v1::JwtSvid {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl Drop for workload::X509svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

impl Drop for workload::Witsvid {
    fn drop(&mut self) {
        self.wit_svid_key.zeroize();
    }
}

impl Drop for X509svidWithKey {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generated::spire::api::server::agent::v1::{
        AttestAgentRequest, attest_agent_request,
    };

    const SECRET: &str = "hush-hush";

    fn assert_hidden(message: &dyn fmt::Debug) {
        let text = format!("{message:?}");
        let bytes = format!("{:?}", SECRET.as_bytes());
        let bytes = bytes.trim_matches(['[', ']']);
        assert!(!text.contains(SECRET) && !text.contains(bytes), "{text}");
        assert!(text.contains("[9 bytes hidden]"), "{text}");
    }

    #[test]
    fn keys_are_not_in_debug() {
        let key = SECRET.as_bytes().to_vec();
        assert_hidden(&workload::X509svidResponse {
            svids: vec![workload::X509svid {
                spiffe_id: "spiffe://example.org/web".into(),
                x509_svid: vec![1].into(),
                x509_svid_key: key.clone(),
                bundle: vec![2].into(),
                hint: String::new(),
            }],
            ..Default::default()
        });
        assert_hidden(&X509svidWithKey {
            x509_svid: None,
            x509_svid_key: key,
        });
        let (id, hint) = (String::new(), String::new());
        assert_hidden(&workload::Witsvid {
            spiffe_id: id,
            wit_svid: SECRET.into(),
            wit_svid_key: SECRET.into(),
            hint,
        });
    }

    #[test]
    fn tokens_are_not_in_debug() {
        let token = || SECRET.to_owned();
        assert_hidden(&workload::Jwtsvid {
            svid: token(),
            ..Default::default()
        });
        let audience = String::new();
        assert_hidden(&workload::ValidateJwtsvidRequest {
            audience,
            svid: token(),
        });
        assert_hidden(&JoinToken {
            value: token(),
            expires_at: 1,
        });
        assert_hidden(&Jwtsvid {
            token: token(),
            ..Default::default()
        });
        assert_hidden(&Witsvid {
            token: token(),
            ..Default::default()
        });
        assert_hidden(&CreateJoinTokenRequest {
            token: token(),
            ..Default::default()
        });
    }

    #[test]
    fn what_attests_a_node_is_not_in_debug_of_the_request() {
        let data = AttestationData {
            r#type: "join_token".into(),
            payload: SECRET.into(),
        };
        let params = attest_agent_request::Params {
            data: Some(data),
            params: None,
        };
        assert_hidden(&AttestAgentRequest {
            step: Some(attest_agent_request::Step::Params(params)),
        });
    }
}
