//! A server that stands for Kubernetes in tests: HTTPS, in this process, with a table of answers.
//!
//! It says what it was told to say and remembers what it was asked; it knows nothing of
//! Kubernetes. Feature `testing` takes it along for the tests of other crates.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test that cannot have its double fails there"
)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Access, Credentials, Endpoint, Name, Pem, Token, Trust};
use crate::mtls::provider;
use crate::tasks::TaskSet;

/// The answer to a call.
#[derive(Clone)]
pub enum Answer {
    /// This status and JSON.
    Json(u16, Value),
    /// This status and text.
    Text(u16, String),
    /// Nothing, ever.
    Silence,
    /// The head and half of an answer, then nothing.
    Half,
    /// The connection is closed instead.
    Close,
    /// A watch: these lines at once, then those of [`Double::tell`], until [`Double::hang_up`].
    Watch(Vec<Value>),
    /// What the function makes of the call.
    By(Arc<dyn Fn(&Seen) -> Answer + Send + Sync>),
}

impl Answer {
    /// What Kubernetes answers to a call that it refuses.
    #[must_use]
    pub fn refusal(code: u16, reason: &str, message: &str) -> Self {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
            "message": message, "reason": reason, "code": code});
        Self::Json(code, status)
    }

    /// As [`Answer::By`].
    pub fn by(answer: impl Fn(&Seen) -> Self + Send + Sync + 'static) -> Self {
        Self::By(Arc::new(answer))
    }
}

/// A call that came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET` and so on.
    pub method: String,
    /// The path, without its parameters.
    pub path: String,
    /// The parameters as they were sent; may be empty.
    pub query: String,
    /// The bearer token.
    pub token: Option<String>,
    /// The body; null without one.
    pub body: Value,
    /// Which connection it came on, counted from 1.
    pub connection: usize,
}

struct Shared {
    answers: Mutex<HashMap<(String, String), Answer>>,
    seen: watch::Sender<Vec<Seen>>,
    lines: broadcast::Sender<Value>,
    hang_up: Mutex<CancellationToken>,
    connections: TaskSet,
}

/// The server; ends when it is dropped.
pub struct Double {
    address: SocketAddr,
    ca: (String, Issuer<'static, KeyPair>),
    shared: Arc<Shared>,
    _accept: TaskSet,
}

impl Double {
    /// Starts one on a free port of 127.0.0.1; it answers 404 to everything.
    pub async fn start() -> Self {
        Self::on("127.0.0.1:0".parse().unwrap()).await
    }

    /// Starts one at this address.
    pub async fn on(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let ca = authority();
        let acceptor = TlsAcceptor::from(Arc::new(tls(&ca)));
        let shared = Arc::new(Shared {
            answers: Mutex::default(),
            seen: watch::channel(Vec::new()).0,
            lines: broadcast::channel(1024).0,
            hang_up: Mutex::default(),
            connections: TaskSet::new("double"),
        });
        let accept = TaskSet::new("double");
        accept.spawn(accepts(listener, acceptor, Arc::clone(&shared)));
        Self {
            address,
            ca,
            shared,
            _accept: accept,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://127.0.0.1:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The CA of its certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca.0
    }

    /// How it is reached, with this token.
    #[must_use]
    pub fn access(&self, token: &str) -> Access {
        Access {
            endpoint: Endpoint::https(self.address.ip().to_string(), self.address.port()),
            trust: Trust::Roots(Pem::Text(self.ca_pem().as_bytes().to_vec().into())),
            name: Name::OfEndpoint,
            credentials: Credentials {
                token: Some(Token::Text(token.to_owned().into())),
                certificate: None,
            },
        }
    }

    /// Writes a kubeconfig for it into `folder`, with this token; the same file each time.
    pub fn kubeconfig(&self, folder: &std::path::Path, token: &str) -> PathBuf {
        use base64::Engine as _;
        let ca = base64::engine::general_purpose::STANDARD.encode(self.ca_pem());
        let url = self.url();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
             clusters:\n- name: double\n  cluster:\n    server: {url}\n    \
             certificate-authority-data: {ca}\n\
             users:\n- name: tester\n  user:\n    token: {token}\n\
             contexts:\n- name: it\n  context:\n    cluster: double\n    user: tester\n"
        );
        let path = folder.join(format!("kubeconfig-{}", self.address.port()));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A client certificate of its CA, with the key: PEM.
    #[must_use]
    pub fn client_certificate(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.ca.1).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// From now on a call with this method and path (no parameters) has this answer.
    pub fn answer(&self, method: &Method, path: &str, answer: Answer) {
        let key = (method.to_string(), path.to_owned());
        lock(&self.shared.answers).insert(key, answer);
    }

    /// From now on a GET of this path has this JSON.
    pub fn shows(&self, path: &str, object: Value) {
        self.answer(&Method::GET, path, Answer::Json(200, object));
    }

    /// Answers as a real server did: a file of tests/kubernetes/recorded, named without `.json`.
    pub fn replay(&self, recording: &str) {
        let root = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/kubernetes/recorded"
        );
        let text = std::fs::read(format!("{root}/{recording}.json")).unwrap();
        let recording: Value = serde_json::from_slice(&text).unwrap();
        let (request, body) = (&recording["request"], recording["body"].clone());
        let path = request["path"].as_str().unwrap().split('?').next().unwrap();
        let key = (
            request["method"].as_str().unwrap().to_owned(),
            path.to_owned(),
        );
        let status = recording["status"].as_u64().unwrap();
        let answer = Answer::Json(u16::try_from(status).unwrap(), body);
        lock(&self.shared.answers).insert(key, answer);
    }

