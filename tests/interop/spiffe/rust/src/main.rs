//! A SPIFFE workload for tests, made with rust-spiffe. Every subcommand prints one JSON line and exits with 1 when something is not as it
//! should be; tests/interop/clients runs them. SPIFFE_ENDPOINT_SOCKET names the Workload API, TIMEOUT bounds a subcommand (seconds, 10).
use std::{collections::{BTreeMap, BTreeSet}, error::Error, net::SocketAddr, pin::pin, process::ExitCode, sync::Arc, time::Duration};

use futures_util::StreamExt;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::{Value, json};
use spiffe::transport::TransportError;
use spiffe::{JwtSvid, SpiffeId, WorkloadApiClient, WorkloadApiError, X509Bundle, X509Source, X509Svid};
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use spiffe_rustls_tokio::{TlsAcceptor, TlsConnector};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

type Outcome = Result<Value, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let seconds = std::env::var("TIMEOUT").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    let outcome = match tokio::time::timeout(Duration::from_secs(seconds), run(&args)).await {
        Ok(outcome) => outcome,
        Err(elapsed) => Err(elapsed.into()),
    };
    let mut line = json!({"client": "rust-spiffe", "cmd": args.first(), "ok": outcome.is_ok()});
    let code = if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let more = outcome.unwrap_or_else(|e| json!({"code": status_of(e.as_ref()), "error": e.to_string()}));
    line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    println!("{line}");
    code
}

async fn run(args: &[&str]) -> Outcome {
    match args {
        ["x509"] => x509().await,
        ["watch", count] => watch(count.parse()?).await,
        ["jwt", audience] => jwt(audience, None).await,
        ["jwt", audience, id] => jwt(audience, Some(&SpiffeId::new(id)?)).await,
        ["bundles"] => bundles().await,
        ["mtls"] => mtls().await,
        ["serve", address] => serve(address).await,
        ["dial", address, id] => dial(address.parse()?, id).await,
        _ => Err("usage: rustspiffe x509 | watch N | jwt AUDIENCE [ID] | bundles | mtls | serve ADDRESS | dial ADDRESS ID".into()),
    }
}

async fn x509() -> Outcome {
    let context = WorkloadApiClient::connect_env().await?.fetch_x509_context().await?;
    let bundles = context.bundle_set();
    for svid in context.svids() {
        verify(svid, bundles.get_ref(svid.spiffe_id().trust_domain()).ok_or("no bundle for an SVID")?)?;
    }
    let first = context.default_svid().ok_or("no SVID")?;
    let domains: BTreeMap<_, ()> = bundles.iter().map(|(domain, _)| (domain.to_string(), ())).collect();
    Ok(json!({
        "ids": context.svids().iter().map(|s| s.spiffe_id().to_string()).collect::<Vec<_>>(),
        "hints": context.svids().iter().map(|s| s.hint().unwrap_or_default()).collect::<Vec<_>>(),
        "chain": first.cert_chain().len(),
        "bundles": domains.into_keys().collect::<Vec<_>>(),
    }))
}

/// The library leaves the chain to TLS, so webpki verifies it here.
fn verify(svid: &X509Svid, bundle: &X509Bundle) -> Result<(), Box<dyn Error + Send + Sync>> {
    let roots: Vec<_> = bundle.authorities().iter().map(|c| CertificateDer::from(c.as_bytes())).collect();
    let anchors: Vec<_> = roots.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<_, _>>()?;
    let chain: Vec<_> = svid.cert_chain().iter().map(|c| CertificateDer::from(c.as_bytes())).collect();
    let (leaf, rest) = chain.split_first().ok_or("an empty chain")?;
    let usage = webpki::KeyUsage::client_auth();
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    webpki::EndEntityCert::try_from(leaf)?.verify_for_usage(algorithms, &anchors, rest, UnixTime::now(), usage, None, None)?;
    Ok(())
}

async fn watch(count: usize) -> Outcome {
    let mut updates = pin!(WorkloadApiClient::connect_env().await?.stream_x509_contexts().await?);
    let mut leaves = BTreeSet::new();
    for _ in 0..count {
        let context = updates.next().await.ok_or("the stream ended")??;
        leaves.insert(context.default_svid().ok_or("no SVID")?.leaf().as_bytes().to_vec());
    }
    Ok(json!({"updates": count, "leaves": leaves.len()}))
}

