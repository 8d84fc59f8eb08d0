use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use vane_chassis::files::private_dir;
use vane_chassis::tasks::TaskSet;
use vane_chassis::unix_listener::{Socket, UnixListener};
use vane_identity::id::TrustDomain;

use super::*;
use crate::api::{Connector, admit};
use crate::config::Config;
use crate::limits::{Bounds, Limits};
use crate::peer::PeerPidfd;
use crate::tenure::{Lock, Tenure, Tried};
use crate::testing::{Fake, Running, soon};

type Listener = UnixListener<Arc<Connector>>;

/// A process that serves, as far as a successor sees it.
struct First {
    folder: TempDir,
    fake: Fake,
    running: Running,
    tenure: Tenure,
    public: Listener,
    /// The successor that took over.
    taken: mpsc::Receiver<Option<Taken>>,
    _tasks: TaskSet,
}

impl First {
    async fn new() -> Self {
        let fake = Fake::new();
        let running = fake.cache();
        let folder = tempfile::tempdir().unwrap();
        let tenure = Tenure::default();
        let (taker, asks) = mpsc::channel(1);
        let mut admin = bind(folder.path().join("agent-admin.sock")).aside(PREFACE, taker);
        let public = bind(folder.path().join("agent.sock"));
        let (_own, own) = watch::channel(None);
        let estate = Estate {
            trust_domain: TrustDomain::parse("example.org").unwrap(),
            own,
            reader: running.reader.clone(),
            tenure: tenure.clone(),
            lock: lock(&folder),
            sockets: vec![
                Passed::Unix("admin", admin.handle().unwrap()),
                Passed::Unix("public", public.handle().unwrap()),
            ],
        };
        let (done, taken) = mpsc::channel(1);
        let tasks = TaskSet::new("first");
        tasks.spawn(async move { while admin.next().await.is_some() {} });
        tasks.spawn(async move { done.send(estate.hand_over(asks).await).await.unwrap() });
        Self {
            folder,
            fake,
            running,
            tenure,
            public,
            taken,
            _tasks: tasks,
        }
    }

    fn config(&self, trust_domain: &str) -> Config {
        config(&self.folder, trust_domain)
    }
}

fn config(folder: &TempDir, trust_domain: &str) -> Config {
    let text = format!(
        "[agent]\ntrust_domain = {trust_domain:?}\nserver_address = \"h\"\nsocket_path = {:?}\ndata_dir = {:?}\n",
        folder.path().join("agent.sock"),
        folder.path().join("data"),
    );
    vane_chassis::config::parse(&text, "test").unwrap()
}

fn bind(path: PathBuf) -> Listener {
    let socket = Socket {
        path,
        mode: 0o600,
        group: None,
    };
    let limits = Limits::new(Bounds::for_descriptors(1_024));
    let admits = move |stream: &UnixStream| admit(stream, &limits, PeerPidfd::Prefer);
    UnixListener::bind(&socket, admits, CancellationToken::new()).unwrap()
}

fn lock(folder: &TempDir) -> Lock {
    let dir = private_dir(&folder.path().join("data")).unwrap();
    match Lock::take(&dir, &folder.path().join("agent-admin.sock")).unwrap() {
        Tried::Ours(lock) => lock,
        Tried::Held(holder) => panic!("{holder:?}"),
    }
}

async fn start(config: &Config, tenure: &Tenure) -> Result<Start, StartError> {
    let dir = private_dir(&config.agent.data_dir).unwrap();
    soon(begin(&dir, &config.agent, tenure)).await
}

async fn successor(config: &Config, tenure: &Tenure) -> Box<Successor> {
    match start(config, tenure).await.unwrap() {
        Start::After(successor) => successor,
        Start::Alone(_) => panic!("there is a predecessor"),
    }
}

