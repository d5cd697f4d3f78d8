//! `http://` sources against a server that misbehaves.

use std::{os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use torchmodel_crds::{FailurePhase, FailureReason, ModelSource};

use crate::{
    Puller, await_condition, content, digest, read, read_file,
    server::{FaultServer, Reply},
    source,
};

const SIZE: usize = 300_000;
const CUT: usize = 100_000;

fn at(server: &FaultServer, bytes: &[u8]) -> ModelSource {
    source(format!("{}/models/a.pt", server.url), Some(bytes))
}

/// The beginning that an earlier pull left, since its server cut the connection.
async fn with_partial(puller: &mut Puller, server: &FaultServer, bytes: &[u8], etag: &str) {
    server.then([Reply::file(bytes, etag).cut_after(CUT)]);
    puller.context.limits.attempts = 1;
    let failure = puller.failure(&at(server, bytes)).await;
    puller.context.limits.attempts = 3;
    assert_eq!((failure.phase, failure.reason), (FailurePhase::Fetch, FailureReason::DigestMismatch));
    assert!(failure.message.contains(&format!("ended after {CUT} bytes")), "{}", failure.message);
    assert!(failure.message.contains(&format!("announced {SIZE}")), "{}", failure.message);
    assert_eq!(read(&puller.part_file()), bytes[..CUT]);
}

#[tokio::test]
async fn a_file_is_fetched_once_and_then_comes_from_the_cache() {
    let (puller, bytes) = (Puller::new(), content(SIZE, 1));
    let server = FaultServer::start([Reply::file(&bytes, "1")]).await;
    let first = puller.pull(&at(&server, &bytes)).await.unwrap();
    assert!(read_file(&first) == bytes, "fetched: the descriptor that was written");
    assert_eq!(first.path, puller.options.cache_dir.join("blobs/sha256").join(digest(&bytes)));
    assert_eq!((first.size_bytes, read(&first.path) == bytes), (SIZE as u64, true));
    assert_eq!(first.path.metadata().unwrap().permissions().mode() & 0o222, 0, "a blob is read-only");
    assert!(puller.partial().is_empty());

    assert_eq!(puller.pull(&at(&server, &bytes)).await.unwrap().path, first.path);
    let elsewhere = source("http://models.invalid/mirror.pt", Some(&bytes));
    let again = puller.pull(&elsewhere).await.unwrap();
    assert_eq!(again.path, first.path);
    std::fs::remove_file(&first.path).unwrap();
    assert!(read_file(&again) == bytes, "cached: the descriptor that was hashed");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_connection_that_is_cut_is_continued_where_it_broke() {
    let (puller, bytes) = (Puller::new(), content(SIZE, 2));
    let file = Reply::file(&bytes, "2");
    let server = FaultServer::start([file.clone().cut_after(CUT), file.clone().cut_after(CUT), file]).await;
    let artifact = puller.pull(&at(&server, &bytes)).await.unwrap();
    assert!(read(&artifact.path) == bytes);
    let ranges = server.seen_header("range");
    assert_eq!(ranges, [None, Some("bytes=100000-".to_owned()), Some("bytes=200000-".to_owned())]);
    assert_eq!(server.seen_header("if-range")[1..], [Some("\"2\"".to_owned()), Some("\"2\"".to_owned())]);
}

#[tokio::test]
async fn a_later_pull_goes_on_with_what_an_earlier_one_left() {
    let (mut puller, bytes) = (Puller::new(), content(SIZE, 3));
    let server = FaultServer::start([]).await;
    with_partial(&mut puller, &server, &bytes, "3").await;
    server.then([Reply::file(&bytes, "3")]);
    let artifact = puller.pull(&at(&server, &bytes)).await.unwrap();
    assert!(read(&artifact.path) == bytes);
    assert_eq!(server.seen().last().unwrap().header("range"), Some("bytes=100000-"));
}

#[tokio::test]
async fn a_pull_that_is_dropped_leaves_a_download_to_go_on_with() {
    let (puller, bytes) = (Puller::new(), content(SIZE, 4));
    let server = FaultServer::start([Reply::file(&bytes, "4").stall_after(CUT)]).await;
    let source = at(&server, &bytes);
    tokio::select! {
        result = puller.pull(&source) => panic!("the server sends no more, but the pull ended: {result:?}"),
        () = await_condition("the part is on disk", || puller.has_part_of(CUT)) => {}
    }
    server.then([Reply::file(&bytes, "4")]);
    puller.pull(&source).await.unwrap();
    assert_eq!(server.seen_header("range"), [None, Some("bytes=100000-".to_owned())]);
}

#[tokio::test]
async fn a_file_that_changed_in_between_is_fetched_from_the_start() {
    let (mut puller, old, new) = (Puller::new(), content(SIZE, 5), content(SIZE, 6));
    let server = FaultServer::start([]).await;
    with_partial(&mut puller, &server, &old, "old").await;
    server.then([Reply::file(&new, "new")]);
    // The same source, but the digest of the manifest was wrong: what is served now is not the old file.
    let failure = puller.failure(&at(&server, &old)).await;
    assert_eq!(failure.reason, FailureReason::DigestMismatch);
    assert!(failure.message.contains(&digest(&new)), "{}", failure.message);
    assert_eq!(server.seen()[1].header("if-range"), Some("\"old\""));

    with_partial(&mut puller, &server, &old, "old").await;
    server.then([Reply::file(&old, "moved").ignoring_range()]);
    assert!(read(&puller.pull(&at(&server, &old)).await.unwrap().path) == old);
}

#[tokio::test]
async fn a_range_of_another_version_is_not_appended() {
    let (mut puller, bytes) = (Puller::new(), content(SIZE, 7));
    let server = FaultServer::start([]).await;
    with_partial(&mut puller, &server, &bytes, "7").await;
    // A server that knows no If-Range sends the rest of what it has now; then the whole.
    let other = Reply::file(&content(SIZE, 8), "8").ignoring_if_range();
    server.then([other, Reply::file(&bytes, "9")]);
    assert!(read(&puller.pull(&at(&server, &bytes)).await.unwrap().path) == bytes);
    assert_eq!(server.seen_header("range")[1..], [Some("bytes=100000-".to_owned()), None]);
}

#[tokio::test]
async fn a_damaged_part_or_blob_is_found_and_fetched_whole() {
    let (mut puller, bytes) = (Puller::new(), content(SIZE, 10));
    let server = FaultServer::start([]).await;
    with_partial(&mut puller, &server, &bytes, "10").await;
    std::fs::write(puller.part_file(), vec![0; CUT]).unwrap();
    server.then([Reply::file(&bytes, "10")]);
    let blob = puller.pull(&at(&server, &bytes)).await.unwrap().path;
    assert_eq!(server.seen_header("range")[1..], [Some("bytes=100000-".to_owned()), None]);

    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, "damaged").unwrap();
    assert!(read(&puller.pull(&at(&server, &bytes)).await.unwrap().path) == bytes);
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn without_entity_tag_the_digest_alone_vouches_for_a_continued_file() {
    let (puller, bytes) = (Puller::new(), content(SIZE, 11));
    let file = Reply::file(&bytes, "").without_etag();
    let server = FaultServer::start([file.clone().cut_after(CUT), file]).await;
    assert!(read(&puller.pull(&at(&server, &bytes)).await.unwrap().path) == bytes);
    assert_eq!(server.seen_header("if-range"), [None, None]);
    assert_eq!(server.seen_header("range")[1], Some("bytes=100000-".to_owned()));
}

#[tokio::test]
async fn other_bytes_are_refused_and_leave_nothing_behind() {
    let (puller, bytes) = (Puller::new(), content(SIZE, 12));
    let server = FaultServer::start([Reply::file(b"something else", "12")]).await;
    let failure = puller.failure(&at(&server, &bytes)).await;
    assert_eq!((failure.phase, failure.reason), (FailurePhase::Verify, FailureReason::DigestMismatch));
    let (actual, expected) = (digest(b"something else"), digest(&bytes));
    let message = format!("{}/models/a.pt has the sha256 {actual} (14 bytes); source.sha256 is {expected}", server.url);
    assert_eq!(failure.message, message);
    assert!(puller.partial().is_empty());
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn an_answer_that_will_not_change_is_not_asked_for_again() {
    let puller = Puller::new();
    let table = [
        (400, FailureReason::SpecInvalid),
        (401, FailureReason::AccessDenied),
        (403, FailureReason::AccessDenied),
        (404, FailureReason::NotFound),
        (410, FailureReason::NotFound),
    ];
    for (status, reason) in table {
        let server = FaultServer::start([Reply::status(status, "no")]).await;
        let uri = format!("{}/a.pt?X-Amz-Signature=hunter2", server.url.replace("http://", "http://user:hunter2@"));
        let failure = puller.failure(&source(uri, Some(b"x"))).await;
        assert_eq!((failure.phase, failure.reason), (FailurePhase::Fetch, reason), "{}", failure.message);
        assert!(failure.message.contains(&status.to_string()) && failure.message.contains(server.host()));
        let shown = format!("{}/a.pt: ", server.url);
        assert!(failure.message.contains(&shown), "{}", failure.message);
        assert!(!failure.message.contains(['?', '@']), "{}", failure.message);
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_busy_server_is_asked_again_until_the_attempts_run_out() {
    let (puller, bytes) = (Puller::new(), content(SIZE, 13));
    let file = Reply::file(&bytes, "13");
    let server = FaultServer::start([Reply::status(500, ""), Reply::status(429, ""), file]).await;
    puller.pull(&at(&server, &bytes)).await.unwrap();

    let server = FaultServer::start([Reply::status(503, "later")]).await;
    let failure = puller.failure(&at(&server, b"x")).await;
    assert_eq!(failure.reason, FailureReason::FetchTimeout);
    assert!(failure.message.starts_with("gave up after 3 attempts"), "{}", failure.message);
    assert!(failure.message.ends_with("503 Service Unavailable"), "{}", failure.message);
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_server_that_goes_silent_is_given_up() {
    let (mut puller, bytes) = (Puller::new(), content(SIZE, 14));
    puller.context.limits.read_timeout = Duration::from_millis(100);
    puller.context.limits.attempts = 2;
    let file = Reply::file(&bytes, "14");
    let server = FaultServer::start([file.clone().stall_after(CUT), file.stall_after(0)]).await;
    let failure = puller.failure(&at(&server, &bytes)).await;
    assert_eq!(failure.reason, FailureReason::FetchTimeout);
    let part = format!("{} sent nothing for 0.1 s, after {CUT} bytes", server.host());
    assert!(failure.message.contains(&part), "{}", failure.message);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_with_what_the_system_says() {
    let puller = Puller::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    drop(listener);
    let failure = puller.failure(&source(format!("http://{host}/a.pt?hunter2"), Some(b"x"))).await;
    assert_eq!((failure.phase, failure.reason), (FailurePhase::Fetch, FailureReason::FetchTimeout));
    assert!(failure.message.contains(&format!("from {host}: ")), "{}", failure.message);
    assert!(
        failure.message.ends_with(&format!("{host}: tcp connect error: Connection refused (os error 111)")),
        "{}",
        failure.message
    );
    assert!(!failure.message.contains("hunter2"));

    let failure = puller.failure(&source("http://models.invalid/a.pt", Some(b"x"))).await;
    assert_eq!(failure.reason, FailureReason::FetchTimeout);
    assert!(failure.message.contains("models.invalid:80: "), "{}", failure.message);
}

#[tokio::test]
async fn redirects_are_followed_but_not_round_in_circles() {
    let (puller, bytes) = (Puller::new(), content(SIZE, 15));
    let server = FaultServer::start([Reply::redirect("/elsewhere.pt?token=1"), Reply::file(&bytes, "15")]).await;
    puller.pull(&at(&server, &bytes)).await.unwrap();
    assert_eq!(server.seen()[1].path, "/elsewhere.pt?token=1");

    let server = FaultServer::start([Reply::redirect("/round?hunter2")]).await;
    let failure = puller.failure(&at(&server, b"x")).await;
    assert_eq!(failure.reason, FailureReason::SpecInvalid);
    assert!(failure.message.ends_with("more than 5 redirects, perhaps a loop"), "{}", failure.message);
    assert!(!failure.message.contains("hunter2"));
    assert_eq!(server.seen().len(), 6);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_it_is_written() {
    let mut puller = Puller::new();
    let exabyte = 1 << 60;
    puller.context.limits.max_size_bytes = u64::MAX;
    let server = FaultServer::start([Reply::file(b"x", "16").announcing(exabyte).stall_after(1)]).await;
    let failure = puller.failure(&at(&server, b"x")).await;
    assert_eq!((failure.phase, failure.reason), (FailurePhase::Fetch, FailureReason::CacheFull));
    assert!(failure.message.contains("1.2 EB needed") && failure.message.ends_with(" free"), "{}", failure.message);
    assert_eq!(puller.part_file().metadata().unwrap().len(), 0);

    puller.context.limits.max_size_bytes = 10;
    let server = FaultServer::start([Reply::file(b"more than ten bytes", "17")]).await;
    let failure = puller.failure(&at(&server, b"x")).await;
    assert_eq!(failure.reason, FailureReason::CacheFull);
    assert!(failure.message.ends_with("has 19 bytes or more; the limit is 10"), "{}", failure.message);
}

#[tokio::test]
async fn the_whole_pull_has_a_limit_in_time() {
    let mut puller = Puller::new();
    puller.context.limits.total_timeout = Duration::from_millis(100);
    let server = FaultServer::start([Reply::file(b"x", "18").stall_after(0)]).await;
    let failure = puller.failure(&at(&server, b"x")).await;
    assert_eq!(failure.reason, FailureReason::FetchTimeout);
    assert!(failure.message.ends_with("was not complete after 0.1 s"), "{}", failure.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pulls_of_one_file_at_once_make_one_download() {
    let (puller, bytes) = (Arc::new(Puller::new()), content(SIZE, 19));
    let file = Reply::file(&bytes, "19");
    let server = FaultServer::start([file.clone().cut_after(CUT), file]).await;
    let source = at(&server, &bytes);
    let pulls = (0..8).map(|_| {
        let (puller, source) = (puller.clone(), source.clone());
        tokio::spawn(async move { puller.pull(&source).await.unwrap() })
    });
    for artifact in futures::future::join_all(pulls).await {
        assert!(read(&artifact.unwrap().path) == bytes);
    }
    assert_eq!(server.seen().len(), 2);
}
