//! The one message of a unary call, from its frames: the five bytes before it, its admission, its decompression.
//!
//! `infer` pushes what arrives. Invariants: nothing is kept before the message's length was admitted; a compressed message is
//! reserved as it came, and what is made of it step by step before it is made; every error is the client's or a full server's.

use std::io::Read;

use flate2::bufread::{GzDecoder, ZlibDecoder};
use torchmodel_core::slab::SlabMut;

use super::walker::{WalkError, Walked, Walker};
use crate::{
    admission::{Admission, Reservation},
    compression::Encoding,
};

/// The flag and the length before each message.
const PREFIX_BYTES: usize = 5;
/// What a decompressor writes at a time where it is not in a raw tensor.
const STEP_BYTES: usize = 16 << 10;

/// Reads one message.
#[derive(Debug)]
pub(super) struct MessageReader {
    admission: Admission,
    max_bytes: usize,
    encoding: Option<Encoding>,
    prefix: [u8; PREFIX_BYTES],
    prefix_length: usize,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// Its prefix has not come yet.
    Unknown,
    Plain(Box<Walker>, usize),
    Compressed(Compressed),
}

/// A message that has come.
#[derive(Debug)]
pub(super) enum Message {
    /// In its parts.
    Plain(Walked),
    /// To be decompressed, which takes a while.
    Compressed(Compressed),
}

impl MessageReader {
    /// For a call whose `grpc-encoding` is `encoding`.
    pub(super) fn new(admission: Admission, max_bytes: usize, encoding: Option<Encoding>) -> Self {
        Self { admission, max_bytes, encoding, prefix: [0; PREFIX_BYTES], prefix_length: 0, body: Body::Unknown }
    }

    /// Bytes of the message that are still to come; `None` until its length is known.
    pub(super) fn missing(&self) -> Option<usize> {
        match &self.body {
            Body::Unknown => None,
            Body::Plain(_, missing) => Some(*missing),
            Body::Compressed(compressed) => Some(compressed.slab.remaining()),
        }
    }