    /// All watches get this line.
    pub fn tell(&self, line: Value) {
        // Nobody watching is no error: the next watch begins with its own lines.
        let _ = self.shared.lines.send(line);
    }

    /// All watches end in good order.
    pub fn hang_up(&self) {
        std::mem::take(&mut *lock(&self.shared.hang_up)).cancel();
    }

    /// The calls so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.borrow().clone()
    }

    /// Waits until the calls so far are as `enough` wants them. The test sets the deadline.
    pub async fn until(&self, enough: impl FnMut(&Vec<Seen>) -> bool) -> Vec<Seen> {
        let mut seen = self.shared.seen.subscribe();
        seen.wait_for(enough).await.unwrap().clone()
    }
}

impl fmt::Debug for Double {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Double")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn authority() -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, Issuer::new(params, key))
}

/// A client certificate is taken when it is of the CA, and not asked for otherwise.
fn tls((pem, issuer): &(String, Issuer<'static, KeyPair>)) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "kubernetes.default".to_owned()];
    let leaf = CertificateParams::new(names).unwrap();
    let leaf = leaf.signed_by(&key, issuer).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
        .unwrap();
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider()))
            .allow_unauthenticated()
            .build()
            .unwrap();
    ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap()
}

async fn accepts(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let mut connection = 0;
    while let Ok((tcp, _)) = listener.accept().await {
        connection += 1;
        let (acceptor, its) = (acceptor.clone(), Arc::clone(&shared));
        shared.connections.spawn(async move {
            let Ok(stream) = acceptor.accept(tcp).await else {
                return;
            };
            let serve = service_fn(|request| answer(request, connection, Arc::clone(&its)));
            // How a connection ends is what the test looks at, on its own side.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), serve)
                .await;
        });
    }
}

type Answered = Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Closed>;

/// Ends the connection.
#[derive(Debug, thiserror::Error)]
#[error("closed as the test wants it")]
struct Closed;

async fn answer(request: Request<Incoming>, connection: usize, shared: Arc<Shared>) -> Answered {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
    let token = head.headers.get(http::header::AUTHORIZATION);
    let token = token.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let seen = Seen {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        token: token.map(str::to_owned),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        connection,
    };
    let key = (seen.method.clone(), seen.path.clone());
    let mut answer = lock(&shared.answers).get(&key).cloned();
    while let Some(Answer::By(by)) = answer {
        answer = Some(by(&seen));
    }
    // A watch hears of everything that is told once it is seen.
    let lines = shared.lines.subscribe();
    shared.seen.send_modify(|all| all.push(seen));
    let missing = || Answer::refusal(404, "NotFound", "the double has no such thing");
    match answer.unwrap_or_else(missing) {
        Answer::Json(code, value) => Ok(whole(code, value.to_string())),
        Answer::Text(code, text) => Ok(whole(code, text)),
        Answer::Silence => std::future::pending().await,
        Answer::Half => Ok(half()),
        Answer::Watch(first) => Ok(watching(first, lines, &shared)),
        Answer::Close | Answer::By(_) => Err(Closed),
    }
}

fn whole(code: u16, text: String) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn half() -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"{\"kind\": ")))]);
    Response::new(BodyExt::boxed_unsync(StreamBody::new(
        first.chain(stream::pending()),
    )))
}

fn watching(
    first: Vec<Value>,
    lines: broadcast::Receiver<Value>,
    shared: &Shared,
) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let later = stream::unfold(lines, |mut lines| async {
        lines.recv().await.ok().map(|line| (line, lines))
    });
    let over = lock(&shared.hang_up).clone().cancelled_owned();
    let lines = stream::iter(first)
        .chain(later)
        .take_until(Box::pin(over))
        .map(|line| Ok(Frame::data(Bytes::from(format!("{line}\n")))));
    Response::new(BodyExt::boxed_unsync(StreamBody::new(lines)))
}
