//! JSON text in the pieces in which it came, and a cursor over them.
//!
//! `rest::body` gathers a [`Text`]; `rest::json` and `rest::data` read it once, from front to back, with a [`Cursor`]. Pieces are
//! not joined: only a token that lies across a border is. Invariants: what the cursor passes over follows JSON's grammar, but for
//! the tokens `NaN`, `Infinity` and `-Infinity`, which Python's and Triton's writers produce; nothing recurses.

use std::{borrow::Cow, fmt};

use bytes::{Bytes, BytesMut};

use super::number::Number;

/// Pieces below this are joined to one another: a piece keeps the whole buffer that it was read into, of 8 KiB at least. A fuzzer's
/// inputs are small, and their borders matter.
pub(super) const JOINED_BYTES: usize = if cfg!(fuzzing) { 8 } else { 16 << 10 };
/// Arrays and objects in one another in a member that nobody reads; each takes a byte.
const MAX_SKIPPED_DEPTH: usize = 1 << 20;

/// Text that came in pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct Text {
    first: Bytes,
    more: Vec<Bytes>,
    /// Small pieces after those.
    joined: BytesMut,
    length: usize,
    copied_bytes: usize,
}

impl Text {
    /// Adds what came next.
    pub(super) fn push(&mut self, piece: Bytes) {
        if self.length == 0 {
            self.length = piece.len();
            self.first = piece;
            return;
        }
        self.length += piece.len();
        if piece.len() >= JOINED_BYTES {
            self.end_joined();
            self.more.push(piece);
            return;
        }
        if self.more.is_empty() && self.joined.is_empty() && self.first.len() < JOINED_BYTES {
            let first = std::mem::take(&mut self.first);
            self.join(&first);
        }
        self.join(&piece);
    }

    fn join(&mut self, piece: &[u8]) {
        self.copied_bytes += piece.len();
        self.joined.extend_from_slice(piece);
        if self.joined.len() >= 4 * JOINED_BYTES {
            self.end_joined();
        }
    }

    fn end_joined(&mut self) {
        if !self.joined.is_empty() {
            self.more.push(self.joined.split().freeze());
        }
    }

    /// Bytes in all.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Bytes of small pieces that were copied to join them.
    pub(super) fn copied_bytes(&self) -> usize {
        self.copied_bytes
    }

    /// The pieces, in their order.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> + Clone {
        [&self.first].into_iter().chain(&self.more).map(Bytes::as_ref).chain([self.joined.as_ref()])
    }

    /// A cursor at the front.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor { text: self, rest: &[], next_piece: 0, end: 0 }
    }

    fn piece(&self, index: usize) -> Option<&[u8]> {
        match index.checked_sub(1) {
            None => Some(&self.first),
            Some(index) if index < self.more.len() => self.more.get(index).map(Bytes::as_ref),
            Some(index) => (index == self.more.len()).then_some(&*self.joined),
        }
    }

    /// Line and column of a position, both from one.
    fn place(&self, position: usize) -> (usize, usize) {
        let (mut line, mut column) = (1, 1);
        for byte in self.pieces().flatten().take(position) {
            column += 1;
            if *byte == b'\n' {
                (line, column) = (line + 1, 1);
            }
        }
        (line, column)
    }
}

impl From<Bytes> for Text {
    fn from(bytes: Bytes) -> Self {
        let mut text = Self::default();
        text.push(bytes);
        text
    }
}

/// Why a text is not the JSON that was expected, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JsonError {
    message: String,
    position: usize,
}

impl JsonError {
    /// What is wrong at `position`.
    pub(super) fn new(message: impl Into<String>, position: usize) -> Self {
        Self { message: message.into(), position }
    }

    /// The same, within a field.
    pub(super) fn within(self, field: &str) -> Self {
        Self { message: format!("field '{field}': {}", self.message), ..self }
    }

    /// The message with line and column.
    pub(super) fn describe(&self, text: &Text) -> impl fmt::Display {
        let (line, column) = text.place(self.position);
        format!("{} at line {line} column {column}", self.message)
    }
}

/// A place in a [`Text`].
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    text: &'a Text,
    /// What is left of the piece.
    rest: &'a [u8],
    next_piece: usize,
    /// Position of the end of the piece.
    end: usize,
}

impl<'a> Cursor<'a> {
    /// Bytes before this place.
    pub(super) fn position(&self) -> usize {
        self.end - self.rest.len()
    }

