//! Reads a `ModelInferRequest` while its bytes arrive: each raw tensor goes straight to an aligned place of its own.
//!
//! `receive` feeds it what comes, cut anywhere. The few other fields are kept as they are for prost. Invariants: a payload byte is
//! copied once; nothing is taken for an entry before its length was admitted; what [`Walker::finish`] gives is what prost would
//! have decoded from the whole message, or prost would have refused it, too.

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::bounds;
use crate::{
    admission::{Admission, AdmissionError, Reservation},
    protocol::{MAX_TENSORS, too_many},
};

/// `raw_input_contents`.
const RAW_TAG: u32 = 7;
/// A buffer for a field beyond this is taken at once, not by doubling.
const LARGE_FIELD: usize = 64 << 10;
/// The longest key, length and number.
const FIELD_HEAD_BYTES: usize = 30;
/// How much is reserved at least, where the length of a message is not known.
const CHARGE_STEP: usize = 4 << 10;
/// Longest varint.
const MAX_VARINT_BYTES: u32 = 10;

/// Why a message was given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WalkError {
    /// It is no message, or has more of something than is possible.
    #[error("{0}")]
    Invalid(String),
    /// It is longer than a request may be.
    #[error("{0}")]
    TooLarge(String),
    /// There is no memory for it now.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
}

fn malformed(what: &str) -> WalkError {
    WalkError::Invalid(format!("failed to parse the request: {what}"))
}

/// What the message may still bring.
#[derive(Clone, Copy, Debug)]
enum Length {
    /// Its length is known and was reserved: so many bytes are to come.
    Known(usize),
    /// It is decompressed, and its length known at its end: so many bytes it may still have.
    AtMost(usize),
}

/// Where in the message the next byte stands.
#[derive(Debug)]
enum State {
    /// In a field's key.
    Key(Varint),
    /// In the length of a field with this tag.
    Length(u32, Varint),
    /// In a raw tensor.
    Raw { slab: torchmodel_core::slab::SlabMut, reservation: Reservation },
    /// In so many bytes that prost will read.
    Copy(usize),
    /// In a varint that prost will read.
    CopyVarint(u32),
}

/// A varint that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Varint {
    value: u64,
    bytes: u32,
}

impl Varint {
    /// Takes one byte; the value once it was the last.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, WalkError> {
        // The tenth byte has place for one bit.
        if self.bytes + 1 >= MAX_VARINT_BYTES && byte > 1 {
            return Err(malformed("invalid varint"));
        }
        self.value |= u64::from(byte & 0x7f) << (7 * self.bytes);
        self.bytes += 1;
        Ok((byte < 0x80).then_some(self.value))
    }
}

/// A message that is being read.
#[derive(Debug)]
pub(super) struct Walker {
    admission: Admission,
    /// What is reserved for the message and not yet for a tensor of it.
    reservation: Reservation,
    length: Length,
    state: State,
    /// Depth of groups, a form of old messages: what is in one is not a field of ours.
    groups: usize,
    raw: Vec<Bytes>,
    rest: Vec<u8>,
    copied: usize,
}

/// A message in its parts.
#[derive(Debug)]
pub(super) struct Walked {
    /// The entries of `raw_input_contents`.
    pub(super) raw: Vec<Bytes>,
    /// All other fields, encoded.
    pub(super) rest: Vec<u8>,
    /// What is reserved for `rest`.
    pub(super) reservation: Reservation,
    /// Payload bytes that were copied.
    pub(super) copied: usize,
}

impl Walker {
    /// For a message whose length is what `reservation` holds.
    pub(super) fn of_known_length(reservation: Reservation) -> Self {
        Self::new(Length::Known(reservation.bytes()), reservation)
    }

    /// For a message of at most `limit` bytes that comes out of a decompressor. `reservation` grows with it.
    pub(super) fn of_at_most(limit: usize, reservation: Reservation) -> Self {
        Self::new(Length::AtMost(limit), reservation)
    }

    fn new(length: Length, reservation: Reservation) -> Self {
        Self {
            admission: reservation.admission().clone(),
            reservation,
            length,
            state: State::Key(Varint::default()),
            groups: 0,
            raw: Vec::new(),
            rest: Vec::new(),
            copied: 0,
        }
    }

