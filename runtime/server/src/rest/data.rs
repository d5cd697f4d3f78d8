//! Reads the `data` array of an input straight into the tensor's own memory, without a JSON tree.
//!
//! Called by `rest::json` where the array stands in the text, or afterwards where datatype and shape stand behind it. Each number is
//! read once, from its own digits, and written once, so that nothing is rounded twice and what does not fit is refused. Invariant:
//! memory is reserved before it is taken, and grows with the text, never with what a shape claims.

use bytes::Bytes;
use half::{bf16, f16};
use torchmodel_core::tensor::{DataType, DataTypeExt, push_bytes_element};

use super::text::{Cursor, JsonError};
use crate::{
    admission::{AdmissionError, Reservation},
    protocol::MAX_DIMENSIONS,
    reserved::hold,
};

/// Why `data` is not what the input's datatype and shape ask for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DataError {
    /// Not an array.
    #[error("'data' must be an array")]
    NotArray,
    /// Deeper than a tensor can have dimensions.
    #[error("'data' is nested more than {MAX_DIMENSIONS} levels deep")]
    TooDeep,
    /// Arrays of different lengths, or numbers beside arrays, at one level.
    #[error("'data' is ragged: the arrays of one level differ in length or depth")]
    Ragged,
    /// More or fewer elements than the shape asks for.
    #[error("wrong number of elements")]
    WrongCount {
        /// Elements in `data`.
        actual: usize,
    },
    /// An element that is not a value of the datatype.
    #[error("element {position} of 'data' is {text}, which is not a value of {datatype}")]
    WrongElement {
        /// Its position in row-major order.
        position: usize,
        /// Its text, shortened.
        text: String,
        /// The input's datatype.
        datatype: &'static str,
    },
}

/// Why no tensor was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The text is not JSON.
    Json(JsonError),
    /// It is, but not this tensor.
    Data(DataError),
    /// There is no memory for it now.
    Admission(AdmissionError),
}