/// Fetches a JWT-SVID, validates it here with the JWT bundles and a second time through the Workload API.
async fn jwt(audience: &str, id: Option<&SpiffeId>) -> Outcome {
    let client = WorkloadApiClient::connect_env().await?;
    let svid = client.fetch_jwt_svid([audience], id).await?;
    JwtSvid::parse_and_validate(svid.token(), &client.fetch_jwt_bundles().await?, &[audience])?;
    client.validate_jwt_token(audience, svid.token()).await?;
    if client.validate_jwt_token(&format!("not-{audience}"), svid.token()).await.is_ok() {
        return Err("a wrong audience was accepted".into());
    }
    Ok(json!({"id": svid.spiffe_id().to_string(), "aud": svid.audience(), "hint": svid.hint(), "token": svid.token()}))
}

async fn bundles() -> Outcome {
    let client = WorkloadApiClient::connect_env().await?;
    let x509 = client.fetch_x509_bundles().await?;
    let jwt = client.fetch_jwt_bundles().await?;
    let certificates: BTreeMap<_, _> = x509.iter().map(|(domain, b)| (domain.to_string(), b.authorities().len())).collect();
    let keys: BTreeMap<_, _> = jwt.iter().map(|(domain, b)| (domain.to_string(), b.jwt_authorities().count())).collect();
    Ok(json!({"x509": certificates, "jwt": keys}))
}

/// An echo server and a client with a source each: the right ID gets through, another one is refused.
async fn mtls() -> Outcome {
    let (acceptor, id) = acceptor().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { while echo(&listener, &acceptor).await.is_ok() {} });
    let out = dial(address, &id).await?;
    if dial(address, &format!("{id}/other")).await.is_ok() {
        return Err("a server with another ID was accepted".into());
    }
    Ok(out)
}

async fn serve(address: &str) -> Outcome {
    let (acceptor, id) = acceptor().await?;
    echo(&TcpListener::bind(address).await?, &acceptor).await?;
    Ok(json!({"id": id}))
}

async fn acceptor() -> Result<(TlsAcceptor, String), Box<dyn Error + Send + Sync>> {
    let source = X509Source::new().await?;
    let id = source.svid()?.spiffe_id().clone();
    let domain = id.trust_domain().to_string();
    let config = mtls_server(source).authorize(authorizer::trust_domains([domain.as_str()])?).build()?;
    Ok((TlsAcceptor::new(Arc::new(config)), id.to_string()))
}

/// Answers one line on one connection: the peer's ID, then the line. A handshake that fails is the client's to report.
async fn echo(listener: &TcpListener, acceptor: &TlsAcceptor) -> std::io::Result<()> {
    let Ok((stream, peer)) = acceptor.accept(listener.accept().await?.0).await else { return Ok(()) };
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let peer = peer.spiffe_id().map(ToString::to_string).unwrap_or_default();
    stream.get_mut().write_all(format!("{peer} {line}").as_bytes()).await?;
    stream.get_mut().shutdown().await
}

async fn dial(address: SocketAddr, id: &str) -> Outcome {
    let source = X509Source::new().await?;
    let own = source.svid()?.spiffe_id().to_string();
    let config = mtls_client(source).authorize(authorizer::exact([id])?).build()?;
    let (stream, peer) = TlsConnector::new(Arc::new(config)).connect_addr(address, ServerName::try_from("spiffe.test")?).await?;
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(b"hello\n").await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    if answer != format!("{own} hello\n") {
        return Err(format!("unexpected answer {answer:?}").into());
    }
    Ok(json!({"peer": peer.spiffe_id().map(ToString::to_string), "echo": answer.trim()}))
}

fn status_of(error: &(dyn Error + Send + Sync + 'static)) -> String {
    match error.downcast_ref::<WorkloadApiError>() {
        Some(WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_)) => "PermissionDenied".into(),
        Some(WorkloadApiError::Transport(TransportError::Status(status))) => format!("{:?}", status.code()),
        _ => "Unknown".into(),
    }
}