#[tokio::test]
async fn a_successor_gets_lock_and_sockets_and_then_the_turn() {
    let mut first = First::new().await;
    let (config, tenure) = (first.config("example.org"), Tenure::default());
    let next = successor(&config, &tenure).await;
    assert_eq!(next.predecessor(), std::process::id());
    assert!(first.tenure.try_turn().is_none(), "it hands over");
    assert!(tenure.try_turn().is_none(), "not yet");

    let public = config.agent.socket_path.clone();
    let places = [("public", public.display().to_string())];
    let mut inherited = soon(next.inherit(&places)).await.unwrap();
    assert_eq!(inherited.given.left(), ["public"], "as configured");
    let dir = private_dir(&config.agent.data_dir).unwrap();
    let _lock = Lock::adopt(&dir, inherited.lock, &config.agent.admin_socket()).unwrap();
    let taken = inherited.given.take_unix("public", &public).unwrap();
    assert!(!taken.unwrap().is_kept);
    next.serving(inherited.names).await.unwrap();
    assert!(tenure.try_turn().is_some());
    let taken = soon(first.taken.recv()).await.unwrap().unwrap();
    assert_eq!(u32::try_from(taken.pid), Ok(std::process::id()));
    assert!(first.tenure.try_turn().is_none(), "never again");
    assert!(first.public.handle().unwrap().is_kept());
    drop((first.running, first.fake));
}

#[tokio::test]
async fn when_the_successor_ends_on_the_way_the_first_one_goes_on() {
    let first = First::new().await;
    let config = first.config("example.org");
    let next = successor(&config, &Tenure::default()).await;
    assert!(first.tenure.try_turn().is_none());
    drop(next);
    drop(soon(first.tenure.turn()).await);
    let next = successor(&config, &Tenure::default()).await;
    let _sockets = soon(next.inherit(&[])).await.unwrap();
    drop(next);
    let _turn = soon(first.tenure.turn()).await;
    assert!(!first.public.handle().unwrap().is_kept());
}

#[tokio::test]
async fn an_agent_of_another_trust_domain_is_refused_and_told_who_holds_the_state() {
    let first = First::new().await;
    let error = start(&first.config("other.org"), &Tenure::default())
        .await
        .unwrap_err();
    let pid = std::process::id();
    assert_eq!(
        error.to_string(),
        format!(
            "agent.data_dir is in use by process {pid}, which does not hand over: it says: this agent is of example.org, not of other.org; stop it first (`kill {pid}`)"
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_hangs_is_named_after_a_bounded_wait() {
    let folder = tempfile::tempdir().unwrap();
    let _lock = lock(&folder);
    let path = folder.path().join("agent-admin.sock");
    let _deaf = std::os::unix::net::UnixListener::bind(path).unwrap();
    let config = config(&folder, "example.org");
    let dir = private_dir(&config.agent.data_dir).unwrap();
    let began = tokio::time::Instant::now();
    let error = begin(&dir, &config.agent, &Tenure::default()).await;
    let error = error.unwrap_err().to_string();
    assert!(began.elapsed() <= 3 * STEP, "{:?}", began.elapsed());
    let pid = format!("in use by process {}", std::process::id());
    assert!(
        error.contains(&pid) && error.contains("it hangs"),
        "{error}"
    );
}

#[test]
fn only_root_and_the_agents_own_user_may_take_over() {
    for (uid, own, may) in [(0, 7, true), (7, 7, true), (8, 7, false), (7, 0, false)] {
        assert_eq!(predecessor::may_ask(uid, own), may, "{uid} asks {own}");
    }
}

#[tokio::test]
async fn a_message_brings_its_descriptors_and_has_bounds() {
    let (one, other) = UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    frame::send(&one, &"hello", &[file.as_fd(), file.as_fd()])
        .await
        .unwrap();
    let (said, passed) = frame::receive::<String>(&other).await.unwrap();
    assert_eq!((said.as_str(), passed.len()), ("hello", 2));

    let many = vec![file.as_fd(); frame::MAX_DESCRIPTORS + 1];
    assert!(frame::send(&one, &"hello", &many).await.is_err());
    one.writable().await.unwrap();
    one.try_write(&u32::MAX.to_be_bytes()).unwrap();
    let refused = frame::receive::<String>(&other).await.unwrap_err();
    assert_eq!(refused.to_string(), "the message is too long");
    drop(one);
    let gone = frame::receive::<String>(&other).await.unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn an_agent_that_is_alone_just_starts() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder, "example.org");
    let started = start(&config, &Tenure::default()).await.unwrap();
    assert!(matches!(started, Start::Alone(_)));
}
