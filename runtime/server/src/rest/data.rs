//! Parses the `data` array of an input straight into the tensor's bytes, without a JSON tree.
//!
//! Called by `rest::decode` with text that the request parser already found to be one JSON value. Numbers are read from their
//! own digits by the target type, so that nothing is rounded twice and what does not fit is refused. Invariant: memory grows
//! with the text, never with what a shape claims.

use torchmodel_core::tensor::{DataType, DataTypeExt, push_bytes_element};

use crate::protocol::MAX_DIMENSIONS;

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
    /// FP16 and BF16 have no JSON form.
    #[error("no JSON form")]
    NoJsonForm,
}

/// Little-endian, row-major bytes of the `expected` elements in `text`.
pub(super) fn parse(text: &str, datatype: DataType, expected: usize) -> Result<Vec<u8>, DataError> {
    let scan = Scan { text, datatype, expected };
    match datatype {
        DataType::Bool => scan.run(|text, out| {
            let value = match text {
                "true" => 1,
                "false" => 0,
                _ => return false,
            };
            out.push(value);
            true
        }),
        DataType::Uint8 => scan.run(|text, out| push(text.parse().map(u8::to_le_bytes), out)),
        DataType::Uint16 => scan.run(|text, out| push(text.parse().map(u16::to_le_bytes), out)),
        DataType::Uint32 => scan.run(|text, out| push(text.parse().map(u32::to_le_bytes), out)),
        DataType::Uint64 => scan.run(|text, out| push(text.parse().map(u64::to_le_bytes), out)),
        DataType::Int8 => scan.run(|text, out| push(text.parse().map(i8::to_le_bytes), out)),
        DataType::Int16 => scan.run(|text, out| push(text.parse().map(i16::to_le_bytes), out)),
        DataType::Int32 => scan.run(|text, out| push(text.parse().map(i32::to_le_bytes), out)),
        DataType::Int64 => scan.run(|text, out| push(text.parse().map(i64::to_le_bytes), out)),
        DataType::Fp32 => scan.run(|text, out| {
            #[expect(clippy::cast_possible_truncation, reason = "exact for what is not finite")]
            let value = non_finite(text).map(|value| value as f32);
            // A number too large for the type reads as infinity.
            let value = value.or_else(|| text.parse().ok().filter(|value: &f32| value.is_finite()));
            push(value.map(f32::to_le_bytes).ok_or(()), out)
        }),
        DataType::Fp64 => scan.run(|text, out| {
            let value = non_finite(text).or_else(|| text.parse().ok().filter(|value: &f64| value.is_finite()));
            push(value.map(f64::to_le_bytes).ok_or(()), out)
        }),
        DataType::Bytes => scan.run(push_string),
        DataType::Fp16 | DataType::Bf16 => Err(DataError::NoJsonForm),
    }
}

fn push<const N: usize, E>(bytes: Result<[u8; N], E>, out: &mut Vec<u8>) -> bool {
    bytes.map(|bytes| out.extend_from_slice(&bytes)).is_ok()
}

/// The values that JSON has no numbers for, as strings (protobuf's JSON form; `rest::json` makes bare tokens into these).
fn non_finite(text: &str) -> Option<f64> {
    match text {
        "\"NaN\"" => Some(f64::NAN),
        "\"Infinity\"" => Some(f64::INFINITY),
        "\"-Infinity\"" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

fn push_string(text: &str, out: &mut Vec<u8>) -> bool {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else { return false };
    if inner.contains('\\') {
        serde_json::from_str::<String>(text).is_ok_and(|element| push_bytes_element(out, element.as_bytes()))
    } else {
        push_bytes_element(out, inner.as_bytes())
    }
}

/// One pass over a `data` value.
struct Scan<'a> {
    text: &'a str,
    datatype: DataType,
    expected: usize,
}

impl Scan<'_> {
    /// Walks the arrays and gives the text of each element to `push`, which appends its bytes or returns `false`.
    fn run(&self, push: impl Fn(&str, &mut Vec<u8>) -> bool) -> Result<Vec<u8>, DataError> {
        // An element takes two characters of text at least.
        let capacity = self.expected.min(self.text.len() / 2 + 1);
        let mut out = Vec::with_capacity(capacity * self.datatype.size_bytes().unwrap_or(4));
        let mut nesting = Nesting::default();
        let mut count = 0usize;
        let mut rest = self.text;
        while let Some(first) = rest.bytes().next() {
            let length = match first {
                b'[' => {
                    nesting.open()?;
                    1
                }
                b']' => {
                    nesting.close()?;
                    1
                }
                b',' | b' ' | b'\t' | b'\n' | b'\r' => 1,
                _ => {
                    let length = element_length(rest);
                    let element = rest.get(..length).unwrap_or_default();
                    nesting.element()?;
                    if count < self.expected && !push(element, &mut out) {
                        return Err(self.wrong_element(count, element));
                    }
                    count += 1;
                    length
                }
            };
            rest = rest.get(length..).unwrap_or_default();
        }
        if count == self.expected { Ok(out) } else { Err(DataError::WrongCount { actual: count }) }
    }

    fn wrong_element(&self, position: usize, element: &str) -> DataError {
        const SHOWN: usize = 40;
        let mut text: String = element.chars().take(SHOWN).collect();
        if text.len() < element.len() {
            text.push('…');
        }
        DataError::WrongElement { position, text, datatype: self.datatype.as_str() }
    }
}

