//! Calls to one server.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::access::Access;
use super::connection::{Connection, Connections};
use super::error::{AccessError, Error, Status};
use super::kubeconfig::Kubeconfig;
use super::path::Path;

/// The most bytes of a refusal that are read.
const MAX_REFUSAL: usize = 64 * 1024;
const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const AGENT: &str = concat!("vane/", env!("CARGO_PKG_VERSION"));

/// How long a call may take and how much it may bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// From the call to the last byte of its answer, connecting included.
    pub deadline: Duration,
    /// The most bytes of an answer.
    pub max_bytes: usize,
}

/// Calls one server. Clones share connections; the last one closes them.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    access: Source,
    connections: Connections,
}

/// How the server is reached at this moment.
type Source = Box<dyn Fn() -> Result<Arc<Access>, AccessError> + Send + Sync>;

impl Client {
    /// A client of the server that `access` names.
    #[must_use]
    pub fn new(access: Access) -> Self {
        let access = Arc::new(access);
        Self::of(Box::new(move || Ok(Arc::clone(&access))))
    }

    /// A client of the API server of the cluster that this process is a pod of.
    ///
    /// # Errors
    /// [`AccessError::NotInCluster`].
    pub fn in_cluster() -> Result<Self, AccessError> {
        Access::in_cluster().map(Self::new)
    }

    /// A client of the server of a kubeconfig's current context. The file is read at each call,
    /// so that whoever replaces it need not tell us.
    ///
    /// # Errors
    /// [`AccessError`] when the file cannot be used now.
    pub fn kubeconfig(path: PathBuf) -> Result<Self, AccessError> {
        let file = Kubeconfig::new(path);
        file.access()?;
        Ok(Self::of(Box::new(move || file.access())))
    }

    fn of(access: Source) -> Self {
        let connections = Connections::new();
        Self {
            inner: Arc::new(Inner {
                access,
                connections,
            }),
        }
    }

    /// Reads an object.
    ///
    /// # Errors
    /// [`Error`]; `is_not_found` when there is none.
    pub async fn get<T: DeserializeOwned>(&self, path: &Path, bounds: Bounds) -> Result<T, Error> {
        let call = Call::new(Method::GET, path, Body::None);
        self.call(&call, bounds).await
    }

