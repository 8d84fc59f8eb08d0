//! Clients that do mutual TLS with each other all the time, while agents and servers come and go.
//!
//! Each has a stream of its own from the Workload API and uses what it got last; a handshake is
//! done when a byte went to and fro, so that both sides have accepted each other.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use vane_chassis::backoff::Policy;
use vane_chassis::clock::System;
use vane_chassis::mtls::{Identity, Party, Roots, anyone, client_config, connect, server_config};
use vane_client::endpoint::Endpoint;
use vane_client::workload::{Change, X509Contexts};

use crate::admin::entry;
use crate::process::within;
use crate::world::{Options, World, own_selector, spiffe_id};

/// What is done to the system while clients greet each other.
pub struct Storm {
    /// Clients.
    pub clients: usize,
    /// How often each greets the next.
    pub every: Duration,
    /// So long the server is away.
    pub outage: Duration,
    /// How often the agent is replaced by a successor.
    pub take_overs: usize,
}

/// What became of the handshakes.
pub struct Report {
    /// All of them.
    pub handshakes: usize,
    /// Those that failed, and how.
    pub failed: Vec<String>,
}

impl Storm {
    /// Kills the agent, replaces it, restarts the server and takes it away for a while.
    ///
    /// # Panics
    /// Something does not come back.
    pub async fn rage(&self) -> Report {
        // Half of it is left when a renewal is due: more than the outage.
        let ttl = (self.outage * 3).max(Duration::from_secs(20)).as_secs();
        let options = Options::default().server(&format!("default_x509_svid_ttl = \"{ttl}s\""));
        let mut world = World::with(options).await;
        let mut agent = world.agent("agent").await;
        let admin = world.admin().await;
        admin
            .create(entry(&spiffe_id("/w"), &agent.id, &[&own_selector()]))
            .await;
        let greetings = Greetings::start(self, &agent.socket).await;
        let round = self.clients * 5;
        greetings.more(round).await;
        agent = agent.kill_and_restart().await;
        greetings.more(round).await;
        for _ in 0..self.take_overs {
            let (next, ended) = agent.replace().await;
            assert_eq!(ended, Some(0), "{}", next.log());
            agent = next;
            greetings.more(round).await;
        }
        world.kill_server().await;
        world.restart_server().await;
        greetings.more(round).await;
        world.kill_server().await;
        // The fault is time without a server, not a wait for anything.
        tokio::time::sleep(self.outage).await;
        world.restart_server().await;
        greetings.more(round).await;
        greetings.end().await
    }
}

/// Clients that greet each other until the end.
struct Greetings {
    stop: watch::Sender<bool>,
    done: watch::Receiver<usize>,
    failed: JoinSet<Vec<String>>,
    _followers: JoinSet<()>,
}

impl Greetings {
    /// Starts once each client has an identity.
    async fn start(storm: &Storm, socket: &Path) -> Self {
        let mut followers = JoinSet::new();
        let mut parties = Vec::new();
        for _ in 0..storm.clients {
            let party = Party {
                identity: Identity::empty(),
                roots: Roots::new([]),
                authorizer: anyone(),
                clock: Arc::new(System),
            };
            let (has_one, mut is_there) = watch::channel(false);
            followers.spawn(follow(party.clone(), socket.to_owned(), has_one));
            within("a first SVID", is_there.wait_for(|there| *there))
                .await
                .unwrap();
            parties.push(party);
        }
        let (stop, stopped) = watch::channel(false);
        let (count, done) = watch::channel(0);
        let count = Arc::new(count);
        let mut failed = JoinSet::new();
        for (at, client) in parties.iter().enumerate() {
            let server = parties[(at + 1) % parties.len()].clone();
            failed.spawn(greet(
                client.clone(),
                server,
                storm.every,
                Arc::clone(&count),
                stopped.clone(),
            ));
        }
        Self {
            stop,
            done,
            failed,
            _followers: followers,
        }
    }

    /// Waits until so many more were done.
    async fn more(&self, more: usize) {
        let mut done = self.done.clone();
        let wanted = *done.borrow_and_update() + more;
        within("handshakes go on", done.wait_for(|done| *done >= wanted))
            .await
            .unwrap();
    }

    async fn end(self) -> Report {
        self.stop.send_replace(true);
        let failed = self.failed.join_all().await.into_iter().flatten().collect();
        let handshakes = *self.done.borrow();
        Report { handshakes, failed }
    }
}

/// Keeps a client's identity as the Workload API says it is.
async fn follow(party: Party, socket: std::path::PathBuf, has_one: watch::Sender<bool>) {
    let ms = Duration::from_millis;
    let policy = Policy::new(ms(20), ms(500), 2.0).unwrap();
    let mut contexts = X509Contexts::new(Endpoint::Unix(socket), policy, fastrand::Rng::new());
    loop {
        match contexts.next().await.expect("it may be tried again") {
            Change::Context(context) => {
                let own = &context.svids[0];
                party.roots.set(&own.bundle.anchors());
                party.identity.swap(own.svid.chain(), &own.key).unwrap();
                has_one.send_replace(true);
            }
            // Who obeys has no identity now: handshakes fail, and are counted.
            Change::Denied(_) => party.identity.clear(),
            Change::Discarded(malformed) => panic!("{malformed}"),
            Change::Interrupted { .. } => {}
        }
    }
}

/// One client, until the end; how its handshakes failed.
async fn greet(
    client: Party,
    server: Party,
    every: Duration,
    count: Arc<watch::Sender<usize>>,
    stopped: watch::Receiver<bool>,
) -> Vec<String> {
    let mut tick = tokio::time::interval(every);
    let mut failed = Vec::new();
    while !*stopped.borrow() {
        tick.tick().await;
        if let Err(error) = within("a handshake", handshake(&client, &server)).await {
            failed.push(error.to_string());
        }
        count.send_modify(|count| *count += 1);
    }
    failed
}

async fn handshake(client: &Party, server: &Party) -> io::Result<()> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(server_config(server).map_err(io::Error::other)?);
    let connecting = connect(ours, client_config(client).map_err(io::Error::other)?);
    let calling = async {
        let mut stream = connecting.await?;
        stream.write_all(b"?").await?;
        stream.flush().await?;
        stream.read_u8().await
    };
    let answering = async {
        let mut stream = acceptor.accept(theirs).await?;
        stream.read_u8().await?;
        if stream.get_ref().1.peer_certificates().is_none() {
            return Err(io::Error::other("the client showed no certificate"));
        }
        stream.write_all(b"!").await?;
        stream.flush().await
    };
    tokio::try_join!(calling, answering).map(drop)
}
