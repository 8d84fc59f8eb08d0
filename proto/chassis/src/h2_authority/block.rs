//! Patches one assembled header block (RFC 7541 section 6) as a pure function.
//!
//! A literal field whose name is `:authority` (static index 1, or the literal
//! name, plain or Huffman) gets each `%` and `/` of its value replaced by `-`:
//! one octet for one octet, six bits for six bits. Lengths, on the wire and
//! decoded, stay as they were, so the sender's and h2's dynamic tables agree
//! on every size and index, and no table is kept here.
//!
//! A name given by an index into the *dynamic* table is not followed: every
//! encoder has `:authority` at static index 1, and one that insists gets h2's
//! refusal, as without the patch. An *indexed* field needs nothing: the entry
//! it names was patched when it was inserted.

use std::ops::Range;

use super::huffman::{self, Malformed};

/// Static table index of `:authority` (RFC 7541 appendix A).
const AUTHORITY_INDEX: usize = 1;
const AUTHORITY: &[u8] = b":authority";
/// The same name in the Huffman code: an encoding has one form only.
const AUTHORITY_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];

/// Replaces `%` and `/` by `-` in every literal `:authority` of `block`.
///
/// # Errors
/// [`Malformed`] when the block cannot be read to its end; it is then unchanged, for h2 to refuse.
pub fn patch(block: &mut [u8]) -> Result<(), Malformed> {
    // Two passes: nothing is changed in a block whose end is not understood.
    if each_authority(block, |block, value| {
        huffman_of(block, value).map_or(Ok(()), |coded| huffman::check(coded))
    })? {
        each_authority(block, patch_value)?;
    }
    Ok(())
}

/// A string literal: where its octets are and how they are coded.
#[derive(Clone)]
struct Text {
    octets: Range<usize>,
    huffman: bool,
}

/// Calls `visit` with each literal value of `:authority`; true if there was one.
fn each_authority(
    block: &mut [u8],
    visit: impl Fn(&mut [u8], &Text) -> Result<(), Malformed>,
) -> Result<bool, Malformed> {
    let (mut at, mut found) = (0, false);
    while at < block.len() {
        let (value, next) = field_at(block, at)?;
        if let Some(value) = value {
            visit(block, &value)?;
            found = true;
        }
        at = next;
    }
    Ok(found)
}

fn huffman_of<'a>(block: &'a mut [u8], value: &Text) -> Option<&'a mut [u8]> {
    block
        .get_mut(value.octets.clone())
        .filter(|_| value.huffman)
}

fn patch_value(block: &mut [u8], value: &Text) -> Result<(), Malformed> {
    let octets = block.get_mut(value.octets.clone()).ok_or(Malformed)?;
    if value.huffman {
        return huffman::patch(octets);
    }
    for octet in octets
        .iter_mut()
        .filter(|octet| matches!(octet, b'%' | b'/'))
    {
        *octet = b'-';
    }
    Ok(())
}

/// Reads the representation at `at`: the value if it is a literal `:authority`, and where the next one begins.
fn field_at(block: &[u8], at: usize) -> Result<(Option<Text>, usize), Malformed> {
    let first = *block.get(at).ok_or(Malformed)?;
    let prefix = match first {
        0x80.. => 7,      // indexed field
        0x40..=0x7f => 6, // literal with incremental indexing
        0x20..=0x3f => 5, // dynamic table size update
        0x00..=0x1f => 4, // literal without indexing, or never indexed
    };
    let (index, at) = integer_at(block, at, prefix)?;
    if matches!(prefix, 7 | 5) {
        return Ok((None, at));
    }
    let (named, at) = match index {
        0 => text_at(block, at).map(|(name, at)| (is_authority(block, &name), at))?,
        index => (index == AUTHORITY_INDEX, at),
    };
    let (value, at) = text_at(block, at)?;
    Ok((named.then_some(value), at))
}

fn is_authority(block: &[u8], name: &Text) -> bool {
    block.get(name.octets.clone())
        == Some(if name.huffman {
            AUTHORITY_HUFFMAN
        } else {
            AUTHORITY
        })
}

fn text_at(block: &[u8], at: usize) -> Result<(Text, usize), Malformed> {
    let huffman = block.get(at).ok_or(Malformed)? & 0x80 != 0;
    let (length, start) = integer_at(block, at, 7)?;
    let end = start
        .checked_add(length)
        .filter(|end| *end <= block.len())
        .ok_or(Malformed)?;
    Ok((
        Text {
            octets: start..end,
            huffman,
        },
        end,
    ))
}

/// An integer with a prefix of so many bits (RFC 7541 section 5.1), in five octets at most, as h2 has it.
fn integer_at(block: &[u8], at: usize, prefix: u32) -> Result<(usize, usize), Malformed> {
    let mask = (1usize << prefix) - 1;
    let value = usize::from(*block.get(at).ok_or(Malformed)?) & mask;
    if value < mask {
        return Ok((value, at + 1));
    }
    let mut value = value;
    for (more, octet) in block.iter().skip(at + 1).take(4).enumerate() {
        value += usize::from(octet & 0x7f) << (7 * more);
        if octet & 0x80 == 0 {
            return Ok((value, at + 2 + more));
        }
    }
    Err(Malformed)
}
