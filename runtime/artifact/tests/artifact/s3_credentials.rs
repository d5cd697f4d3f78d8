//! Where the keys come from, seen from the server that checks them.

use std::time::Duration;

use torchmodel_crds::{FailureReason, ModelSource, S3Spec};

use crate::{
    Puller,
    server::{FaultServer, Reply},
    source,
};

const FAR: &str = "2099-01-01T00:00:00Z";

fn at(server: &FaultServer) -> ModelSource {
    let s3 = S3Spec { endpoint: Some(server.url.clone()), ..S3Spec::default() };
    ModelSource { s3: Some(s3), ..source("s3://models/a.pt", None) }
}

fn key_id(server: &FaultServer) -> Option<String> {
    let seen = server.seen();
    let authorization = seen.last()?.header("authorization")?;
    Some(authorization.split_once("Credential=")?.1.split_once('/')?.0.to_owned())
}

async fn store() -> FaultServer {
    FaultServer::start([Reply::file(b"model", "1")]).await
}

fn credentials_json(id: &str) -> String {
    format!("{{\"AccessKeyId\":\"{id}\",\"SecretAccessKey\":\"s\",\"Token\":\"t\",\"Expiration\":\"{FAR}\"}}")
}

#[tokio::test]
async fn a_mounted_secret_signs_the_request() {
    let mut puller = Puller::new().with_environment(&[("AWS_ACCESS_KEY_ID", "env"), ("AWS_SECRET_ACCESS_KEY", "s")]);
    let secret = puller.dir.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    puller.options.credentials_dir = Some(secret.clone());
    let server = store().await;
    let failure = puller.failure(&at(&server)).await;
    assert_eq!(failure.reason, FailureReason::CredentialsMissing);
    assert!(failure.message.contains("has neither AWS_ACCESS_KEY_ID nor"), "{}", failure.message);
    assert!(server.seen().is_empty());

    std::fs::write(secret.join("AWS_ACCESS_KEY_ID"), "mounted\n").unwrap();
    std::fs::write(secret.join("AWS_SECRET_ACCESS_KEY"), "s\n").unwrap();
    std::fs::write(secret.join("AWS_SESSION_TOKEN"), "session\n").unwrap();
    puller.pull(&at(&server)).await.unwrap();
    assert_eq!(key_id(&server).as_deref(), Some("mounted"));
    assert_eq!(server.seen()[0].header("x-amz-security-token"), Some("session"));
}

#[tokio::test]
async fn an_anonymous_request_is_not_signed_and_its_denial_is_access_denied() {
    let puller = Puller::new().with_environment(&[("AWS_SKIP_SIGNATURE", "true")]);
    let server = store().await;
    puller.pull(&at(&server)).await.unwrap();
    assert_eq!(key_id(&server), None);

    let server = FaultServer::start([Reply::s3_error(403, "AccessDenied")]).await;
    let failure = puller.failure(&at(&server)).await;
    assert_eq!(failure.reason, FailureReason::AccessDenied);
    assert!(failure.hint.contains("a Secret"), "{}", failure.hint);
}

#[tokio::test]
async fn no_credentials_anywhere_is_said_without_a_request() {
    let server = store().await;
    let failure = Puller::new().failure(&at(&server)).await;
    assert_eq!(failure.reason, FailureReason::CredentialsMissing);
    assert!(failure.message.starts_with("found no credentials for s3://models/a.pt: "), "{}", failure.message);
    assert!(failure.hint.contains("spec.source.credentials.secretName"), "{}", failure.hint);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_silent_metadata_service_does_not_hold_a_pod_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let puller = Puller::new().with_environment(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint.as_str())]);
    let server = store().await;
    let started = std::time::Instant::now();
    let failure = puller.failure(&at(&server)).await;
    assert_eq!(failure.reason, FailureReason::CredentialsMissing);
    assert!(failure.message.ends_with("no answer within 0.3 s"), "{}", failure.message);
    assert!(started.elapsed() < Duration::from_secs(5));

    let denying = FaultServer::start([Reply::status(403, "no")]).await;
    let puller = Puller::new().with_environment(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", denying.url.as_str())]);
    let failure = puller.failure(&at(&server)).await;
    assert_eq!(failure.reason, FailureReason::CredentialsMissing);
    assert!(failure.message.ends_with("the instance metadata service gave none: 403 Forbidden"), "{}", failure.message);
}

#[tokio::test]
async fn the_metadata_service_and_a_container_endpoint_hand_out_keys() {
    let server = store().await;
    let replies = ["token", "role", &credentials_json("imds")].map(|text| Reply::status(200, text));
    let metadata = FaultServer::start(replies).await;
    let puller = Puller::new().with_environment(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url.as_str())]);
    puller.pull(&at(&server)).await.unwrap();
    assert_eq!(key_id(&server).as_deref(), Some("imds"));

    let container = FaultServer::start([Reply::status(200, &credentials_json("pod"))]).await;
    let puller = Puller::new();
    let token = puller.dir.path().join("token");
    std::fs::write(&token, "bearer").unwrap();
    let puller = puller.with_environment(&[
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.url.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
    ]);
    puller.pull(&at(&server)).await.unwrap();
    assert_eq!(key_id(&server).as_deref(), Some("pod"));
    assert_eq!(container.seen()[0].header("authorization"), Some("bearer"));
}

#[tokio::test]
async fn a_web_identity_is_exchanged_and_its_refusal_is_access_denied() {
    let server = store().await;
    let answer = format!(
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>web</AccessKeyId>\
         <SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>{FAR}</Expiration></Credentials>\
         </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    );
    let sts = FaultServer::start([Reply::status(200, &answer)]).await;
    let puller = Puller::new();
    let token = puller.dir.path().join("token");
    std::fs::write(&token, "hunter2").unwrap();
    let puller = puller.with_environment(&[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/models"),
        ("AWS_ENDPOINT_URL_STS", sts.url.as_str()),
    ]);
    puller.pull(&at(&server)).await.unwrap();
    assert_eq!(key_id(&server).as_deref(), Some("web"));

    sts.then([Reply::s3_error(403, "AccessDenied")]);
    let failure = puller.failure(&at(&server)).await;
    assert_eq!(failure.reason, FailureReason::AccessDenied);
    assert!(failure.message.starts_with("the AWS security token service denied access"), "{}", failure.message);
    assert!(!failure.message.contains("hunter2"), "{}", failure.message);
}
