use proptest::prelude::*;
use tokio::io::AsyncReadExt;

use super::*;

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

/// What comes out of the patch when the client's bytes come in steps and h2 reads in others.
fn through(client: &[u8], step: usize, read: usize) -> Result<Vec<u8>, Refused> {
    let mut patch = AuthorityPatch::new(Steps { left: client, step });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut out, mut buf) = (Vec::new(), vec![0; read]);
        loop {
            match patch.read(&mut buf).await {
                Ok(0) => return Ok(out),
                Ok(length) => out.extend_from_slice(&buf[..length]),
                Err(error) => return Err(*error.into_inner().unwrap().downcast().unwrap()),
            }
        }
    })
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE.to_vec(), frame(4, 0, 0, &[])]
        .iter()
        .chain(frames)
        .flatten()
        .copied()
        .collect()
}

const PLAIN: &[u8] = b"\x83\x86\x41\x08/tmp%2Fs\x84\x0f\x0d\x02%/";
const PATCHED: &[u8] = b"\x83\x86\x41\x08-tmp-2Fs\x84\x0f\x0d\x02%/";

#[test]
fn the_length_table_is_that_of_the_rfc() {
    // RFC 7541 appendix B: how many codes there are of each length; the end symbol has 30 bits.
    let counts = [
        10, 26, 32, 6, 5, 3, 2, 6, 2, 3, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29, 3,
    ];
    let mut before = 0;
    for ((length, limit), count) in huffman::LENGTHS.iter().zip(counts) {
        assert_eq!((limit - before) >> (32 - length), count, "{length} bits");
        before = *limit;
    }
    assert_eq!(before + (1 << 2), 1 << 32, "only the end symbol is left");
}

#[test]
fn an_authority_named_by_index_or_by_a_literal_is_patched() {
    let mut block = PLAIN.to_vec();
    assert_eq!(patch(&mut block), Ok(()));
    assert_eq!(block, PATCHED);
    // "/a%" in the Huffman code: 011000 00011 010101, then ones.
    let coded = [0b0110_0000, 0b0110_1010, 0b1111_1111];
    let dashes = [0b0101_1000, 0b0110_1011, 0b0111_1111];
    for head in [
        &[0x01][..],
        &[0x11],
        &[0x41],
        b"\x00\x0a:authority",
        b"\x40\x88\xb8\x3b\x53\x39\xec\x32\x7d\x7f",
    ] {
        let mut plain = [head, b"\x03/a%"].concat();
        patch(&mut plain).unwrap();
        assert_eq!(plain, [head, b"\x03-a-"].concat());
        let mut huffman = [head, &[0x83], &coded].concat();
        patch(&mut huffman).unwrap();
        assert_eq!(huffman, [head, &[0x83], &dashes].concat());
    }
}

#[test]
fn other_names_stay_as_they_are() {
    for block in [
        &b"\x04\x03/a%"[..],
        b"\x00\x0a:Authority\x01%",
        b"\x00\x09authority\x01%",
        b"\x00\x0b:authority2\x01%",
        // A name in the dynamic table is not followed, whatever stands there.
        b"\x7e\x01%",
        // An indexed field and a size update have no value.
        b"\xbe\x3f\xe1\x1f\xbe",
    ] {
        let mut patched = block.to_vec();
        assert_eq!(patch(&mut patched), Ok(()), "{block:02x?}");
        assert_eq!(patched, block);
    }
}

#[test]
fn a_malformed_block_stays_as_it_is() {
    for end in [
        &b"\x41\x03/a"[..],
        b"\x41",
        b"\x40\x0a:authority",
        b"\x7f\xff\xff\xff\xff\xff\x01",
        b"\x41\xff\xff\xff\xff\xff\x7f",
        // Huffman: the end symbol, padding of zeros, eight bits of padding.
        b"\x41\x84\xff\xff\xff\xff",
        b"\x41\x81\x00",
        b"\x41\x82\xf8\xff",
        b"\x41\x81\xff",
    ] {
        let block = [b"\x41\x02/%".as_slice(), end].concat();
        let mut patched = block.clone();
        assert_eq!(patch(&mut patched), Err(Malformed), "{end:02x?}");
        assert_eq!(patched, block);
    }
}

#[test]
fn a_block_is_found_behind_padding_and_priority_and_across_continuations() {
    let padded = [&[3][..], PLAIN, &[0x41, 0x41, 0x41]].concat();
    let both = [&[1, 0, 0, 0, 0, 15][..], PLAIN, &[0]].concat();
    let (one, two) = PLAIN.split_at(4);
    let sent = connection(&[
        frame(1, 0x4 | 0x8, 1, &padded),
        frame(1, 0x4 | 0x8 | 0x20, 3, &both),
        frame(1, 0x8, 5, &[&[2], one, &[9, 9]].concat()),
        frame(9, 0, 5, &[]),
        frame(9, 0x4, 5, two),
        frame(0, 1, 5, &frame(1, 0x4, 7, PLAIN)),
        frame(1, 0x4, 7, PLAIN),
    ]);
    let in_data = frame(1, 0x4, 7, PLAIN);
    let mut expected = sent.clone();
    let positions: Vec<usize> = (0..sent.len())
        .filter(|at| sent[*at..].starts_with(b"/tmp%2Fs"))
        .collect();
    assert_eq!(positions.len(), 5);
    let data_at = sent
        .windows(in_data.len())
        .position(|window| window == in_data)
        .unwrap();
    for at in positions
        .into_iter()
        .filter(|at| *at < data_at || *at > data_at + in_data.len())
    {
        expected[at..at + 8].copy_from_slice(b"-tmp-2Fs");
    }
    for step in [1, 2, 7, 1000] {
        for read in [1, 3, 9, 1000] {
            assert_eq!(
                through(&sent, step, read),
                Ok(expected.clone()),
                "{step} {read}"
            );
        }
    }
}

