//! A watch: the changes of a list, as the server tells them.
//!
//! One JSON document a line (<https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>).
//! A watch ends by itself every few minutes; its reader goes on from the last resource version
//! that it saw, and lists again when that one is [gone](Error::is_gone).

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::client::{Bounds, Client};
use super::connection::Connection;
use super::error::{Error, Status};
use super::path::Path;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<T> {
    /// It is new, or was there when the watch began.
    Added(T),
    /// It is another now.
    Modified(T),
    /// It is gone; this was its last state.
    Deleted(T),
    /// Nothing changed up to this resource version.
    Bookmark(String),
}

/// The changes of a list.
pub struct Watch<T> {
    body: Incoming,
    buffer: BytesMut,
    /// How much of the buffer has no end of a line.
    seen: usize,
    max_line: usize,
    silence: Duration,
    server: String,
    /// What moves the bytes, and would end with the client.
    _held: (Client, Connection),
    _item: PhantomData<fn() -> T>,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Marked {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "resourceVersion")]
    resource_version: String,
}

impl<T: DeserializeOwned> Watch<T> {
    /// Opens a watch: `path` has the parameter `watch=true` and the others that it needs.
    ///
    /// `bounds.max_bytes` bounds one event; `bounds.deadline` the wait for the first byte of the
    /// answer. After that, `silence` is the longest wait for any byte: ask for bookmarks, or for
    /// a `timeoutSeconds` shorter than it.
    ///
    /// # Errors
    /// [`Error`]; `is_gone` when the resource version is too old.
    pub async fn open(
        client: &Client,
        path: &Path,
        bounds: Bounds,
        silence: Duration,
    ) -> Result<Self, Error> {
        let (body, connection, server) = client.stream(path, bounds.deadline).await?;
        Ok(Self {
            body,
            buffer: BytesMut::new(),
            seen: 0,
            max_line: bounds.max_bytes,
            silence,
            server,
            _held: (client.clone(), connection),
            _item: PhantomData,
        })
    }

    /// The next change; `None` when the server ended the watch in good order. May be dropped
    /// at any time without losing one.
    ///
    /// # Errors
    /// [`Error`]: the watch is over. `is_gone` when its resource version is too old.
    pub async fn next(&mut self) -> Result<Option<Event<T>>, Error> {
        loop {
            while let Some(line) = self.line()? {
                if let Some(event) = self.event(&line)? {
                    return Ok(Some(event));
                }
            }
            let frame = tokio::time::timeout(self.silence, self.body.frame()).await;
            let frame = frame.map_err(|_| Error::Deadline {
                server: self.server.clone(),
                within: self.silence,
            })?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(Error::Broken {
                        server: self.server.clone(),
                        source: error.into(),
                    });
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    /// A whole line of the buffer, without its end.
    fn line(&mut self) -> Result<Option<BytesMut>, Error> {
        let fresh = self.buffer.get(self.seen..).unwrap_or_default();
        let end = fresh.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(self.buffer.len(), |at| self.seen + at);
        if length > self.max_line {
            return Err(Error::TooLong {
                server: self.server.clone(),
                limit: self.max_line,
            });
        }
        if end.is_none() {
            self.seen = self.buffer.len();
            return Ok(None);
        }
        self.seen = 0;
        let line = self.buffer.split_to(length);
        self.buffer.advance(1);
        Ok(Some(line))
    }

    /// What a line says; a kind of event that we do not know says nothing.
    fn event(&self, line: &[u8]) -> Result<Option<Event<T>>, Error> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let malformed = |source| Error::Malformed {
            server: self.server.clone(),
            source,
        };
        let Line { kind, object } = serde_json::from_slice(line).map_err(malformed)?;
        let object = object.get();
        let item = || serde_json::from_str(object).map_err(malformed);
        Ok(Some(match kind.as_str() {
            "ADDED" => Event::Added(item()?),
            "MODIFIED" => Event::Modified(item()?),
            "DELETED" => Event::Deleted(item()?),
            "BOOKMARK" => {
                let marked: Marked = serde_json::from_str(object).map_err(malformed)?;
                Event::Bookmark(marked.metadata.resource_version)
            }
            "ERROR" => {
                return Err(Error::Status {
                    server: self.server.clone(),
                    status: Box::new(Status::of_event(object)),
                });
            }
            _ => return Ok(None),
        }))
    }
}

impl<T> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
