//! Puts a request together from the pieces of its body, wherever they were cut.
//!
//! `rest::body` gives it each piece as it comes. JSON is kept as it came; once it is there it is read, and each byte of the binary
//! tensors that follow is copied once, to where libtorch reads it: 64-byte aligned, in one slab for the request. Invariants: nothing
//! is kept that was not reserved; the same bytes give the same request, whatever their pieces.

use bytes::{Buf, Bytes};
use torchmodel_core::{
    inference::InferError,
    metadata::ModelMetadata,
    metrics::Protocol,
    slab::{ALIGNMENT, SlabMut},
};

use super::{
    decode::{BinaryPart, Decoded, Head, Plan},
    error::RestError,
    json::Reader,
    text::Text,
};
use crate::{
    admission::{Direction, Reservation},
    protocol::Limits,
};

/// Text up to this is read without reserving what joining its pieces takes: only so many are read at one time.
const MAX_JOINED_BYTES: usize = 1 << 20;
/// Bytes before a `BYTES` element: its length, u32 little-endian.
const PREFIX_BYTES: usize = 4;

/// A request that is being put together: made when its head is known, given pieces with [`Self::take`], ended by [`Self::finish`].
#[derive(Debug)]
pub(super) struct Assembly {
    head: Head,
    limits: Limits,
    /// The model, for a body that is nothing but its one input.
    raw: Option<ModelMetadata>,
    /// Bytes of the body, where they were announced: then they are reserved already.
    length: Option<usize>,
    reservation: Reservation,
    stage: Stage,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each request, and most end as the larger")]
enum Stage {
    /// The JSON comes, or a raw body of unknown length.
    Text(Text),
    /// What follows comes.
    Tensors(Placement),
}

/// The binary tensors of a request, each at its place.
#[derive(Debug)]
struct Placement {
    plan: Plan,
    parts: Vec<Place>,
    slab: SlabMut,
    capacity: usize,
    /// The part that comes now, and how much of it has come.
    current: usize,
    filled: usize,
    /// Bytes after the JSON so far, and those of them that belong to nothing.
    received: usize,
    additional: usize,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    start: usize,
    part: BinaryPart,
}

impl Assembly {
    /// Begins with nothing. `reservation` covers `length` bytes if that is given, and grows with what comes if it is not.
    pub(super) fn new(
        head: Head,
        limits: Limits,
        length: Option<usize>,
        reservation: Reservation,
    ) -> Result<Self, RestError> {
        if let (Some(wanted @ 1..), Some(length)) = (head.header_length, length)
            && wanted > length
        {
            return Err(header_out_of_range(length, wanted).into());
        }
        Ok(Self { head, limits, raw: None, length, reservation, stage: Stage::Text(Text::default()) })
    }

    /// Takes the whole body as the one input of the model that `metadata` describes.
    pub(super) fn raw(mut self, metadata: ModelMetadata) -> Result<Self, RestError> {
        match self.length {
            Some(length) => self.place(Plan::raw(&self.head, &metadata, self.limits, length)?)?,
            None => self.raw = Some(metadata),
        }
        Ok(self)
    }

    /// Takes what it can of a piece of the body: up to the end of the JSON, or all.
    pub(super) fn take(&mut self, piece: &mut impl Buf) -> Result<(), RestError> {
        match &mut self.stage {
            Stage::Text(text) => {
                let left = self.head.header_length.filter(|length| *length > 0).map(|length| length - text.len());
                let count = piece.remaining().min(left.unwrap_or(usize::MAX));
                if self.length.is_none() {
                    self.reservation.grow(count)?;
                }
                text.push(piece.copy_to_bytes(count));
            }
            Stage::Tensors(placement) => {
                let copied = placement.take(piece);
                self.reservation.admission().count_copy(Protocol::Rest, Direction::In, copied);
            }
        }
        Ok(())
    }

    /// Whether the JSON is complete and [`Self::read_json`] must be called before more is taken.
    pub(super) fn is_json_complete(&self) -> bool {
        match &self.stage {
            Stage::Text(text) => self.head.header_length == Some(text.len()) && text.len() > 0,
            Stage::Tensors(_) => false,
        }
    }

    /// Whether the body is JSON to its end, so that [`Self::read_json`] must be called there.
    pub(super) fn is_all_json(&self) -> bool {
        self.head.header_length.is_none() && matches!(self.stage, Stage::Text(_))
    }

    /// Bytes of JSON that wait to be read: a measure of how long that takes.
    pub(super) fn json_bytes(&self) -> usize {
        match &self.stage {
            Stage::Text(text) if self.raw.is_none() => text.len(),
            _ => 0,
        }
    }

