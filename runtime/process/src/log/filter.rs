//! What a person may write for `--log`, checked when the command line is read.
//!
//! The filter's own library takes any word for the name of a module, so that `--log warning` would print nothing, errors included.
//! Invariant: what is accepted holds a level for everything that it does not name.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;

/// What is logged where nothing is said.
pub(super) const DEFAULT: &str = "info";
/// The words for what is logged.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A level, or levels for parts of the program, such as `warn,torchmodel_artifact=debug`. Nothing at all is `info`, which also
/// holds for everything else where only parts are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// Why a filter was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFilterError {
    /// A word where a level should stand.
    #[error("'{0}' is no level: write {levels}, or levels for parts of the program such as info,torchmodel=debug", levels = levels())]
    NoLevel(String),
    /// Neither a level nor `PART=LEVEL`.
    #[error("'{directive}' cannot be read ({problem}): write PART=LEVEL, such as torchmodel=debug")]
    Invalid {
        /// The part of the filter.
        directive: String,
        /// What the library says.
        problem: String,
    },
}

/// `off, error, warn, info, debug or trace`.
fn levels() -> String {
    let [first @ .., last] = LEVELS;
    format!("{} or {last}", first.join(", "))
}

fn check_level(word: &str) -> Result<(), LogFilterError> {
    if LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word)) {
        Ok(())
    } else {
        Err(LogFilterError::NoLevel(word.to_owned()))
    }
}

impl FromStr for LogFilter {
    type Err = LogFilterError;

    fn from_str(text: &str) -> Result<Self, LogFilterError> {
        let mut directives = Vec::new();
        let mut has_level = false;
        for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
            // An equals sign may also stand in a span's fields, `[span{field=value}]`.
            let (part, level) = match directive.rsplit_once('=') {
                Some((part, level)) if !level.ends_with(']') => (part, level),
                _ => ("", directive),
            };
            check_level(level)?;
            has_level |= part.is_empty();
            if let Err(error) = EnvFilter::try_new(directive) {
                return Err(LogFilterError::Invalid { directive: directive.to_owned(), problem: error.to_string() });
            }
            directives.push(directive);
        }
        if !has_level {
            directives.insert(0, DEFAULT);
        }
        Ok(Self(directives.join(",")))
    }
}

impl LogFilter {
    /// The filter, with other directives before it: what this one says of the same part wins.
    pub(super) fn after(&self, directives: &str) -> EnvFilter {
        // What the limit tells of lines that it left out is shown wherever they would have been.
        EnvFilter::new(format!("{}=warn,{directives},{}", super::limit::TARGET, self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_no_level_is_refused_with_the_list_of_levels() {
        let list = "off, error, warn, info, debug or trace";
        for (text, word) in [
            ("warning", "warning"),
            ("verbose", "verbose"),
            ("3", "3"),
            ("info,torchmodel", "torchmodel"),
            ("torchmodel=loud", "loud"),
            ("torchmodel=", ""),
            ("[reconcile]", "[reconcile]"),
            ("[reconcile{name=a}]", "[reconcile{name=a}]"),
        ] {
            let error = text.parse::<LogFilter>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{word}' is no level")), "{text}: {error}");
            assert!(error.contains(list), "{text}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_place() {
        for text in ["info,a=b=debug", "=info", "[span=info"] {
            let error = text.parse::<LogFilter>().unwrap_err();
            assert!(matches!(error, LogFilterError::Invalid { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn every_filter_that_is_taken_has_a_level_for_the_rest() {
        for (text, filter) in [
            ("", "info"),
            (" ", "info"),
            (",", "info"),
            ("WARN", "WARN"),
            ("off", "off"),
            ("torchmodel=debug", "info,torchmodel=debug"),
            ("error, kube=off,", "error,kube=off"),
            ("[reconcile{name=a}]=debug", "info,[reconcile{name=a}]=debug"),
        ] {
            assert_eq!(text.parse::<LogFilter>(), Ok(LogFilter(filter.to_owned())), "{text}");
        }
    }

    #[test]
    fn the_users_word_on_a_library_comes_after_the_programs() {
        let shown = |text: &str| text.parse::<LogFilter>().unwrap().after("kube_client=off").to_string();
        assert!(shown("info").contains("kube_client=off"), "{}", shown("info"));
        assert!(shown("kube_client=debug").contains("kube_client=debug"), "{}", shown("kube_client=debug"));
    }
}
