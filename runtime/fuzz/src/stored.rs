//! gzip and zlib around bytes as they are, so that a fuzzer's bytes come out of a decompressor without a compressor's time.
//!
//! Used by `rest` and `grpc`. RFC 1950, 1951 (stored blocks) and 1952.

use flate2::Crc;

/// The most bytes of a stored block.
const BLOCK_BYTES: usize = 0xffff;

/// `bytes` as gzip.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(bytes);
    // Deflate, no flags, no time, no system.
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    blocks(bytes, &mut out);
    out.extend_from_slice(&crc.sum().to_le_bytes());
    out.extend_from_slice(&crc.amount().to_le_bytes());
    out
}

/// `bytes` in the zlib format.
pub(crate) fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    blocks(bytes, &mut out);
    let (low, high) = bytes.iter().fold((1u32, 0u32), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65521;
        (low, (high + low) % 65521)
    });
    out.extend_from_slice(&(high << 16 | low).to_be_bytes());
    out
}

fn blocks(bytes: &[u8], out: &mut Vec<u8>) {
    let mut blocks = bytes.chunks(BLOCK_BYTES).peekable();
    if bytes.is_empty() {
        out.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    }
    while let Some(block) = blocks.next() {
        let [low, high, ..] = block.len().to_le_bytes();
        out.extend_from_slice(&[u8::from(blocks.peek().is_none()), low, high, !low, !high]);
        out.extend_from_slice(block);
    }
}
