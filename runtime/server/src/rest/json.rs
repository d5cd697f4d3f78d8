//! The JSON part of an inference request.
//!
//! Called by `rest::decode`. Objects and arrays of tensors are walked with a cursor, so that `data` is read where it stands, into
//! the tensor's own memory; what is small is left to serde. Invariant: a key stands once, arrays and objects stop at their bounds
//! before they are collected, and every error names the field.

mod fields;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use torchmodel_core::inference::{InferError, Parameters};

pub(super) use self::fields::OutputBody;
use self::fields::{Array, ParametersBody};
use super::{
    data::{self, DataError, Failure},
    text::{Cursor, JsonError, Text, foreign},
};
use crate::{
    admission::Reservation,
    protocol::{InputHead, Limits, MAX_PARAMETERS, MAX_TENSORS, too_many},
};

/// An inference request's JSON object.
#[derive(Debug)]
pub(super) struct RequestBody<'a> {
    pub(super) id: Option<String>,
    pub(super) parameters: Parameters,
    pub(super) inputs: Vec<InputBody<'a>>,
    pub(super) outputs: Vec<OutputBody>,
}

/// One member of `inputs`.
#[derive(Debug)]
pub(super) struct InputBody<'a> {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) datatype: String,
    pub(super) parameters: Parameters,
    pub(super) data: Option<InputData<'a>>,
}

/// A tensor's `data`.
#[derive(Debug)]
pub(super) enum InputData<'a> {
    /// Read where it stood.
    Read(Bytes),
    /// It stood before what says how to read it, or that is wrong.
    Unread(Cursor<'a>),
}

/// What reading a request's JSON needs to know and to take.
#[derive(Debug)]
pub(super) struct Reader<'r> {
    pub(super) model: &'r str,
    pub(super) limits: Limits,
    /// What the tensors take is added to it.
    pub(super) reservation: &'r mut Reservation,
}

/// A syntax error, or what is wrong with a tensor.
#[derive(Debug)]
pub(super) enum ReadError {
    /// Not JSON, or not of the right form.
    Json(JsonError),
    /// Not this tensor.
    Infer(InferError),
}

impl From<JsonError> for ReadError {
    fn from(error: JsonError) -> Self {
        Self::Json(error)
    }
}

impl ReadError {
    fn within(self, field: &str) -> Self {
        match self {
            Self::Json(error) => Self::Json(error.within(field)),
            infer @ Self::Infer(_) => infer,
        }
    }

    /// The words for it; `text` is what was read.
    pub(super) fn describe(self, text: &Text) -> InferError {
        match self {
            Self::Json(error) => {
                InferError::InvalidRequest(format!("failed to parse the request JSON: {}", error.describe(text)))
            }
            Self::Infer(error) => error,
        }
    }
}

/// Longest text of a member that is no tensor's data: what is made of it is not reserved.
const MAX_MEMBER_BYTES: usize = 256 << 10;

