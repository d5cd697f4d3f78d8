//! An error with its causes as one line, for a log, a condition or a termination message.
//!
//! Called wherever an error leaves the program. Invariant: a cause that is quoted already is not said again, and no line breaks.

use std::{error::Error, iter};

/// An error and its causes, outermost first: `could not fetch s3://models/a.pt: connection refused`.
#[must_use]
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    error_chain_by(error, ToString::to_string)
}

/// The same, where `describe` says what each of them is: some libraries wrap what a server said in words of their own.
#[must_use]
pub fn error_chain_by(error: &(dyn Error + 'static), describe: impl Fn(&(dyn Error + 'static)) -> String) -> String {
    let mut text = String::new();
    for cause in iter::successors(Some(error), |&error| error.source()) {
        let part = one_line(&describe(cause));
        if text.is_empty() {
            text = part;
        } else if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
    }
    text
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    /// An error that says the first text and is caused by the rest.
    #[derive(Debug)]
    struct Fault(&'static str, Option<Box<Fault>>);

    impl fmt::Display for Fault {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Fault {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    fn fault(texts: &[&'static str]) -> Fault {
        let mut causes = texts.iter().rev();
        let last = Fault(causes.next().unwrap(), None);
        causes.fold(last, |cause, text| Fault(text, Some(Box::new(cause))))
    }

    #[test]
    fn causes_follow_in_one_line_and_none_is_said_twice() {
        let table: [(&[&str], &str); 5] = [
            (&["reading a"], "reading a"),
            (&["reading a", "no such file"], "reading a: no such file"),
            (&["gave up: no such file", "no such file"], "gave up: no such file"),
            (&["reading a", "", "no such file"], "reading a: no such file"),
            (&["bad manifest\n  at line 3\n", "unknown field"], "bad manifest at line 3: unknown field"),
        ];
        for (texts, line) in table {
            assert_eq!(error_chain(&fault(texts)), line);
        }
    }

    #[test]
    fn a_cause_can_be_described_in_other_words_than_its_own() {
        let describe = |error: &(dyn Error + 'static)| error.to_string().replace("ApiError: ", "");
        assert_eq!(error_chain_by(&fault(&["writing", "ApiError: denied"]), describe), "writing: denied");
    }
}
