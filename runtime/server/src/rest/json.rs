//! The JSON part of an inference request, read with serde visitors.
//!
//! Called by `rest::decode`. A tensor's `data` stays the text that it is, borrowed from the body, because its datatype may come
//! after it. Invariant: a key stands once, arrays and objects stop at their bounds before they are collected, and every error names the
//! field.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use torchmodel_core::inference::{InferError, Parameter, Parameters};

use crate::protocol::{MAX_DIMENSIONS, MAX_PARAMETERS, MAX_TENSORS, too_many};

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
    pub(super) data: Option<&'a RawValue>,
}

/// One member of `outputs`.
#[derive(Debug)]
pub(super) struct OutputBody {
    pub(super) name: String,
    pub(super) parameters: Parameters,
}

/// Parses `json` and gives the parts, which borrow from it, to `read`.
///
/// The bare tokens `NaN`, `Infinity` and `-Infinity`, which Python's and Triton's writers produce and JSON does not have, are
/// taken as the strings of the same text. A request without them is parsed once, as it is.
pub(super) fn parse<R>(
    json: &[u8],
    read: impl FnOnce(RequestBody<'_>) -> Result<R, InferError>,
) -> Result<R, InferError> {
    let refuse =
        |error: &dyn fmt::Display| InferError::InvalidRequest(format!("failed to parse the request JSON: {error}"));
    let text = std::str::from_utf8(json).map_err(|error| refuse(&error))?;
    match serde_json::from_str(text) {
        Ok(body) => read(body),
        Err(error) => match quote_non_finite(text) {
            Cow::Borrowed(_) => Err(refuse(&error)),
            Cow::Owned(quoted) => read(serde_json::from_str(&quoted).map_err(|error| refuse(&error))?),
        },
    }
}

/// Puts quotes around the tokens for non-finite numbers outside of strings.
fn quote_non_finite(text: &str) -> Cow<'_, str> {
    const TOKENS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    if !TOKENS.iter().any(|token| text.contains(token)) {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::with_capacity(text.len() + 16);
    let mut is_found = false;
    let mut rest = text;
    while let Some(start) = rest.find(['"', 'N', 'I', '-']) {
        let (before, tail) = rest.split_at(start);
        quoted.push_str(before);
        let length = if tail.starts_with('"') {
            string_length(tail)
        } else if let Some(token) = TOKENS.iter().find(|token| tail.starts_with(**token)) {
            quoted.push('"');
            quoted.push_str(token);
            quoted.push('"');
            is_found = true;
            rest = tail.get(token.len()..).unwrap_or_default();
            continue;
        } else {
            1
        };
        let (taken, tail) = tail.split_at_checked(length).unwrap_or((tail, ""));
        quoted.push_str(taken);
        rest = tail;
    }
    quoted.push_str(rest);
    if is_found { Cow::Owned(quoted) } else { Cow::Borrowed(text) }
}

/// Bytes of the JSON string that `text` begins with, its quotes included.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    });
    end.map_or(text.len(), |end| end + 2)
}

/// Reads the value of `field` into `slot`, once, with errors that name the field.
fn set<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    map: &mut A,
    slot: &mut Option<T>,
    field: &str,
) -> Result<(), A::Error> {
    if slot.is_some() {
        return Err(A::Error::custom(format_args!("duplicate field '{field}'")));
    }
    *slot = Some(map.next_value().map_err(|error| A::Error::custom(format_args!("field '{field}': {error}")))?);
    Ok(())
}

fn required<T, E: Error>(slot: Option<T>, field: &str) -> Result<T, E> {
    slot.ok_or_else(|| E::custom(format_args!("missing field '{field}'")))
}

/// An object whose keys its type reads by itself.
trait Object<'de>: Sized {
    const WHAT: &'static str;
    fn read<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error>;
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Object<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::WHAT)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::read(map)
    }
}

macro_rules! deserialize_object {
    ($type:ty) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_map(ObjectVisitor(PhantomData))
            }
        }
    };
}

