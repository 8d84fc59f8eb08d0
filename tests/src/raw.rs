//! Calls of any method by its path, with bytes that need not be a message.
//!
//! Unary and streaming calls look alike on the wire, so one function makes them all. What comes
//! back is what a client library would see: messages and a status, or a status that the
//! library made up because the connection broke ([`Answer::broke`]).

use std::error::Error as _;

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::process::within;

/// More than any answer that a server may give.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Passes bytes through.
#[derive(Debug, Default, Clone, Copy)]
pub struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}

/// What a call came to.
#[derive(Debug)]
pub struct Answer {
    /// The messages that came before the end.
    pub messages: Vec<Bytes>,
    /// The end; OK also when the caller had enough before it.
    pub status: Status,
}

impl Answer {
    /// Whether no server said this: the connection was lost under the call.
    pub fn broke(&self) -> bool {
        let mut cause = self.status.source();
        while let Some(error) = cause {
            if error.is::<tonic::transport::Error>() || error.is::<std::io::Error>() {
                return true;
            }
            cause = error.source();
        }
        self.status.code() == Code::Unknown || self.status.message().contains("transport error")
    }
}

/// A channel for raw calls.
#[derive(Clone)]
pub struct Raw {
    channel: Channel,
    security_header: bool,
}

impl Raw {
    /// Calls over `channel`.
    pub fn new(channel: Channel) -> Self {
        Self {
            channel,
            security_header: false,
        }
    }

    /// What it calls over, for calls in the types of the wire.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// With the security header of the Workload API.
    #[must_use]
    pub fn workload(channel: Channel) -> Self {
        Self {
            channel,
            security_header: true,
        }
    }

    /// Calls `path` with `messages`; the request ends after them.
    pub async fn call(&self, path: &str, messages: Vec<Bytes>) -> Answer {
        let request = futures_util::stream::iter(messages).boxed();
        self.exchange(path, request, |_| false).await
    }

    /// Calls `path` with `message`, and hangs up after the first message of the answer.
    pub async fn first(&self, path: &str, message: Bytes) -> Answer {
        let request = futures_util::stream::iter([message]).boxed();
        self.exchange(path, request, |got| !got.is_empty()).await
    }

    /// Calls `path` with `messages` and leaves the request open until the answer is `enough`
    /// or ends.
    pub async fn until(
        &self,
        path: &str,
        messages: Vec<Bytes>,
        enough: impl Fn(&[Bytes]) -> bool,
    ) -> Answer {
        let request = futures_util::stream::iter(messages);
        let request = request.chain(futures_util::stream::pending()).boxed();
        self.exchange(path, request, enough).await
    }

    async fn exchange(
        &self,
        path: &str,
        request: BoxStream<'static, Bytes>,
        enough: impl Fn(&[Bytes]) -> bool,
    ) -> Answer {
        let mut messages = Vec::new();
        let talk = self.converse(path, request, enough, &mut messages);
        let status = match within(&format!("an answer of {path}"), talk).await {
            Ok(()) => Status::ok(""),
            Err(status) => status,
        };
        Answer { messages, status }
    }

    async fn converse(
        &self,
        path: &str,
        request: BoxStream<'static, Bytes>,
        enough: impl Fn(&[Bytes]) -> bool,
        messages: &mut Vec<Bytes>,
    ) -> Result<(), Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        grpc.ready()
            .await
            .map_err(|error| Status::from_error(Box::new(error)))?;
        let mut request = Request::new(request);
        if self.security_header {
            let value = MetadataValue::from_static("true");
            request.metadata_mut().insert("workload.spiffe.io", value);
        }
        let path = PathAndQuery::try_from(path).unwrap();
        let answer = grpc.streaming(request, path, RawCodec).await?;
        let mut answers = answer.into_inner();
        while let Some(message) = answers.message().await? {
            messages.push(message);
            if enough(messages) {
                break;
            }
        }
        Ok(())
    }
}
