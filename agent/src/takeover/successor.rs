//! The second process: finds that the first one holds `data_dir`, and asks it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;
use vane_chassis::files::Dir;
use vane_chassis::given::{Given, GivenError};
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::id::TrustDomain;

use super::message::{Answer, Ask, PREFACE, Socket, State, VERSION};
use super::{STEP, frame};
use crate::config::Agent;
use crate::own_svid::{Disk, DiskError};
use crate::peer::ended;
use crate::pem;
use crate::tenure::{Frozen, Holder, Lock, LockError, Tenure, Tried};

/// So long a start waits for the end of a holder that does not listen: it may be on its way out.
const END: Duration = Duration::from_secs(12);

/// How an agent starts.
#[derive(Debug)]
pub enum Start {
    /// Nobody else holds the state.
    Alone(Lock),
    /// Another process does, and hands over.
    After(Box<Successor>),
}

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The lock cannot be tried.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Another process holds the lock and does not hand over.
    #[error(
        "agent.data_dir is in use by {}, which does not hand over: {why}; {}",
        named(*.pid), hint(*.pid)
    )]
    Held {
        /// The process.
        pid: Option<u32>,
        /// What came of asking it.
        why: TakeOverError,
    },
}

/// Why there is no take-over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The lock does not say where to ask.
    #[error("it does not say where it can be asked")]
    NoAddress,
    /// Nobody listens at its admin socket.
    #[error("nobody answers at its admin socket: {0}")]
    NotListening(io::Error),
    /// The connection broke.
    #[error("the connection to it broke: {0}")]
    Broken(#[from] io::Error),
    /// It does not answer.
    #[error("it did not {0} within {STEP:?}: it hangs, or is not serving yet")]
    Silent(&'static str),
    /// Somebody else listens there.
    #[error("its admin socket belongs to uid {0}")]
    Foreign(u32),
    /// It refuses.
    #[error("it says: {0}")]
    Refused(String),
    /// It says something else than was asked.
    #[error("it does not speak version {VERSION} of the take-over")]
    Unknown,
    /// What it passed cannot be used.
    #[error(transparent)]
    Passed(#[from] GivenError),
}

fn named(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}

fn hint(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("stop it first (`kill {pid}`)"),
        None => "stop it first".to_owned(),
    }
}

/// This process, while another one serves.
#[derive(Debug)]
pub struct Successor {
    stream: UnixStream,
    state: State,
    /// Until this process serves it is not its turn.
    frozen: Frozen,
}

/// What a successor gets at the end.
#[derive(Debug)]
pub struct Inherited {
    /// The listening sockets that are configured here, too.
    pub given: Given,
    /// The lock of `data_dir`.
    pub lock: OwnedFd,
    /// Their names.
    pub names: Vec<String>,
}

/// Locks `dir`, or asks who holds it to hand over.
///
/// # Errors
/// [`StartError`]: what keeps this process from starting, with the holder's pid.
pub async fn begin(dir: &Dir, agent: &Agent, tenure: &Tenure) -> Result<Start, StartError> {
    let admin = agent.admin_socket();
    let holder = match Lock::take(dir, &admin)? {
        Tried::Ours(lock) => return Ok(Start::Alone(lock)),
        Tried::Held(holder) => holder,
    };
    let why = match Successor::ask(&holder, &agent.trust_domain, tenure).await {
        Ok(successor) => return Ok(Start::After(Box::new(successor))),
        Err(why) => why,
    };
    if let (Some(pid), TakeOverError::NotListening(_) | TakeOverError::Broken(_)) =
        (holder.pid, &why)
    {
        tracing::info!(pid, error = %why, "waiting for the end of the process that holds data_dir");
        // Whether it ended or not is told by the lock.
        let _ = timeout(END, ended(pid)).await;
    }
    match Lock::take(dir, &admin)? {
        Tried::Ours(lock) => Ok(Start::Alone(lock)),
        Tried::Held(Holder { pid, .. }) => Err(StartError::Held { pid, why }),
    }
}

impl Successor {
    async fn ask(
        holder: &Holder,
        trust_domain: &TrustDomain,
        tenure: &Tenure,
    ) -> Result<Self, TakeOverError> {
        let path = holder.admin_socket.as_ref();
        let path = path.ok_or(TakeOverError::NoAddress)?;
        let mut stream = UnixStream::connect(path)
            .await
            .map_err(TakeOverError::NotListening)?;
        let who = getsockopt(&stream, PeerCredentials).map_err(io::Error::from)?;
        if who.uid() != 0 && who.uid() != nix::unistd::geteuid().as_raw() {
            return Err(TakeOverError::Foreign(who.uid()));
        }
        stream.write_all(&PREFACE).await?;
        let hello = Ask::Hello {
            version: VERSION,
            trust_domain: trust_domain.to_string(),
        };
        tell(&stream, &hello).await?;
        let (answer, _) = heard(&stream, "answer").await?;
        let Answer::State(state) = answer else {
            return Err(TakeOverError::Unknown);
        };
        tracing::info!(pid = state.pid, "taking over from a predecessor");
        Ok(Self {
            stream,
            state,
            frozen: tenure.freeze().await,
        })
    }

    /// The process that serves.
    #[must_use]
    pub fn predecessor(&self) -> u32 {
        self.state.pid
    }

    /// Writes the own SVID down that was handed over, if it is not what the disk has (somebody
    /// removed it): the predecessor writes nothing meanwhile, and will not any more.
    ///
    /// # Errors
    /// The files cannot be read or written.
    pub fn keep(&self, disk: &Disk, trust_domain: &TrustDomain) -> Result<(), DiskError> {
        let handed = self.state.own.as_ref().and_then(|own| own.read());
        let Some(handed) = handed else { return Ok(()) };
        let kept = disk.load()?;
        if kept.svid.is_some_and(|kept| kept.chain == handed.chain) {
            return Ok(());
        }
        let mut bundle = Bundle::empty(trust_domain.clone());
        let roots = pem::certificates(&self.state.bundle).unwrap_or_default();
        bundle.x509_authorities = roots.into_iter().map(X509Authority::new).collect();
        disk.keep_key(&handed.key, None)?;
        disk.keep(Some(&handed), Some(&bundle))
    }

    /// Says that this process is in sync, and takes the sockets: those at the `places` (name and
    /// path or address) where this process is to listen.
    ///
    /// # Errors
    /// [`TakeOverError`]: the predecessor goes on, or has ended.
    pub async fn inherit(
        &self,
        places: &[(&'static str, String)],
    ) -> Result<Inherited, TakeOverError> {
        tell(&self.stream, &Ask::Warm).await?;
        let (answer, descriptors) = heard(&self.stream, "pass its sockets").await?;
        let Answer::Sockets(sockets) = answer else {
            return Err(TakeOverError::Unknown);
        };
        let mut descriptors = descriptors.into_iter();
        let lock = descriptors.next().ok_or(TakeOverError::Unknown)?;
        let mut inherited = Inherited {
            given: Given::none(),
            lock,
            names: Vec::new(),
        };
        for (socket, fd) in sockets.into_iter().zip(descriptors) {
            let Socket {
                name,
                place,
                is_kept,
            } = socket;
            let wanted = places
                .iter()
                .any(|(known, at)| *known == name && *at == place);
            if wanted {
                inherited.names.push(name.clone());
                inherited.given.push(name, fd, is_kept)?;
            }
        }
        Ok(inherited)
    }

    /// Says that this process serves; from now on it is its turn.
    ///
    /// # Errors
    /// The predecessor is gone: nobody has to be told.
    pub async fn serving(self, names: Vec<String>) -> Result<(), TakeOverError> {
        let _until_told: Frozen = self.frozen;
        tell(&self.stream, &Ask::Serving { sockets: names }).await
    }
}

async fn tell(stream: &UnixStream, ask: &Ask) -> Result<(), TakeOverError> {
    timeout(STEP, frame::send(stream, ask, &[]))
        .await
        .map_err(|_| TakeOverError::Silent("listen"))?
        .map_err(TakeOverError::Broken)
}

async fn heard(
    stream: &UnixStream,
    what: &'static str,
) -> Result<(Answer, Vec<OwnedFd>), TakeOverError> {
    // Two steps: the predecessor waits for its turns to end meanwhile.
    let received = timeout(2 * STEP, frame::receive(stream)).await;
    match received.map_err(|_| TakeOverError::Silent(what))?? {
        (Answer::Refused { why }, _) => Err(TakeOverError::Refused(why)),
        answer => Ok(answer),
    }
}