    /// Bytes after this place.
    pub(super) fn remaining(&self) -> usize {
        self.text.len() - self.position()
    }

    /// An error at this place.
    pub(super) fn error(&self, message: impl Into<String>) -> JsonError {
        JsonError::new(message, self.position())
    }

    /// The next byte.
    pub(super) fn peek(&mut self) -> Option<u8> {
        if let Some(byte) = self.rest.first() {
            return Some(*byte);
        }
        loop {
            let piece = self.text.piece(self.next_piece)?;
            self.next_piece += 1;
            if let Some(byte) = piece.first() {
                self.rest = piece;
                self.end += piece.len();
                return Some(*byte);
            }
        }
    }

    /// Whether no piece follows this one.
    pub(super) fn is_last_piece(&self) -> bool {
        self.end == self.text.len()
    }

    /// Passes over `count` bytes of this piece, at most all.
    pub(super) fn advance(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }

    /// The next byte after white space.
    pub(super) fn peek_token(&mut self) -> Option<u8> {
        loop {
            match self.peek()? {
                b' ' | b'\n' | b'\t' | b'\r' => self.advance(1),
                byte => return Some(byte),
            }
        }
    }

    /// Passes over white space and `byte`, if that comes next.
    pub(super) fn accept(&mut self, byte: u8) -> bool {
        let is_next = self.peek_token() == Some(byte);
        if is_next {
            self.advance(1);
        }
        is_next
    }

