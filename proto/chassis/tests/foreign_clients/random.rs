//! 16,000 random header blocks through the patch to h2, which must understand each as it was meant.

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;
use vane_chassis::h2_authority::AuthorityPatch;

use crate::hpack::{Encoder, Header};
use crate::{
    CONTINUATION, DEADLINE, END_HEADERS, END_STREAM, HEADERS, PADDED, PREFACE, PRIORITY, SETTINGS,
    frame,
};

const CONNECTIONS: u64 = 160;
const BLOCKS: u32 = 100;

#[tokio::test]
async fn sixteen_thousand_random_blocks_reach_h2_as_they_were_meant() {
    for seed in 0..CONNECTIONS {
        let mut rng = Rng::with_seed(seed);
        let requests: Vec<_> = (0..BLOCKS).map(|_| request(&mut rng)).collect();
        let sent = connection(&requests, &mut rng);
        let (client, server) = tokio::io::duplex(rng.usize(1..5_000));
        let both =
            async { tokio::join!(client_side(client, &sent), h2_side(server, requests.len())).1 };
        let got = timeout(DEADLINE, both).await.unwrap();
        let wanted: Vec<_> = requests.into_iter().map(patched).collect();
        assert_eq!(got, wanted, "seed {seed}");
    }
}

/// Pseudo headers, then others. `%` and `/` stand everywhere, but only in `:authority` they may change.
fn request(rng: &mut Rng) -> Vec<Header> {
    let header = |name: &str, value: String| (name.to_owned(), value);
    let mut pseudo = vec![
        header(":method", "POST".to_owned()),
        header(":scheme", "http".to_owned()),
        header(":path", format!("/{}", from(b"ab/%2F.", 0..20, rng))),
        header(":authority", from(b"abcXYZ019._-%%%//", 1..40, rng)),
    ];
    rng.shuffle(&mut pseudo);
    let printable: Vec<u8> = (b' '..=b'~').collect();
    for _ in 0..rng.usize(..6) {
        let name = *rng
            .choice(
                [
                    "authority",
                    "content-type",
                    "user-agent",
                    "x-%",
                    "x-authority",
                ]
                .iter(),
            )
            .unwrap();
        let value = if rng.bool() {
            ":authority".to_owned()
        } else {
            from(&printable, 0..60, rng)
        };
        pseudo.push(header(name, format!("a{value}z")));
    }
    pseudo
}

fn from(alphabet: &[u8], length: std::ops::Range<usize>, rng: &mut Rng) -> String {
    (0..rng.usize(length))
        .map(|_| char::from(*rng.choice(alphabet).unwrap()))
        .collect()
}

fn patched(mut request: Vec<Header>) -> Vec<Header> {
    for (_, value) in request.iter_mut().filter(|(name, _)| name == ":authority") {
        *value = value.replace(['%', '/'], "-");
    }
    sorted(request)
}

/// h2 does not keep the order of different names; that of equal ones it does.
fn sorted(mut request: Vec<Header>) -> Vec<Header> {
    request.sort_by(|a, b| a.0.cmp(&b.0));
    request
}

fn connection(requests: &[Vec<Header>], rng: &mut Rng) -> Vec<u8> {
    let mut encoder = Encoder::new();
    let mut sent = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    for (number, headers) in (0..).zip(requests) {
        let block = encoder.block(headers, rng);
        block_frames(&mut sent, &block, 2 * number + 1, rng);
    }
    sent
}

/// The block in one frame or several, with and without padding and priority.
fn block_frames(sent: &mut Vec<u8>, block: &[u8], stream: u32, rng: &mut Rng) {
    let mut cuts: Vec<usize> = (0..rng.usize(..4))
        .map(|_| rng.usize(..=block.len()))
        .collect();
    cuts.extend([0, block.len()]);
    cuts.sort_unstable();
    let last = cuts.len() - 2;
    for (number, cut) in cuts.windows(2).enumerate() {
        let part = &block[cut[0]..cut[1]];
        let end = if number == last { END_HEADERS } else { 0 };
        sent.extend(match number {
            0 => first_frame(part, end, stream, rng),
            _ => frame(CONTINUATION, end, stream, part),
        });
    }
}

fn first_frame(part: &[u8], end: u8, stream: u32, rng: &mut Rng) -> Vec<u8> {
    let (mut flags, mut payload, mut padding) = (END_STREAM | end, Vec::new(), 0);
    if rng.bool() {
        flags |= PADDED;
        padding = rng.u8(..);
        payload.push(padding);
    }
    if rng.bool() {
        flags |= PRIORITY;
        payload.extend([0, 0, 0, 0, rng.u8(..)]);
    }
    payload.extend(part);
    payload.extend(vec![0; padding.into()]);
    frame(HEADERS, flags, stream, &payload)
}

async fn client_side(stream: DuplexStream, sent: &[u8]) {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut answers = Vec::new();
    // The write side stays open until h2 has answered all and closed.
    let (_, read) = tokio::join!(write.write_all(sent), read.read_to_end(&mut answers));
    read.unwrap();
}

async fn h2_side(stream: DuplexStream, wanted: usize) -> Vec<Vec<Header>> {
    let mut connection = h2::server::handshake(AuthorityPatch::new(stream))
        .await
        .unwrap();
    let mut got = Vec::new();
    while got.len() < wanted {
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        got.push(headers_of(&request));
        respond
            .send_response(http::Response::new(()), true)
            .unwrap();
    }
    got
}

fn headers_of<B>(request: &http::Request<B>) -> Vec<Header> {
    let uri = request.uri();
    let mut headers = vec![
        (":method".to_owned(), request.method().to_string()),
        (":scheme".to_owned(), uri.scheme_str().unwrap().to_owned()),
        (
            ":authority".to_owned(),
            uri.authority().unwrap().to_string(),
        ),
        (
            ":path".to_owned(),
            uri.path_and_query().unwrap().to_string(),
        ),
    ];
    for (name, value) in request.headers() {
        headers.push((name.to_string(), value.to_str().unwrap().to_owned()));
    }
    sorted(headers)
}
