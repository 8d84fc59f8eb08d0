//! The first process: hands over what it holds, or goes on as before.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use vane_chassis::unix_listener::{Handle, Other};
use vane_identity::id::TrustDomain;

use super::message::{Answer, Ask, Own, Socket, State, VERSION, authorities};
use super::{STEP, WARM, frame};
use crate::api::Connector;
use crate::cache::Reader;
use crate::own_svid::OwnSvid;
use crate::tenure::{Frozen, Lock, Tenure};

/// What there is to hand over.
pub struct Estate {
    /// The trust domain: one of another is none of ours.
    pub trust_domain: TrustDomain,
    /// The agent's own SVID.
    pub own: watch::Receiver<Option<Arc<OwnSvid>>>,
    /// What is served, and the bundle in it.
    pub reader: Reader,
    /// Whose turn it is.
    pub tenure: Tenure,
    /// The lock of `data_dir`.
    pub lock: Lock,
    /// The listening sockets.
    pub sockets: Vec<Passed>,
}

/// A listening socket that can be passed.
pub enum Passed {
    /// A Unix socket with its name.
    Unix(&'static str, Handle),
    /// A TCP socket with its name and address.
    Tcp(&'static str, std::net::SocketAddr, OwnedFd),
}

/// A successor serves. While this lives this process does nothing that needs a turn.
#[derive(Debug)]
pub struct Taken {
    /// The successor.
    pub pid: i32,
    _frozen: Frozen,
}

/// Why a take-over came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Who asks may not.
    #[error("uid {0} asked, which is neither root nor this agent's user")]
    NotAllowed(u32),
    /// The successor is refused, and told why.
    #[error("{0}")]
    Refused(String),
    /// The connection broke: the successor ended.
    #[error("the successor is gone: {0}")]
    Gone(#[from] std::io::Error),
    /// The successor is late.
    #[error("the successor did not {0} in time")]
    Late(&'static str),
}

impl Passed {
    fn socket(&self) -> Socket {
        let (name, place, is_kept) = match self {
            Self::Unix(name, handle) => (name, handle.path.display().to_string(), handle.is_kept()),
            Self::Tcp(name, address, _) => (name, address.to_string(), false),
        };
        Socket {
            name: (*name).to_owned(),
            place,
            is_kept,
        }
    }

    fn fd(&self) -> &OwnedFd {
        match self {
            Self::Unix(_, handle) => &handle.fd,
            Self::Tcp(_, _, fd) => fd,
        }
    }
}

impl Estate {
    /// Answers those who ask, one at a time, until one has taken over; None when nobody can ask
    /// any more.
    pub(crate) async fn hand_over(
        &self,
        mut asks: mpsc::Receiver<Other<Arc<Connector>>>,
    ) -> Option<Taken> {
        while let Some(Other { stream, guard }) = asks.recv().await {
            match self.answer(&stream, &guard).await {
                Ok(taken) => return Some(taken),
                Err(error) => tracing::warn!(%error, "a take-over came to nothing: going on"),
            }
        }
        None
    }

    async fn answer(&self, stream: &UnixStream, who: &Connector) -> Result<Taken, Failure> {
        let uid = who.facts.uid.effective;
        if !may_ask(uid, nix::unistd::geteuid().as_raw()) {
            return Err(Failure::NotAllowed(uid));
        }
        let pid = who.peer.key().pid;
        match self.greet(stream).await {
            Err(Failure::Refused(why)) => {
                let refused = Answer::Refused { why: why.clone() };
                // Who is refused may be gone; it is refused all the same.
                let _ = timeout(STEP, frame::send(stream, &refused, &[])).await;
                return Err(Failure::Refused(why));
            }
            greeted => greeted?,
        }
        tracing::info!(pid, "a successor takes over");
        let frozen = timeout(STEP, self.tenure.freeze());
        let frozen = frozen
            .await
            .map_err(|_| Failure::Late("leave this agent its turn"))?;
        self.tell(stream, &Answer::State(self.state()), Vec::new())
            .await?;
        let Ask::Warm = ask(stream, WARM + STEP, "get in sync").await? else {
            return Err(Failure::Refused("a warm successor was expected".to_owned()));
        };
        let lock = self.lock.to_pass()?;
        let names = self.sockets.iter().map(Passed::socket).collect();
        let fds =
            std::iter::once(lock.as_fd()).chain(self.sockets.iter().map(|it| it.fd().as_fd()));
        self.tell(stream, &Answer::Sockets(names), fds.collect())
            .await?;
        let Ask::Serving { sockets } = ask(stream, STEP, "serve").await? else {
            return Err(Failure::Refused(
                "a serving successor was expected".to_owned(),
            ));
        };
        for passed in &self.sockets {
            if let Passed::Unix(name, handle) = passed
                && sockets.iter().any(|taken| taken == name)
            {
                handle.keep_file();
            }
        }
        Ok(Taken {
            pid,
            _frozen: frozen,
        })
    }

    /// Hears who asks.
    async fn greet(&self, stream: &UnixStream) -> Result<(), Failure> {
        let Ask::Hello {
            version,
            trust_domain,
        } = ask(stream, STEP, "say who it is").await?
        else {
            return Err(Failure::Refused("a greeting was expected".to_owned()));
        };
        if version < VERSION {
            let why = format!("its version {version} is older than {VERSION}");
            return Err(Failure::Refused(why));
        }
        if trust_domain != self.trust_domain.as_str() {
            let why = format!(
                "this agent is of {}, not of {trust_domain}",
                self.trust_domain
            );
            return Err(Failure::Refused(why));
        }
        Ok(())
    }

    fn state(&self) -> State {
        let snapshots = self.reader.snapshots();
        let snapshot = Arc::clone(&snapshots.borrow());
        State {
            version: VERSION,
            pid: std::process::id(),
            own: self.own.borrow().as_deref().map(Own::of),
            bundle: snapshot
                .own_bundle()
                .map(|bundle| authorities(bundle))
                .unwrap_or_default(),
        }
    }

    async fn tell(
        &self,
        stream: &UnixStream,
        answer: &Answer,
        fds: Vec<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<(), Failure> {
        timeout(STEP, frame::send(stream, answer, &fds))
            .await
            .map_err(|_| Failure::Late("listen"))?
            .map_err(Failure::Gone)
    }
}

/// Whether `uid` may have what an agent of `own` holds: who may read its files anyway.
pub(super) fn may_ask(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

async fn ask(stream: &UnixStream, within: Duration, what: &'static str) -> Result<Ask, Failure> {
    let received = timeout(within, frame::receive(stream)).await;
    let (ask, _) = received.map_err(|_| Failure::Late(what))??;
    Ok(ask)
}
