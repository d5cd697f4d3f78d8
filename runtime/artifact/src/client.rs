//! The one HTTP client that both transports use: rustls with ring, and the authorities that the system trusts.
//!
//! `SSL_CERT_FILE` and `SSL_CERT_DIR` take the place of the system's store, as with OpenSSL. `HTTP_PROXY`, `HTTPS_PROXY` and
//! `NO_PROXY` are honoured. Invariants: a redirect never leads from https to http; no process-wide TLS provider is set.

use std::{path::Path, sync::Arc};

use reqwest::redirect::{Action, Attempt, Policy};
use rustls::{ClientConfig, RootCertStore};
use rustls_native_certs::CertificateResult;
use tracing::{debug, warn};

use super::{
    PullContext,
    environment::Environment,
    error::{ArtifactError, BoxError},
    fault::RedirectFault,
};

/// Most redirects that one request follows.
const MAX_REDIRECTS: usize = 5;

/// Builds the client. Time limits other than that of connecting are the caller's.
pub(super) fn build(context: &PullContext) -> Result<reqwest::Client, ArtifactError> {
    let client = |source: BoxError| ArtifactError::Client { source };
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls_config(&context.environment).map_err(|error| client(error.into()))?)
        .user_agent(concat!("torchmodel-runtime/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(context.limits.connect_timeout)
        .redirect(Policy::custom(follow))
        .referer(false)
        .build()
        .map_err(|error| client(error.into()))
}

fn tls_config(environment: &Environment) -> Result<ClientConfig, rustls::Error> {
    let found = trusted(environment);
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    for error in &found.errors {
        warn!("could not read all trusted certificate authorities: {error}");
    }
    debug!(added, ignored, "loaded the trusted certificate authorities");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The certificates that `SSL_CERT_FILE` and the folders of `SSL_CERT_DIR` name, else the system's.
fn trusted(environment: &Environment) -> CertificateResult {
    let (file, folders) = (environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR"));
    if file.is_none() && folders.is_none() {
        return rustls_native_certs::load_native_certs();
    }
    let mut found = rustls_native_certs::load_certs_from_paths(file.map(Path::new), None);
    for folder in folders.into_iter().flat_map(|folders| folders.split(':')).filter(|folder| !folder.is_empty()) {
        let more = rustls_native_certs::load_certs_from_paths(None, Some(Path::new(folder)));
        found.certs.extend(more.certs);
        found.errors.extend(more.errors);
    }
    found
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
