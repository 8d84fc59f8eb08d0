//! The Watch stream to the server: idle, waiting, connecting, open.
//!
//! A state machine that the owner of the cache polls; every step may be dropped between two
//! polls without loss. A stream that is silent for [`SILENCE`] is given up (the server sends a
//! heartbeat each 10 s).

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use vane_wire::status::{Reason, denial_reason};
use vane_wire::vane::sync::v1::sync_client::SyncClient;
use vane_wire::vane::sync::v1::watch_request::Request;
use vane_wire::vane::sync::v1::{Hello, WatchRequest, WatchResponse};

/// So long a stream may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// So many requests may wait to be sent; an agent that has more to say than the server reads
/// gives the stream up.
const QUEUE: usize = 256;

type Opening = Pin<Box<dyn Future<Output = Result<Session, Status>> + Send>>;

/// The stream.
pub enum Link {
    /// The agent has no SVID of its own to open it with.
    Idle,
    /// Until it is time to try again.
    Waiting(Instant),
    /// Being opened.
    Opening(Opening),
    /// Open.
    Open(Box<Session>),
}

/// An open stream.
pub struct Session {
    /// For other calls to the same server.
    pub channel: Channel,
    requests: mpsc::Sender<WatchRequest>,
    messages: Streaming<WatchResponse>,
    heard: Instant,
}

/// What happened.
pub enum Event {
    /// It is time to try.
    Time,
    /// The stream is open.
    Opened,
    /// The server said something.
    Message(WatchResponse),
    /// The stream could not be opened, or ended.
    Ended(End),
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The server denies this agent, for this reason.
    pub denied: Option<Reason>,
    /// The server ended it in good order.
    pub in_order: bool,
    /// gRPC's name for it, for the log.
    pub code: String,
    /// The server's words, or ours.
    pub message: String,
}

/// The stream is given up: there is too much that the server did not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server does not read what this agent sends")]
pub struct Unread;

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self {
            denied: denial_reason(&status),
            in_order: status.code() == Code::Ok,
            code: format!("{:?}", status.code()),
            message: status.message().to_owned(),
        }
    }
}

impl Link {
    /// Opens a stream that begins with `hello`.
    #[must_use]
    pub fn open(channel: Channel, hello: Hello) -> Self {
        Self::Opening(Box::pin(Session::open(channel, hello)))
    }

    /// Waits for `delay`.
    #[must_use]
    pub fn wait(delay: Duration) -> Self {
        Self::Waiting(Instant::now() + delay)
    }

    /// The open stream's channel.
    #[must_use]
    pub fn channel(&self) -> Option<&Channel> {
        match self {
            Self::Open(session) => Some(&session.channel),
            _ => None,
        }
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> Event {
        match self {
            Self::Idle => std::future::pending().await,
            Self::Waiting(until) => {
                tokio::time::sleep_until(*until).await;
                Event::Time
            }
            Self::Opening(opening) => match opening.await {
                Ok(session) => {
                    *self = Self::Open(Box::new(session));
                    Event::Opened
                }
                Err(status) => Event::Ended(status.into()),
            },
            Self::Open(session) => session.next().await,
        }
    }

    /// Sends requests; whether the stream takes them.
    ///
    /// # Errors
    /// [`Unread`].
    pub fn send(&mut self, requests: Vec<Request>) -> Result<(), Unread> {
        let Self::Open(session) = self else {
            return Ok(());
        };
        for request in requests {
            let request = WatchRequest {
                request: Some(request),
            };
            session.requests.try_send(request).map_err(|_| Unread)?;
        }
        Ok(())
    }
}

impl Session {
    async fn open(channel: Channel, hello: Hello) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let first = WatchRequest {
            request: Some(Request::Hello(hello)),
        };
        requests
            .try_send(first)
            .map_err(|_| Status::internal("the queue is new"))?;
        let mut client = SyncClient::new(channel.clone());
        let call = client.watch(ReceiverStream::new(receiver));
        let messages = tokio::time::timeout(SILENCE, call)
            .await
            .map_err(|_| Status::deadline_exceeded("the server did not open the stream in time"))??
            .into_inner();
        Ok(Self {
            channel,
            requests,
            messages,
            heard: Instant::now(),
        })
    }

    async fn next(&mut self) -> Event {
        match tokio::time::timeout_at(self.heard + SILENCE, self.messages.message()).await {
            Ok(Ok(Some(message))) => {
                self.heard = Instant::now();
                Event::Message(message)
            }
            Ok(Ok(None)) => Event::Ended(Status::ok("the server ended the stream").into()),
            Ok(Err(status)) => Event::Ended(status.into()),
            Err(_) => {
                Event::Ended(Status::deadline_exceeded("the server was silent for 30 s").into())
            }
        }
    }
}
