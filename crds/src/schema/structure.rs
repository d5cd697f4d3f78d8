//! Fields and values against an OpenAPI schema: everything in it but the CEL rules.
//!
//! [`Node`] is the schema of one field, read from the CRD. Invariants: a keyword that is not known here is an error when the schema
//! is read, so none is passed over in silence; a check takes time in proportion to the object, which may be hostile.

use std::collections::BTreeMap;

use regex::Regex;
use serde::{Deserialize, Deserializer, de, de::IgnoredAny};
use serde_json::{Number, Value};

use super::Violation;
use crate::{Duration, QUANTITY_PATTERN};

/// Violations that are told; whoever made more sees the rest after correcting these.
const MAX_VIOLATIONS: usize = 32;
/// Letters of a refused value that are shown.
const MAX_SHOWN_CHARACTERS: usize = 64;
/// Patterns whose meaning can be said in words.
const PATTERNS: [(&str, &str); 2] = [
    (Duration::PATTERN, "write a number and a unit, such as 500us, 2ms, 1.5s, 10m or 1h30m"),
    (QUANTITY_PATTERN, "write a quantity of Kubernetes, such as 500m, 2 or 4Gi"),
];

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// Numbers that fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Format {
    #[serde(rename = "int32")]
    Int32,
    #[serde(rename = "int64")]
    Int64,
    #[serde(rename = "date-time")]
    DateTime,
}

/// A regular expression, compiled once.
#[derive(Debug)]
struct Pattern(Regex);

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Regex::new(&String::deserialize(deserializer)?).map(Self).map_err(de::Error::custom)
    }
}

/// The schema of one field.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Node {
    r#type: Option<Type>,
    format: Option<Format>,
    properties: BTreeMap<String, Node>,
    required: Vec<String>,
    additional_properties: Option<Box<Node>>,
    max_properties: Option<usize>,
    items: Option<Box<Node>>,
    min_items: Option<usize>,
    max_items: Option<usize>,
    min_length: Option<usize>,
    max_length: Option<usize>,
    pattern: Option<Pattern>,
    r#enum: Vec<Value>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    #[serde(rename = "x-kubernetes-int-or-string")]
    is_int_or_string: bool,
    #[serde(rename = "x-kubernetes-preserve-unknown-fields")]
    is_anything: bool,
    // Said by others: the descriptions by `kubectl explain`, the rules by `kube_cel`.
    title: IgnoredAny,
    description: IgnoredAny,
    #[serde(rename = "x-kubernetes-validations")]
    rules: IgnoredAny,
}