    /// Makes an object, or asks something that is asked so (a review).
    ///
    /// # Errors
    /// [`Error`]; `is_conflict` when it exists.
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &Path,
        body: &B,
        bounds: Bounds,
    ) -> Result<T, Error> {
        let call = Call::new(Method::POST, path, Body::json(JSON, body)?);
        self.call(&call, bounds).await
    }

    /// Replaces an object; with the `resourceVersion` that was read, only if it is still that.
    ///
    /// # Errors
    /// [`Error`]; `is_conflict` when it is another.
    pub async fn put<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &Path,
        body: &B,
        bounds: Bounds,
    ) -> Result<T, Error> {
        let call = Call::new(Method::PUT, path, Body::json(JSON, body)?);
        self.call(&call, bounds).await
    }

    /// Changes the fields of an object that `body` has (RFC 7386).
    ///
    /// # Errors
    /// [`Error`]; `is_not_found` when there is no object.
    pub async fn patch<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &Path,
        body: &B,
        bounds: Bounds,
    ) -> Result<T, Error> {
        let call = Call::new(Method::PATCH, path, Body::json(MERGE_PATCH, body)?);
        self.call(&call, bounds).await
    }

    /// The answer to a GET, still to be read, with what it comes over, and the server's name.
    pub(super) async fn stream(
        &self,
        path: &Path,
        deadline: Duration,
    ) -> Result<(Incoming, Connection, String), Error> {
        let call = Call::new(Method::GET, path, Body::None);
        let access = (self.inner.access)()?;
        let opened = self.opened(&access, &call);
        let (response, connection) = within(&access, deadline, opened).await?;
        Ok((
            response.into_body(),
            connection,
            access.endpoint.to_string(),
        ))
    }

    async fn call<T: DeserializeOwned>(&self, call: &Call, bounds: Bounds) -> Result<T, Error> {
        let access = (self.inner.access)()?;
        let exchange = async {
            let (response, connection) = self.opened(&access, call).await?;
            let server = || access.endpoint.to_string();
            let bytes = match collect(response.into_body(), bounds.max_bytes).await {
                Ok((bytes, true)) => bytes,
                Ok((_, false)) => {
                    return Err(Error::TooLong {
                        server: server(),
                        limit: bounds.max_bytes,
                    });
                }
                Err(error) => return Err(broken(&access, error)),
            };
            self.inner.connections.put(connection);
            Ok(bytes)
        };
        let bytes = within(&access, bounds.deadline, exchange).await?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Malformed {
            server: access.endpoint.to_string(),
            source,
        })
    }

    /// The answer's head, which is no refusal; the body is still to come.
    async fn opened(
        &self,
        access: &Access,
        call: &Call,
    ) -> Result<(Response<Incoming>, Connection), Error> {
        let (response, connection) = self.send(access, call).await?;
        if response.status().is_success() {
            return Ok((response, connection));
        }
        let code = response.status().as_u16();
        let refusal = collect(response.into_body(), MAX_REFUSAL).await;
        let (bytes, whole) = refusal.map_err(|error| broken(access, error))?;
        if whole {
            self.inner.connections.put(connection);
        }
        Err(Error::Status {
            server: access.endpoint.to_string(),
            status: Box::new(Status::of_body(code, &bytes)),
        })
    }

    /// Sends a call. A kept connection may be closed by the server just then: what was not sent
    /// on it, or only reads, is sent again on another.
    async fn send(
        &self,
        access: &Access,
        call: &Call,
    ) -> Result<(Response<Incoming>, Connection), Error> {
        loop {
            let mut connection = self.inner.connections.take(access).await?;
            let request = call.request(access)?;
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut failed) => {
                    let again = failed.take_message().is_some() || call.method == Method::GET;
                    if !(connection.used && again) {
                        return Err(broken(access, failed.into_error()));
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("connections", &self.inner.connections)
            .finish_non_exhaustive()
    }
}

/// What is sent.
struct Call {
    method: Method,
    path: String,
    body: Body,
}

enum Body {
    None,
    Of(&'static str, Bytes),
}

impl Body {
    fn json<B: Serialize>(kind: &'static str, body: &B) -> Result<Self, Error> {
        let bytes = serde_json::to_vec(body).map_err(|error| Error::Request(error.into()))?;
        Ok(Self::Of(kind, bytes.into()))
    }
}

impl Call {
    fn new(method: Method, path: &Path, body: Body) -> Self {
        Self {
            method,
            path: path.to_string(),
            body,
        }
    }

    fn request(&self, access: &Access) -> Result<Request<Full<Bytes>>, Error> {
        let endpoint = &access.endpoint;
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(format!("{}{}", endpoint.prefix, self.path))
            .header(HOST, endpoint.authority())
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, JSON);
        if let Some(token) = access.credentials.token.as_ref().filter(|_| endpoint.tls) {
            let bearer = Zeroizing::new(format!("Bearer {}", token.read()?.as_str()));
            let mut value =
                HeaderValue::from_str(&bearer).map_err(|error| Error::Request(error.into()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let body = match &self.body {
            Body::None => Bytes::new(),
            Body::Of(kind, bytes) => {
                request = request.header(CONTENT_TYPE, *kind);
                bytes.clone()
            }
        };
        request
            .body(Full::new(body))
            .map_err(|error| Error::Request(error.into()))
    }
}

async fn within<T>(
    access: &Access,
    deadline: Duration,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let late = |_| Error::Deadline {
        server: access.endpoint.to_string(),
        within: deadline,
    };
    tokio::time::timeout(deadline, call).await.map_err(late)?
}

fn broken(access: &Access, error: hyper::Error) -> Error {
    Error::Broken {
        server: access.endpoint.to_string(),
        source: error.into(),
    }
}

/// The first `limit` bytes of a body, and whether they are all.
async fn collect(mut body: Incoming, limit: usize) -> Result<(Vec<u8>, bool), hyper::Error> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(announced.min(limit));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        let room = limit.saturating_sub(bytes.len());
        if data.len() > room {
            bytes.extend(data.iter().take(room));
            return Ok((bytes, false));
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, true))
}
