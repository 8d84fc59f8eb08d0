//! What runs in the pods of `tests/kubernetes`: a workload that says on standard output, one JSON
//! line at a time, what it gets. `SPIFFE_ENDPOINT_SOCKET` names the Workload API.
//!
//! `first` measures from the first call to the first SVID, then shows every change; a denial is
//! asked about again at once, as the first answer is what is measured. `serve ADDRESS ID…` answers
//! mutual TLS from these IDs. `greet HOST:PORT ID MS` greets it every so many milliseconds and
//! counts. `once HOST:PORT ID` greets once and exits with 1 when it is refused.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use vane_chassis::backoff::Policy;
use vane_chassis::clock::System;
use vane_chassis::mtls::{
    Identity, Party, Roots, anyone, client_config, connect, only, server_config,
};
use vane_client::endpoint::{ENV, Endpoint};
use vane_client::workload::{Change, X509Contexts, address};
use vane_identity::id::SpiffeId;

/// A handshake takes no longer.
const DEADLINE: Duration = Duration::from_secs(5);
/// How many handshakes stand in one line.
const SHOWN: usize = 20;

/// The workload.
pub fn main_entry() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        match words.as_slice() {
            ["first"] => first().await,
            ["serve", address, allowed @ ..] => serve(address, allowed).await,
            ["greet", address, peer, every] => greet(address, peer, every).await,
            ["once", address, peer] => once(address, peer).await,
            _ => {
                eprintln!("first | serve ADDRESS ID… | greet HOST:PORT ID MS | once HOST:PORT ID");
                ExitCode::from(2)
            }
        }
    })
}

fn say(line: &Value) {
    println!("{line}");
    std::io::stdout().flush().unwrap();
}

fn contexts() -> X509Contexts {
    let ms = Duration::from_millis;
    let policy = Policy::new(ms(5), ms(100), 1.5).unwrap();
    let socket: Endpoint = address(None, std::env::var(ENV).ok().as_deref()).unwrap();
    X509Contexts::new(socket, policy, fastrand::Rng::new())
}

async fn first() -> ExitCode {
    let start = Instant::now();
    let mut contexts = contexts();
    let (mut tries, mut said) = (0, String::new());
    loop {
        match contexts.next().await {
            Ok(Change::Context(context)) => {
                let ids: Vec<String> = context
                    .svids
                    .iter()
                    .map(|it| it.svid.id().to_string())
                    .collect();
                let ms = start.elapsed().as_secs_f64() * 1e3;
                say(&json!({"ms": ms, "tries": tries, "ids": ids, "before": said}));
            }
            Ok(Change::Denied(status)) | Ok(Change::Interrupted { status, .. }) => {
                tries += 1;
                said = format!("{:?}: {}", status.code(), status.message());
            }
            Ok(Change::Discarded(malformed)) => said = malformed.to_string(),
            Err(status) => {
                say(&json!({"error": status.message()}));
                return ExitCode::FAILURE;
            }
        }
    }
}

/// An identity that follows the Workload API as long as `tasks` live; there is one when this
/// returns.
async fn party(peer: Option<SpiffeId>, tasks: &mut JoinSet<()>) -> Party {
    let party = Party {
        identity: Identity::empty(),
        roots: Roots::new([]),
        authorizer: peer.map_or_else(anyone, only),
        clock: Arc::new(System),
    };
    let (has_one, mut is_there) = watch::channel(false);
    let followed = party.clone();
    tasks.spawn(async move {
        let mut contexts = contexts();
        loop {
            match contexts.next().await {
                Ok(Change::Context(context)) => {
                    let own = &context.svids[0];
                    followed.roots.set(&own.bundle.anchors());
                    followed.identity.swap(own.svid.chain(), &own.key).unwrap();
                    has_one.send_replace(true);
                }
                // Who obeys has no identity now: handshakes fail, and are counted.
                Ok(Change::Denied(status)) => {
                    say(&json!({"denied": status.message()}));
                    followed.identity.clear();
                }
                Ok(Change::Interrupted { .. } | Change::Discarded(_)) => {}
                Err(status) => panic!("{status}"),
            }
        }
    });
    is_there.wait_for(|there| *there).await.unwrap();
    party
}

async fn serve(address: &str, allowed: &[&str]) -> ExitCode {
    let mut tasks = JoinSet::new();
    let mut party = party(None, &mut tasks).await;
    let allowed: Vec<SpiffeId> = allowed
        .iter()
        .map(|id| SpiffeId::parse(id).unwrap())
        .collect();
    party.authorizer = Arc::new(move |peer| allowed.contains(peer));
    let listener = TcpListener::bind(address).await.unwrap();
    say(&json!({"serves": address}));
    let party = Arc::new(party);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let party = Arc::clone(&party);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let acceptor = TlsAcceptor::from(server_config(&party).unwrap());
            let answer = async {
                let mut stream = acceptor.accept(stream).await?;
                stream.read_u8().await?;
                if stream.get_ref().1.peer_certificates().is_none() {
                    return Err(std::io::Error::other("the client showed no certificate"));
                }
                stream.write_all(b"!").await?;
                stream.shutdown().await
            };
            match tokio::time::timeout(DEADLINE, answer).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => say(&json!({"refused": error.to_string()})),
                Err(_) => say(&json!({"refused": "nothing came"})),
            }
        });
    }
}

async fn handshake(party: &Party, address: &str) -> std::io::Result<()> {
    let greeting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let config = client_config(party).map_err(std::io::Error::other)?;
        let mut stream = connect(stream, config).await?;
        stream.write_all(b"?").await?;
        stream.flush().await?;
        stream.read_u8().await.map(drop)
    };
    let late = || std::io::Error::other("nothing came within the deadline");
    tokio::time::timeout(DEADLINE, greeting)
        .await
        .map_err(|_| late())?
}

async fn greet(address: &str, peer: &str, every: &str) -> ExitCode {
    let mut tasks = JoinSet::new();
    let party = party(Some(SpiffeId::parse(peer).unwrap()), &mut tasks).await;
    let mut tick = tokio::time::interval(Duration::from_millis(every.parse().unwrap()));
    let (mut done, mut failed) = (0, 0);
    loop {
        tick.tick().await;
        if let Err(error) = handshake(&party, address).await {
            failed += 1;
            say(&json!({"failed": error.to_string()}));
        }
        done += 1;
        if done % SHOWN == 0 {
            say(&json!({"handshakes": done, "failures": failed}));
        }
    }
}

async fn once(address: &str, peer: &str) -> ExitCode {
    let mut tasks = JoinSet::new();
    let party = party(Some(SpiffeId::parse(peer).unwrap()), &mut tasks).await;
    match handshake(&party, address).await {
        Ok(()) => {
            say(&json!({"greeted": peer}));
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&json!({"refused": error.to_string()}));
            ExitCode::FAILURE
        }
    }
}
