//! Where an artifact is, read from `source.uri`.
//!
//! [`Location::parse`] is the only reader of the URI's text. Invariant: what [`Location`]'s `Display` prints may be logged; user,
//! password, query and fragment of a URL never appear in it.

use std::{fmt, path::PathBuf};

use url::Url;

use super::error::ArtifactError;

/// A source that this version can read.
#[derive(Clone, Debug, PartialEq, Eq)]
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
            problem: format!("{:?} {problem}", redact(uri)),
        };
        let Some((scheme, rest)) = uri.split_once("://") else {
            if uri.trim().is_empty() {
                return Err(ArtifactError::SpecInvalid { field: "uri", problem: "is empty".to_owned() });
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
            _ => Err(ArtifactError::SchemeUnsupported { uri: redact(uri), scheme: scheme.to_owned() }),
        }
    }
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
        match self {
            Self::File(path) => write!(f, "file://{}", path.display()),
            Self::Http(url) => f.write_str(&redact(url.as_str())),
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
        }
    }
}

/// A URI with its user, password and query replaced, for messages; works on text that is no valid URL too.
pub(super) fn redact(uri: &str) -> String {
    let (scheme, rest) = match uri.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, uri),
    };
    let is_literal =
        scheme.is_none_or(|scheme| scheme.eq_ignore_ascii_case("s3") || scheme.eq_ignore_ascii_case("file"));
    if is_literal {
        return uri.to_owned();
    }
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let (visible, hidden) = rest.split_at(end);
    let (authority, path) = visible.split_at(visible.find('/').unwrap_or(visible.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let query = if hidden.starts_with('?') { "?REDACTED" } else { "" };
    format!("{}://{host}{path}{query}", scheme.unwrap_or_default())
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
        ];
        for (uri, part) in table {
            let message = Location::parse(uri).unwrap_err().to_string();
            assert!(message.contains(part), "{uri}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn a_printed_location_hides_password_and_query() {
        let table = [
            (
                "https://user:hunter2@models.example:8443/a.pt?X-Amz-Signature=hunter2",
                "https://models.example:8443/a.pt?REDACTED",
            ),
            ("https://models.example/a.pt#hunter2", "https://models.example/a.pt"),
            ("https://models.example/@/a.pt", "https://models.example/@/a.pt"),
        ];
        for (uri, expected) in table {
            assert_eq!(Location::parse(uri).unwrap().to_string(), expected);
            assert_eq!(redact(uri), expected);
        }
    }
}
