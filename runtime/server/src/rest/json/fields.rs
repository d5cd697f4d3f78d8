//! The small members of a request's JSON, read with serde visitors: outputs, shapes, parameters.
//!
//! Used by `rest::json`. Invariant: a key stands once, arrays and objects stop at their bounds before they are collected, and every error
//! names the field.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use torchmodel_core::inference::{Parameter, Parameters};

use crate::protocol::{MAX_DIMENSIONS, MAX_PARAMETERS, MAX_TENSORS, too_many};

/// One member of `outputs`.
#[derive(Debug)]
pub(in crate::rest) struct OutputBody {
    pub(in crate::rest) name: String,
    pub(in crate::rest) parameters: Parameters,
}

/// Reads the value of `field` of a map of serde's into `slot`, once, with errors that name the field.
fn set_value<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
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

deserialize_object!(OutputBody);
deserialize_object!(ParametersBody);

/// A member of an array that has at most `MOST` of them.
pub(super) trait Member {
    const WHAT: &'static str;
    const MOST: usize;

    /// Its own parameters, which are bounded over the whole array.
    fn parameter_count(&self) -> usize {
        0
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
pub(super) struct Array<T>(pub(super) Vec<T>);

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

/// Keys of an output; others are skipped, as the protocol allows extensions.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    Name,
    Parameters,
    #[serde(other)]
    Other,
}

impl<'de> Object<'de> for OutputBody {
    const WHAT: &'static str = "an output object";

    fn read<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut name = None;
        let mut parameters: Option<Option<ParametersBody>> = None;
        while let Some(key) = map.next_key()? {
            match key {
                Key::Name => set_value(&mut map, &mut name, "name")?,
                Key::Parameters => set_value(&mut map, &mut parameters, "parameters")?,
                Key::Other => drop(map.next_value::<serde::de::IgnoredAny>()?),
            }
        }
        let name = name.ok_or_else(|| A::Error::custom("missing field 'name'"))?;
        Ok(Self { name, parameters: parameters.flatten().unwrap_or_default().0 })
    }
}

/// A `parameters` object.
#[derive(Default)]
pub(super) struct ParametersBody(pub(super) Parameters);

impl<'de> Object<'de> for ParametersBody {
    const WHAT: &'static str = "an object of parameters";

    fn read<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut parameters = Parameters::new();
        while let Some(name) = map.next_key::<String>()? {
            if parameters.len() >= MAX_PARAMETERS {
                return Err(A::Error::custom(too_many("parameters", MAX_PARAMETERS)));
            }
            let mut value: Option<ParameterBody> = None;
            set_value(&mut map, &mut value, &name)?;
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