impl<'r> Reader<'r> {
    /// Reads the whole `text`.
    pub(super) fn read<'a>(&mut self, text: &'a Text) -> Result<RequestBody<'a>, InferError> {
        let mut cursor = text.cursor();
        let body = self.request(&mut cursor).and_then(|body| {
            let end = cursor.peek_token();
            if end.is_none() { Ok(body) } else { Err(cursor.error("trailing characters").into()) }
        });
        body.map_err(|error| error.describe(text))
    }

    fn request<'a>(&mut self, cursor: &mut Cursor<'a>) -> Result<RequestBody<'a>, ReadError> {
        let (mut id, mut parameters, mut inputs, mut outputs) = (None, None, None, None);
        members(cursor, "an object with 'inputs'", |cursor, key| match key {
            "id" => set(cursor, &mut id, key),
            "parameters" => set(cursor, &mut parameters, key),
            "inputs" => set_with(cursor, &mut inputs, key, |cursor| self.inputs(cursor)),
            "outputs" => set(cursor, &mut outputs, key),
            _ => Ok(cursor.skip_value()?),
        })?;
        let parameters: Option<ParametersBody> = parameters.flatten();
        let outputs: Option<Array<OutputBody>> = outputs.flatten();
        Ok(RequestBody {
            id: Option::flatten(id),
            parameters: parameters.unwrap_or_default().0,
            inputs: required(cursor, inputs, "inputs")?,
            outputs: outputs.map(|outputs| outputs.0).unwrap_or_default(),
        })
    }

    fn inputs<'a>(&mut self, cursor: &mut Cursor<'a>) -> Result<Vec<InputBody<'a>>, ReadError> {
        let mut inputs = Vec::new();
        let mut parameters = 0;
        open(cursor, b'[', "an array of inputs")?;
        if cursor.accept(b']') {
            return Ok(inputs);
        }
        loop {
            let input = self.input(cursor)?;
            if inputs.len() >= MAX_TENSORS {
                return Err(cursor.error(too_many("inputs", MAX_TENSORS)).into());
            }
            parameters += input.parameters.len();
            if parameters > MAX_PARAMETERS {
                return Err(cursor.error(too_many("parameters of inputs", MAX_PARAMETERS)).into());
            }
            inputs.push(input);
            if cursor.accept(b']') {
                return Ok(inputs);
            }
            if !cursor.accept(b',') {
                return Err(cursor.unexpected("expected `,` or `]`").into());
            }
        }
    }

    fn input<'a>(&mut self, cursor: &mut Cursor<'a>) -> Result<InputBody<'a>, ReadError> {
        let (mut name, mut datatype, mut data) = (None, None, None);
        let mut shape: Option<Array<i64>> = None;
        let mut parameters: Option<Option<ParametersBody>> = None;
        members(cursor, "an input object", |cursor, key| match key {
            "name" => set(cursor, &mut name, key),
            "shape" => set(cursor, &mut shape, key),
            "datatype" => set(cursor, &mut datatype, key),
            "parameters" => set(cursor, &mut parameters, key),
            "data" => {
                let head = self.head(name.as_ref(), datatype.as_ref(), shape.as_ref());
                set_with(cursor, &mut data, key, |cursor| self.data(cursor, head))
            }
            _ => Ok(cursor.skip_value()?),
        })?;
        Ok(InputBody {
            name: required(cursor, name, "name")?,
            shape: required(cursor, shape, "shape")?.0,
            datatype: required(cursor, datatype, "datatype")?,
            parameters: parameters.flatten().unwrap_or_default().0,
            data,
        })
    }

    /// What stands before `data`, if it says how to read it.
    fn head<'h>(
        &self,
        name: Option<&'h String>,
        datatype: Option<&String>,
        shape: Option<&'h Array<i64>>,
    ) -> Option<(InputHead<'h>, usize)>
    where
        'r: 'h,
    {
        let head = InputHead::new(self.model, name?, datatype?, &shape?.0).ok()?;
        let expected = head.element_count(self.limits).ok()?;
        Some((head, expected))
    }

    /// Reads `data` if what stood before it says how.
    fn data<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        head: Option<(InputHead<'_>, usize)>,
    ) -> Result<InputData<'a>, ReadError> {
        cursor.peek_token();
        if let Some((head, expected)) = head {
            return self.tensor(cursor, head, expected).map(InputData::Read);
        }
        let start = cursor.clone();
        cursor.skip_value()?;
        Ok(InputData::Unread(start))
    }

    /// Reads the `data` that comes next, of `expected` elements.
    pub(super) fn tensor(
        &mut self,
        cursor: &mut Cursor<'_>,
        head: InputHead<'_>,
        expected: usize,
    ) -> Result<Bytes, ReadError> {
        let InputHead { name, model, .. } = head;
        let data = data::parse(cursor, head.datatype, expected, self.reservation);
        data.map_err(|failure| match failure {
            Failure::Json(error) => error.into(),
            Failure::Data(DataError::WrongCount { actual }) => ReadError::Infer(head.wrong_count(expected, actual)),
            Failure::Data(error) => {
                ReadError::Infer(InferError::InvalidRequest(format!("input '{name}' for model '{model}': {error}")))
            }
            Failure::Admission(error) => ReadError::Infer(error.into()),
        })
    }
}

/// Passes over the bracket that begins `what`.
fn open(cursor: &mut Cursor<'_>, bracket: u8, what: &str) -> Result<(), JsonError> {
    if cursor.accept(bracket) {
        return Ok(());
    }
    let kind = match cursor.peek_token() {
        None => return Err(cursor.error("EOF while parsing a value")),
        Some(b'[') => "sequence",
        Some(b'{') => "map",
        Some(b'"') => "string",
        Some(b't' | b'f') => "boolean",
        Some(b'n') => "null",
        Some(b'-' | b'0'..=b'9') => "number",
        Some(_) => return Err(cursor.error("expected value")),
    };
    Err(cursor.error(format!("invalid type: {kind}, expected {what}")))
}

/// Walks the members of an object; `member` passes over the value of the key that it gets.
fn members<'a>(
    cursor: &mut Cursor<'a>,
    what: &str,
    mut member: impl FnMut(&mut Cursor<'a>, &str) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    open(cursor, b'{', what)?;
    if cursor.accept(b'}') {
        return Ok(());
    }
    loop {
        let key = cursor.text()?;
        cursor.expect(b':')?;
        member(cursor, &key)?;
        if cursor.accept(b'}') {
            return Ok(());
        }
        if !cursor.accept(b',') {
            return Err(cursor.unexpected("expected `,` or `}`").into());
        }
    }
}

/// Reads the value of `field` into `slot` with serde, once, with errors that name the field.
fn set<T: DeserializeOwned>(cursor: &mut Cursor<'_>, slot: &mut Option<T>, field: &str) -> Result<(), ReadError> {
    set_with(cursor, slot, field, |cursor| {
        cursor.peek_token();
        let start = cursor.position();
        let text = cursor.value()?;
        if text.len() > MAX_MEMBER_BYTES {
            let error = format!("it has {} bytes; the maximum is {MAX_MEMBER_BYTES}", text.len());
            return Err(JsonError::new(error, start).into());
        }
        Ok(serde_json::from_slice(&text).map_err(|error| foreign(&error, &text, start))?)
    })
}

/// The same, with `read`.
fn set_with<'a, T>(
    cursor: &mut Cursor<'a>,
    slot: &mut Option<T>,
    field: &str,
    read: impl FnOnce(&mut Cursor<'a>) -> Result<T, ReadError>,
) -> Result<(), ReadError> {
    if slot.is_some() {
        return Err(cursor.error(format!("duplicate field '{field}'")).into());
    }
    *slot = Some(read(cursor).map_err(|error| error.within(field))?);
    Ok(())
}

fn required<T>(cursor: &Cursor<'_>, slot: Option<T>, field: &str) -> Result<T, JsonError> {
    slot.ok_or_else(|| cursor.error(format!("missing field '{field}'")))
}

#[cfg(test)]
mod tests;
