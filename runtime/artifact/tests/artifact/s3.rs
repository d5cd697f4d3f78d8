//! `s3://` sources against a server that speaks S3's errors and conditions.

use torchmodel_crds::{FailurePhase, FailureReason, ModelSource, S3Spec};

use crate::{
    Puller, content, digest, read,
    server::{FaultServer, Reply},
    source,
};

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "key-id"), ("AWS_SECRET_ACCESS_KEY", "hunter2")];
const SIZE: usize = 200_000;
const CUT: usize = 60_000;

fn at(server: &FaultServer, bytes: Option<&[u8]>) -> ModelSource {
    let s3 = S3Spec { endpoint: Some(server.url.clone()), ..S3Spec::default() };
    ModelSource { s3: Some(s3), ..source("s3://models/resnet/a b+c.pt", bytes) }
}

#[tokio::test]
async fn an_object_is_asked_for_by_path_and_signed() {
    let (puller, bytes) = (Puller::new().with_environment(&KEYS), content(SIZE, 1));
    let server = FaultServer::start([Reply::file(&bytes, "1")]).await;
    let artifact = puller.pull(&at(&server, Some(&bytes))).await.unwrap();
    assert_eq!((read(&artifact.path) == bytes, artifact.uri.as_str()), (true, "s3://models/resnet/a b+c.pt"));
    let seen = &server.seen()[0];
    assert_eq!(seen.path, "/models/resnet/a%20b%2Bc.pt");
    let authorization = seen.header("authorization").unwrap();
    assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=key-id/"), "{authorization}");
    assert!(authorization.contains("/us-east-1/s3/aws4_request"), "{authorization}");
}

