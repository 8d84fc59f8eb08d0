//! The Watch stream to the server: waiting, connecting, open.
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
use tonic::{Status, Streaming};
use vane_wire::vane::sync::v1::sync_client::SyncClient;
use vane_wire::vane::sync::v1::watch_request::Request;
use vane_wire::vane::sync::v1::{WatchRequest, WatchResponse};

/// So long a stream may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// So many requests may wait to be sent; an agent that has more to say than the server reads
/// gives the stream up.
const QUEUE: usize = 256;

type Opening = Pin<Box<dyn Future<Output = Result<Session, Status>> + Send>>;

/// The stream.
pub enum Link {
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
    Ended(Status),
}

impl Link {
    /// Opens a stream that begins with `hello`.
    #[must_use]
    pub fn open(channel: Channel, hello: Request) -> Self {
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
            Self::Waiting(until) => {
                tokio::time::sleep_until(*until).await;
                Event::Time
            }
            Self::Opening(opening) => match opening.await {
                Ok(session) => {
                    *self = Self::Open(Box::new(session));
                    Event::Opened
                }
                Err(status) => Event::Ended(status),
            },
            Self::Open(session) => session.next().await,
        }
    }

    /// Sends requests; whether the stream takes them.
    pub fn send(&mut self, requests: Vec<Request>) -> Result<(), Status> {
        let Self::Open(session) = self else {
            return Ok(());
        };
        for request in requests {
            let request = WatchRequest {
                request: Some(request),
            };
            session.requests.try_send(request).map_err(|_| {
                Status::unavailable("the server does not read what this agent sends")
            })?;
        }
        Ok(())
    }
}

impl Session {
    async fn open(channel: Channel, hello: Request) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let first = WatchRequest {
            request: Some(hello),
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
            Ok(Ok(None)) => Event::Ended(Status::ok("the server ended the stream")),
            Ok(Err(status)) => Event::Ended(status),
            Err(_) => Event::Ended(Status::deadline_exceeded("the server was silent for 30 s")),
        }
    }
}