deserialize_object!(RequestBody<'de>);
deserialize_object!(InputBody<'de>);
deserialize_object!(OutputBody);
deserialize_object!(ParametersBody);

/// A member of an array that has at most `MOST` of them.
trait Member {
    const WHAT: &'static str;
    const MOST: usize;

    /// Its own parameters, which are bounded over the whole array.
    fn parameter_count(&self) -> usize {
        0
    }
}

impl Member for InputBody<'_> {
    const WHAT: &'static str = "inputs";
    const MOST: usize = MAX_TENSORS;

    fn parameter_count(&self) -> usize {
        self.parameters.len()
    }
}

impl Member for OutputBody {
    const WHAT: &'static str = "outputs";
    const MOST: usize = MAX_TENSORS;

    fn parameter_count(&self) -> usize {
        self.parameters.len()
    }
}

impl Member for i64 {
    const WHAT: &'static str = "dimensions in a shape";
    const MOST: usize = MAX_DIMENSIONS;
}

/// An array that is refused at the first member too many.
struct Array<T>(Vec<T>);

impl<'de, T: Member + Deserialize<'de>> Deserialize<'de> for Array<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ArrayVisitor(PhantomData)).map(Self)
    }
}

struct ArrayVisitor<T>(PhantomData<T>);

impl<'de, T: Member + Deserialize<'de>> Visitor<'de> for ArrayVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of {}", T::WHAT)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut members = Vec::new();
        let mut parameters = 0;
        while let Some(member) = seq.next_element::<T>()? {
            if members.len() >= T::MOST {
                return Err(A::Error::custom(too_many(T::WHAT, T::MOST)));
            }
            parameters += member.parameter_count();
            if parameters > MAX_PARAMETERS {
                let what = format!("parameters of {}", T::WHAT);
                return Err(A::Error::custom(too_many(&what, MAX_PARAMETERS)));
            }
            members.push(member);
        }
        Ok(members)
    }
}

/// Keys of all the objects; others are skipped, as the protocol allows extensions.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    Id,
    Parameters,
    Inputs,
    Outputs,
    Name,
    Shape,
    Datatype,
    Data,
    #[serde(other)]
    Other,
}

fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<serde::de::IgnoredAny>().map(|_| ())
}

impl<'de> Object<'de> for RequestBody<'de> {
    const WHAT: &'static str = "an object with 'inputs'";

    fn read<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut id: Option<Option<String>> = None;
        let mut parameters: Option<Option<ParametersBody>> = None;
        let mut inputs: Option<Array<InputBody<'de>>> = None;
        let mut outputs: Option<Option<Array<OutputBody>>> = None;
        while let Some(key) = map.next_key()? {
            match key {
                Key::Id => set(&mut map, &mut id, "id")?,
                Key::Parameters => set(&mut map, &mut parameters, "parameters")?,
                Key::Inputs => set(&mut map, &mut inputs, "inputs")?,
                Key::Outputs => set(&mut map, &mut outputs, "outputs")?,
                _ => skip(&mut map)?,
            }
        }
        Ok(Self {
            id: id.flatten(),
            parameters: parameters.flatten().unwrap_or_default().0,
            inputs: required(inputs, "inputs")?.0,
            outputs: outputs.flatten().map(|outputs| outputs.0).unwrap_or_default(),
        })
    }
}

impl<'de> Object<'de> for InputBody<'de> {
    const WHAT: &'static str = "an input object";

    fn read<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let (mut name, mut datatype, mut data) = (None, None, None);
        let mut shape: Option<Array<i64>> = None;
        let mut parameters: Option<Option<ParametersBody>> = None;
        while let Some(key) = map.next_key()? {
            match key {
                Key::Name => set(&mut map, &mut name, "name")?,
                Key::Shape => set(&mut map, &mut shape, "shape")?,
                Key::Datatype => set(&mut map, &mut datatype, "datatype")?,
                Key::Parameters => set(&mut map, &mut parameters, "parameters")?,
                Key::Data => set(&mut map, &mut data, "data")?,
                _ => skip(&mut map)?,
            }
        }
        Ok(Self {
            name: required(name, "name")?,
            shape: required(shape, "shape")?.0,
            datatype: required(datatype, "datatype")?,
            parameters: parameters.flatten().unwrap_or_default().0,
            data,
        })
    }
}