#[tokio::test]
async fn region_and_endpoint_of_the_source_win_over_the_environment() {
    let bytes = content(SIZE, 2);
    let server = FaultServer::start([Reply::file(&bytes, "2")]).await;
    let mut variables = vec![("AWS_REGION", "eu-west-1"), ("AWS_ENDPOINT_URL", server.url.as_str())];
    variables.extend(KEYS);
    let puller = Puller::new().with_environment(&variables);
    puller.pull(&source("s3://models/a.pt", None)).await.unwrap();
    assert!(server.seen()[0].header("authorization").unwrap().contains("/eu-west-1/s3/"));

    let other = FaultServer::start([Reply::file(&bytes, "2")]).await;
    let mut source = at(&other, None);
    source.s3.as_mut().unwrap().region = Some("garage".into());
    puller.pull(&source).await.unwrap();
    assert!(other.seen()[0].header("authorization").unwrap().contains("/garage/s3/"));
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn without_digest_an_object_is_sent_again_only_when_its_tag_changed() {
    let (puller, old, new) = (Puller::new().with_environment(&KEYS), content(SIZE, 3), content(SIZE, 4));
    let server = FaultServer::start([Reply::file(&old, "old")]).await;
    let source = at(&server, None);
    let first = puller.pull(&source).await.unwrap();
    assert_eq!(first.sha256, digest(&old));
    assert_eq!(puller.pull(&source).await.unwrap().path, first.path);
    assert_eq!(server.seen_header("if-none-match"), [None, Some("\"old\"".to_owned())]);

    server.then([Reply::file(&new, "new")]);
    let second = puller.pull(&source).await.unwrap();
    assert_eq!((second.sha256, read(&second.path) == new), (digest(&new), true));

    // A blob that is damaged is no longer known, so the object is asked for without condition.
    std::fs::remove_file(&second.path).unwrap();
    std::fs::write(&second.path, "damaged").unwrap();
    assert!(read(&puller.pull(&source).await.unwrap().path) == new);
    assert_eq!(server.seen().last().unwrap().header("if-none-match"), None);
}

#[tokio::test]
async fn a_query_behind_a_key_is_part_of_it_for_the_server_and_the_cache_but_is_not_shown() {
    let (puller, first, second) = (Puller::new().with_environment(&KEYS), content(SIZE, 20), content(SIZE, 21));
    let server = FaultServer::start([Reply::file(&first, "20"), Reply::file(&second, "21")]).await;
    let version =
        |name: &str| ModelSource { uri: Some(format!("s3://models/a.pt?versionId={name}")), ..at(&server, None) };
    let artifacts = [puller.pull(&version("hunter1")).await.unwrap(), puller.pull(&version("hunter2")).await.unwrap()];
    assert_eq!(artifacts.each_ref().map(|artifact| artifact.uri.as_str()), ["s3://models/a.pt"; 2]);
    assert!(read(&artifacts[0].path) == first && read(&artifacts[1].path) == second);
    assert_eq!(server.seen_header("if-none-match"), [None, None]);
    assert_eq!(server.seen()[1].path, "/models/a.pt%3FversionId%3Dhunter2");
    let records = std::fs::read_dir(puller.options.cache_dir.join("sources")).unwrap();
    let records: Vec<_> = records.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    assert!(records.len() == 2 && records.iter().all(|record| record.contains("\"s3://models/a.pt\"")), "{records:?}");

    server.then([Reply::s3_error(404, "NoSuchKey")]);
    for uri in ["s3://models/a.pt?versionId=hunter2", "s3://models/a//b.pt?versionId=hunter2"] {
        let failure = puller.failure(&ModelSource { uri: Some(uri.into()), ..at(&server, Some(b"x")) }).await;
        assert!(
            failure.message.contains("s3://models/a") && !failure.message.contains("hunter2"),
            "{}",
            failure.message
        );
    }
}

#[tokio::test]
async fn a_cut_object_is_continued_while_its_tag_holds() {
    let (puller, bytes) = (Puller::new().with_environment(&KEYS), content(SIZE, 5));
    let file = Reply::file(&bytes, "5");
    let server = FaultServer::start([file.clone().cut_after(CUT), file]).await;
    assert!(read(&puller.pull(&at(&server, None)).await.unwrap().path) == bytes);
    assert_eq!(server.seen_header("range"), [None, Some(format!("bytes={CUT}-"))]);
    assert_eq!(server.seen_header("if-match"), [None, Some("\"5\"".to_owned())]);
}

#[tokio::test]
async fn an_object_that_changed_while_it_was_fetched_is_fetched_from_the_start() {
    let (puller, new) = (Puller::new().with_environment(&KEYS), content(SIZE, 7));
    let server =
        FaultServer::start([Reply::file(&content(SIZE, 6), "old").cut_after(CUT), Reply::file(&new, "new")]).await;
    assert!(read(&puller.pull(&at(&server, None)).await.unwrap().path) == new);
    let ranges = server.seen_header("range");
    assert_eq!(ranges, [None, Some(format!("bytes={CUT}-")), None]);
}

#[tokio::test]
async fn an_error_of_the_server_is_quoted_with_its_reason() {
    let puller = Puller::new().with_environment(&KEYS);
    let table = [
        (403, "AccessDenied", FailureReason::AccessDenied, 1),
        (403, "InvalidAccessKeyId", FailureReason::AccessDenied, 1),
        (403, "SignatureDoesNotMatch", FailureReason::AccessDenied, 1),
        (400, "ExpiredToken", FailureReason::AccessDenied, 1),
        (404, "NoSuchKey", FailureReason::NotFound, 1),
        (404, "NoSuchBucket", FailureReason::NotFound, 1),
        (400, "InvalidBucketName", FailureReason::SpecInvalid, 1),
        (503, "SlowDown", FailureReason::FetchTimeout, 3),
        (500, "InternalError", FailureReason::FetchTimeout, 3),
    ];
    for (status, code, reason, requests) in table {
        let server = FaultServer::start([Reply::s3_error(status, code)]).await;
        let failure = puller.failure(&at(&server, Some(b"x"))).await;
        assert_eq!((failure.phase, failure.reason), (FailurePhase::Fetch, reason), "{}", failure.message);
        assert!(failure.message.ends_with(&format!(", {code} (about {code})")), "{}", failure.message);
        assert!(failure.message.contains(server.host()), "{}", failure.message);
        assert!(failure.message.contains("s3://models/resnet/a b+c.pt"), "{}", failure.message);
        assert_eq!(server.seen().len(), requests, "{code}");
    }
}

#[tokio::test]
async fn a_busy_server_that_recovers_is_enough() {
    let (puller, bytes) = (Puller::new().with_environment(&KEYS), content(SIZE, 8));
    let server = FaultServer::start([Reply::s3_error(503, "SlowDown"), Reply::file(&bytes, "8")]).await;
    puller.pull(&at(&server, Some(&bytes))).await.unwrap();
}

#[tokio::test]
async fn an_object_that_ends_early_each_time_is_told_from_one_with_other_bytes() {
    let (puller, bytes) = (Puller::new().with_environment(&KEYS), content(SIZE, 9));
    let server =
        FaultServer::start([Reply::file(&bytes, "9").cut_after(CUT), Reply::file(&bytes, "9").cut_after(0)]).await;
    let failure = puller.failure(&at(&server, Some(&bytes))).await;
    assert_eq!((failure.phase, failure.reason), (FailurePhase::Fetch, FailureReason::DigestMismatch));
    assert!(failure.message.contains(&format!("ended after {CUT} bytes")), "{}", failure.message);

    let server = FaultServer::start([Reply::file(&bytes[..CUT], "9")]).await;
    let failure = puller.failure(&at(&server, Some(&bytes))).await;
    assert_eq!((failure.phase, failure.reason), (FailurePhase::Verify, FailureReason::DigestMismatch));
    assert!(failure.message.contains(&format!("({CUT} bytes)")), "{}", failure.message);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_without_the_librarys_own_words() {
    let puller = Puller::new().with_environment(&KEYS);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    drop(listener);
    let s3 = S3Spec { endpoint: Some(format!("http://{host}")), ..S3Spec::default() };
    let failure = puller.failure(&ModelSource { s3: Some(s3), ..source("s3://models/a.pt", None) }).await;
    assert_eq!(failure.reason, FailureReason::FetchTimeout);
    assert!(
        failure.message.contains(&format!("could not fetch s3://models/a.pt from {host}: ")),
        "{}",
        failure.message
    );
    assert!(
        failure.message.ends_with(&format!("{host}: tcp connect error: Connection refused (os error 111)")),
        "{}",
        failure.message
    );
    assert!(!failure.message.contains("retries") && !failure.message.contains("Generic"), "{}", failure.message);
}