    /// Takes the next piece of the message.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), WalkError> {
        while let Some((first, after_first)) = bytes.split_first() {
            match &mut self.state {
                State::Raw { slab, .. } => {
                    let count = slab.append(bytes);
                    bytes = bytes.get(count..).unwrap_or_default();
                    self.advance_raw(count)?;
                    continue;
                }
                State::Copy(left) => {
                    let count = bytes.len().min(*left);
                    let (head, tail) = bytes.split_at_checked(count).unwrap_or_default();
                    *left -= count;
                    let is_over = *left == 0;
                    bytes = tail;
                    self.consume(count)?;
                    self.charge(count)?;
                    self.rest.extend_from_slice(head);
                    if is_over {
                        self.state = State::Key(Varint::default());
                    }
                    continue;
                }
                State::Key(_) | State::Length(..) | State::CopyVarint(_) => {}
            }
            self.consume(1)?;
            self.push_byte(*first)?;
            bytes = after_first;
        }
        Ok(())
    }

    /// Where a decompressor may write next: the rest of the raw tensor that the message is in. [`Self::advance_raw`] says how much.
    pub(super) fn raw_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.state {
            State::Raw { slab, .. } => Some(slab.spare_mut()),
            _ => None,
        }
    }

    /// Counts bytes that were written to [`Self::raw_mut`].
    pub(super) fn fill_raw(&mut self, count: usize) -> Result<(), WalkError> {
        if let State::Raw { slab, .. } = &mut self.state {
            slab.advance(count);
        }
        self.advance_raw(count)
    }

    /// Ends a raw tensor that is full.
    fn advance_raw(&mut self, count: usize) -> Result<(), WalkError> {
        self.copied = self.copied.saturating_add(count);
        self.consume(count)?;
        let is_full = matches!(&self.state, State::Raw { slab, .. } if slab.remaining() == 0);
        if is_full
            && let State::Raw { slab, reservation } = std::mem::replace(&mut self.state, State::Key(Varint::default()))
        {
            self.raw.push(slab.freeze(reservation));
        }
        Ok(())
    }

    /// One byte of a key, a length or a number.
    fn push_byte(&mut self, byte: u8) -> Result<(), WalkError> {
        match &mut self.state {
            State::Key(varint) => match varint.push(byte)? {
                Some(key) => self.begin_field(key),
                None => Ok(()),
            },
            State::Length(tag, varint) => match varint.push(byte)? {
                Some(length) => {
                    let tag = *tag;
                    self.begin_value(tag, length)
                }
                None => Ok(()),
            },
            State::CopyVarint(count) => {
                *count += 1;
                if *count > MAX_VARINT_BYTES {
                    return Err(malformed("invalid varint"));
                }
                if byte < 0x80 {
                    self.state = State::Key(Varint::default());
                }
                self.rest.push(byte);
                Ok(())
            }
            State::Raw { .. } | State::Copy(_) => Ok(()),
        }
    }

    fn begin_field(&mut self, key: u64) -> Result<(), WalkError> {
        let key = u32::try_from(key).map_err(|_| malformed("invalid key value"))?;
        let wire_type = WireType::try_from(u64::from(key & 7)).map_err(|_| malformed("invalid wire type value"))?;
        let tag = key >> 3;
        if tag == 0 {
            return Err(malformed("invalid tag value: 0"));
        }
        let is_delimited = wire_type == WireType::LengthDelimited;
        self.charge(FIELD_HEAD_BYTES)?;
        if !(is_delimited && tag == RAW_TAG && self.groups == 0) {
            encode_key(tag, wire_type, &mut self.rest);
        }
        self.state = match wire_type {
            WireType::Varint => State::CopyVarint(0),
            WireType::SixtyFourBit => State::Copy(8),
            WireType::ThirtyTwoBit => State::Copy(4),
            WireType::LengthDelimited => State::Length(tag, Varint::default()),
            WireType::StartGroup => {
                self.groups = self.groups.saturating_add(1);
                State::Key(Varint::default())
            }
            WireType::EndGroup => {
                self.groups = self.groups.checked_sub(1).ok_or_else(|| malformed("unexpected end group tag"))?;
                State::Key(Varint::default())
            }
        };
        Ok(())
    }

    fn begin_value(&mut self, tag: u32, length: u64) -> Result<(), WalkError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.expect(length)?;
        if tag == RAW_TAG && self.groups == 0 {
            if self.raw.len() >= MAX_TENSORS {
                // Whoever sends so many mostly sends as many inputs, which is what to tell.
                let of_inputs = bounds::measure(&self.rest).err();
                return Err(WalkError::Invalid(
                    of_inputs.unwrap_or_else(|| too_many("raw_input_contents", MAX_TENSORS)),
                ));
            }
            if length == 0 {
                self.raw.push(Bytes::new());
                self.state = State::Key(Varint::default());
                return Ok(());
            }
            let reservation = match self.length {
                Length::Known(_) => self.reservation.split(length),
                Length::AtMost(_) => self.admission.reserve(length)?,
            };
            self.state = State::Raw { slab: self.admission.pool().take(length), reservation };
            return Ok(());
        }
        encode_varint(length as u64, &mut self.rest);
        if length > LARGE_FIELD {
            self.charge(length)?;
            self.rest.reserve_exact(length);
        }
        self.state = if length == 0 { State::Key(Varint::default()) } else { State::Copy(length) };
        Ok(())
    }

    /// Reserves what `more` bytes of other fields take; a message of known length was reserved as a whole.
    fn charge(&mut self, more: usize) -> Result<(), AdmissionError> {
        let needed = self.rest.len().saturating_add(more);
        if matches!(self.length, Length::AtMost(_)) && needed > self.reservation.bytes() {
            let step = needed.saturating_sub(self.reservation.bytes()).max(CHARGE_STEP);
            return self.reservation.grow(step);
        }
        Ok(())
    }

    /// Refuses a value of `length` bytes that the message has no place for.
    fn expect(&self, length: usize) -> Result<(), WalkError> {
        match self.length {
            Length::Known(left) if length > left => Err(malformed("a field is longer than its message")),
            Length::AtMost(left) if length > left => Err(too_large()),
            _ => Ok(()),
        }
    }

    /// Counts bytes of the message.
    fn consume(&mut self, count: usize) -> Result<(), WalkError> {
        match &mut self.length {
            Length::Known(left) => {
                *left = left.checked_sub(count).ok_or_else(|| malformed("it is longer than it says"))?;
            }
            Length::AtMost(left) => {
                *left = left.checked_sub(count).ok_or_else(too_large)?;
            }
        }
        Ok(())
    }

    /// The message in its parts, if it is whole.
    pub(super) fn finish(self) -> Result<Walked, WalkError> {
        let is_between_fields = matches!(&self.state, State::Key(varint) if varint.bytes == 0);
        if !is_between_fields || self.groups > 0 || matches!(self.length, Length::Known(left) if left > 0) {
            return Err(malformed("it ends within a field"));
        }
        let Self { raw, rest, reservation, copied, .. } = self;
        Ok(Walked { raw, rest, reservation, copied })
    }
}

fn too_large() -> WalkError {
    WalkError::TooLarge("the decompressed message is larger than a request may be (--max-request-bytes)".into())
}

#[cfg(test)]
mod tests;
