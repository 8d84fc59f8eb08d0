//! Finds header blocks in the bytes a client sends (RFC 9113 section 4) and patches them in place.
//!
//! The scanner says how many leading bytes may pass; the rest must be shown
//! again with more behind it. Bytes are never added, dropped or moved, and
//! frame boundaries stay where they are. What is not HTTP/2 framing as a
//! client may send it passes unchanged from there on, for h2 to refuse.

use super::block;

/// The first octets of every HTTP/2 client (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Most payload octets of one header block, all its frames together.
pub const MAX_BLOCK: usize = 64 * 1024;
/// Most frames of one header block: HEADERS and its CONTINUATIONs.
pub const MAX_BLOCK_FRAMES: usize = 16;

const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The first 24 octets are not the HTTP/2 preface.
    #[error("no HTTP/2 preface")]
    NoPreface,
    /// One header block of more than [`MAX_BLOCK`] octets.
    #[error("header block of more than {MAX_BLOCK} octets")]
    LargeBlock,
    /// One header block in more than [`MAX_BLOCK_FRAMES`] frames.
    #[error("header block in more than {MAX_BLOCK_FRAMES} frames")]
    ManyFrames,
}

/// Where in the client's stream the next byte belongs.
#[derive(Debug)]
enum Place {
    Preface,
    /// At a frame's first octet, or inside a frame with so many octets left to pass.
    Frames {
        pass: usize,
    },
    /// Framing is broken: everything passes.
    Broken,
}

/// Follows one client's frames.
#[derive(Debug)]
pub(super) struct Scanner {
    place: Place,
    /// A whole header block was seen.
    has_asked: bool,
}

/// What stands at the start of some bytes.
enum Next {
    /// Not enough is there to tell.
    Partial,
    /// One frame of this length that carries no header block.
    Frame(usize),
    /// A whole header block in frames of this length.
    Block(usize),
    /// A block that something else than its CONTINUATION follows.
    Broken,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self {
            place: Place::Preface,
            has_asked: false,
        }
    }

    /// Whether the client has sent a request's headers.
    pub(super) fn has_asked(&self) -> bool {
        self.has_asked
    }

    /// Patches what is complete in `bytes` and returns how many leading bytes may pass.
    /// The others are to be shown again, with what follows them.
    pub(super) fn scan(&mut self, bytes: &mut [u8]) -> Result<usize, Refused> {
        let mut at = 0;
        while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
            match &mut self.place {
                Place::Broken => return Ok(bytes.len()),
                Place::Frames { pass: 0 } => match next(rest)? {
                    Next::Partial => return Ok(at),
                    Next::Broken => self.place = Place::Broken,
                    Next::Frame(length) => self.place = Place::Frames { pass: length },
                    Next::Block(length) => {
                        patch_frames(rest.get_mut(..length).unwrap_or_default());
                        self.place = Place::Frames { pass: length };
                        self.has_asked = true;
                    }
                },
                Place::Frames { pass } => {
                    let now = rest.len().min(*pass);
                    at += now;
                    *pass -= now;
                }
                Place::Preface if !rest.iter().zip(PREFACE).all(|(is, wanted)| is == wanted) => {
                    return Err(Refused::NoPreface);
                }
                Place::Preface if rest.len() < PREFACE.len() => return Ok(at),
                Place::Preface => {
                    self.place = Place::Frames {
                        pass: PREFACE.len(),
                    }
                }
            }
        }
        Ok(at)
    }
}

/// A frame's head (RFC 9113 section 4.1).
#[derive(Clone, Copy)]
struct Head {
    payload: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, s, t, u, v] = *bytes.first_chunk::<HEAD>()?;
        Some(Self {
            payload: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s & 0x7f, t, u, v]),
        })
    }

    fn length(self) -> usize {
        HEAD + self.payload
    }
}

fn next(bytes: &[u8]) -> Result<Next, Refused> {
    let Some(first) = Head::parse(bytes) else {
        return Ok(Next::Partial);
    };
    if first.kind != HEADERS {
        return Ok(Next::Frame(first.length()));
    }
    let (mut head, mut end, mut payload) = (first, 0, 0);
    for _ in 0..MAX_BLOCK_FRAMES {
        payload += head.payload;
        end += head.length();
        if payload > MAX_BLOCK {
            return Err(Refused::LargeBlock);
        }
        if head.flags & END_HEADERS != 0 {
            return Ok(if end <= bytes.len() {
                Next::Block(end)
            } else {
                Next::Partial
            });
        }
        let Some(following) = bytes.get(end..).and_then(Head::parse) else {
            return Ok(Next::Partial);
        };
        if following.kind != CONTINUATION || following.stream != first.stream {
            return Ok(Next::Broken);
        }
        head = following;
    }
    Err(Refused::ManyFrames)
}

/// Patches the block that these whole frames carry. A block that is malformed stays as it is.
fn patch_frames(frames: &mut [u8]) {
    let Some(head) = Head::parse(frames) else {
        return;
    };
    let Some(start) = fragment_start(head, frames) else {
        return;
    };
    if head.length() == frames.len() {
        let end = frames.len() - padding(head, frames);
        // A malformed block stays as it came, and h2 refuses it.
        let _ = frames.get_mut(start..end).map(block::patch);
        return;
    }
    let mut assembled: Vec<u8> = Vec::with_capacity(frames.len());
    for_each_fragment(frames, |fragment| assembled.extend_from_slice(fragment));
    if block::patch(&mut assembled).is_ok() {
        let mut patched = assembled.as_slice();
        for_each_fragment(frames, |fragment| {
            if let Some((mine, rest)) = patched.split_at_checked(fragment.len()) {
                fragment.copy_from_slice(mine);
                patched = rest;
            }
        });
    }
}

fn for_each_fragment(mut frames: &mut [u8], mut visit: impl FnMut(&mut [u8])) {
    while let Some(head) = Head::parse(frames) {
        let Some((frame, rest)) = std::mem::take(&mut frames).split_at_mut_checked(head.length())
        else {
            return;
        };
        let Some(start) = fragment_start(head, frame) else {
            return;
        };
        let end = frame.len() - padding(head, frame);
        if let Some(fragment) = frame.get_mut(start..end) {
            visit(fragment);
        }
        frames = rest;
    }
}

/// Where the block's octets begin in a frame: behind the pad length and the priority (RFC 9113 section 6.2).
/// None when the padding leaves no room: h2 refuses such a frame.
fn fragment_start(head: Head, frame: &[u8]) -> Option<usize> {
    let priority = if head.kind == HEADERS && head.flags & PRIORITY != 0 {
        5
    } else {
        0
    };
    let start = HEAD + usize::from(is_padded(head)) + priority;
    (start + padding(head, frame) <= head.length()).then_some(start)
}

fn padding(head: Head, frame: &[u8]) -> usize {
    if is_padded(head) {
        frame.get(HEAD).copied().map_or(0, usize::from)
    } else {
        0
    }
}

fn is_padded(head: Head) -> bool {
    head.kind == HEADERS && head.flags & PADDED != 0
}
