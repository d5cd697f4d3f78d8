//! URIs as people may see them: scheme, host and path.
//!
//! User info and query of a URI may be credentials (a presigned URL's signature), so a status, event, log line or error shows what
//! [`redact_uri`] leaves of it, never the URI itself. Used by the operator and by the runtime's artifacts.

use std::fmt;

use crate::{ModelSource, S3Spec};

/// What a URI shows once user info, query and fragment are taken away; works on a text that is no valid URI too. A path of this
/// machine, which has none of them, is shown as it is.
#[must_use]
pub fn redact_uri(uri: &str) -> String {
    if uri.starts_with('/') && !uri.starts_with("//") {
        return uri.to_owned();
    }
    let visible = uri.find(['?', '#']).map_or(uri, |end| uri.split_at(end).0);
    let Some(at) = visible.find("//") else {
        return visible.rsplit_once('@').map_or(visible, |(_, rest)| rest).to_owned();
    };
    let (scheme, rest) = visible.split_at(at.saturating_add(2));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let is_host = |host: &str| {
        let port = host.rsplit_once(']').map_or(host, |(_, port)| port).split_once(':').map_or("", |(_, port)| port);
        port.chars().all(|letter| letter.is_ascii_digit())
    };
    // What stands where a port should is the first part of a password that holds a slash: its end is in the path.
    if is_host(host) { format!("{scheme}{host}{path}") } else { format!("{scheme}…") }
}

/// The same for every URI in a text of whatever origin.
#[must_use]
pub fn redact_uris(text: &str) -> String {
    let ends_word = |letter: char| letter.is_whitespace() || matches!(letter, '"' | '\'' | '`' | '<' | '>' | '(' | ')');
    let is_around = |letter: char| ends_word(letter) || matches!(letter, '.' | ',' | ';' | ':');
    text.split_inclusive(ends_word)
        .map(|part| match part.trim_end_matches(is_around) {
            word if word.contains("//") => {
                format!("{}{}", redact_uri(word), part.strip_prefix(word).unwrap_or_default())
            }
            _ => part.to_owned(),
        })
        .collect()
}

/// Where the artifact comes from, fit to be shown: the URI without its secrets, or `CLAIM:PATH` of a volume.
impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.uri, &self.volume) {
            (Some(uri), _) => f.write_str(&redact_uri(uri)),
            (None, Some(volume)) => write!(f, "{}:{}", volume.claim_name, volume.path),
            (None, None) => f.write_str("no source"),
        }
    }
}

/// Shows of the URI what [`redact_uri`] leaves of it, so that a value of any type with a source in it may be logged.
impl fmt::Debug for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uri, volume, sha256, credentials, s3 } = self;
        f.debug_struct("ModelSource")
            .field("uri", &uri.as_deref().map(redact_uri))
            .field("volume", volume)
            .field("sha256", sha256)
            .field("credentials", credentials)
            .field("s3", s3)
            .finish()
    }
}

impl fmt::Debug for S3Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, region, path_style } = self;
        f.debug_struct("S3Spec")
            .field("endpoint", &endpoint.as_deref().map(redact_uri))
            .field("region", region)
            .field("path_style", path_style)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VolumeSource;

    #[test]
    fn a_uri_shows_scheme_host_and_path_only() {
        let table = [
            ("https://user:hunter2@store:8443/a.pt?X-Amz-Signature=hunter2", "https://store:8443/a.pt"),
            ("https://store/a.pt#hunter2", "https://store/a.pt"),
            ("https://store?token=hunter2/a", "https://store"),
            ("https://user@hunter2@store/a.pt", "https://store/a.pt"),
            ("https://user:hun/ter2@store/a.pt", "https://…"),
            ("https://[fd00::1]:8443/@/a.pt", "https://[fd00::1]:8443/@/a.pt"),
            ("https:/store/a.pt?token=hunter2", "https:/store/a.pt"),
            ("https:/user:hunter2@store/a.pt?token=hunter2", "store/a.pt"),
            ("//user:hunter2@store/a.pt?token=hunter2", "//store/a.pt"),
            ("s3://models/a b%20c.pt", "s3://models/a b%20c.pt"),
            ("s3://key:hunter2@models/a.pt", "s3://models/a.pt"),
            ("file:///srv/a.pt", "file:///srv/a.pt"),
            ("/srv/what?.pt", "/srv/what?.pt"),
            ("model.pt", "model.pt"),
            ("", ""),
        ];
        for (uri, expected) in table {
            assert_eq!(redact_uri(uri), expected, "{uri}");
        }
    }

    #[test]
    fn every_uri_in_a_text_is_redacted_and_the_rest_of_it_stays() {
        let text =
            "error sending request for url (https://u:hunter2@store/a?sig=hunter2): \"s3://b/k?hunter2\" is gone\n";
        let expected = "error sending request for url (https://store/a): \"s3://b/k\" is gone\n";
        assert_eq!(redact_uris(text), expected);
        for text in ["a: b?  (c)", "https://store:8443: refused", "begin with s3://, https:// or http://", ""] {
            assert_eq!(redact_uris(text), text);
        }
    }

    #[test]
    fn a_source_is_shown_without_secrets() {
        let uri = |uri: &str| ModelSource { uri: Some(uri.to_owned()), ..ModelSource::default() };
        let secret = "https://user:hunter2@store/a.pt?sig=hunter2";
        let s3 = S3Spec { endpoint: Some(secret.to_owned()), ..S3Spec::default() };
        let presigned = ModelSource { s3: Some(s3), ..uri(secret) };
        assert_eq!(presigned.to_string(), "https://store/a.pt");
        let debug = format!("{presigned:?}");
        assert!(debug.contains("uri: Some(\"https://store/a.pt\")") && !debug.contains("hunter2"), "{debug}");
        let volume = VolumeSource { claim_name: "models".to_owned(), path: "a/1.pt".to_owned() };
        let source = ModelSource { volume: Some(volume), ..ModelSource::default() };
        assert_eq!(source.to_string(), "models:a/1.pt");
    }
}
