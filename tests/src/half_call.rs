//! gRPC calls whose request body is not what gRPC says, over any stream.
//!
//! An own HTTP/2 client, because a client library makes no such bodies.

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::process::within;

/// How a call ended: `grpc-status` and `grpc-message`, or the error that ended it.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The server answered.
    Status(i32, String),
    /// The server reset the stream or closed the connection.
    Reset(String),
}

/// A message as gRPC frames it.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}

/// Calls `path` with `body` as it is, and what came of it.
pub async fn call<S>(stream: S, path: &str, body: Vec<u8>) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    call_after(std::future::ready(()), stream, path, body).await
}

/// As [`call`], over a connection that asks nothing until then. Nothing is tried again.
pub async fn call_after<S>(
    then: impl Future<Output = ()>,
    stream: S,
    path: &str,
    body: Vec<u8>,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let what = format!("an end of {path}");
    match within(&what, exchange(then, stream, path, body)).await {
        Ok(trailers) => status(&trailers),
        Err(error) => Ended::Reset(error.to_string()),
    }
}

async fn exchange<S>(
    then: impl Future<Output = ()>,
    stream: S,
    path: &str,
    body: Vec<u8>,
) -> Result<HeaderMap, h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, connection) = h2::client::handshake(stream).await?;
    let talk = async {
        then.await;
        let mut client = client.ready().await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (answer, mut send) = client.send_request(request, false)?;
        send.send_data(Bytes::from(body), true)?;
        let answer = answer.await?;
        if answer.headers().contains_key("grpc-status") {
            return Ok(answer.headers().clone());
        }
        let mut body = answer.into_body();
        while let Some(data) = body.data().await {
            let length = data?.len();
            body.flow_control().release_capacity(length)?;
        }
        Ok(body.trailers().await?.unwrap_or_default())
    };
    tokio::pin!(talk, connection);
    tokio::select! {
        ended = &mut talk => ended,
        ended = &mut connection => {
            ended?;
            // It was ended in good order: what had come is read.
            talk.await
        }
    }
}

fn status(headers: &HeaderMap) -> Ended {
    let text = |name: &str| {
        let value = headers.get(name).map(http::HeaderValue::to_str);
        value.and_then(Result::ok).unwrap_or_default().to_owned()
    };
    match text("grpc-status").parse() {
        Ok(code) => Ended::Status(code, text("grpc-message")),
        Err(_) => Ended::Reset(format!("no grpc-status in {headers:?}")),
    }
}