impl From<JsonError> for Failure {
    fn from(error: JsonError) -> Self {
        Self::Json(error)
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

impl From<AdmissionError> for Failure {
    fn from(error: AdmissionError) -> Self {
        Self::Admission(error)
    }
}

/// Passes over the array that comes next and gives its `expected` elements as little-endian, row-major bytes, which keep the part
/// of `reservation` that was taken for them.
#[expect(clippy::redundant_closure_for_method_calls, reason = "a method's path is of one lifetime only")]
pub(super) fn parse(
    cursor: &mut Cursor<'_>,
    datatype: DataType,
    expected: usize,
    reservation: &mut Reservation,
) -> Result<Bytes, Failure> {
    let scan = Scan { cursor, datatype, expected, count: 0, nesting: Nesting::default() };
    match datatype {
        DataType::Bool => scan.fixed(reservation, |cursor| {
            let value = cursor.accept_word("true");
            (value || cursor.accept_word("false")).then_some([u8::from(value)])
        }),
        DataType::Uint8 => scan.unsigned(reservation, u8::to_le_bytes),
        DataType::Uint16 => scan.unsigned(reservation, u16::to_le_bytes),
        DataType::Uint32 => scan.unsigned(reservation, u32::to_le_bytes),
        DataType::Uint64 => scan.unsigned(reservation, u64::to_le_bytes),
        DataType::Int8 => scan.signed(reservation, i8::to_le_bytes),
        DataType::Int16 => scan.signed(reservation, i16::to_le_bytes),
        DataType::Int32 => scan.signed(reservation, i32::to_le_bytes),
        DataType::Int64 => scan.signed(reservation, i64::to_le_bytes),
        DataType::Fp16 => scan.fixed(reservation, |cursor| {
            let value = cursor.number(|number| number.fp16()).or_else(|| non_finite(cursor).map(f16::from_f64));
            value.map(f16::to_le_bytes)
        }),
        DataType::Bf16 => scan.fixed(reservation, |cursor| {
            let value = cursor.number(|number| number.bf16()).or_else(|| non_finite(cursor).map(bf16::from_f64));
            value.map(bf16::to_le_bytes)
        }),
        DataType::Fp32 => scan.fixed(reservation, |cursor| {
            #[expect(clippy::cast_possible_truncation, reason = "exact for what is not finite")]
            let value = cursor.number(|number| number.fp32()).or_else(|| non_finite(cursor).map(|value| value as f32));
            value.map(f32::to_le_bytes)
        }),
        DataType::Fp64 => scan.fixed(reservation, |cursor| {
            cursor.number(|number| number.fp64()).or_else(|| non_finite(cursor)).map(f64::to_le_bytes)
        }),
        DataType::Bytes => scan.strings(reservation),
    }
}

/// The values that JSON has no numbers for: bare, as Python and Triton write them, or as strings, protobuf's JSON form.
fn non_finite(cursor: &mut Cursor<'_>) -> Option<f64> {
    let mut after = cursor.clone();
    let is_quoted = after.accept(b'"');
    let words = [("NaN", f64::NAN), ("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY)];
    let (_, value) = words.iter().find(|(word, _)| after.accept_word(word))?;
    if is_quoted && after.peek() != Some(b'"') {
        return None;
    }
    after.advance(usize::from(is_quoted));
    *cursor = after;
    Some(*value)
}

/// One pass over a `data` value.
struct Scan<'c, 'a> {
    cursor: &'c mut Cursor<'a>,
    datatype: DataType,
    expected: usize,
    /// Elements so far.
    count: usize,
    nesting: Nesting,
}

impl Scan<'_, '_> {
    fn unsigned<T: TryFrom<u64>, const N: usize>(
        self,
        reservation: &mut Reservation,
        to_bytes: fn(T) -> [u8; N],
    ) -> Result<Bytes, Failure> {
        self.fixed(reservation, |cursor| cursor.number(|number| T::try_from(number.unsigned()?).ok().map(to_bytes)))
    }

    fn signed<T: TryFrom<i64>, const N: usize>(
        self,
        reservation: &mut Reservation,
        to_bytes: fn(T) -> [u8; N],
    ) -> Result<Bytes, Failure> {
        self.fixed(reservation, |cursor| cursor.number(|number| T::try_from(number.signed()?).ok().map(to_bytes)))
    }

    /// Reads elements of `N` bytes, each passed over and given by `read`.
    fn fixed<const N: usize>(
        mut self,
        reservation: &mut Reservation,
        read: impl Fn(&mut Cursor<'_>) -> Option<[u8; N]>,
    ) -> Result<Bytes, Failure> {
        // An element takes two characters of text at least.
        let capacity = self.expected.min(self.cursor.remaining() / 2 + 1).saturating_mul(N);
        reservation.grow_within(capacity)?;
        let mut slab = reservation.admission().pool().take(capacity);
        let (slots, _) = slab.spare_mut().as_chunks_mut::<N>();
        let mut slots = slots.iter_mut();
        self.run(|cursor| {
            let value = read(cursor);
            Ok(match (value, slots.next()) {
                (Some(value), Some(slot)) => {
                    *slot = value;
                    true
                }
                _ => false,
            })
        })?;
        slab.advance(capacity);
        Ok(slab.freeze(reservation.split(capacity)))
    }

    fn strings(mut self, reservation: &mut Reservation) -> Result<Bytes, Failure> {
        let mut out = Vec::new();
        let mut held = reservation.split(0);
        self.run(|cursor| {
            if cursor.peek_token() != Some(b'"') {
                return Ok(false);
            }
            let mut after = cursor.clone();
            let Ok(element) = after.text() else { return Ok(false) };
            let end = out.len() + 4 + element.len();
            if end > out.capacity() {
                let capacity = end.max(out.capacity().saturating_mul(2));
                held.grow_within(capacity - out.capacity())?;
                out.reserve_exact(capacity - out.len());
            }
            *cursor = after;
            Ok(push_bytes_element(&mut out, element.as_bytes()))
        })?;
        Ok(hold(out, held))
    }

    /// Walks the arrays and has `push` pass over each element and keep it; `push` gives `false` for what is no element.
    fn run(&mut self, mut push: impl FnMut(&mut Cursor<'_>) -> Result<bool, Failure>) -> Result<(), Failure> {
        if self.cursor.peek_token() != Some(b'[') {
            self.cursor.skip_value()?;
            return Err(DataError::NotArray.into());
        }
        loop {
            if self.cursor.accept(b'[') {
                self.nesting.open()?;
                if !self.cursor.accept(b']') {
                    continue;
                }
            } else {
                let before = self.count;
                self.run_of_elements(&mut push)?;
                self.nesting.elements(self.count - before)?;
            }
            self.nesting.close()?;
            loop {
                if self.nesting.is_closed() {
                    return self.check_count();
                }
                if self.cursor.accept(b',') {
                    break;
                }
                self.end_of_array()?;
                self.nesting.close()?;
            }
        }
    }

    /// Elements to the end of the array that they are in.
    fn run_of_elements(
        &mut self,
        push: &mut impl FnMut(&mut Cursor<'_>) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        loop {
            if self.count >= self.expected {
                self.cursor.skip_value()?;
            } else if !push(self.cursor)? {
                return Err(self.wrong_element());
            }
            self.count += 1;
            if !self.cursor.accept(b',') {
                return self.end_of_array();
            }
            if self.cursor.peek_token() == Some(b'[') {
                return Err(DataError::Ragged.into());
            }
        }
    }

    fn end_of_array(&mut self) -> Result<(), Failure> {
        if self.cursor.accept(b']') { Ok(()) } else { Err(self.cursor.unexpected("expected `,` or `]`").into()) }
    }

    fn check_count(&self) -> Result<(), Failure> {
        if self.count == self.expected { Ok(()) } else { Err(DataError::WrongCount { actual: self.count }.into()) }
    }

    /// What comes next is no element: because it is not JSON, or because it is something else.
    fn wrong_element(&mut self) -> Failure {
        const SHOWN: usize = 40;
        let element = match self.cursor.value() {
            Ok(element) => element,
            Err(error) => return error.into(),
        };
        let element = String::from_utf8_lossy(&element);
        let mut text: String = element.chars().take(SHOWN).collect();
        if text.len() < element.len() {
            text.push('…');
        }
        DataError::WrongElement { position: self.count, text, datatype: self.datatype.as_str() }.into()
    }
}

/// Keeps the arrays of each level equally long and the elements at one level.
#[derive(Default)]
struct Nesting {
    /// Members so far of each array that is open, outermost first.
    open: Vec<usize>,
    /// Members of the closed arrays of each level.
    lengths: Vec<Option<usize>>,
    /// The level at which elements stand.
    element_level: Option<usize>,
}

impl Nesting {
    fn open(&mut self) -> Result<(), DataError> {
        if self.open.len() >= MAX_DIMENSIONS {
            return Err(DataError::TooDeep);
        }
        if self.element_level.is_some_and(|level| level <= self.open.len()) {
            return Err(DataError::Ragged);
        }
        if let Some(members) = self.open.last_mut() {
            *members += 1;
        }
        self.open.push(0);
        if self.lengths.len() < self.open.len() {
            self.lengths.push(None);
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), DataError> {
        let members = self.open.pop().ok_or(DataError::NotArray)?;
        let length = self.lengths.get_mut(self.open.len()).ok_or(DataError::NotArray)?;
        if *length.get_or_insert(members) == members { Ok(()) } else { Err(DataError::Ragged) }
    }

    fn elements(&mut self, count: usize) -> Result<(), DataError> {
        let level = self.open.len();
        *self.open.last_mut().ok_or(DataError::NotArray)? += count;
        // Deeper arrays at this level were members, too, if there were any.
        if *self.element_level.get_or_insert(level) == level && self.lengths.len() == level {
            Ok(())
        } else {
            Err(DataError::Ragged)
        }
    }

    fn is_closed(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests;
