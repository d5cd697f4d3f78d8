//! A real S3 server, versitygw, on a folder of its own.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use object_store::{
    ObjectStoreExt,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as Key,
};
use torchmodel_crds::{FailureReason, ModelSource, S3Spec};

use crate::{Puller, await_condition, content, digest, read, source};

const ACCESS: &str = "test-access";
const SECRET: &str = "test-secret";
const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", ACCESS), ("AWS_SECRET_ACCESS_KEY", SECRET)];

/// The server; it ends with this value.
struct Gateway {
    process: Child,
    url: String,
    root: tempfile::TempDir,
}

impl Gateway {
    /// Starts one with the bucket `models`, or says why not.
    async fn start() -> Option<Self> {
        if let Some(reason) = std::env::var_os("TORCHMODEL_SKIP_S3") {
            println!("skipped: TORCHMODEL_SKIP_S3 is set ({}), so no real S3 server is used", reason.to_string_lossy());
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("models")).unwrap();
        for _ in 0..5 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut process = start_process(port, root.path());
            let address = format!("127.0.0.1:{port}");
            let mut has_ended = false;
            await_condition("versitygw listens", || {
                has_ended = process.try_wait().unwrap().is_some();
                has_ended || std::net::TcpStream::connect(&address).is_ok()
            })
            .await;
            if !has_ended {
                return Some(Self { process, url: format!("http://{address}"), root });
            }
        }
        panic!("versitygw ended at once, five times over");
    }

    fn store(&self) -> AmazonS3 {
        // object_store builds its own HTTP client here, which asks for a process-wide TLS provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = AmazonS3Builder::new().with_bucket_name("models").with_endpoint(&self.url).with_allow_http(true);
        builder.with_access_key_id(ACCESS).with_secret_access_key(SECRET).build().unwrap()
    }

    async fn put(&self, key: &str, bytes: &[u8]) {
        self.store().put(&Key::from(key), bytes.to_vec().into()).await.unwrap();
    }

    fn source(&self, uri: &str, bytes: Option<&[u8]>) -> ModelSource {
        let s3 = S3Spec { endpoint: Some(self.url.clone()), ..S3Spec::default() };
        ModelSource { s3: Some(s3), ..source(uri, bytes) }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start_process(port: u16, root: &Path) -> Child {
    let program = program();
    Command::new(&program)
        .env_clear()
        .args(["--access", ACCESS, "--secret", SECRET, "--port", &format!("127.0.0.1:{port}"), "--quiet", "posix"])
        .arg(root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("could not start {}: {error}", program.display()))
}

fn program() -> PathBuf {
    let path = std::env::var_os("TORCHMODEL_VERSITYGW")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/programs/versitygw"), PathBuf::from);
    assert!(
        path.exists(),
        "there is no versitygw at {}: build it with `make cluster-programs`, name another with TORCHMODEL_VERSITYGW, or set \
         TORCHMODEL_SKIP_S3 to a reason to leave out the tests that need it",
        path.display()
    );
    path
}

#[tokio::test]
async fn a_real_server_gives_an_object_with_and_without_a_digest() {
    let Some(gateway) = Gateway::start().await else { return };
    let puller = Puller::new().with_environment(&KEYS);
    let (old, new) = (content(600_000, 1), content(400_000, 2));
    gateway.put("resnet 50/7/model.pt", &old).await;
    let uri = "s3://models/resnet 50/7/model.pt";
    let artifact = puller.pull(&gateway.source(uri, Some(&old))).await.unwrap();
    assert!(read(&artifact.path) == old);

    let free = gateway.source(uri, None);
    assert_eq!(puller.pull(&free).await.unwrap().path, artifact.path);
    assert_eq!(puller.pull(&free).await.unwrap().path, artifact.path);
    gateway.put("resnet 50/7/model.pt", &new).await;
    assert_eq!(puller.pull(&free).await.unwrap().sha256, digest(&new));

    let failure = puller.failure(&gateway.source(uri, Some(b"x"))).await;
    assert_eq!(failure.reason, FailureReason::DigestMismatch);
}

#[tokio::test]
async fn a_real_server_continues_a_download_that_an_earlier_pull_left() {
    let Some(gateway) = Gateway::start().await else { return };
    let bytes = content(800_000, 3);
    gateway.put("model.pt", &bytes).await;
    let etag = gateway.store().head(&Key::from("model.pt")).await.unwrap().e_tag.unwrap();
    let source = gateway.source("s3://models/model.pt", None);

    // What a pull that was killed after 200 kB leaves: an empty part with a fresh record, then filled by hand.
    let mut puller = Puller::new().with_environment(&KEYS);
    puller.context.limits.max_size_bytes = 1;
    puller.failure(&source).await;
    puller.context.limits.max_size_bytes = u64::MAX;
    let part = puller.part_file();
    std::fs::write(&part, &bytes[..200_000]).unwrap();
    let record = serde_json::json!({"etag": etag, "total": bytes.len(), "synced_bytes": 200_000});
    std::fs::write(part.with_extension("json"), record.to_string()).unwrap();
    assert!(read(&puller.pull(&source).await.unwrap().path) == bytes);

    // The same with the tag of another version: the server refuses the condition and all is fetched anew.
    puller.context.limits.max_size_bytes = 1;
    gateway.put("model.pt", &content(800_000, 4)).await;
    puller.failure(&source).await;
    puller.context.limits.max_size_bytes = u64::MAX;
    let part = puller.part_file();
    std::fs::write(&part, &bytes[..200_000]).unwrap();
    std::fs::write(part.with_extension("json"), record.to_string()).unwrap();
    assert!(read(&puller.pull(&source).await.unwrap().path) == content(800_000, 4));
}

#[tokio::test]
async fn a_real_servers_refusals_have_their_reasons() {
    let Some(gateway) = Gateway::start().await else { return };
    gateway.put("model.pt", b"model").await;
    let secret_wrong = [KEYS[0], ("AWS_SECRET_ACCESS_KEY", "hunter2")];
    let key_unknown = [("AWS_ACCESS_KEY_ID", "nobody"), KEYS[1]];
    let table = [
        (KEYS.to_vec(), "s3://models/absent.pt", FailureReason::NotFound, "NoSuchKey"),
        (KEYS.to_vec(), "s3://absent/model.pt", FailureReason::NotFound, "NoSuchBucket"),
        (secret_wrong.to_vec(), "s3://models/model.pt", FailureReason::AccessDenied, "SignatureDoesNotMatch"),
        (key_unknown.to_vec(), "s3://models/model.pt", FailureReason::AccessDenied, "access key ID"),
        (vec![("AWS_SKIP_SIGNATURE", "true")], "s3://models/model.pt", FailureReason::AccessDenied, "AccessDenied"),
        (
            vec![("AWS_EC2_METADATA_DISABLED", "true")],
            "s3://models/model.pt",
            FailureReason::CredentialsMissing,
            "not set",
        ),
    ];
    for (variables, uri, reason, part) in table {
        let puller = Puller::new().with_environment(&variables);
        let failure = puller.failure(&gateway.source(uri, None)).await;
        assert_eq!(failure.reason, reason, "{}", failure.message);
        assert!(failure.message.contains(part), "{}", failure.message);
        assert!(!failure.message.contains("hunter2"), "{}", failure.message);
    }
}

#[tokio::test]
async fn a_real_server_that_is_killed_midway_and_comes_back_is_waited_for() {
    let Some(mut gateway) = Gateway::start().await else { return };
    let bytes = content(200_000, 5);
    gateway.put("model.pt", &bytes).await;
    let mut puller = Puller::new().with_environment(&KEYS);
    puller.context.limits.backoff_base = Duration::from_millis(50);
    puller.context.limits.backoff_max = Duration::from_millis(50);
    puller.context.limits.attempts = 200;
    gateway.process.kill().unwrap();
    gateway.process.wait().unwrap();
    let source = gateway.source("s3://models/model.pt", Some(&bytes));
    let port = gateway.url.rsplit_once(':').unwrap().1.parse().unwrap();
    let came_back = async {
        await_condition("the pull has begun", || puller.options.cache_dir.join("partial").exists()).await;
        gateway.process = start_process(port, gateway.root.path());
        std::future::pending::<()>().await;
    };
    tokio::select! {
        artifact = puller.pull(&source) => assert!(read(&artifact.unwrap().path) == bytes),
        () = came_back => {}
    }
}
