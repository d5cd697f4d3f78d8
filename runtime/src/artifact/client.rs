//! The one HTTP client that both transports use: rustls with ring, and the authorities that the system trusts.
//!
//! `SSL_CERT_FILE` and `SSL_CERT_DIR` take the place of the system's store, as with OpenSSL. `HTTP_PROXY`, `HTTPS_PROXY` and
//! `NO_PROXY` are honoured. Invariants: a redirect never leads from https to http; no process-wide TLS provider is set.

use std::sync::Arc;

use reqwest::redirect::{Action, Attempt, Policy};
use rustls::{ClientConfig, RootCertStore};
use tracing::debug;

use super::FetchLimits;
use super::error::{ArtifactError, BoxError};
use super::fault::RedirectFault;

/// Most redirects that one request follows.
const MAX_REDIRECTS: usize = 5;

/// Builds the client. Time limits other than that of connecting are the caller's.
pub(super) fn build(limits: &FetchLimits) -> Result<reqwest::Client, ArtifactError> {
    let client = |source: BoxError| ArtifactError::Client { source };
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls_config().map_err(|error| client(error.into()))?)
        .user_agent(concat!("torchmodel-runtime/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(limits.connect_timeout)
        .redirect(Policy::custom(follow))
        .referer(false)
        .build()
        .map_err(|error| client(error.into()))
}

fn tls_config() -> Result<ClientConfig, rustls::Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    debug!(added, ignored, errors = found.errors.len(), "loaded the trusted certificate authorities");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn follow(attempt: Attempt<'_>) -> Action {
    let was_secure = attempt.previous().iter().any(|url| url.scheme() == "https");
    if was_secure && attempt.url().scheme() != "https" {
        let host = attempt.url().host_str().unwrap_or("another host").to_owned();
        return attempt.error(RedirectFault(format!("it leads from https to plain http at {host}")));
    }
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error(RedirectFault(format!("more than {MAX_REDIRECTS} redirects, perhaps a loop")));
    }
    attempt.follow()
}
