//! The Unix listener while the process has no descriptor left. Alone in its binary: the limit is the process's.

#![cfg(test)]

use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use futures_util::Stream as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vane_chassis::h2_authority::PREFACE;
use vane_chassis::unix_listener::{Socket, UnixListener};

#[tokio::test]
async fn the_listener_pauses_without_descriptors_and_goes_on_when_there_are_some() {
    let folder = tempfile::tempdir().unwrap();
    let socket = Socket {
        path: folder.path().join("s"),
        mode: 0o600,
        group: None,
    };
    let mut listener = UnixListener::bind(&socket, |_| Ok(()), CancellationToken::new()).unwrap();
    let counts = listener.counts();
    // The kernel connects them; accepting them is what needs descriptors.
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = UnixStream::connect(&socket.path).await.unwrap();
        client.write_all(PREFACE).await.unwrap();
        clients.push(client);
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 1, hard).unwrap();
    let failing = std::future::poll_fn(|cx| {
        assert!(std::pin::Pin::new(&mut listener).poll_next(cx).is_pending());
        match counts.accept_errors.load(Ordering::Relaxed) {
            0..3 => Poll::Pending,
            _ => Poll::Ready(()),
        }
    });
    timeout(Duration::from_secs(20), failing).await.unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    for _ in &clients {
        assert!(
            timeout(Duration::from_secs(20), listener.next())
                .await
                .unwrap()
                .is_some()
        );
    }
    assert_eq!(counts.admitted.load(Ordering::Relaxed), 20);
    assert_eq!(
        counts.accept_errors.load(Ordering::Relaxed),
        3,
        "50 ms lie between two attempts"
    );
}
