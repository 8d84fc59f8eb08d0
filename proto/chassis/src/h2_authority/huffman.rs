//! As much of HPACK's Huffman code (RFC 7541 appendix B) as the patch needs: where each symbol ends.
//!
//! The code is canonical: read as left-aligned numbers, codes of one length
//! are smaller than all longer ones. So the length of the next code follows
//! from one comparison per length, and no symbol table is kept.

/// The block is not a sequence of HPACK representations; it was left unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed header block")]
pub struct Malformed;

/// (length in bits, first left-aligned 32-bit number that is not a code of this length or a shorter one).
pub(super) const LENGTHS: [(u8, u64); 21] = [
    (5, after(5, 0x9)),
    (6, after(6, 0x2d)),
    (7, after(7, 0x7b)),
    (8, after(8, 0xfd)),
    (10, after(10, 0x3fc)),
    (11, after(11, 0x7fc)),
    (12, after(12, 0xffb)),
    (13, after(13, 0x1ffd)),
    (14, after(14, 0x3ffd)),
    (15, after(15, 0x7ffe)),
    (19, after(19, 0x7_fff2)),
    (20, after(20, 0xf_ffed)),
    (21, after(21, 0x1f_ffe8)),
    (22, after(22, 0x3f_ffeb)),
    (23, after(23, 0x7f_fff4)),
    (24, after(24, 0xff_fff5)),
    (25, after(25, 0x1ff_ffef)),
    (26, after(26, 0x3ff_ffee)),
    (27, after(27, 0x7ff_fff0)),
    (28, after(28, 0xfff_fffe)),
    (30, after(30, 0x3fff_fffe)),
];

const fn after(length: u32, last: u64) -> u64 {
    (last + 1) << (32 - length)
}

const PERCENT: u64 = 0b01_0101;
const SLASH: u64 = 0b01_1000;
const DASH: u16 = 0b01_0110;

/// Checks that `coded` is one well-formed Huffman string: whole codes, no end
/// symbol, and fewer than eight bits of ones as padding (RFC 7541 section 5.2).
pub(super) fn check(coded: &[u8]) -> Result<(), Malformed> {
    let mut bit = 0;
    while let Some((length, _)) = code_at(coded, bit)? {
        bit += length;
    }
    Ok(())
}

/// Replaces each coded `%` and `/` by the code of `-`, which is as long.
pub(super) fn patch(coded: &mut [u8]) -> Result<(), Malformed> {
    let mut bit = 0;
    while let Some((length, window)) = code_at(coded, bit)? {
        if length == 6 && matches!(window >> 26, PERCENT | SLASH) {
            put_dash(coded, bit);
        }
        bit += length;
    }
    Ok(())
}

/// The length of the code at `bit` and the 32 bits from there; None at the end.
fn code_at(coded: &[u8], bit: usize) -> Result<Option<(usize, u64)>, Malformed> {
    let left = coded.len() * 8 - bit;
    let window = window_at(coded, bit);
    let length = LENGTHS
        .iter()
        .find(|(_, limit)| window < *limit)
        .map(|(length, _)| usize::from(*length));
    match length {
        Some(length) if length <= left => Ok(Some((length, window))),
        // What is left is no whole code: padding, which window_at completes with ones.
        _ if left < 8 && window == u64::from(u32::MAX) => Ok(None),
        _ => Err(Malformed),
    }
}

/// The 32 bits from `bit` on, completed with ones.
fn window_at(coded: &[u8], bit: usize) -> u64 {
    let octets = coded.get(bit / 8..).unwrap_or_default().iter().copied();
    let forty = octets
        .chain(std::iter::repeat(0xff))
        .take(5)
        .fold(0u64, |word, octet| word << 8 | u64::from(octet));
    forty >> (8 - bit % 8) & u64::from(u32::MAX)
}

fn put_dash(coded: &mut [u8], bit: usize) {
    let shift = 10 - bit % 8;
    let Some([first, rest @ ..]) = coded.get_mut(bit / 8..) else {
        return;
    };
    let second = rest.first_mut();
    let word = u16::from_be_bytes([*first, second.as_ref().map_or(0, |octet| **octet)]);
    let [high, low] = (word & !(0b11_1111 << shift) | DASH << shift).to_be_bytes();
    *first = high;
    if let Some(second) = second {
        *second = low;
    }
}
