//! `https://` and S3 over TLS, with an authority of the test's own.

use std::{path::PathBuf, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio_rustls::TlsAcceptor;
use torchmodel_crds::{FailureReason, ModelSource, S3Spec};

use crate::{
    Puller, content, read,
    server::{FaultServer, Reply},
    source,
};

/// An authority's certificate as a file, and a server for `localhost` that it signed.
fn authority(dir: &tempfile::TempDir) -> (PathBuf, TlsAcceptor) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, issuer.pem()).unwrap();

    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    (file, TlsAcceptor::from(Arc::new(config)))
}

fn trusting(puller: Puller, variable: &str, path: &std::path::Path) -> Puller {
    puller.with_environment(&[
        (variable, path.to_str().unwrap()),
        ("AWS_ACCESS_KEY_ID", "key-id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ])
}

#[tokio::test]
async fn an_authority_in_the_environment_is_trusted_and_another_server_is_not() {
    let (puller, bytes) = (Puller::new(), content(100_000, 1));
    let (file, acceptor) = authority(&puller.dir);
    let server = FaultServer::start_tls(acceptor, [Reply::file(&bytes, "1")]).await;
    let https = source(format!("{}/a.pt", server.url), Some(&bytes));
    let endpoint = S3Spec { endpoint: Some(server.url.clone()), ..S3Spec::default() };
    let s3 = ModelSource { s3: Some(endpoint), ..source("s3://models/b.pt", None) };

    let puller = trusting(puller, "SSL_CERT_DIR", std::path::Path::new("/nonexistent"));
    for source in [&https, &s3] {
        let failure = puller.failure(source).await;
        assert_eq!(failure.reason, FailureReason::FetchTimeout);
        assert!(failure.message.starts_with("did not trust the TLS certificate of localhost:"), "{}", failure.message);
        assert!(failure.message.ends_with("invalid peer certificate: UnknownIssuer"), "{}", failure.message);
        assert!(failure.hint.contains("SSL_CERT_FILE"), "{}", failure.hint);
    }
    assert!(server.seen().is_empty());

    let puller = trusting(puller, "SSL_CERT_FILE", &file);
    for source in [&https, &s3] {
        assert!(read(&puller.pull(source).await.unwrap().path) == bytes);
    }
}

#[tokio::test]
async fn a_redirect_from_https_to_http_is_not_followed() {
    let puller = Puller::new();
    let (file, acceptor) = authority(&puller.dir);
    let puller = trusting(puller, "SSL_CERT_FILE", &file);
    let plain = FaultServer::start([Reply::file(b"model", "1")]).await;
    let server = FaultServer::start_tls(acceptor, [Reply::redirect(format!("{}/a.pt?hunter2", plain.url))]).await;
    let failure = puller.failure(&source(format!("{}/a.pt", server.url), Some(b"model"))).await;
    assert_eq!(failure.reason, FailureReason::SpecInvalid);
    assert!(failure.message.ends_with("it leads from https to plain http at 127.0.0.1"), "{}", failure.message);
    assert!(plain.seen().is_empty());
}
