//! What real clients wrote, replayed to tonic behind the Unix listener.

use std::collections::BTreeMap;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::server::{Calls, serve};
use crate::{DATA, DEADLINE, END_STREAM, HEADERS, frame};

/// Three calls of FetchX509Bundles on one channel, written by PyPI's grpcio 1.85.1.
const PYTHON: &[u8] = include_bytes!("recorded/grpc_python_1.85.1.bin");
/// The same by grpc-java 1.80.0 (netty, epoll).
const JAVA: &[u8] = include_bytes!("recorded/grpc_java_1.80.0.bin");

const CALLS: u32 = 10_000;
/// So many calls are open at once: less than the connection's flow control window holds.
const AT_ONCE: u32 = 100;

/// The percent-encoded path, in a literal name.
///
/// Proves: WEP-12.
#[tokio::test]
async fn ten_thousand_calls_of_grpc_python_pass_on_one_connection() {
    assert_eq!(called("python", PYTHON).await, only("tmp-2Fw-2Fapi.sock"));
}

/// The raw path, under static index 1.
///
/// Proves: WEP-12.
#[tokio::test]
async fn ten_thousand_calls_of_grpc_java_pass_on_one_connection() {
    assert_eq!(called("java", JAVA).await, only("-tmp-w-api.sock"));
}

fn only(authority: &str) -> BTreeMap<(String, String), u64> {
    let call = (
        authority.to_owned(),
        "/SpiffeWorkloadAPI/FetchX509Bundles".to_owned(),
    );
    BTreeMap::from([(call, u64::from(CALLS))])
}

/// Replays the recording, then its last call again and again under new stream numbers.
async fn called(name: &str, recorded: &'static [u8]) -> BTreeMap<(String, String), u64> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let (calls, stop) = (Calls::default(), CancellationToken::new());
    let client = async {
        client(&path, recorded).await;
        stop.cancel();
    };
    let both = async { tokio::join!(serve(&path, "0", calls.clone(), stop.clone()), client) };
    timeout(DEADLINE, both).await.unwrap();
    calls.lock().unwrap().clone()
}

async fn client(path: &Path, recorded: &[u8]) {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(recorded).await.unwrap();
    answers(&mut stream, 3).await;
    let (block, last) = last_call(recorded);
    for batch in 0..(CALLS - 3).div_ceil(AT_ONCE) {
        let count = AT_ONCE.min(CALLS - 3 - batch * AT_ONCE);
        let first = last + 2 + 2 * batch * AT_ONCE;
        let calls: Vec<u8> = (0..count)
            .flat_map(|number| call(&block, first + 2 * number))
            .collect();
        stream.write_all(&calls).await.unwrap();
        answers(&mut stream, count).await;
    }
}

/// A gRPC call with an empty message.
fn call(block: &[u8], stream: u32) -> Vec<u8> {
    [
        frame(HEADERS, crate::END_HEADERS, stream, block),
        frame(DATA, END_STREAM, stream, &[0; 5]),
    ]
    .concat()
}

/// The block and the stream number of the recording's last HEADERS: all its indexes are settled by then.
fn last_call(recorded: &[u8]) -> (Vec<u8>, u32) {
    let mut last = None;
    let mut rest = &recorded[crate::PREFACE.len()..];
    while let Some((head, payload)) = rest.split_first_chunk::<9>() {
        let (payload, following) = payload.split_at(length(*head));
        if head[3] == HEADERS {
            last = Some((payload.to_vec(), stream(*head)));
        }
        rest = following;
    }
    last.unwrap()
}

/// Reads until so many streams were answered and ended.
async fn answers(socket: &mut UnixStream, mut count: u32) {
    while count > 0 {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; length(head)];
        socket.read_exact(&mut payload).await.unwrap();
        let [.., kind, flags, _, _, _, _] = head;
        // Kinds 3 and 7: RST_STREAM and GOAWAY, the refusal that is to be prevented. 3 with NO_ERROR ends a call
        // whose message nobody read.
        assert!(
            kind != 7 && (kind != 3 || payload == [0; 4]),
            "refused: {head:02x?} {payload:02x?}"
        );
        count -= u32::from(kind == HEADERS && flags & END_STREAM != 0);
    }
}

fn length(head: [u8; 9]) -> usize {
    u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize
}

fn stream(head: [u8; 9]) -> u32 {
    u32::from_be_bytes([head[5], head[6], head[7], head[8]])
}