    /// Passes over white space and `byte`, which must come next.
    pub(super) fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.accept(byte) { Ok(()) } else { Err(self.unexpected(&format!("expected `{}`", char::from(byte)))) }
    }

    /// An error at this place: the text ends, or else `expected`.
    pub(super) fn unexpected(&mut self, expected: &str) -> JsonError {
        let message = if self.peek().is_none() { "EOF while parsing the JSON" } else { expected };
        self.error(message)
    }

    /// The text from `start` to here: as it lies there, or joined.
    pub(super) fn since(&self, start: &Self) -> Cow<'a, [u8]> {
        let length = self.position() - start.position();
        let mut from = start.clone();
        let mut joined = Vec::new();
        while joined.len() < length && from.peek().is_some() {
            let wanted = length - joined.len();
            let part = from.rest.get(..wanted).unwrap_or(from.rest);
            if part.len() == length {
                return Cow::Borrowed(part);
            }
            joined.extend_from_slice(part);
            from.advance(part.len());
        }
        Cow::Owned(joined)
    }

    /// Passes over one value and gives its text.
    pub(super) fn value(&mut self) -> Result<Cow<'a, [u8]>, JsonError> {
        self.peek_token();
        let start = self.clone();
        self.skip_value()?;
        Ok(self.since(&start))
    }

    /// Passes over a string and gives its text with its quotes, and whether a backslash is in it.
    pub(super) fn string(&mut self) -> Result<(Cow<'a, [u8]>, bool), JsonError> {
        self.peek_token();
        let start = self.clone();
        self.expect(b'"')?;
        let mut has_escape = false;
        loop {
            if self.peek().is_none() {
                return Err(self.error("EOF while parsing a string"));
            }
            let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..=0x1f);
            let Some(length) = self.rest.iter().position(is_special) else {
                self.advance(self.rest.len());
                continue;
            };
            self.advance(length);
            match self.peek() {
                Some(b'"') => break self.advance(1),
                Some(b'\\') => {
                    has_escape = true;
                    self.advance(1);
                    self.peek();
                    self.advance(1);
                }
                _ => return Err(self.error("control character (\\u0000-\\u001F) found while parsing a string")),
            }
        }
        Ok((self.since(&start), has_escape))
    }

    /// Passes over a string and gives what it says.
    pub(super) fn text(&mut self) -> Result<Cow<'a, str>, JsonError> {
        let start = self.position();
        let (quoted, has_escape) = self.string()?;
        if has_escape {
            let text = serde_json::from_slice(&quoted).map_err(|error| foreign(&error, &quoted, start))?;
            return Ok(Cow::Owned(text));
        }
        let inner = |quoted: &[u8]| quoted.len().saturating_sub(1).max(1);
        let wrong = |_| JsonError::new("invalid unicode code point", start);
        match quoted {
            Cow::Borrowed(quoted) => {
                let inner = quoted.get(1..inner(quoted)).unwrap_or_default();
                Ok(Cow::Borrowed(std::str::from_utf8(inner).map_err(wrong)?))
            }
            Cow::Owned(quoted) => {
                let inner = quoted.get(1..inner(&quoted)).unwrap_or_default();
                Ok(Cow::Owned(std::str::from_utf8(inner).map_err(wrong)?.to_owned()))
            }
        }
    }

    /// Passes over `word`, if that comes next.
    pub(super) fn accept_word(&mut self, word: &str) -> bool {
        let mut after = self.clone();
        for byte in word.bytes() {
            if after.peek() != Some(byte) {
                return false;
            }
            after.advance(1);
        }
        *self = after;
        true
    }

    /// Gives the number that comes next to `read`, and passes over it when `read` takes it.
    pub(super) fn number<T>(&mut self, read: impl FnOnce(&Number<'_>) -> Option<T>) -> Option<T> {
        self.peek_token()?;
        if let Some(number) = Number::read(self.rest)
            && (number.text().len() < self.rest.len() || self.is_last_piece())
        {
            let value = read(&number)?;
            self.advance(number.text().len());
            return Some(value);
        }
        let mut after = self.clone();
        while let Some(b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E') = after.peek() {
            after.advance(1);
        }
        let text = after.since(self);
        let number = Number::read(&text)?;
        let value = read(&number)?;
        self.advance_across(number.text().len());
        Some(value)
    }

    /// Passes over `count` bytes of this piece and of those behind it.
    fn advance_across(&mut self, mut count: usize) {
        while count > 0 && self.peek().is_some() {
            let here = count.min(self.rest.len());
            self.advance(here);
            count = count.saturating_sub(here);
        }
    }

    /// Passes over one value of any kind.
    pub(super) fn skip_value(&mut self) -> Result<(), JsonError> {
        let mut open = Vec::new();
        loop {
            if self.begin_value(&mut open)? {
                continue;
            }
            // A value is complete: so may be what it is in.
            loop {
                let Some(close) = open.last().copied() else { return Ok(()) };
                if self.accept(close) {
                    open.pop();
                    continue;
                }
                if !self.accept(b',') {
                    return Err(self.unexpected(if close == b']' {
                        "expected `,` or `]`"
                    } else {
                        "expected `,` or `}`"
                    }));
                }
                if close == b'}' {
                    self.skip_key()?;
                }
                break;
            }
        }
    }

    /// Passes over a scalar, an empty array or an empty object; or goes into one that is not, and says so.
    fn begin_value(&mut self, open: &mut Vec<u8>) -> Result<bool, JsonError> {
        let first = self.peek_token();
        let close = match first {
            Some(b'[') => b']',
            Some(b'{') => b'}',
            Some(b'"') => return self.skip_string().map(|()| false),
            _ => return self.skip_scalar().map(|()| false),
        };
        if open.len() >= MAX_SKIPPED_DEPTH {
            return Err(self.error("nested too deep"));
        }
        self.advance(1);
        if self.accept(close) {
            return Ok(false);
        }
        open.push(close);
        if close == b'}' {
            self.skip_key()?;
        }
        Ok(true)
    }

    fn skip_key(&mut self) -> Result<(), JsonError> {
        self.skip_string()?;
        self.expect(b':')
    }

    fn skip_string(&mut self) -> Result<(), JsonError> {
        let start = self.position();
        let (quoted, has_escape) = self.string()?;
        if has_escape {
            let result = serde_json::from_slice::<serde::de::IgnoredAny>(&quoted);
            result.map_err(|error| foreign(&error, &quoted, start))?;
        }
        let result = std::str::from_utf8(&quoted);
        result.map(|_| ()).map_err(|_| JsonError::new("invalid unicode code point", start))
    }

    fn skip_scalar(&mut self) -> Result<(), JsonError> {
        let words = ["true", "false", "null", "NaN", "Infinity", "-Infinity"];
        if words.iter().any(|word| self.accept_word(word)) || self.number(|_| Some(())).is_some() {
            return Ok(());
        }
        let message = if let Some(b'-' | b'0'..=b'9') = self.peek() { "invalid number" } else { "expected value" };
        Err(self.unexpected(message))
    }
}

/// What `serde_json` says of `text`, which begins at `start`.
pub(super) fn foreign(error: &serde_json::Error, text: &[u8], start: usize) -> JsonError {
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    let lines = text.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    let before: usize = lines.map(<[u8]>::len).sum();
    JsonError::new(message, start + before + error.column().saturating_sub(1))
}
