//! Durations as Kubernetes users write them: `500us`, `2ms`, `1.5s`, `10m`, `1h30m`.
//!
//! Used by every field of the API that is a span of time, so that units are always visible in a manifest.
//! Invariant: a value survives parse → display → parse unchanged.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time with a unit, in Go's notation without a sign (`ns`, `us`, `ms`, `s`, `m`, `h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(std::time::Duration);

/// A text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a duration: write a number and a unit, such as 500us, 2ms, 1.5s, 10m or 1h30m")]
pub struct ParseDurationError(String);

const UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl Duration {
    /// A regular expression for its form. It says nothing of the largest span, some 584 years.
    pub const PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms|us|ns))+$";

    /// The same span in the standard library's type.
    #[must_use]
    pub const fn get(self) -> std::time::Duration {
        self.0
    }
}

impl From<std::time::Duration> for Duration {
    fn from(value: std::time::Duration) -> Self {
        Self(value)
    }
}

impl FromStr for Duration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParseDurationError(text.chars().take(64).collect());
        let mut rest = text;
        let mut nanos: u128 = 0;
        while !rest.is_empty() {
            let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
            let (number, tail) = rest.split_at(number_end);
            let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let (_, scale) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
            nanos = nanos.checked_add(scaled(number, scale).ok_or_else(invalid)?).ok_or_else(invalid)?;
            rest = tail;
        }
        if text.is_empty() {
            return Err(invalid());
        }
        let nanos = u64::try_from(nanos).map_err(|_| invalid())?;
        Ok(Self(std::time::Duration::from_nanos(nanos)))
    }
}

/// `number` (digits with at most one point) times `scale` nanoseconds; what is below one nanosecond is refused.
fn scaled(number: &str, scale: u64) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) {
        return None;
    }
    let whole = u128::from(whole.parse::<u64>().ok()?) * u128::from(scale);
    if fraction.is_empty() {
        return Some(whole);
    }
    let divisor = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let product = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale);
    (product % divisor == 0).then_some(whole + product / divisor)
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        let mut rest = nanos;
        for (unit, scale) in UNITS {
            let count = rest / u128::from(scale);
            if count > 0 {
                write!(f, "{count}{unit}")?;
                rest %= u128::from(scale);
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(DurationVisitor)
    }
}

struct DurationVisitor;

impl de::Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number with a unit, such as 500us, 2ms, 1.5s, 10m or 1h30m")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(feature = "kubernetes")]
impl schemars::JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "maxLength": 32,
            "pattern": Self::PATTERN,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit_and_sums_parts() {
        for (text, nanos) in [
            ("0s", 0),
            ("1ns", 1),
            ("500us", 500_000),
            ("2ms", 2_000_000),
            ("1.5s", 1_500_000_000),
            ("10m", 600_000_000_000),
            ("1h30m", 5_400_000_000_000),
        ] {
            assert_eq!(text.parse::<Duration>().unwrap().get().as_nanos(), nanos, "{text}");
        }
    }

    #[test]
    fn refuses_what_has_no_unit_or_no_number() {
        for text in ["", "5", "s", "1.s", ".5s", "1d", "-1s", "1s ", "99999999999999999999s", "0.1ns"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back_as_the_same_value() {
        for nanos in [0, 1, 999, 1_000, 1_500_000, 90_000_000_000, 3_600_000_000_001] {
            let duration = Duration(std::time::Duration::from_nanos(nanos));
            assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
        }
    }
}
