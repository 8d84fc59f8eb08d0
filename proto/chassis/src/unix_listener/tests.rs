use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout as within;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

struct World {
    _folder: tempfile::TempDir,
    socket: Socket,
    stop: CancellationToken,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let socket = Socket {
        path: folder.path().join("s"),
        mode: 0o777,
        group: None,
    };
    World {
        _folder: folder,
        socket,
        stop: CancellationToken::new(),
    }
}

impl World {
    fn bind(&self) -> Result<UnixListener<()>, BindError> {
        UnixListener::bind(&self.socket, |_| Ok(()), self.stop.clone())
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket.path).await.unwrap()
    }

    fn path(&self) -> PathBuf {
        self.socket.path.clone()
    }
}

fn value(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

async fn next<T: Send + 'static>(listener: &mut UnixListener<T>) -> Option<Accepted<T>> {
    within(DEADLINE, listener.next()).await.unwrap()
}

/// Runs the listener until it has seen `done`; nothing may be yielded meanwhile.
async fn run_until<T: Send + 'static>(
    listener: &mut UnixListener<T>,
    done: impl Fn(&Counts) -> bool,
) {
    let counts = listener.counts();
    let polled = std::future::poll_fn(|cx| {
        assert!(
            listener.poll_next_unpin(cx).is_pending(),
            "nothing was to be yielded"
        );
        cx.waker().wake_by_ref();
        if done(&counts) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    within(DEADLINE, polled).await.unwrap();
}

/// Whether the other side has closed.
async fn is_closed(stream: &mut UnixStream) -> bool {
    matches!(
        within(DEADLINE, stream.read(&mut [0])).await.unwrap(),
        Ok(0) | Err(_)
    )
}

#[tokio::test]
async fn a_connection_is_yielded_when_its_preface_is_whole_and_keeps_it() {
    let world = world();
    let mut listener = world.bind().unwrap();
    let mut client = world.connect().await;
    client.write_all(&PREFACE[..10]).await.unwrap();
    run_until(&mut listener, |counts| value(&counts.admitted) == 1).await;
    client.write_all(&PREFACE[10..]).await.unwrap();
    let mut accepted = next(&mut listener).await.unwrap();
    let mut read = [0; PREFACE.len()];
    accepted.stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, PREFACE);
    accepted.stream.write_all(b"x").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn idle_connections_hold_up_nobody() {
    let world = world();
    let mut listener = world.bind().unwrap();
    let mut idle = Vec::new();
    for number in 1..=300 {
        idle.push(world.connect().await);
        if number % 50 == 0 {
            run_until(&mut listener, |counts| value(&counts.admitted) == number).await;
        }
    }
    let mut client = world.connect().await;
    client.write_all(PREFACE).await.unwrap();
    assert!(next(&mut listener).await.is_some());
}

#[tokio::test]
async fn a_wrong_preface_closes_the_connection_and_is_counted() {
    let world = world();
    let mut listener = world.bind().unwrap();
    let mut client = world.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    run_until(&mut listener, |counts| value(&counts.no_preface) == 1).await;
    assert!(is_closed(&mut client).await);
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_preface_is_closed_after_five_seconds() {
    let (client, server) = UnixStream::pair().unwrap();
    let started = tokio::time::Instant::now();
    assert!(with_preface(server, (), None).await.is_none());
    assert_eq!(started.elapsed(), PREFACE_TIMEOUT);
    drop(client);
}

#[tokio::test]
async fn a_connection_over_a_limit_is_closed_at_accept_and_its_place_is_free_with_the_guard() {
    struct Guard(Arc<AtomicUsize>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let world = world();
    let open = Arc::new(AtomicUsize::new(0));
    let admit = move |_: &UnixStream| {
        if open.fetch_add(1, Ordering::Relaxed) > 0 {
            open.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal { reason: "too many" });
        }
        Ok(Guard(open.clone()))
    };
    let mut listener = UnixListener::bind(&world.socket, admit, world.stop.clone()).unwrap();
    let first = world.connect().await;
    run_until(&mut listener, |counts| value(&counts.admitted) == 1).await;
    let mut second = world.connect().await;
    run_until(&mut listener, |counts| value(&counts.refused) == 1).await;
    assert!(is_closed(&mut second).await);
    drop(first);
    run_until(&mut listener, |counts| value(&counts.no_preface) == 1).await;
    let mut third = world.connect().await;
    third.write_all(PREFACE).await.unwrap();
    assert!(next(&mut listener).await.is_some());
}

#[tokio::test]
async fn stop_ends_the_listener_its_waiting_connections_and_the_file() {
    let world = world();
    let mut listener = world.bind().unwrap();
    let mut client = world.connect().await;
    run_until(&mut listener, |counts| value(&counts.admitted) == 1).await;
    world.stop.cancel();
    assert!(next(&mut listener).await.is_none());
    assert!(is_closed(&mut client).await);
    drop(listener);
    assert!(!world.path().exists());
}

#[tokio::test]
async fn the_file_has_its_mode_whatever_the_umask() {
    for mode in [0o777, 0o660] {
        let mut world = world();
        world.socket.mode = mode;
        let _listener = world.bind().unwrap();
        assert_eq!(
            fs::metadata(world.path()).unwrap().permissions().mode() & 0o7777,
            mode
        );
    }
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_nothing_else_is() {
    let world = world();
    drop(net::UnixListener::bind(world.path()).unwrap());
    let listener = world.bind().unwrap();
    assert!(matches!(world.bind(), Err(BindError::InUse(_))));
    assert!(world.path().exists());
    drop(listener);
    fs::write(world.path(), "mine").unwrap();
    assert!(matches!(world.bind(), Err(BindError::NotASocket(_))));
    assert_eq!(fs::read_to_string(world.path()).unwrap(), "mine");
}

#[tokio::test]
async fn a_socket_that_is_no_longer_ours_is_left() {
    let world = world();
    let listener = world.bind().unwrap();
    fs::remove_file(world.path()).unwrap();
    let other = net::UnixListener::bind(world.path()).unwrap();
    let inode = fs::metadata(world.path()).unwrap().ino();
    drop(listener);
    assert_eq!(fs::metadata(world.path()).unwrap().ino(), inode);
    drop(other);
    let kept = world.bind().unwrap();
    kept.handle().unwrap().keep_file();
    drop(kept);
    assert!(world.path().exists());
}

#[tokio::test]
async fn a_socket_that_is_handed_on_refuses_nobody_and_loses_nobody() {
    let world = world();
    let retired = CancellationToken::new();
    let (gone, mut is_gone) = mpsc::channel(1);
    let first = world.bind().unwrap();
    let mut first = first.retiring(retired.clone(), gone);
    let mut early = world.connect().await;
    let counts = first.counts();
    let accepted = async {
        while value(&counts.admitted) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = first.next() => panic!("nothing was said yet"),
        done = within(DEADLINE, accepted) => done.unwrap(),
    }

    let handle = first.handle().unwrap();
    assert!(!handle.is_kept());
    let given = GivenUnix {
        listener: handle.fd.try_clone().unwrap().into(),
        is_kept: handle.is_kept(),
    };
    let stop = world.stop.clone();
    let mut second = UnixListener::adopt(given, world.path(), |_| Ok(()), stop).unwrap();
    handle.keep_file();
    retired.cancel();
    assert!(futures_util::poll!(Box::pin(first.next())).is_pending());
    let mut late = world.connect().await;
    early.write_all(PREFACE).await.unwrap();
    assert!(next(&mut first).await.is_some(), "it was accepted before");
    assert!(next(&mut first).await.is_none(), "and that was the last");
    drop(first);
    assert!(is_gone.recv().await.is_none());
    late.write_all(PREFACE).await.unwrap();
    assert!(next(&mut second).await.is_some());
    drop(second);
    assert!(!world.path().exists(), "the last one cleans up");
}

#[tokio::test]
async fn another_preface_goes_to_its_taker_and_any_third_is_closed() {
    const OTHER: [u8; 24] = *b"OTHER PROTOCOL 123456789";
    let world = world();
    let (taker, mut taken) = mpsc::channel(1);
    let mut listener = world.bind().unwrap().aside(OTHER, taker);
    let (mut other, mut third) = (world.connect().await, world.connect().await);
    other.write_all(&OTHER).await.unwrap();
    third.write_all(b"OTHER PROTOCOL 12345678X").await.unwrap();
    let counts = listener.counts();
    let serve = async {
        tokio::select! {
            _ = listener.next() => panic!("nobody speaks HTTP/2"),
            other = taken.recv() => other.unwrap(),
        }
    };
    let mut other_end = within(DEADLINE, serve).await.unwrap().stream;
    other_end.write_all(b"hello").await.unwrap();
    let mut read = [0; 5];
    other.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"hello");
    let closed = async {
        tokio::select! {
            _ = listener.next() => panic!("nobody speaks HTTP/2"),
            read = third.read_u8() => read,
        }
    };
    assert!(within(DEADLINE, closed).await.unwrap().is_err());
    assert_eq!(value(&counts.no_preface), 1);
}

#[tokio::test]
async fn a_path_that_no_socket_can_have_is_refused_with_its_length() {
    let mut world = world();
    world.socket.path = PathBuf::from(format!("/tmp/{}", "x".repeat(103)));
    let error = world.bind().unwrap_err().to_string();
    assert!(
        error.ends_with("has 108 bytes, at most 107 are possible"),
        "{error}"
    );
}