    /// Takes what arrived.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), WalkError> {
        if matches!(self.body, Body::Unknown) {
            bytes = self.push_prefix(bytes)?;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let too_long =
            || WalkError::Invalid("the call has more than one message, or more than its message says".into());
        match &mut self.body {
            Body::Unknown => Ok(()),
            Body::Plain(walker, missing) => {
                // What is wrong within the message comes first, however it was cut.
                let (own, more) = bytes.split_at_checked(*missing).unwrap_or((bytes, &[]));
                *missing = missing.saturating_sub(own.len());
                walker.push(own)?;
                if more.is_empty() { Ok(()) } else { Err(too_long()) }
            }
            Body::Compressed(compressed) => {
                if compressed.slab.append(bytes) < bytes.len() {
                    Err(too_long())
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Takes what belongs to the prefix and gives the rest.
    fn push_prefix<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], WalkError> {
        let empty = self.prefix.get_mut(self.prefix_length..).unwrap_or_default();
        let (head, rest) = bytes.split_at_checked(empty.len()).unwrap_or((bytes, &[]));
        if let Some(empty) = empty.get_mut(..head.len()) {
            empty.copy_from_slice(head);
        }
        self.prefix_length = self.prefix_length.saturating_add(head.len());
        if self.prefix_length == PREFIX_BYTES {
            let [flag, length @ ..] = self.prefix;
            self.begin(flag, usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX))?;
        }
        Ok(rest)
    }

    fn begin(&mut self, flag: u8, length: usize) -> Result<(), WalkError> {
        let encoding = match (flag, self.encoding) {
            (0, _) => None,
            (1, Some(encoding)) => Some(encoding),
            (1, None) => {
                return Err(WalkError::Invalid(
                    "the message is compressed, but the call names no grpc-encoding".into(),
                ));
            }
            _ => return Err(WalkError::Invalid(format!("the message has the unknown flag {flag}: it must be 0 or 1"))),
        };
        if length > self.max_bytes {
            let text = format!(
                "the message has {length} bytes, but a request may have {} (--max-request-bytes)",
                self.max_bytes
            );
            return Err(WalkError::TooLarge(text));
        }
        self.body = if let Some(encoding) = encoding {
            let (slab, reservation) = self.admission.slab(length)?;
            Body::Compressed(Compressed { slab, reservation, max_bytes: self.max_bytes, encoding })
        } else {
            Body::Plain(Box::new(Walker::of_known_length(self.admission.reserve(length)?)), length)
        };
        Ok(())
    }

    /// The message, once the client has sent its last byte.
    pub(super) fn finish(self) -> Result<Message, WalkError> {
        let ended = || WalkError::Invalid("the call ended within its message".into());
        match self.body {
            Body::Unknown => Err(WalkError::Invalid("the call has no message".into())),
            Body::Plain(_, missing) if missing > 0 => Err(ended()),
            Body::Plain(walker, _) => walker.finish().map(Message::Plain),
            Body::Compressed(compressed) if compressed.slab.remaining() > 0 => Err(ended()),
            Body::Compressed(compressed) => Ok(Message::Compressed(compressed)),
        }
    }
}

/// A message as it came, with what is reserved for it.
#[derive(Debug)]
pub(super) struct Compressed {
    slab: SlabMut,
    reservation: Reservation,
    max_bytes: usize,
    encoding: Encoding,
}

impl Compressed {
    /// Decompresses it. Takes as long as the client's compression makes it: not on a thread that serves connections.
    pub(super) fn inflate(self) -> Result<Walked, WalkError> {
        let Self { slab, reservation, max_bytes, encoding } = self;
        let walker = Walker::of_at_most(max_bytes, reservation.admission().reserve(0)?);
        match encoding {
            Encoding::Gzip => inflate(GzDecoder::new(slab.as_slice()), GzDecoder::into_inner, walker),
            Encoding::Deflate => inflate(ZlibDecoder::new(slab.as_slice()), ZlibDecoder::into_inner, walker),
        }
    }
}

/// Reads `decoder` to its end, straight into the raw tensors; `rest` gives what it left.
fn inflate<'a, D: Read>(mut decoder: D, rest: fn(D) -> &'a [u8], mut walker: Walker) -> Result<Walked, WalkError> {
    let refuse = |what: &str| WalkError::Invalid(format!("failed to decompress the message: {what}"));
    let mut step = vec![0; STEP_BYTES];
    loop {
        if let Some(raw) = walker.raw_mut() {
            let count = decoder.read(raw).map_err(|error| refuse(&error.to_string()))?;
            if count == 0 {
                break;
            }
            walker.fill_raw(count)?;
            continue;
        }
        let count = decoder.read(&mut step).map_err(|error| refuse(&error.to_string()))?;
        if count == 0 {
            break;
        }
        walker.push(step.get(..count).unwrap_or_default())?;
    }
    if rest(decoder).is_empty() { walker.finish() } else { Err(refuse("there are bytes after the compressed data")) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{
        Compression,
        write::{GzEncoder, ZlibEncoder},
    };
    use prost::Message as _;

    use super::*;
    use crate::admission::AdmissionError;
    use crate::grpc::proto::ModelInferRequest;

    fn is_overload(error: &WalkError) -> bool {
        matches!(error, WalkError::Admission(AdmissionError::Full { .. }))
    }

    const LIMIT: usize = 100_000;

    fn admission() -> Admission {
        Admission::new(4 * LIMIT)
    }

    fn prefixed(flag: u8, message: &[u8]) -> Vec<u8> {
        [&[flag][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
    }

    fn request(raw: usize) -> Vec<u8> {
        let raw = vec![(0..=250).cycle().take(raw).collect::<Vec<u8>>().into()];
        ModelInferRequest { id: "7".into(), raw_input_contents: raw, ..Default::default() }.encode_to_vec()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(admission: &Admission, encoding: Option<Encoding>, pieces: &[&[u8]]) -> Result<Walked, WalkError> {
        let mut reader = MessageReader::new(admission.clone(), LIMIT, encoding);
        for piece in pieces {
            reader.push(piece)?;
        }
        match reader.finish()? {
            Message::Plain(walked) => Ok(walked),
            Message::Compressed(compressed) => compressed.inflate(),
        }
    }

    #[test]
    fn a_message_is_read_whether_compressed_or_not_and_cut_anywhere() {
        let admission = admission();
        let plain = request(50_000);
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&plain).unwrap();
        let table = [
            (None, prefixed(0, &plain)),
            (Some(Encoding::Gzip), prefixed(0, &plain)),
            (Some(Encoding::Gzip), prefixed(1, &gzip(&plain))),
            (Some(Encoding::Deflate), prefixed(1, &zlib.finish().unwrap())),
        ];
        for (encoding, bytes) in table {
            for cut in [0, 1, 4, 5, 6, 100, bytes.len()] {
                let walked = read(&admission, encoding, &[&bytes[..cut], &bytes[cut..]]).unwrap();
                assert_eq!((walked.raw[0].len(), walked.copied), (50_000, 50_000), "{encoding:?}");
                assert_eq!(walked.raw[0][250..253], [250, 0, 1]);
                assert_eq!(walked.rest, [3 << 3 | 2, 1, b'7']);
            }
        }
        assert_eq!(admission.held(), 0);
    }

    #[test]
    fn what_is_wrong_with_a_message_is_the_clients_fault() {
        let plain = request(100);
        let good = gzip(&plain);
        let cut = &good[..good.len() - 3];
        let trailing = [good.as_slice(), b"x"].concat();
        let table: [(&[u8], &str); 8] = [
            (&[], "has no message"),
            (&[0, 0, 0], "has no message"),
            (&prefixed(0, &plain)[..50], "ended within"),
            (&[prefixed(0, &plain), vec![0]].concat(), "more than one message"),
            (&prefixed(2, &plain), "unknown flag 2"),
            (&prefixed(1, cut), "failed to decompress"),
            (&prefixed(1, &trailing), "after the compressed data"),
            (&prefixed(1, &plain), "failed to decompress"),
        ];
        for (bytes, text) in table {
            let error = read(&admission(), Some(Encoding::Gzip), &[bytes]).unwrap_err();
            assert!(matches!(&error, WalkError::Invalid(message) if message.contains(text)), "{text}: {error}");
        }
        let error = read(&admission(), None, &[&prefixed(1, &good)]).unwrap_err();
        assert!(error.to_string().contains("names no grpc-encoding"), "{error}");
    }

    #[test]
    fn a_message_that_is_wrong_and_too_long_is_told_the_same_however_it_is_cut() {
        let message = [prefixed(0, &[0x3a, 0x7f, 1]), vec![0]].concat();
        let whole = read(&admission(), None, &[&message]).unwrap_err();
        for cut in 0..=message.len() {
            let cut = read(&admission(), None, &[&message[..cut], &message[cut..]]).unwrap_err();
            assert_eq!(cut.to_string(), whole.to_string());
        }
    }

    #[test]
    fn a_length_is_admitted_before_anything_of_the_message_is_kept() {
        let admission = admission();
        let prefix = prefixed(0, &request(50_000))[..5].to_vec();
        let mut reader = MessageReader::new(admission.clone(), LIMIT, None);
        assert_eq!(reader.missing(), None);
        reader.push(&prefix).unwrap();
        assert_eq!(reader.missing(), Some(admission.held()));
        let _others = admission.reserve(4 * LIMIT - admission.held()).unwrap();
        let error = read(&admission, None, &[&prefix]).unwrap_err();
        assert!(is_overload(&error), "{error}");
        let error = read(&admission, None, &[&[0, 0xff, 0xff, 0xff, 0xff]]).unwrap_err();
        assert!(matches!(error, WalkError::TooLarge(_)), "{error}");
    }

    #[test]
    fn a_bomb_ends_at_the_limit_or_where_the_budget_does() {
        let bomb = prefixed(1, &gzip(&request(2 * LIMIT)));
        assert!(bomb.len() < 10_000);
        let error = read(&admission(), Some(Encoding::Gzip), &[&bomb]).unwrap_err();
        assert!(matches!(error, WalkError::TooLarge(_)), "{error}");
        let admission = admission();
        let _others = admission.reserve(4 * LIMIT - 20_000).unwrap();
        let large = prefixed(1, &gzip(&request(50_000)));
        assert!(is_overload(&read(&admission, Some(Encoding::Gzip), &[&large]).unwrap_err()));
    }
}
