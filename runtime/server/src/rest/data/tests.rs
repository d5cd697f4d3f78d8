//! Tests of reading `data`: forms, refusals, memory, and serde as the oracle.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{admission::Admission, rest::text::Text};

/// Reads `text`, which must be nothing but the data.
fn read(text: &str, datatype: DataType, expected: usize) -> Result<Vec<u8>, Failure> {
    let admission = Admission::new(1 << 20);
    let mut reservation = admission.reserve(0).unwrap();
    let whole = Text::from(Bytes::copy_from_slice(text.as_bytes()));
    let mut cursor = whole.cursor();
    let data = super::parse(&mut cursor, datatype, expected, &mut reservation)?;
    match cursor.peek_token() {
        None => Ok(data.to_vec()),
        Some(_) => Err(cursor.error("trailing characters").into()),
    }
}

fn parse(text: &str, datatype: DataType, expected: usize) -> Result<Vec<u8>, DataError> {
    read(text, datatype, expected).map_err(|failure| match failure {
        Failure::Data(error) => error,
        other => panic!("{text}: {other:?}"),
    })
}

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

#[test]
fn what_is_no_json_is_refused_as_that() {
    let wrong = [
        "",
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1,,2]",
        "[1 2]",
        "[1}",
        "[01]",
        "[1.]",
        "[.5]",
        "[+1]",
        "[tru]",
        "[\"a]",
        "[\"\\q\"]",
        "[[1],]",
        "[[1],[2]",
        "[[1][2]]",
        "[1]]",
        "[1],[2]",
        "[-]",
        "[1e]",
        "nul",
        "[\u{1}]",
        "[\"\u{1}\"]",
        "[{]",
        "[{\"a\"}]",
        "[NaNa]",
    ];
    for text in wrong {
        for datatype in [DataType::Fp32, DataType::Int64, DataType::Bool, DataType::Bytes] {
            let result = read(text, datatype, 2);
            let is_refused = matches!(&result, Err(Failure::Json(_)));
            // Ragged and surplus arrays may be seen before their text ends.
            let is_ragged =
                matches!(&result, Err(Failure::Data(DataError::WrongElement { .. } | DataError::WrongCount { .. })));
            assert!(is_refused || is_ragged && text.contains(['1', '"', 'N']), "{text} as {datatype:?}: {result:?}");
        }
    }
}

#[test]
fn halves_have_numbers_too() {
    assert_eq!(parse("[1, -2.5, \"NaN\", Infinity]", DataType::Fp16, 4).unwrap()[..4], [0, 0x3c, 0, 0xc1]);
    assert_eq!(parse("[1]", DataType::Bf16, 1), Ok(vec![0x80, 0x3f]));
    assert!(matches!(parse("[1e5]", DataType::Fp16, 1), Err(DataError::WrongElement { .. })));
}

#[test]
fn memory_is_reserved_for_what_the_text_can_hold_and_no_more() {
    let admission = Admission::new(1 << 20);
    let mut reservation = admission.reserve(0).unwrap();
    let text = Text::from(Bytes::from_static(b"[1,2,3]"));
    let data = super::parse(&mut text.cursor(), DataType::Fp64, 3, &mut reservation).unwrap();
    assert_eq!(admission.held(), 24);
    drop(data);
    assert_eq!(admission.held(), 0);
    let failure = super::parse(&mut text.cursor(), DataType::Fp64, 1 << 40, &mut reservation).unwrap_err();
    assert_eq!(failure, DataError::WrongCount { actual: 3 }.into());
    assert!(admission.held() <= 8 * 4, "{}", admission.held());

    let _others = admission.reserve((1 << 20) - 40).unwrap();
    let result = super::parse(&mut text.cursor(), DataType::Fp64, 3, &mut reservation);
    assert!(matches!(result, Err(Failure::Admission(_))), "{result:?}");
    let strings = Text::from(Bytes::from(format!("[\"{}\"]", "x".repeat(100))));
    let result = super::parse(&mut strings.cursor(), DataType::Bytes, 1, &mut reservation);
    assert!(matches!(result, Err(Failure::Admission(_))), "{result:?}");
}

/// JSON of a tensor: nested as `shape` says, with white space anywhere.
fn nested(elements: &[String], shape: &[usize], space: &str) -> String {
    let Some((first, rest)) = shape.split_first() else { return elements.join(",") };
    let each = elements.len() / (*first).max(1);
    let parts: Vec<String> =
        (0..*first).map(|part| nested(&elements[part * each..(part + 1) * each], rest, space)).collect();
    format!("{space}[{space}{}{space}]{space}", parts.join(&format!("{space},{space}")))
}

/// A text as serde sees it: the elements of an array that is nested evenly, or `None`.
fn oracle(text: &str) -> Option<Vec<Value>> {
    fn walk(value: &Value, depth: usize, lengths: &mut Vec<usize>, out: &mut Vec<Value>) -> bool {
        let Value::Array(members) = value else {
            out.push(value.clone());
            return lengths.len() == depth;
        };
        if lengths.len() == depth {
            if !out.is_empty() {
                return false;
            }
            lengths.push(members.len());
        }
        lengths[depth] == members.len() && members.iter().all(|member| walk(member, depth + 1, lengths, out))
    }
    let value: Value = serde_json::from_str(text).ok()?;
    let mut elements = Vec::new();
    (value.is_array() && walk(&value, 0, &mut Vec::new(), &mut elements)).then_some(elements)
}

proptest! {
    #[test]
    fn nesting_and_white_space_do_not_matter(
        shape in prop::collection::vec(1usize..4, 1..5),
        space in prop::sample::select(vec!["", " ", "\n\t", "\r\n  "]),
        numbers in prop::collection::vec(any::<i32>(), 256),
    ) {
        let count = shape.iter().product();
        let numbers: Vec<i32> = numbers.into_iter().cycle().take(count).collect();
        let texts: Vec<String> = numbers.iter().map(i32::to_string).collect();
        let expected: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        prop_assert_eq!(parse(&nested(&texts, &shape, space), DataType::Int32, count), Ok(expected));
    }

    #[test]
    fn any_text_is_read_as_serde_reads_it(text in "[\\[\\],0-9.e \\-]{0,24}") {
        let expected = oracle(&text);
        let count = expected.as_ref().map_or(0, Vec::len);
        let floats = expected.map(|elements| {
            elements.iter().flat_map(|element| element.as_f64().unwrap().to_le_bytes()).collect::<Vec<u8>>()
        });
        prop_assert_eq!(read(&text, DataType::Fp64, count).ok(), floats, "{}", text);
    }

    #[test]
    fn any_array_of_anything_is_read_as_serde_reads_it(text in "\\[((true|false|null|1|\"[a\\\\\"n]{0,3}\"|\\{\"a\":1\\})[,\\] ]){0,4}") {
        let is_json = serde_json::from_str::<Value>(&text).is_ok();
        for datatype in [DataType::Bool, DataType::Bytes, DataType::Uint8] {
            let result = read(&text, datatype, 2);
            prop_assert!(!matches!(result, Err(Failure::Json(_))) || !is_json, "{}: {:?}", text, result);
            prop_assert!(result.is_err() || is_json, "{}", text);
        }
    }
}
