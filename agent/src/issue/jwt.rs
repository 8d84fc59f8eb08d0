//! One JWT-SVID of an entry, from the server. The token is read, not verified: it comes from
//! our own server over our own channel.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use vane_identity::entry::Entry;
use vane_identity::id::SpiffeId;
use vane_identity::jwt_svid::{JwtError, JwtSvid};
use vane_wire::spire::api::server::svid::v1::NewJwtsvidRequest;
use vane_wire::spire::api::server::svid::v1::svid_client::SvidClient;

/// So long the server may take for one token: less than callers wait, so that they can be told
/// what hindered it.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no JWT-SVID.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JwtIssueError {
    /// The server could not be asked, or could not answer now.
    #[error("the server cannot be asked: {0}")]
    Passing(String),
    /// The server refused.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The server refused what the caller wants: no other try helps.
    #[error("the server refused: {0}")]
    Invalid(String),
    /// The server does not make JWT-SVIDs.
    #[error("the server makes none: {0}")]
    NotOffered(String),
    /// What the server sent is no JWT-SVID.
    #[error("the server sent no JWT-SVID: {0}")]
    Malformed(#[from] JwtError),
    /// The server sent one of another ID.
    #[error("the server sent a JWT-SVID of {0}")]
    OtherId(SpiffeId),
    /// The server sent one for others than were asked for.
    #[error("the server sent a JWT-SVID for another audience")]
    OtherAudience,
}

impl JwtIssueError {
    /// Whether the same request may be answered in a moment.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Passing(_))
    }
}

impl From<Status> for JwtIssueError {
    fn from(status: Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Cancelled
            | Code::Aborted
            // What a broken connection looks like.
            | Code::Unknown
            | Code::Internal => Self::Passing(text),
            Code::InvalidArgument => Self::Invalid(text),
            Code::Unimplemented => Self::NotOffered(text),
            _ => Self::Refused(text),
        }
    }
}

/// Has a token of `entry` made for `audience`, which is sorted.
///
/// # Errors
/// [`JwtIssueError`].
pub async fn jwt_svid(
    channel: Channel,
    entry: &Entry,
    audience: &[String],
) -> Result<JwtSvid, JwtIssueError> {
    let mut request = Request::new(NewJwtsvidRequest {
        entry_id: entry.id.to_string(),
        audience: audience.to_vec(),
    });
    request.set_timeout(DEADLINE);
    let mut client = SvidClient::new(channel);
    let answer = tokio::time::timeout(DEADLINE, client.new_jwtsvid(request))
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer within 10 s")))?;
    let token = answer.into_inner().svid.unwrap_or_default().token;
    let svid = JwtSvid::parse(&token)?;
    if *svid.id() != entry.spiffe_id {
        return Err(JwtIssueError::OtherId(svid.id().clone()));
    }
    let mut told = svid.audience().to_vec();
    told.sort_unstable();
    if told != audience {
        return Err(JwtIssueError::OtherAudience);
    }
    Ok(svid)
}