/// Bytes of the scalar (or object) that `text` begins with; the text is valid JSON.
fn element_length(text: &str) -> usize {
    let mut bytes = text.bytes();
    if bytes.next() == Some(b'"') {
        let mut is_escaped = false;
        let end = bytes.position(|byte| {
            let is_end = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            is_end
        });
        return end.map_or(text.len(), |end| end + 2);
    }
    text.bytes().position(|byte| matches!(byte, b',' | b']' | b' ' | b'\t' | b'\n' | b'\r')).unwrap_or(text.len())
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

    fn element(&mut self) -> Result<(), DataError> {
        let level = self.open.len();
        *self.open.last_mut().ok_or(DataError::NotArray)? += 1;
        // Deeper arrays at this level were members, too, if there were any.
        if *self.element_level.get_or_insert(level) == level && self.lengths.len() == level {
            Ok(())
        } else {
            Err(DataError::Ragged)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fp32(text: &str, expected: usize) -> Result<Vec<f32>, DataError> {
        let bytes = parse(text, DataType::Fp32, expected)?;
        Ok(bytes.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect())
    }

    #[test]
    fn data_may_be_flat_or_nested() {
        for text in ["[1,2,3,4]", "[[1,2],[3,4]]", "[[[1],[2]],[[3],[4]]]", " [ [ 1 , 2 ] ,\n[3,4]\t] "] {
            assert_eq!(fp32(text, 4), Ok(vec![1.0, 2.0, 3.0, 4.0]), "{text}");
        }
        assert_eq!(fp32("[]", 0), Ok(vec![]));
        assert_eq!(fp32("[[],[]]", 0), Ok(vec![]));
    }

    #[test]
    fn ragged_data_is_refused() {
        for text in ["[[1,2],[3]]", "[1,[2]]", "[[1],2]", "[[1],[[2]]]", "[[],[1]]", "[[],[[]]]", "[[[1]],[2]]"] {
            assert_eq!(fp32(text, 2), Err(DataError::Ragged), "{text}");
        }
    }

    #[test]
    fn nesting_has_a_limit_and_data_must_be_an_array() {
        let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert!(fp32(&deep(MAX_DIMENSIONS), 1).is_ok());
        assert_eq!(fp32(&deep(MAX_DIMENSIONS + 1), 1), Err(DataError::TooDeep));
        for text in ["1", "null", "\"x\"", "{\"a\":1}"] {
            assert_eq!(fp32(text, 1), Err(DataError::NotArray), "{text}");
        }
    }

    #[test]
    fn elements_are_counted_to_the_end() {
        assert_eq!(fp32("[1,2,3]", 2), Err(DataError::WrongCount { actual: 3 }));
        assert_eq!(fp32("[1]", 2), Err(DataError::WrongCount { actual: 1 }));
    }

    #[test]
    fn numbers_that_do_not_fit_their_datatype_are_refused() {
        let wrong = [
            (DataType::Uint8, "[300]"),
            (DataType::Uint8, "[-1]"),
            (DataType::Int8, "[128]"),
            (DataType::Int32, "[2147483648]"),
            (DataType::Uint64, "[18446744073709551616]"),
            (DataType::Int64, "[1.5]"),
            (DataType::Int64, "[1e2]"),
            (DataType::Fp32, "[1e40]"),
            (DataType::Fp64, "[1e400]"),
            (DataType::Fp32, "[\"1\"]"),
            (DataType::Fp32, "[null]"),
            (DataType::Fp32, "[{\"a\":1}]"),
            (DataType::Bool, "[1]"),
            (DataType::Bytes, "[1]"),
            (DataType::Bytes, "[\"\\ud800\"]"),
        ];
        for (datatype, text) in wrong {
            let result = parse(text, datatype, 1);
            assert!(matches!(result, Err(DataError::WrongElement { position: 0, .. })), "{text}: {result:?}");
        }
    }

    #[test]
    fn the_extremes_of_every_integer_are_read() {
        assert_eq!(parse("[-128, 127]", DataType::Int8, 2), Ok(vec![0x80, 0x7f]));
        let expected = [i64::MIN.to_le_bytes(), i64::MAX.to_le_bytes()].concat();
        assert_eq!(parse("[-9223372036854775808,9223372036854775807]", DataType::Int64, 2), Ok(expected));
        assert_eq!(parse("[18446744073709551615]", DataType::Uint64, 1), Ok(u64::MAX.to_le_bytes().to_vec()));
    }

    #[test]
    fn floats_are_rounded_once() {
        // Halfway between two FP32 values, plus a little that an FP64 cannot hold.
        assert_eq!(fp32("[1.00000005960464477540]", 1), Ok(vec![1.000_000_1]));
        let values = fp32("[\"NaN\",\"-Infinity\"]", 2).unwrap();
        assert!(values[0].is_nan() && values[1].is_infinite() && values[1] < 0.0, "{values:?}");
    }

    #[test]
    fn strings_keep_escapes_nul_brackets_and_non_ascii() {
        let bytes = parse(r#"["a]\"[","\u0000","\\","ü","",", "]"#, DataType::Bytes, 6).unwrap();
        let elements: Vec<_> = torchmodel_core::tensor::BytesElements::new(&bytes).map(Result::unwrap).collect();
        assert_eq!(elements, [&b"a]\"["[..], b"\0", b"\\", "ü".as_bytes(), b"", b", "]);
    }
}
