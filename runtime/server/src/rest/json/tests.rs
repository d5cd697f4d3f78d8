//! Tests of the JSON head: what may be left out, bounds, and the words and places of errors.

use proptest::prelude::*;
use torchmodel_core::inference::Parameter;

use super::*;
use crate::admission::Admission;

fn parse<R>(json: &[u8], read: impl FnOnce(RequestBody<'_>) -> R) -> Result<R, InferError> {
    let text = Text::from(Bytes::copy_from_slice(json));
    let admission = Admission::new(1 << 20);
    let reservation = &mut admission.reserve(0).unwrap();
    let mut reader = Reader { model: "m", limits: Limits::default(), reservation };
    reader.read(&text).map(read)
}

fn error(json: &str) -> String {
    parse(json.as_bytes(), |_| ()).unwrap_err().to_string()
}

#[test]
fn data_may_come_before_its_datatype_and_unknown_keys_are_skipped() {
    let json = br#"{"x":{"y":[[1]]},"inputs":[{"data":[1,2],"more":null,"name":"a","shape":[2],"datatype":"FP32"}]}"#;
    parse(json, |body| {
        assert!(matches!(body.inputs[0].data, Some(InputData::Unread(_))));
        assert_eq!(body.inputs[0].shape, [2]);
        assert!(body.id.is_none() && body.outputs.is_empty());
    })
    .unwrap();
}

#[test]
fn optional_members_may_be_null() {
    let json = br#"{"id":null,"parameters":null,"outputs":null,"inputs":[]}"#;
    parse(json, |body| {
        assert!(body.id.is_none() && body.parameters.is_empty());
    })
    .unwrap();
}

#[test]
fn a_parameter_is_the_number_nearest_to_its_text() {
    let json = br#"{"parameters":{"a":2.0522684023813254e-289},"inputs":[]}"#;
    let expected = Parameters::from([("a".to_owned(), Parameter::Double(2.052_268_402_381_325_4e-289))]);
    assert_eq!(parse(json, |body| body.parameters).unwrap(), expected);
}

#[test]
fn errors_name_the_field() {
    let cases = [
        (r"", "EOF while parsing"),
        (r"[]", "expected an object with 'inputs'"),
        (r"{}", "missing field 'inputs'"),
        (r#"{"inputs":5}"#, "field 'inputs'"),
        (r#"{"inputs":[{"shape":[1],"datatype":"FP32"}]}"#, "missing field 'name'"),
        (r#"{"inputs":[{"name":"a","datatype":"FP32"}]}"#, "missing field 'shape'"),
        (r#"{"inputs":[{"name":7}]}"#, "field 'name': invalid type: integer `7`, expected a string"),
        (r#"{"inputs":[{"shape":[1.5]}]}"#, "field 'shape'"),
        (r#"{"inputs":[{"shape":["1"]}]}"#, "field 'shape'"),
        (r#"{"inputs":[{"shape":[99999999999999999999]}]}"#, "field 'shape'"),
        (r#"{"id":7,"inputs":[]}"#, "field 'id'"),
        (r#"{"inputs":[],"inputs":[]}"#, "duplicate field 'inputs'"),
        (r#"{"id":null,"id":null,"inputs":[]}"#, "duplicate field 'id'"),
        (r#"{"parameters":{"a":1,"a":2},"inputs":[]}"#, "duplicate parameter 'a'"),
        (r#"{"parameters":{"a":[1]},"inputs":[]}"#, "field 'a': invalid type: sequence, expected a string, a number"),
        (r#"{"inputs":[]} x"#, "trailing characters"),
        (r#"{"outputs":[{}],"inputs":[]}"#, "missing field 'name'"),
    ];
    for (json, expected) in cases {
        let error = error(json);
        assert!(error.contains(expected), "{json}: {error}");
    }
}

#[test]
fn arrays_and_parameters_stop_at_their_bounds() {
    type Json<'a> = &'a dyn Fn(usize) -> String;

    let list = |member: &str, count: usize| vec![member; count].join(",");
    let parameters = |count: usize| {
        let members: Vec<String> = (0..count).map(|number| format!(r#""{number}":1"#)).collect();
        format!(r#""parameters":{{{}}}"#, members.join(","))
    };
    let outputs = |count| format!(r#"{{"inputs":[],"outputs":[{}]}}"#, list(r#"{"name":""}"#, count));
    let inputs = |count| format!(r#"{{"inputs":[{}]}}"#, list(r#"{"name":"","shape":[],"datatype":""}"#, count));
    let shape = |count| format!(r#"{{"inputs":[{{"name":"","datatype":"","shape":[{}]}}]}}"#, list("1", count));
    let of_request = |count| format!(r#"{{"inputs":[],{}}}"#, parameters(count));
    let of_outputs = |count| {
        let output = |count| format!(r#"{{"name":"",{}}}"#, parameters(count));
        format!(r#"{{"inputs":[],"outputs":[{},{}]}}"#, output(1000), output(count - 1000))
    };
    let cases: [(Json<'_>, usize, &str); 5] = [
        (&outputs, 1024, "field 'outputs': too many outputs: at most 1024 are possible"),
        (&inputs, 1024, "field 'inputs': too many inputs: at most 1024 are possible"),
        (&shape, 64, "field 'shape': too many dimensions in a shape: at most 64 are possible"),
        (&of_request, 1024, "field 'parameters': too many parameters: at most 1024 are possible"),
        (&of_outputs, 1024, "field 'outputs': too many parameters of outputs: at most 1024 are possible"),
    ];
    for (json, most, expected) in cases {
        assert!(parse(json(most).as_bytes(), |_| ()).is_ok(), "{expected}");
        let error = error(&json(most + 1));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn deep_nesting_in_a_skipped_member_does_not_recurse() {
    let json = format!(r#"{{"x":{}{},"inputs":[]}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse(json.as_bytes(), |_| ()).is_ok());
}

#[test]
fn bare_tokens_for_non_finite_numbers_are_read_in_data_and_passed_over() {
    let json = r#"{"x":NaN,"id":"NaN \" -Infinity","inputs":[{"name":"I-N","shape":[4],"datatype":"FP32","data":[NaN,-Infinity,Infinity,-1]}]}"#;
    parse(json.as_bytes(), |body| {
        assert_eq!(body.id.as_deref(), Some("NaN \" -Infinity"));
        let Some(InputData::Read(data)) = &body.inputs[0].data else { panic!("{body:?}") };
        let values: Vec<f32> = data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert!(values[0].is_nan() && values[1..] == [f32::NEG_INFINITY, f32::INFINITY, -1.0], "{values:?}");
    })
    .unwrap();
    assert!(error(r#"{"inputs":[NaNa]}"#).contains("failed to parse the request JSON"));
}

#[test]
fn errors_tell_the_place() {
    let cases = [
        ("{\"inputs\":[]}\n x", "trailing characters at line 2 column 2"),
        ("{\"inputs\":[{\"name\":7}]}", "expected a string at line 1 column 20"),
        (
            "{\"inputs\":[{\"name\":\"a\",\"shape\":[1],\"datatype\":\"FP32\",\"data\":[1,\n]}]}",
            "expected value at line 2 column 1",
        ),
    ];
    for (json, expected) in cases {
        let error = error(json);
        assert!(error.ends_with(expected), "{json}: {error}");
    }
}

proptest! {
    #[test]
    fn any_text_with_a_byte_changed_is_json_or_refused(position in any::<usize>(), byte in prop::sample::select(br#"{}[]",:x1 \"#.to_vec())) {
        let mut json = br#"{"id":"a","x":[{"y":null},true,-1.5e3,"\u00fc\n"],"outputs":[{"name":"o"}],"parameters":{"p":1},"inputs":[{"name":"a","shape":[2],"datatype":"INT8","data":[[1],[2]]}]}"#.to_vec();
        let position = position % json.len();
        json[position] = byte;
        let is_json = serde_json::from_slice::<serde_json::Value>(&json).is_ok();
        let result = parse(&json, |_| ());
        prop_assert!(result.is_err() || is_json, "{:?}", String::from_utf8_lossy(&json));
    }
}