impl<'de> Object<'de> for OutputBody {
    const WHAT: &'static str = "an output object";

    fn read<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut name = None;
        let mut parameters: Option<Option<ParametersBody>> = None;
        while let Some(key) = map.next_key()? {
            match key {
                Key::Name => set(&mut map, &mut name, "name")?,
                Key::Parameters => set(&mut map, &mut parameters, "parameters")?,
                _ => skip(&mut map)?,
            }
        }
        Ok(Self { name: required(name, "name")?, parameters: parameters.flatten().unwrap_or_default().0 })
    }
}

/// A `parameters` object.
#[derive(Default)]
struct ParametersBody(Parameters);

impl<'de> Object<'de> for ParametersBody {
    const WHAT: &'static str = "an object of parameters";

    fn read<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut parameters = Parameters::new();
        while let Some(name) = map.next_key::<String>()? {
            if parameters.len() >= MAX_PARAMETERS {
                return Err(A::Error::custom(too_many("parameters", MAX_PARAMETERS)));
            }
            let mut value: Option<ParameterBody> = None;
            set(&mut map, &mut value, &name)?;
            if let Some(value) = value
                && parameters.insert(name.clone(), value.0).is_some()
            {
                return Err(A::Error::custom(format_args!("duplicate parameter '{name}'")));
            }
        }
        Ok(Self(parameters))
    }
}

/// A parameter's value.
struct ParameterBody(Parameter);

impl<'de> Deserialize<'de> for ParameterBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ParameterVisitor).map(Self)
    }
}

struct ParameterVisitor;

impl Visitor<'_> for ParameterVisitor {
    type Value = Parameter;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number or a boolean")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Parameter, E> {
        Ok(Parameter::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Parameter, E> {
        Ok(Parameter::Int64(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Parameter, E> {
        Ok(i64::try_from(value).map_or(Parameter::Uint64(value), Parameter::Int64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Parameter, E> {
        Ok(Parameter::Double(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Parameter, E> {
        Ok(Parameter::String(value.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        parse(json.as_bytes(), |_| Ok(())).unwrap_err().to_string()
    }

    #[test]
    fn data_may_come_before_its_datatype_and_unknown_keys_are_skipped() {
        let json =
            br#"{"x":{"y":[[1]]},"inputs":[{"data":[1,2],"more":null,"name":"a","shape":[2],"datatype":"FP32"}]}"#;
        parse(json, |body| {
            assert_eq!(body.inputs[0].data.unwrap().get(), "[1,2]");
            assert_eq!(body.inputs[0].shape, [2]);
            assert!(body.id.is_none() && body.outputs.is_empty());
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn optional_members_may_be_null() {
        let json = br#"{"id":null,"parameters":null,"outputs":null,"inputs":[]}"#;
        parse(json, |body| {
            assert!(body.id.is_none() && body.parameters.is_empty());
            Ok(())
        })
        .unwrap();
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
            (
                r#"{"parameters":{"a":[1]},"inputs":[]}"#,
                "field 'a': invalid type: sequence, expected a string, a number",
            ),
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
            assert!(parse(json(most).as_bytes(), |_| Ok(())).is_ok(), "{expected}");
            let error = error(&json(most + 1));
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn deep_nesting_in_a_skipped_member_does_not_recurse() {
        let json = format!(r#"{{"x":{}{},"inputs":[]}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(json.as_bytes(), |_| Ok(())).is_ok());
    }

    #[test]
    fn bare_tokens_for_non_finite_numbers_are_taken_as_strings() {
        let json = r#"{"id":"NaN \" -Infinity","inputs":[{"name":"I-N","shape":[4],"datatype":"FP32","data":[NaN,-Infinity,Infinity,-1]}]}"#;
        parse(json.as_bytes(), |body| {
            assert_eq!(body.id.as_deref(), Some("NaN \" -Infinity"));
            assert_eq!(body.inputs[0].data.unwrap().get(), r#"["NaN","-Infinity","Infinity",-1]"#);
            Ok(())
        })
        .unwrap();
        assert!(error(r#"{"inputs":[NaNa]}"#).contains("failed to parse the request JSON"));
    }
}
