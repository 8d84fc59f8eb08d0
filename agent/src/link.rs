//! The way to the server: the Watch stream, idle, waiting, connecting, open; or, where the
//! server has none, rounds of asking (SPIRE's way).
//!
//! A state machine that the owner of the cache polls; every step may be dropped between two
//! polls without loss. A stream that is silent for [`SILENCE`] is given up (the server sends a
//! heartbeat each 10 s). Before each round the stream is tried again: it is one refused call,
//! and a server that was upgraded is found at once.

mod poll;

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

use crate::node::is_of_another_bundle;
use crate::registry::Round;

use poll::Held;

/// So long a stream may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// So many requests may wait to be sent; an agent that has more to say than the server reads
/// gives the stream up.
const QUEUE: usize = 256;

type Opening = Pin<Box<dyn Future<Output = Result<Session, Status>> + Send>>;
type Asking = Pin<Box<dyn Future<Output = Result<Round, Status>> + Send>>;

/// The way to the server.
pub struct Link {
    stage: Stage,
    /// For other calls; none until the server has answered on it.
    channel: Option<Channel>,
}

enum Stage {
    /// The agent has no SVID of its own to open a stream with.
    Idle,
    /// Until it is time to try again.
    Waiting(Instant),
    /// A stream is being opened.
    Opening(Opening, Channel),
    /// A stream is open.
    Open(Box<Session>),
    /// The server has no streams: it is being asked.
    Asking(Asking),
}

/// An open stream.
struct Session {
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
    /// The server has no streams: [`Link::ask`] it.
    NoStreams,
    /// What the server had when it was asked.
    Round(Round),
    /// The stream could not be opened, or ended; or the server could not be asked.
    Ended(End),
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The server denies this agent, for this reason.
    pub denied: Option<Reason>,
    /// The server ended it in good order.
    pub in_order: bool,
    /// This agent's bundle has not the authority of the server's certificate.
    pub untrusted: bool,
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
            untrusted: is_of_another_bundle(&status),
            code: format!("{:?}", status.code()),
            message: status.message().to_owned(),
        }
    }
}

impl Link {
    /// Does nothing.
    #[must_use]
    pub fn idle() -> Self {
        Self {
            stage: Stage::Idle,
            channel: None,
        }
    }

    /// Opens a stream that begins with `hello`.
    #[must_use]
    pub fn open(channel: Channel, hello: Hello) -> Self {
        Self {
            stage: Stage::opening(channel, hello),
            channel: None,
        }
    }

    /// Waits for `delay`.
    #[must_use]
    pub fn wait(delay: Duration) -> Self {
        Self {
            stage: Stage::Waiting(Instant::now() + delay),
            channel: None,
        }
    }

    /// Asks the server that has no streams for what is not `held`.
    pub fn ask(&mut self, held: Held) {
        if let Some(channel) = self.channel.clone() {
            self.stage = Stage::Asking(Box::pin(poll::round(channel, held)));
        }
    }

    /// Waits for `delay` with the channel that there is.
    pub fn pause(&mut self, delay: Duration) {
        self.stage = Stage::Waiting(Instant::now() + delay);
    }

    /// Tries after a [`Link::pause`] whether the server has streams now; false without a
    /// channel.
    pub fn try_again(&mut self, hello: Hello) -> bool {
        let Some(channel) = self.channel.clone() else {
            return false;
        };
        self.stage = Stage::opening(channel, hello);
        true
    }

    /// The channel, once the server has answered on it.
    #[must_use]
    pub fn channel(&self) -> Option<&Channel> {
        self.channel.as_ref()
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> Event {
        match &mut self.stage {
            Stage::Idle => std::future::pending().await,
            Stage::Waiting(until) => {
                tokio::time::sleep_until(*until).await;
                Event::Time
            }
            Stage::Opening(opening, channel) => match opening.await {
                Ok(session) => {
                    self.channel = Some(channel.clone());
                    self.stage = Stage::Open(Box::new(session));
                    Event::Opened
                }
                Err(status) if status.code() == Code::Unimplemented => {
                    self.channel = Some(channel.clone());
                    self.pause(Duration::ZERO);
                    Event::NoStreams
                }
                Err(status) => self.ended(status),
            },
            Stage::Asking(asking) => match asking.await {
                Ok(round) => {
                    self.pause(Duration::ZERO);
                    Event::Round(round)
                }
                Err(status) => self.ended(status),
            },
            Stage::Open(session) => match session.next().await {
                Ok(message) => Event::Message(message),
                Err(status) => self.ended(status),
            },
        }
    }

    fn ended(&mut self, status: Status) -> Event {
        *self = Self::wait(Duration::ZERO);
        Event::Ended(status.into())
    }

    /// Sends requests; whether the stream takes them.
    ///
    /// # Errors
    /// [`Unread`].
    pub fn send(&mut self, requests: Vec<Request>) -> Result<(), Unread> {
        let Stage::Open(session) = &mut self.stage else {
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

impl Stage {
    fn opening(channel: Channel, hello: Hello) -> Self {
        Self::Opening(Box::pin(Session::open(channel.clone(), hello)), channel)
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
        let mut client = SyncClient::new(channel);
        let call = client.watch(ReceiverStream::new(receiver));
        let messages = tokio::time::timeout(SILENCE, call)
            .await
            .map_err(|_| Status::deadline_exceeded("the server did not open the stream in time"))??
            .into_inner();
        Ok(Self {
            requests,
            messages,
            heard: Instant::now(),
        })
    }

    async fn next(&mut self) -> Result<WatchResponse, Status> {
        let received = tokio::time::timeout_at(self.heard + SILENCE, self.messages.message());
        let silent = || Status::deadline_exceeded("the server was silent for 30 s");
        let message = received.await.map_err(|_| silent())??;
        self.heard = Instant::now();
        message.ok_or_else(|| Status::ok("the server ended the stream"))
    }
}
