//! This process as a workload: raw calls of the Workload API.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::id::SpiffeId;
use vane_identity::x509_svid::{Certificate, Role, VerifiedX509Svid, X509Svid};
use vane_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use vane_wire::workload::{
    JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
    X509svidRequest, X509svidResponse,
};

use crate::admin::unix_channel;
use crate::process::within;

/// A request with the security header of the Workload API.
pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// A connection to an agent's public socket.
#[derive(Clone)]
pub struct Workload {
    client: SpiffeWorkloadApiClient<Channel>,
}

/// An open FetchX509SVID stream.
pub struct SvidStream {
    messages: Streaming<X509svidResponse>,
    /// The first message, where it was waited for.
    first: Option<X509svidResponse>,
}

impl Workload {
    /// Connects.
    pub async fn connect(socket: &Path) -> Self {
        Self::over(unix_channel(socket).await.unwrap())
    }

    /// Over a connection that is there.
    pub fn over(channel: Channel) -> Self {
        Self {
            client: SpiffeWorkloadApiClient::new(channel),
        }
    }

    /// The generated client, for everything that has no short form here.
    pub fn api(&self) -> SpiffeWorkloadApiClient<Channel> {
        self.client.clone()
    }

    /// FetchJWTSVID for `audience`, of all identities.
    pub async fn jwt(&self, audience: &str) -> Result<JwtsvidResponse, Status> {
        let message = JwtsvidRequest {
            audience: vec![audience.to_owned()],
            spiffe_id: String::new(),
        };
        let mut api = self.api();
        let call = api.fetch_jwtsvid(request(message));
        let answer = within("an answer of FetchJWTSVID", call).await?;
        Ok(answer.into_inner())
    }

    /// ValidateJWTSVID.
    pub async fn validate(
        &self,
        audience: &str,
        svid: &str,
    ) -> Result<ValidateJwtsvidResponse, Status> {
        let message = ValidateJwtsvidRequest {
            audience: audience.to_owned(),
            svid: svid.to_owned(),
        };
        let mut api = self.api();
        let call = api.validate_jwtsvid(request(message));
        let answer = within("an answer of ValidateJWTSVID", call).await?;
        Ok(answer.into_inner())
    }

    /// Opens a FetchX509SVID stream.
    pub async fn watch(&self) -> Result<SvidStream, Status> {
        let stream = self
            .client
            .clone()
            .fetch_x509svid(request(X509svidRequest {}))
            .await?;
        Ok(SvidStream {
            messages: stream.into_inner(),
            first: None,
        })
    }

    /// A stream that brings an identity. An entry that was created just now is on its way to the
    /// agent: as long as it is not there, the answer is "no identity issued".
    pub async fn served(&self) -> SvidStream {
        let served = async {
            loop {
                let mut stream = self.watch().await.unwrap();
                match stream.next().await {
                    Ok(message) => {
                        stream.first = Some(message);
                        return stream;
                    }
                    Err(status) => assert_eq!(
                        (status.code(), status.message()),
                        (Code::PermissionDenied, "no identity issued")
                    ),
                }
            }
        };
        within("an identity of this process", served).await
    }
}

impl SvidStream {
    /// The next message, or the status that ends the stream.
    pub async fn next(&mut self) -> Result<X509svidResponse, Status> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        match within("a message of FetchX509SVID", self.messages.message()).await? {
            Some(message) => Ok(message),
            None => Err(Status::ok("the stream ended")),
        }
    }

    /// As [`SvidStream::next`], where that takes longer than things do otherwise.
    pub async fn next_within(&mut self, longest: Duration) -> Result<X509svidResponse, Status> {
        let next = tokio::time::timeout(longest, self.messages.message()).await;
        match next.unwrap_or_else(|_| panic!("no message within {longest:?}"))? {
            Some(message) => Ok(message),
            None => Err(Status::ok("the stream ended")),
        }
    }

    /// Waits until the IDs of a message satisfy `wanted`; that message.
    pub async fn until(
        &mut self,
        wanted: impl Fn(&[String]) -> bool,
    ) -> Result<X509svidResponse, Status> {
        loop {
            let message = self.next().await?;
            if wanted(&ids(&message)) {
                return Ok(message);
            }
        }
    }
}

/// The SPIFFE IDs of a message, in order.
pub fn ids(message: &X509svidResponse) -> Vec<String> {
    message
        .svids
        .iter()
        .map(|svid| svid.spiffe_id.clone())
        .collect()
}

/// Splits a concatenation of DER certificates.
pub fn certificates(der: &[u8]) -> Vec<Certificate> {
    Certificate::split(der).unwrap()
}

/// Verifies each SVID of a message against the bundle beside it at `now`.
pub fn verify(message: &X509svidResponse, now: SystemTime) -> Vec<VerifiedX509Svid> {
    message
        .svids
        .iter()
        .map(|svid| {
            let id = SpiffeId::parse(&svid.spiffe_id).unwrap();
            let mut bundle = Bundle::empty(id.trust_domain());
            bundle.x509_authorities = certificates(&svid.bundle)
                .into_iter()
                .map(X509Authority::new)
                .collect();
            let parsed = X509Svid::parse(certificates(&svid.x509_svid)).unwrap();
            assert_eq!(
                parsed.id(),
                &id,
                "the message names the ID of the certificate"
            );
            bundle
                .anchors()
                .verify(parsed, Role::Client, now)
                .unwrap_or_else(|error| panic!("{id}: {error}"))
        })
        .collect()
}
