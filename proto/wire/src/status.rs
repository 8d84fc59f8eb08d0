//! How a refusal leaves the process: as the status of a call or of one item of a batch.
//!
//! One rule, SPIRE's: the message is `what was tried: why it failed`, except NOT_FOUND, which
//! never says why. One table says which code an error of this crate has. A PERMISSION_DENIED
//! of an agent carries its reason in the details: it decides whether the agent attests again
//! or drops what it has, so it is written and read here only.

use std::fmt;

use prost::Message as _;
use prost_types::Any;
use tonic::Code;

use crate::convert::agent::AgentRefusal;
use crate::convert::bundle::{BundleRefusal, KeyRefusal};
use crate::convert::entry::EntryRefusal;
use crate::convert::id::IdRefusal;
use crate::convert::selector::SetRefusal;
use crate::convert::svid::SvidRefusal;
use crate::generated::google::rpc;
use crate::generated::spire::api::types::{self, PermissionDeniedDetails};
use crate::record::RecordError;

pub use crate::generated::spire::api::types::permission_denied_details::Reason;

/// An error with a gRPC status code of its own.
pub trait Coded: fmt::Display {
    /// The code.
    fn code(&self) -> Code;
}

/// The table: what outsiders sent wrong is INVALID_ARGUMENT, what is wrong here is INTERNAL.
macro_rules! codes {
    ($($error:ty => $code:ident),+ $(,)?) => {
        $(impl Coded for $error {
            fn code(&self) -> Code {
                Code::$code
            }
        })+
    };
}

codes! {
    IdRefusal => InvalidArgument,
    SetRefusal => InvalidArgument,
    EntryRefusal => InvalidArgument,
    BundleRefusal => InvalidArgument,
    KeyRefusal => InvalidArgument,
    AgentRefusal => InvalidArgument,
    SvidRefusal => InvalidArgument,
    RecordError => Internal,
}

/// A request, or one item of it, that is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    code: Code,
    message: String,
    reason: Option<Reason>,
}

impl Refusal {
    /// A refusal that says `message`.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            reason: None,
        }
    }

    /// A refusal that says `tried: why`; for NOT_FOUND only `tried`.
    #[must_use]
    pub fn because(code: Code, tried: &str, why: impl fmt::Display) -> Self {
        if code == Code::NotFound {
            return Self::new(code, tried);
        }
        Self::new(code, format!("{tried}: {why}"))
    }

    /// A refusal with the code of `error`, by the same rule.
    #[must_use]
    pub fn of(tried: &str, error: &impl Coded) -> Self {
        Self::because(error.code(), tried, error)
    }

    /// PERMISSION_DENIED with the reason that an agent acts on.
    #[must_use]
    pub fn denied(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason: Some(reason),
            ..Self::new(Code::PermissionDenied, message)
        }
    }

    /// Its code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// Its message.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Its reason, when it has one.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// As the status of one item of a batch; a reason is not shown there.
    #[must_use]
    pub fn item(self) -> types::Status {
        types::Status {
            code: self.code.into(),
            message: self.message,
        }
    }
}

/// The status of an item that was served.
#[must_use]
pub fn ok() -> types::Status {
    types::Status {
        code: Code::Ok.into(),
        message: "OK".to_owned(),
    }
}

impl From<Refusal> for types::Status {
    fn from(refusal: Refusal) -> Self {
        refusal.item()
    }
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        let Some(reason) = refusal.reason else {
            return Self::new(refusal.code, refusal.message);
        };
        let details = details(refusal.code, &refusal.message, reason);
        Self::with_details(refusal.code, refusal.message, details.into())
    }
}

fn details(code: Code, message: &str, reason: Reason) -> Vec<u8> {
    let reason = PermissionDeniedDetails {
        reason: reason.into(),
    };
    rpc::Status {
        code: code.into(),
        message: message.to_owned(),
        details: Any::from_msg(&reason).into_iter().collect(),
    }
    .encode_to_vec()
}

/// Why a server denied an agent, when the status says so. Anything else, and a reason unknown
/// here, is `None`: it decides nothing.
#[must_use]
pub fn denial_reason(status: &tonic::Status) -> Option<Reason> {
    if status.code() != Code::PermissionDenied {
        return None;
    }
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let reason = details
        .iter()
        .find_map(|any| any.to_msg::<PermissionDeniedDetails>().ok())?;
    Reason::try_from(reason.reason).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASONS: [Reason; 6] = [
        Reason::Unknown,
        Reason::AgentExpired,
        Reason::AgentNotAttested,
        Reason::AgentNotActive,
        Reason::AgentBanned,
        Reason::AgentMustReattest,
    ];

    #[test]
    fn the_message_says_why_except_when_nothing_was_found() {
        let shown = |code| {
            Refusal::because(code, "entry not found", "no row")
                .item()
                .message
        };
        assert_eq!(shown(Code::Internal), "entry not found: no row");
        assert_eq!(shown(Code::NotFound), "entry not found");
    }

    #[test]
    fn a_conversion_error_is_an_invalid_argument_with_spires_text() {
        let refusal = Refusal::of("invalid agent ID", &IdRefusal::Missing);
        let status = tonic::Status::from(refusal.clone());
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.message(),
            "invalid agent ID: request must specify SPIFFE ID"
        );
        assert_eq!(refusal.item().code, 3);
    }

    #[test]
    fn an_item_that_was_served_says_ok() {
        assert_eq!((ok().code, ok().message.as_str()), (0, "OK"));
    }

    #[test]
    fn each_reason_of_a_denial_comes_back() {
        for reason in REASONS {
            let status = tonic::Status::from(Refusal::denied(reason, "agent is banned"));
            assert_eq!(status.code(), Code::PermissionDenied);
            assert_eq!(denial_reason(&status), Some(reason));
        }
    }

    #[test]
    fn details_are_a_status_with_the_type_url_that_others_know() {
        let status = tonic::Status::from(Refusal::denied(Reason::AgentBanned, "no"));
        let inner = rpc::Status::decode(status.details()).unwrap();
        assert_eq!((inner.code, inner.message.as_str()), (7, "no"));
        assert_eq!(
            inner.details[0].type_url,
            "type.googleapis.com/spire.api.types.PermissionDeniedDetails"
        );
        assert_eq!(inner.details[0].value, [8, 4]);
    }

    #[test]
    fn what_is_no_denial_has_no_reason() {
        let denied = tonic::Status::permission_denied("no");
        let other_code = tonic::Status::with_details(
            Code::Unavailable,
            "x",
            details(Code::Unavailable, "x", Reason::AgentBanned).into(),
        );
        let garbage = |bytes: &'static [u8]| {
            tonic::Status::with_details(Code::PermissionDenied, "x", bytes.into())
        };
        let unknown = PermissionDeniedDetails { reason: 99 };
        let unknown = rpc::Status {
            details: vec![Any::from_msg(&unknown).unwrap()],
            ..Default::default()
        };
        let unknown = tonic::Status::with_details(
            Code::PermissionDenied,
            "x",
            unknown.encode_to_vec().into(),
        );
        for status in [denied, other_code, garbage(&[0xff]), garbage(&[]), unknown] {
            assert_eq!(denial_reason(&status), None);
        }
    }
}
