//! The methods of SPIRE's services that this version does not serve.
//!
//! They stand in the caller table like all others, so whoever may not call them is denied;
//! whoever may is told what is missing. The guard answers for them: services none of whose
//! methods is served need no code.

use tonic::Code;
use vane_wire::status::Refusal;

/// Beginnings of paths, with what is not there.
const UNSERVED: &[(&str, &str)] = &[
    (
        "/grpc.health.v1.Health/List",
        "listing the health of services",
    ),
    (
        "/spire.api.server.bundle.v1.Bundle/PublishWITAuthority",
        WIT,
    ),
    (
        "/spire.api.server.localauthority.v1.LocalAuthority/",
        "rotating authorities by hand",
    ),
    ("/spire.api.server.svid.v1.SVID/BatchNewWITSVID", WIT),
    ("/spire.api.server.svid.v1.SVID/MintWITSVID", WIT),
    ("/spire.api.server.trustdomain.v1.TrustDomain/", FEDERATION),
];

const FEDERATION: &str = "federation";
const WIT: &str = "WIT-SVIDs";

/// UNIMPLEMENTED, when `path` is a method that is known and not served.
#[must_use]
pub(super) fn find(path: &str) -> Option<Refusal> {
    let (_, what) = UNSERVED.iter().find(|(start, _)| path.starts_with(start))?;
    Some(refusal(what))
}

fn refusal(what: &str) -> Refusal {
    let text = format!("{what}: not served by this version of vane-server");
    Refusal::new(Code::Unimplemented, text)
}

/// For the methods of a generated trait whose service is served in part: never reached,
/// because the guard answers first.
macro_rules! unserved {
    ($($name:ident: $request:ty => $response:ty;)+) => {
        $(
            fn $name<'life, 'call>(
                &'life self,
                _: tonic::Request<$request>,
            ) -> std::pin::Pin<Box<
                dyn Future<Output = Result<tonic::Response<$response>, tonic::Status>>
                    + Send
                    + 'call,
            >>
            where
                'life: 'call,
                Self: 'call,
            {
                Box::pin(std::future::ready(Err(tonic::Status::unimplemented(
                    stringify!($name),
                ))))
            }
        )+
    };
}

pub(super) use unserved;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::METHODS;

    #[test]
    fn every_unserved_method_is_one_of_the_caller_table() {
        for (start, _) in UNSERVED {
            let known = METHODS.iter().any(|(path, _)| path.starts_with(start));
            assert!(known, "{start}");
        }
    }

    #[test]
    fn a_served_method_is_not_answered_here() {
        assert_eq!(find("/spire.api.server.agent.v1.Agent/AttestAgent"), None);
        assert_eq!(find("/spire.api.server.svid.v1.SVID/NewJWTSVID"), None);
        let refusal = find("/spire.api.server.svid.v1.SVID/MintWITSVID").unwrap();
        assert_eq!(refusal.code(), Code::Unimplemented);
        assert_eq!(
            refusal.message(),
            "WIT-SVIDs: not served by this version of vane-server"
        );
    }
}
