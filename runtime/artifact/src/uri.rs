//! Where an artifact is, read from `source.uri`.
//!
//! [`Location::parse`] is the only reader of the URI's text. Invariant: what [`Location`] prints, by `Display` and by `Debug`, may be
//! logged: it is what [`redact_uri`] leaves of the URI.

use std::{fmt, path::PathBuf};

use torchmodel_crds::redact_uri;
use url::Url;

use super::error::ArtifactError;

/// The schemes that are read, for telling a mistyped URI from a path.
const SCHEMES: [&str; 4] = ["s3", "https", "http", "file"];

/// A source that this version can read.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Location {
    /// A file of this machine or of a mounted volume.
    File(PathBuf),
    /// `http://` or `https://`.
    Http(Url),
    /// An object of an S3 server.
    S3 {
        /// Bucket.
        bucket: String,
        /// Key, taken literally: nothing in it is percent-decoded, as in the SDK's tools.
        key: String,
    },
}

impl Location {
    /// Reads a URI; a text without a scheme is a path.
    pub(super) fn parse(uri: &str) -> Result<Self, ArtifactError> {
        let invalid = |problem: &str| ArtifactError::SpecInvalid {
            field: "uri",
            problem: format!("{:?} {problem}", redact_uri(uri)),
        };
        let Some((scheme, rest)) = uri.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
            if uri.trim().is_empty() {
                return Err(ArtifactError::SpecInvalid { field: "uri", problem: "is empty".to_owned() });
            }
            // Not taken for the path of a file, or a mistyped URL would be looked for, and shown, as one.
            let (scheme, _) = uri.split_once(':').unwrap_or_default();
            if SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
                return Err(invalid(&format!("lacks the two slashes of {}://", scheme.to_ascii_lowercase())));
            }
            return Ok(Self::File(PathBuf::from(uri)));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "file" => Url::parse(uri)
                .ok()
                .and_then(|url| url.to_file_path().ok())
                .map(Self::File)
                .ok_or_else(|| invalid("is not file:// with an absolute path")),
            "http" | "https" => match Url::parse(uri) {
                Ok(url) if url.has_host() => Ok(Self::Http(url)),
                Ok(_) => Err(invalid("names no host")),
                Err(error) => Err(invalid(&format!("is not a URL: {error}"))),
            },
            "s3" => parse_s3(rest).map_err(invalid),
            _ => Err(ArtifactError::SchemeUnsupported { uri: redact_uri(uri), scheme: scheme.to_owned() }),
        }
    }
}

/// Whether a text can be a URI's scheme (RFC 3986, 3.1).
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '+' | '-' | '.'))
}

fn parse_s3(rest: &str) -> Result<Location, &'static str> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err("names no bucket; write s3://BUCKET/KEY");
    }
    if !bucket.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')) {
        return Err("has a bucket name with characters other than letters, digits, '.', '-' and '_'");
    }
    if key.is_empty() {
        return Err("names no key; write s3://BUCKET/KEY");
    }
    if key.ends_with('/') {
        return Err("names a folder; the key must be that of one file");
    }
    Ok(Location::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uri = match self {
            Self::File(path) => return write!(f, "file://{}", redact_uri(&path.to_string_lossy())),
            Self::Http(url) => url.to_string(),
            Self::S3 { bucket, key } => format!("s3://{bucket}/{key}"),
        };
        f.write_str(&redact_uri(&uri))
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

/// Host and port of a URL, for messages.
pub(super) fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(bucket: &str, key: &str) -> Location {
        Location::S3 { bucket: bucket.into(), key: key.into() }
    }

    #[test]
    fn a_uri_is_read_as_the_source_that_it_names() {
        let table = [
            ("s3://models/resnet50/7/model.pt", s3("models", "resnet50/7/model.pt")),
            ("S3://models/a b%20c.pt", s3("models", "a b%20c.pt")),
            ("file:///srv/models/a%20b.pt", Location::File("/srv/models/a b.pt".into())),
            ("/srv/models/a.pt", Location::File("/srv/models/a.pt".into())),
            ("model.pt", Location::File("model.pt".into())),
            ("/srv/a://b.pt", Location::File("/srv/a://b.pt".into())),
            ("https://models.example/a.pt", Location::Http(Url::parse("https://models.example/a.pt").unwrap())),
        ];
        for (uri, expected) in table {
            assert_eq!(Location::parse(uri).unwrap(), expected, "{uri}");
        }
    }

    #[test]
    fn a_uri_that_cannot_be_read_is_refused_with_a_sentence() {
        let table = [
            ("", "source.uri is empty"),
            ("s3://", "names no bucket"),
            ("s3:///key", "names no bucket"),
            ("s3://models", "names no key"),
            ("s3://models/folder/", "names a folder"),
            ("s3://mod?els/x", "characters other than"),
            ("https://", "is not a URL"),
            ("https://user:hunter2@/x?token=hunter2", "is not a URL"),
            ("file://elsewhere/x.pt", "absolute path"),
            ("gs://models/x.pt", "which this version does not read"),
            ("gs://user:hunter2@models/x.pt?token=hunter2", "gs://models/x.pt has the scheme \"gs\""),
            ("https:/user:hunter2@store/a.pt?next=http://hunter2", "lacks the two slashes of https://"),
            ("S3:models/a.pt?hunter2", "lacks the two slashes of s3://"),
        ];
        for (uri, part) in table {
            let message = Location::parse(uri).unwrap_err().to_string();
            assert!(message.contains(part), "{uri}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn a_printed_location_shows_scheme_host_and_path_only() {
        let table = [
            ("https://user:hunter2@models.example:8443/a.pt?sig=hunter2", "https://models.example:8443/a.pt"),
            ("https://models.example/a.pt#hunter2", "https://models.example/a.pt"),
            ("https://models.example/@/a.pt", "https://models.example/@/a.pt"),
            ("s3://models/a b%20c.pt", "s3://models/a b%20c.pt"),
            ("s3://models/a.pt?versionId=hunter2", "s3://models/a.pt"),
            ("file:///srv/a.pt?hunter2", "file:///srv/a.pt"),
            ("/srv/what?.pt", "file:///srv/what?.pt"),
            ("user:hunter2@store/a.pt?hunter2", "file://store/a.pt"),
        ];
        for (uri, expected) in table {
            let location = Location::parse(uri).unwrap();
            assert_eq!(location.to_string(), expected);
            assert_eq!(format!("{location:?}"), format!("Location({expected})"));
        }
    }
}