impl Node {
    /// Adds to `found` what is wrong with `value`, which stands at `path`.
    pub(super) fn check(&self, value: &Value, path: &str, found: &mut Vec<Violation>) {
        if self.is_anything {
            return;
        }
        let mut refuse = |path: &str, message: String| {
            if found.len() < MAX_VIOLATIONS {
                found.push(Violation { path: path.to_owned(), message });
            }
        };
        if let Some(message) = self.wrong_type(value) {
            return refuse(path, message);
        }
        for message in self.wrong_value(value) {
            refuse(path, message);
        }
        match value {
            Value::Array(items) => {
                let Some(schema) = &self.items else { return };
                for (index, item) in items.iter().enumerate() {
                    schema.check(item, &format!("{path}[{index}]"), found);
                }
            }
            Value::Object(fields) => {
                for name in self.required.iter().filter(|name| !fields.contains_key(*name)) {
                    refuse(&below(path, name), self.missing(name));
                }
                for name in fields.keys().filter(|name| self.field(name).is_none()) {
                    refuse(&below(path, &shown(name)), self.unknown(name));
                }
                for (name, value) in fields {
                    if let Some(schema) = self.field(name) {
                        schema.check(value, &below(path, name), found);
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::String(_) | Value::Number(_) => {}
        }
    }

    /// What is wrong with the value itself, apart from what it holds.
    fn wrong_value(&self, value: &Value) -> Vec<String> {
        match value {
            Value::String(text) => self.wrong_text(text),
            Value::Number(number) => Vec::from_iter(self.wrong_number(number)),
            Value::Array(items) => Vec::from_iter(within(items.len(), "items", self.min_items, self.max_items)),
            Value::Object(fields) => Vec::from_iter(within(fields.len(), "entries", None, self.max_properties)),
            Value::Null | Value::Bool(_) => Vec::new(),
        }
    }

    fn field(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or(self.additional_properties.as_deref())
    }

    fn wrong_type(&self, value: &Value) -> Option<String> {
        let (found, fits) = match value {
            Value::Null => ("null", false),
            Value::Bool(_) => ("a boolean", self.r#type == Some(Type::Boolean)),
            Value::String(_) => ("a string", self.is_int_or_string || self.r#type == Some(Type::String)),
            Value::Number(number) if number.is_f64() => ("a fraction", self.r#type == Some(Type::Number)),
            Value::Number(_) => {
                let is_integer = self.is_int_or_string || self.r#type == Some(Type::Integer);
                ("an integer", is_integer || self.r#type == Some(Type::Number))
            }
            Value::Array(_) => ("a list", self.r#type == Some(Type::Array)),
            Value::Object(_) => ("an object", self.r#type == Some(Type::Object)),
        };
        if fits {
            return None;
        }
        let wanted = match self.r#type {
            Some(Type::Object) => "an object",
            Some(Type::Array) => "a list",
            Some(Type::String) => "a string",
            Some(Type::Integer) => "an integer",
            Some(Type::Number) => "a number",
            Some(Type::Boolean) => "true or false",
            None => "an integer or a string",
        };
        let is_text = self.is_int_or_string || self.r#type == Some(Type::String);
        let advice = match value {
            Value::Null => "leave the field out, or give it a value",
            _ if self.hint().is_some() => self.hint().unwrap_or_default(),
            Value::Number(_) | Value::Bool(_) if is_text => "put it in quotes",
            _ => return Some(format!("must be {wanted}, not {found}")),
        };
        Some(format!("must be {wanted}, not {found}: {advice}"))
    }

    fn wrong_text(&self, text: &str) -> Vec<String> {
        let wrong_length = within(text.chars().count(), "characters", self.min_length, self.max_length);
        let mut found = Vec::from_iter(wrong_length);
        let is_member = |member: &Value| member.as_str() == Some(text);
        if !self.r#enum.is_empty() && !self.r#enum.iter().any(is_member) {
            let members: Vec<&str> = self.r#enum.iter().filter_map(Value::as_str).collect();
            let one_of = if members.len() > 1 { "one of " } else { "" };
            found.push(format!("must be {one_of}{}, not '{}'", members.join(", "), shown(text)));
        }
        if let Some(Pattern(pattern)) = self.pattern.as_ref().filter(|Pattern(pattern)| !pattern.is_match(text)) {
            let advice = self.hint().map_or_else(|| format!("it must match {pattern}"), str::to_owned);
            found.push(format!("'{}' is not of the right form: {advice}", shown(text)));
        }
        found
    }

    fn wrong_number(&self, number: &Number) -> Option<String> {
        let is_in_format = match self.format {
            Some(Format::Int32) => number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
            Some(Format::Int64) => number.as_i64().is_some(),
            Some(Format::DateTime) | None => true,
        };
        let value = number.as_f64().unwrap_or(f64::NAN);
        match (self.minimum, self.maximum) {
            (Some(minimum), _) if value < minimum => Some(format!("is {number}; it must be at least {minimum}")),
            (_, Some(maximum)) if value > maximum => Some(format!("is {number}; it must be at most {maximum}")),
            _ if !is_in_format => Some(format!("is {number}, which no field can hold; write a smaller number")),
            _ => None,
        }
    }

    fn missing(&self, name: &str) -> String {
        match self.properties.get(name).map(|field| field.r#enum.as_slice()) {
            Some([Value::String(only)]) => format!("is required: add `{name}: {only}`"),
            _ => "is required: add it".to_owned(),
        }
    }

    fn unknown(&self, name: &str) -> String {
        let holder = self.properties.iter().find(|(_, field)| field.properties.contains_key(name));
        match holder {
            Some((holder, _)) => format!("is not a field here: it belongs below `{holder}`"),
            None if self.properties.is_empty() => "is not a field here: remove it".to_owned(),
            None => {
                let known: Vec<&str> = self.properties.keys().map(String::as_str).collect();
                format!("is not a field here: remove it, or write one of {}", known.join(", "))
            }
        }
    }

    /// What to write, where the pattern alone would not tell.
    fn hint(&self) -> Option<&'static str> {
        let Pattern(pattern) = self.pattern.as_ref()?;
        PATTERNS.into_iter().find(|(known, _)| *known == pattern.as_str()).map(|(_, hint)| hint)
    }
}

fn within(count: usize, what: &str, minimum: Option<usize>, maximum: Option<usize>) -> Option<String> {
    match (minimum, maximum) {
        (Some(minimum), _) if count < minimum => Some(format!("has {count} {what}; it must have at least {minimum}")),
        (_, Some(maximum)) if count > maximum => Some(format!("has {count} {what}; it may have at most {maximum}")),
        _ => None,
    }
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The beginning of a text.
fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", text.split_at(end).0),
        None => text.to_owned(),
    }
}
