//! The `:authority` patch against h2's own frame and HPACK decoder.
//!
//! A client's octets are decoded by h2 twice: as they are, and through the
//! patch in small steps. Both must yield the same frames and the same error,
//! except that an authority may have dashes for `%` and `/`; only a header
//! block over the patch's limits may end the patched side earlier.

#![no_main]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use h2::Codec;
use h2::frame::{Frame, Headers};
use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use vane_chassis::h2_authority::{AuthorityPatch, PREFACE, patch};

// First octet: how many octets are read at a time. Second: whether the rest is
// frames, or header blocks, each behind its length, to be put into frames.
fuzz_target!(|input: &[u8]| {
    let [step, form, rest @ ..] = input else {
        return;
    };
    block_alone(rest);
    let frames = if form % 2 == 0 {
        rest.to_vec()
    } else {
        framed(rest, form / 2)
    };
    let step = usize::from(*step).max(1);
    let plain = decoded(Steps {
        left: &frames,
        step: usize::MAX,
    });
    let sent = [PREFACE.as_slice(), &frames].concat();
    let mut patched = AuthorityPatch::new(Steps { left: &sent, step });
    let mut preface = [0; PREFACE.len()];
    // A block that is over the limits may be in the very first read.
    if patched
        .read_exact(&mut preface)
        .now_or_never()
        .unwrap()
        .is_err()
    {
        return;
    }
    assert_eq!(&preface, PREFACE);
    compare(&plain, &decoded(patched));
});

/// The pure function keeps length, and a block that it calls malformed.
fn block_alone(block: &[u8]) {
    let mut patched = block.to_vec();
    let outcome = patch(&mut patched);
    assert_eq!(patched.len(), block.len());
    assert!(outcome.is_ok() || patched == block);
}

/// Header blocks on streams 1, 3, …; every other one is cut into a HEADERS and a CONTINUATION.
fn framed(mut blocks: &[u8], cut: u8) -> Vec<u8> {
    let (mut frames, mut stream) = (Vec::new(), 1u32);
    while let [length, rest @ ..] = blocks {
        let (block, following) = rest.split_at(usize::from(*length).min(rest.len()));
        let at = block.len() * usize::from(cut) / 128;
        let (one, two) = block.split_at(if stream % 4 == 1 { at } else { block.len() });
        frame(
            &mut frames,
            1,
            if two.is_empty() { 5 } else { 1 },
            stream,
            one,
        );
        if !two.is_empty() {
            frame(&mut frames, 9, 4, stream, two);
        }
        blocks = following;
        stream += 2;
    }
    frames
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    out.extend([a, b, c, kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// What h2 makes of it.
struct Decoded {
    frames: Vec<Seen>,
    /// The error at the end, if there was one; `refused` if it was the patch's.
    error: Option<String>,
    refused: bool,
}

#[derive(Debug, PartialEq)]
enum Seen {
    /// Stream, flags and priority as text; the authority; the other fields.
    Headers {
        head: String,
        authority: Option<String>,
        fields: HeaderMap,
    },
    Other(String),
}

fn decoded<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> Decoded {
    let mut codec: Codec<S, Bytes> = Codec::new(stream);
    let mut all = Decoded {
        frames: Vec::new(),
        error: None,
        refused: false,
    };
    // All is there: the stream is never pending.
    while let Some(next) = codec.next().now_or_never().unwrap() {
        match next {
            Ok(Frame::Headers(headers)) => all.frames.push(seen(headers)),
            Ok(other) => all.frames.push(Seen::Other(format!("{other:?}"))),
            Err(error) => {
                let text = format!("{error:?}");
                all.refused = text.contains("header block");
                all.error = Some(text);
                // A stream's error does not end the connection.
                if !all
                    .error
                    .as_deref()
                    .unwrap_or_default()
                    .starts_with("Reset")
                {
                    break;
                }
                all.frames.push(Seen::Other(all.error.take().unwrap()));
            }
        }
    }
    all
}

fn seen(headers: Headers) -> Seen {
    let head = format!(
        "{:?} {} {}",
        headers.stream_id(),
        headers.is_end_stream(),
        headers.is_over_size()
    );
    let (mut pseudo, fields) = headers.into_parts();
    let authority = pseudo
        .authority
        .take()
        .map(|authority| authority.to_string());
    Seen::Headers {
        head: format!("{head} {pseudo:?}"),
        authority,
        fields,
    }
}

fn compare(plain: &Decoded, patched: &Decoded) {
    if !patched.refused {
        assert_eq!(plain.error, patched.error);
        assert_eq!(plain.frames.len(), patched.frames.len());
    }
    for (plain, patched) in plain.frames.iter().zip(&patched.frames) {
        match (plain, patched) {
            (
                Seen::Headers {
                    head,
                    authority,
                    fields,
                },
                Seen::Headers {
                    head: head2,
                    authority: authority2,
                    fields: fields2,
                },
            ) => {
                assert_eq!((head, fields), (head2, fields2));
                let dashed = authority
                    .as_ref()
                    .map(|authority| authority.replace(['%', '/'], "-"));
                assert!(
                    authority2 == authority || *authority2 == dashed,
                    "{authority:?} {authority2:?}"
                );
            }
            (plain, patched) => assert_eq!(plain, patched),
        }
    }
}

/// Hands out at most `step` octets at a time.
struct Steps<'a> {
    left: &'a [u8],
    step: usize,
}

impl AsyncRead for Steps<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let now = self.step.min(self.left.len()).min(buf.remaining());
        let (first, rest) = self.left.split_at(now);
        buf.put_slice(first);
        self.left = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Steps<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
