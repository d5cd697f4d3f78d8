//! What names a model and one version of it, parsed once at the border: [`ModelName`], [`ModelVersion`], [`ModelKey`].
//!
//! Manifests and both protocols parse into these types; nothing behind them looks at the text again. Invariant: a version is a
//! whole number above zero, by one rule for everybody, and a name that no model can have is never looked up.

use std::{borrow::Borrow, fmt, num::NonZeroU64, str::FromStr, sync::Arc};

/// A model's name: not empty, without `/` and NUL. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName(Arc<str>);

/// A text that is no model's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' names no model: a name is not empty and holds neither '/' nor NUL")]
pub struct ModelNameError(pub String);

impl ModelName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = ModelNameError;

    fn from_str(text: &str) -> Result<Self, ModelNameError> {
        if text.is_empty() || text.contains(['/', '\0']) {
            return Err(ModelNameError(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<&str> for ModelName {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A model's version: a whole number above zero that fits 63 bits (Triton's rule).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelVersion(NonZeroU64);

/// A text that is no version, in the words that Triton's clients look for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to get model version from specified version string '{0}', version should be an integral value > 0")]
pub struct ModelVersionError(pub String);

impl ModelVersion {
    /// The version of a model whose source names none.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// The version as a request spells it: empty for the newest one that is ready.
    pub fn parse_requested(text: &str) -> Result<Option<Self>, ModelVersionError> {
        if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for ModelVersion {
    type Err = ModelVersionError;

    fn from_str(text: &str) -> Result<Self, ModelVersionError> {
        // A sign or a space would pass the standard library's rule, or fail it in other words.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit()).then_some(text);
        let number = digits.and_then(|digits| digits.parse::<i64>().ok()).and_then(|number| u64::try_from(number).ok());
        number.and_then(NonZeroU64::new).map(Self).ok_or_else(|| ModelVersionError(text.to_owned()))
    }
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One version of one model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelKey {
    /// The model.
    pub name: ModelName,
    /// Its version.
    pub version: ModelVersion,
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' version {}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_whole_number_above_zero() {
        for (text, number) in [("1", 1), ("7", 7), ("007", 7), ("9223372036854775807", i64::MAX.cast_unsigned())] {
            assert_eq!(text.parse::<ModelVersion>().unwrap().get(), number);
        }
        for wrong in ["", "0", "-1", "1x", "+1", "abc", " 1", "1.0", "9223372036854775808", "99999999999999999999"] {
            let error = wrong.parse::<ModelVersion>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{wrong}', version should be an integral value > 0")), "{error}");
        }
    }

    #[test]
    fn a_request_without_a_version_asks_for_the_newest() {
        assert_eq!(ModelVersion::parse_requested(""), Ok(None));
        assert_eq!(ModelVersion::parse_requested("1"), Ok(Some(ModelVersion::FIRST)));
        assert!(ModelVersion::parse_requested("0").is_err());
    }

    #[test]
    fn a_name_holds_neither_slash_nor_nul_and_is_not_empty() {
        assert_eq!("a model: ü".parse::<ModelName>().unwrap().as_str(), "a model: ü");
        for wrong in ["", "a/b", "a\0"] {
            assert_eq!(wrong.parse::<ModelName>(), Err(ModelNameError(wrong.to_owned())));
        }
    }
}
