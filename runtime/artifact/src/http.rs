//! The `http://` and `https://` transport.
//!
//! A range is asked for with `If-Range` where the server gave a strong entity tag; a server that sends the whole instead is read
//! from the start. Invariant: a URL's query never reaches a message, as presigned URLs carry their signature there.

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use http::{
    HeaderMap, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, RANGE},
};
use torchmodel_crds::redact_uri;
use url::Url;

use super::{
    error::{ArtifactError, BoxError},
    fault::{self, MAX_BODY_BYTES, Meaning, StatusFault, Target},
    origin::{Answer, Ask, Body, Origin},
    uri::host_and_port,
};

/// A URL and the client that asks it.
pub(super) struct HttpOrigin {
    client: reqwest::Client,
    url: Url,
    target: Target,
}

impl HttpOrigin {
    /// Prepares; nothing is sent.
    pub(super) fn new(client: reqwest::Client, url: Url) -> Self {
        let target = Target { uri: redact_uri(url.as_str()), host: host_and_port(&url), is_signed: false };
        Self { client, url, target }
    }
}

#[async_trait]
impl Origin for HttpOrigin {
    fn target(&self) -> &Target {
        &self.target
    }

    async fn open(&self, ask: &Ask) -> Result<Answer, ArtifactError> {
        let mut request = self.client.get(self.url.clone()).header(ACCEPT_ENCODING, "identity");
        if ask.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.offset));
            if let Some(etag) = ask.etag.as_deref().filter(|etag| is_strong(etag)) {
                request = request.header(IF_RANGE, etag);
            }
        }
        let response =
            request.send().await.map_err(|error| fault::explain_network(&self.target, &error.without_url()))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let stream = response.bytes_stream().map_err(|error| BoxError::from(error.without_url()));
        match status {
            StatusCode::OK => {
                let total = header(&headers, CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
                Ok(Answer::Body(Body { offset: 0, total, etag: etag_of(&headers), stream: stream.boxed() }))
            }
            StatusCode::PARTIAL_CONTENT if ask.offset > 0 => {
                let etag = etag_of(&headers);
                let is_same = ask.etag.is_none() || etag.is_none() || ask.etag == etag;
                match header(&headers, CONTENT_RANGE.as_str()).and_then(parse_content_range) {
                    Some((start, total)) if start == ask.offset && is_same => {
                        Ok(Answer::Body(Body { offset: start, total, etag, stream: stream.boxed() }))
                    }
                    _ => Ok(Answer::StartOver),
                }
            }
            _ => {
                let fault = StatusFault::new(status, &headers, &read_some(stream.boxed()).await);
                if ask.offset > 0 && fault.meaning() == Meaning::StartOver {
                    return Ok(Answer::StartOver);
                }
                Err(fault.explain(&self.target))
            }
        }
    }
}

async fn read_some(mut stream: futures::stream::BoxStream<'static, Result<bytes::Bytes, BoxError>>) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(Ok(chunk)) = stream.next().await {
        body.extend_from_slice(chunk.get(..chunk.len().min(MAX_BODY_BYTES - body.len())).unwrap_or_default());
        if body.len() >= MAX_BODY_BYTES {
            break;
        }
    }
    body
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn etag_of(headers: &HeaderMap) -> Option<String> {
    header(headers, ETAG.as_str()).map(str::to_owned)
}

fn is_strong(etag: &str) -> bool {
    etag.starts_with('"')
}

/// First byte and whole size of `bytes START-END/SIZE` (RFC 9110, 14.4).
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.parse().ok()?;
    match size {
        "*" => Some((start, None)),
        size => Some((start, Some(size.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read_or_refused() {
        let table = [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes */10", None),
            ("items 5-9/10", None),
            ("bytes 5-9/x", None),
            ("bytes -1-9/10", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_content_range(text), expected, "{text}");
        }
    }
}
