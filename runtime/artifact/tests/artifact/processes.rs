//! Several processes on one cache: one that is killed midway, and two at once.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use torchmodel_crds::ModelSource;

use crate::{
    Puller, await_condition, content, read,
    server::{FaultServer, Reply},
    source,
};

const SIZE: usize = 300_000;
const CUT: usize = 100_000;
const URI: &str = "TORCHMODEL_TEST_URI";
const SHA256: &str = "TORCHMODEL_TEST_SHA256";
const CACHE: &str = "TORCHMODEL_TEST_CACHE";

#[tokio::test]
#[ignore = "not a test of its own: the tests below run it in another process"]
async fn pull_in_a_process_of_its_own() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let mut puller = Puller::new();
    puller.options.cache_dir = PathBuf::from(variable(CACHE));
    let source = ModelSource { sha256: Some(variable(SHA256)), ..source(variable(URI), None) };
    puller.pull(&source).await.unwrap();
}

/// This program again, with nothing to do but pull.
fn spawn(source: &ModelSource, cache: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::pull_in_a_process_of_its_own", "--ignored"])
        .env(URI, source.uri.as_deref().unwrap())
        .env(SHA256, source.sha256.as_deref().unwrap())
        .env(CACHE, cache)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_process_that_was_killed_leaves_a_download_to_go_on_with() {
    let (puller, bytes) = (Puller::new(), content(SIZE, 1));
    let server = FaultServer::start([Reply::file(&bytes, "1").stall_after(CUT)]).await;
    let source = source(format!("{}/a.pt", server.url), Some(&bytes));
    let mut child = spawn(&source, &puller.options.cache_dir);
    await_condition("the part is on disk", || puller.has_part_of(CUT)).await;
    child.kill().unwrap();
    child.wait().unwrap();

    server.then([Reply::file(&bytes, "1")]);
    assert!(read(&puller.pull(&source).await.unwrap().path) == bytes);
    assert_eq!(server.seen_header("range"), [None, Some(format!("bytes={CUT}-"))]);
}

#[tokio::test]
async fn two_processes_at_once_share_one_download() {
    let (puller, bytes) = (Puller::new(), content(SIZE, 2));
    let server = FaultServer::start([Reply::file(&bytes, "2")]).await;
    let source = source(format!("{}/a.pt", server.url), Some(&bytes));
    let mut children = [(); 2].map(|()| spawn(&source, &puller.options.cache_dir));
    await_condition("both processes end", || children.iter_mut().all(|child| child.try_wait().unwrap().is_some()))
        .await;
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert!(read(&puller.pull(&source).await.unwrap().path) == bytes);
    assert_eq!(server.seen().len(), 1);
}
