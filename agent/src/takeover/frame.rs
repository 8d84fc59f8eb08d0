//! A message with descriptors on a Unix socket: four bytes of length, that many bytes of JSON;
//! the descriptors come with the length. Both are bounded.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use zeroize::Zeroizing;

/// The most bytes of a message: a chain, a key and a bundle.
const MAX_BYTES: usize = 1024 * 1024;
/// The most descriptors with one.
pub(super) const MAX_DESCRIPTORS: usize = 8;
/// So much is there for a message from the beginning: a key is not copied to and fro.
const ROOM: usize = 64 * 1024;

/// Sends a message.
///
/// # Errors
/// The connection broke, or there is too much.
pub(super) async fn send(
    stream: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(ROOM));
    serde_json::to_writer(&mut *bytes, message)?;
    if bytes.len() > MAX_BYTES || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::other("there is too much to hand over"));
    }
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let header = length.to_be_bytes();
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            let flags = SendFlags::NOSIGNAL;
            match sendmsg(stream, &[IoSlice::new(&header)], &mut control, flags)? {
                sent if sent == header.len() => Ok(()),
                _ => Err(io::ErrorKind::WriteZero.into()),
            }
        })
        .await?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Receives a message with its descriptors.
///
/// # Errors
/// The connection broke, or what came is no such message.
pub(super) async fn receive<T: DeserializeOwned>(
    stream: &UnixStream,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let (mut header, mut length) = ([0; 4], 0);
    let mut descriptors = Vec::new();
    while length < header.len() {
        length += stream
            .async_io(Interest::READABLE, || {
                let rest = header.get_mut(length..).unwrap_or_default();
                receive_some(stream, rest, &mut descriptors)
            })
            .await?;
    }
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if length > MAX_BYTES || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::other("the message is too long"));
    }
    let mut bytes = Zeroizing::new(vec![0; length]);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        stream.readable().await?;
        match stream.try_read(rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok((serde_json::from_slice(&bytes)?, descriptors))
}

fn receive_some(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("there are more descriptors than fit"));
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(received.bytes)
}