    /// Reads the JSON and makes place for what follows.
    pub(super) fn read_json(&mut self) -> Result<(), RestError> {
        let Stage::Text(text) = &mut self.stage else { return Ok(()) };
        let text = std::mem::take(text);
        self.reservation.admission().count_copy(Protocol::Rest, Direction::In, text.copied_bytes());
        let available = match self.head.header_length {
            Some(_) => self.length.map(|length| length.saturating_sub(text.len())),
            None => Some(0),
        };
        // A string that lies across pieces is joined for a moment.
        let mut joined = self.reservation.admission().reserve_beside(self.reservation.bytes());
        if text.len() > MAX_JOINED_BYTES {
            joined.grow_within(text.len())?;
        }
        let reader =
            Reader { model: self.head.model.as_str(), limits: self.limits, reservation: &mut self.reservation };
        let plan = Plan::read(&self.head, &text, reader, available)?;
        let json_bytes = text.len();
        drop(text);
        let binary_bytes = plan.binary_parts().fold(0usize, |sum, part| sum.saturating_add(part.size_bytes));
        if binary_bytes > self.limits.max_request_bytes.saturating_sub(json_bytes) {
            return Err(RestError::TooLarge(self.limits.max_request_bytes));
        }
        self.place(plan)
    }

    fn place(&mut self, plan: Plan) -> Result<(), RestError> {
        let mut parts = Vec::with_capacity(plan.binary_parts().count());
        let mut capacity = 0usize;
        for part in plan.binary_parts() {
            let start = capacity.next_multiple_of(ALIGNMENT);
            capacity = start + part.size_bytes + if part.is_element { PREFIX_BYTES } else { 0 };
            parts.push(Place { start, part });
        }
        // The text is gone: its part of the reservation serves what follows it.
        self.reservation.shrink_to(capacity);
        self.reservation.grow_within(capacity - self.reservation.bytes())?;
        let slab = self.reservation.admission().pool().take(capacity);
        let mut placement =
            Placement { plan, parts, slab, capacity, current: 0, filled: 0, received: 0, additional: 0 };
        placement.begin_part();
        self.stage = Stage::Tensors(placement);
        Ok(())
    }

    /// The request, at the end of the body. JSON that nothing follows must have been read.
    pub(super) fn finish(mut self) -> Result<Decoded, RestError> {
        if let (Stage::Text(text), Some(metadata)) = (&mut self.stage, &self.raw) {
            let text = std::mem::take(text);
            // Held until it is copied.
            let _held = self.reservation.split(text.len());
            self.place(Plan::raw(&self.head, metadata, self.limits, text.len())?)?;
            for mut piece in text.pieces() {
                self.take(&mut piece)?;
            }
        }
        match self.stage {
            Stage::Text(text) => Err(header_out_of_range(text.len(), self.head.header_length.unwrap_or(0)).into()),
            Stage::Tensors(placement) => Ok(placement.finish(self.reservation)?),
        }
    }
}

fn header_out_of_range(length: usize, header_length: usize) -> InferError {
    InferError::InvalidRequest(format!("inference header size should be in range (0, {length}), got: {header_length}"))
}

impl Placement {
    /// Leaves out what lies between the parts, and writes what a part does not bring.
    fn begin_part(&mut self) {
        self.filled = 0;
        if let Some(Place { start, part }) = self.parts.get(self.current).copied() {
            self.slab.advance(start.saturating_sub(self.slab.len()));
            if part.is_element {
                self.slab.append(&u32::try_from(part.size_bytes).unwrap_or(u32::MAX).to_le_bytes());
            }
        }
    }

    /// Copies a piece to where it belongs. Gives how many bytes that were.
    fn take(&mut self, piece: &mut impl Buf) -> usize {
        let mut copied = 0;
        while piece.has_remaining() {
            let Some(Place { part, .. }) = self.parts.get(self.current).copied() else {
                self.additional = self.additional.saturating_add(piece.remaining());
                piece.advance(piece.remaining());
                break;
            };
            let left = part.size_bytes.saturating_sub(self.filled);
            let chunk = piece.chunk();
            let count = self.slab.append(chunk.get(..left).unwrap_or(chunk));
            piece.advance(count);
            copied += count;
            self.filled += count;
            if count == left {
                self.current += 1;
                self.begin_part();
            }
        }
        self.received = self.received.saturating_add(copied);
        copied
    }

    fn finish(mut self, mut reservation: Reservation) -> Result<Decoded, InferError> {
        // Parts of no bytes are complete as they are.
        while self.parts.get(self.current).is_some_and(|place| place.part.size_bytes == self.filled) {
            self.current += 1;
            self.begin_part();
        }
        if self.additional > 0 {
            return Err(self.plan.is_long(self.additional));
        }
        if self.current < self.parts.len() {
            return Err(self.plan.is_short(self.received));
        }
        let bytes = self.slab.freeze(reservation.split(self.capacity));
        let parts = self.parts.into_iter().map(|Place { start, part }| {
            let length = part.size_bytes + if part.is_element { PREFIX_BYTES } else { 0 };
            if length == 0 { Bytes::new() } else { bytes.slice(start..start + length) }
        });
        self.plan.finish(parts)
    }
}

#[cfg(test)]
pub(super) mod tests;
