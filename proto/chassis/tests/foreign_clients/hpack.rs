//! An HPACK encoder (RFC 7541) that chooses at random among all representations.

use fastrand::Rng;

/// The Huffman code of appendix B as far as printable ASCII goes: (length, first code, symbols in order).
const CODES: [(u32, u32, &[u8]); 11] = [
    (5, 0x0, b"012aceiost"),
    (6, 0x14, b" %-./3456789=A_bdfghlmnpru"),
    (7, 0x5c, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, 0xf8, b"&*,;XZ"),
    (10, 0x3f8, b"!\"()?"),
    (11, 0x7fa, b"'+|"),
    (12, 0xffa, b"#>"),
    (13, 0x1ff8, b"\0$@[]~"),
    (14, 0x3ffc, b"^}"),
    (15, 0x7ffc, b"<`{"),
    (19, 0x7_fff0, b"\\"),
];

const STATIC: [(usize, &str, &str); 7] = [
    (1, ":authority", ""),
    (3, ":method", "POST"),
    (4, ":path", "/"),
    (6, ":scheme", "http"),
    (31, "content-type", ""),
    (28, "content-length", ""),
    (58, "user-agent", ""),
];
const STATIC_ENTRIES: usize = 61;

pub(crate) type Header = (String, String);

/// One connection's encoder with its dynamic table, newest entry first.
pub(crate) struct Encoder {
    table: Vec<Header>,
    max: usize,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self {
            table: Vec::new(),
            max: 4096,
        }
    }

    pub(crate) fn block(&mut self, headers: &[Header], rng: &mut Rng) -> Vec<u8> {
        let mut out = Vec::new();
        if rng.u8(..20) == 0 {
            self.max = rng.usize(..=4096);
            self.evict();
            integer(&mut out, 0x20, 5, self.max);
        }
        for header in headers {
            self.header(&mut out, header, rng);
        }
        out
    }

    fn header(&mut self, out: &mut Vec<u8>, header: &Header, rng: &mut Rng) {
        if let Some(index) = self.whole(header).filter(|_| rng.u8(..4) > 0) {
            return integer(out, 0x80, 7, index);
        }
        let (pattern, prefix) = *rng
            .choice([(0x40, 6), (0x00, 4), (0x10, 4)].iter())
            .unwrap();
        match self.named(&header.0, rng).filter(|_| rng.u8(..3) > 0) {
            Some(index) => integer(out, pattern, prefix, index),
            None => {
                integer(out, pattern, prefix, 0);
                text(out, &header.0, rng);
            }
        }
        text(out, &header.1, rng);
        if pattern == 0x40 {
            self.table.insert(0, header.clone());
            self.evict();
        }
    }

    fn whole(&self, header: &Header) -> Option<usize> {
        let dynamic = self
            .table
            .iter()
            .position(|entry| entry == header)
            .map(|at| at + 1 + STATIC_ENTRIES);
        let fixed = STATIC
            .iter()
            .find(|(_, name, value)| *name == header.0 && *value == header.1);
        dynamic.or(fixed
            .filter(|(.., value)| !value.is_empty())
            .map(|(index, ..)| *index))
    }

    /// `:authority` is never named by a dynamic index: the patch does not follow one, as it documents.
    fn named(&self, name: &str, rng: &mut Rng) -> Option<usize> {
        let fixed = STATIC
            .iter()
            .find(|(_, known, _)| *known == name)
            .map(|(index, ..)| *index);
        let mut dynamic: Vec<usize> = (0..self.table.len())
            .filter(|at| self.table[*at].0 == name)
            .map(|at| at + 1 + STATIC_ENTRIES)
            .collect();
        dynamic.retain(|_| name != ":authority");
        dynamic.extend(fixed);
        rng.choice(dynamic)
    }

    fn evict(&mut self) {
        let size = |(name, value): &Header| name.len() + value.len() + 32;
        while self.table.iter().map(size).sum::<usize>() > self.max {
            self.table.pop();
        }
    }
}

fn integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let mask = (1 << prefix) - 1;
    if value < mask {
        return out.push(pattern | u8::try_from(value).unwrap());
    }
    out.push(pattern | u8::try_from(mask).unwrap());
    let mut left = value - mask;
    while left >= 128 {
        out.push(u8::try_from(left % 128).unwrap() | 128);
        left /= 128;
    }
    out.push(u8::try_from(left).unwrap());
}

fn text(out: &mut Vec<u8>, text: &str, rng: &mut Rng) {
    if rng.bool() {
        let coded = huffman(text);
        integer(out, 0x80, 7, coded.len());
        out.extend(coded);
    } else {
        integer(out, 0, 7, text.len());
        out.extend(text.as_bytes());
    }
}

fn huffman(text: &str) -> Vec<u8> {
    let mut bits = String::new();
    for octet in text.bytes() {
        let (length, code) = code(octet);
        bits.push_str(&format!("{code:0width$b}", width = length as usize));
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    bits.as_bytes()
        .chunks(8)
        .map(|octet| u8::from_str_radix(std::str::from_utf8(octet).unwrap(), 2).unwrap())
        .collect()
}

fn code(octet: u8) -> (u32, u32) {
    let find = |(length, first, symbols): &(u32, u32, &[u8])| {
        let at = symbols.iter().position(|symbol| *symbol == octet)?;
        Some((*length, first + u32::try_from(at).unwrap()))
    };
    CODES.iter().find_map(find).unwrap()
}