#[test]
fn a_connection_that_does_not_begin_with_the_preface_is_refused() {
    assert_eq!(
        through(b"GET / HTTP/1.1\r\n\r\n", 5, 5),
        Err(Refused::NoPreface)
    );
    assert_eq!(through(b"P", 5, 5), Ok(b"P".to_vec()));
    assert_eq!(through(b"", 5, 5), Ok(Vec::new()));
}

#[test]
fn what_is_broken_passes_unchanged_for_h2_to_refuse() {
    let open = frame(1, 0, 1, PLAIN);
    for after in [
        frame(1, 0x4, 3, PLAIN),
        frame(9, 0x4, 3, PLAIN),
        frame(0, 0, 1, b"x"),
        frame(99, 0, 1, b"x"),
    ] {
        let sent = connection(&[open.clone(), after, frame(1, 0x4, 5, PLAIN)]);
        assert_eq!(through(&sent, 3, 100), Ok(sent.clone()));
    }
    for frame in [
        frame(1, 0x4 | 0x8, 1, &[40, 0x41, 1, b'/']),
        frame(1, 0x4 | 0x20, 1, b"123"),
        frame(1, 0x4 | 0x8, 1, b""),
        frame(9, 0x4, 1, PLAIN),
        frame(5, 0, 1, PLAIN),
    ] {
        let sent = connection(&[frame]);
        assert_eq!(through(&sent, 100, 100), Ok(sent.clone()));
    }
}

#[test]
fn an_end_inside_a_block_gives_out_what_was_held() {
    let sent = connection(&[frame(1, 0x4, 1, PLAIN)]);
    for length in 0..sent.len() - 1 {
        assert_eq!(through(&sent[..length], 5, 4), Ok(sent[..length].to_vec()));
    }
}

#[test]
fn a_block_over_the_limits_ends_the_connection() {
    let whole = |payload: usize| connection(&[frame(1, 0x4, 1, &vec![0xbe; payload])]);
    assert!(through(&whole(MAX_BLOCK), 4096, 4096).is_ok());
    assert_eq!(
        through(&whole(MAX_BLOCK + 1), 4096, 4096),
        Err(Refused::LargeBlock)
    );
    let split = |frames: usize, payload: usize| {
        let mut all = vec![frame(1, 0, 1, &vec![0xbe; payload])];
        all.extend((2..frames).map(|_| frame(9, 0, 1, &vec![0xbe; payload])));
        all.push(frame(9, 0x4, 1, &vec![0xbe; payload]));
        connection(&all)
    };
    assert!(through(&split(16, 4096), 999, 4096).is_ok());
    assert_eq!(
        through(&split(16, 4097), 999, 4096),
        Err(Refused::LargeBlock)
    );
    assert_eq!(through(&split(17, 0), 999, 4096), Err(Refused::ManyFrames));
}

#[test]
fn nothing_is_held_between_blocks() {
    let sent = connection(&[frame(1, 0x4, 1, PLAIN), frame(0, 1, 1, &[0; 500])]);
    let mut patch = AuthorityPatch::new(Steps {
        left: &sent,
        step: 10,
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut out = Vec::new();
    runtime.block_on(patch.read_to_end(&mut out)).unwrap();
    assert_eq!((out.len(), patch.held.capacity()), (sent.len(), 0));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn any_octets_are_patched_to_dashes_or_left_alone(block in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut patched = block.clone();
        let outcome = patch(&mut patched);
        prop_assert_eq!(patched.len(), block.len());
        if outcome.is_err() {
            prop_assert_eq!(&patched, &block);
        }
        // A patched block has nothing left to patch, and reads to its end as before.
        let mut again = patched.clone();
        prop_assert_eq!(patch(&mut again), outcome);
        prop_assert_eq!(again, patched);
    }

    #[test]
    fn steps_make_no_difference(
        noise in prop::collection::vec(any::<u8>(), 0..300),
        step in 1usize..40,
        read in 1usize..40,
    ) {
        let sent = connection(&[frame(1, 0x4, 1, PLAIN), noise]);
        prop_assert_eq!(through(&sent, step, read).is_ok(), through(&sent, 5_000, 5_000).is_ok());
        if let (Ok(small), Ok(large)) = (through(&sent, step, read), through(&sent, 5_000, 5_000)) {
            prop_assert_eq!(small.len(), sent.len());
            prop_assert_eq!(small, large);
        }
    }
}
