//! gRPC clients that h2 refuses without the `:authority` patch, over real h2 and tonic.
//!
//! `random` sends random header blocks of an encoder of its own to h2 through
//! the patch: h2's decoder is the judge. `recorded` replays what grpcio and
//! grpc-java were seen to write (recorded/*.bin, socket /tmp/w/api.sock) to a
//! tonic server behind the Unix listener, 10,000 calls on one connection.

#![cfg(test)]

mod hpack;
mod random;
mod recorded;
mod server;

use std::time::Duration;

/// Nothing here takes so long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// The client's first octets (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}
