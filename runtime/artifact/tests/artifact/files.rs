//! Sources that need no network, and sources that are refused before any is used.

use std::os::unix::fs::PermissionsExt;

use torchmodel_crds::{FailurePhase, FailureReason, ModelSource, VolumeSource};

use crate::{Puller, digest, read_file, source};

#[tokio::test]
async fn a_local_file_is_verified_where_it_is() {
    let puller = Puller::new();
    let path = puller.dir.path().join("a model.pt");
    std::fs::write(&path, "model").unwrap();
    for uri in [path.to_str().unwrap().to_owned(), format!("file://{}", path.display()).replace(' ', "%20")] {
        let artifact = puller.pull(&source(&uri, Some(b"model"))).await.unwrap();
        assert_eq!((&artifact.path, artifact.size_bytes, artifact.sha256), (&path, 5, digest(b"model")));
        assert_eq!(artifact.uri, format!("file://{}", path.display()));
    }
    let without = puller.pull(&source(path.to_str().unwrap(), None)).await.unwrap();
    assert_eq!(without.sha256, digest(b"model"));
    assert!(!puller.options.cache_dir.exists(), "a local file needs no cache");
}

#[tokio::test]
async fn what_was_verified_stays_readable_when_the_path_names_another_file() {
    let puller = Puller::new();
    let path = puller.dir.path().join("model.pt");
    std::fs::write(&path, "model").unwrap();
    let artifact = puller.pull(&source(path.to_str().unwrap(), Some(b"model"))).await.unwrap();
    let other = puller.dir.path().join("other.pt");
    std::fs::write(&other, "other").unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(read_file(&artifact), b"model");
}

#[tokio::test]
async fn a_given_file_takes_the_place_of_the_source_but_not_of_its_digest() {
    let mut puller = Puller::new();
    let path = puller.dir.path().join("model.pt");
    std::fs::write(&path, "model").unwrap();
    puller.options.local_file = Some(path.clone());
    let uri = "https://models.example/model.pt";
    assert_eq!(puller.pull(&source(uri, Some(b"model"))).await.unwrap().path, path);

    let failure = puller.failure(&source(uri, Some(b"other"))).await;
    assert_eq!((failure.phase, failure.reason), (FailurePhase::Verify, FailureReason::DigestMismatch));
    let (expected, actual) = (digest(b"other"), digest(b"model"));
    let message = format!("file://{} has the sha256 {actual} (5 bytes); source.sha256 is {expected}", path.display());
    assert_eq!(failure.message, message);
}

#[tokio::test]
async fn a_file_that_is_absent_or_no_file_is_told_apart() {
    let puller = Puller::new();
    let path = puller.dir.path().join("model.pt");
    let failure = puller.failure(&source(path.to_str().unwrap(), None)).await;
    assert_eq!(failure.reason, FailureReason::NotFound);
    assert!(failure.message.ends_with("No such file or directory (os error 2)"), "{}", failure.message);
    assert_eq!(
        puller.failure(&source(puller.dir.path().to_str().unwrap(), None)).await.reason,
        FailureReason::SpecInvalid
    );
}

#[tokio::test]
async fn a_source_that_cannot_be_fetched_is_refused_with_its_field_named() {
    let puller = Puller::new();
    let volume = ModelSource {
        volume: Some(VolumeSource { claim_name: "models".into(), path: "m.pt".into() }),
        ..ModelSource::default()
    };
    let malformed = ModelSource { sha256: Some("9F86".into()), ..source("s3://models/a.pt", None) };
    let both = ModelSource { uri: Some("s3://models/a.pt".into()), ..volume.clone() };
    let table = [
        (source("gs://models/a.pt", None), FailureReason::SchemeUnsupported, "gs://models/a.pt"),
        (source("https://models.example/a.pt", None), FailureReason::SpecInvalid, "source.sha256 is required"),
        (source("s3://models", None), FailureReason::SpecInvalid, "source.uri \"s3://models\" names no key"),
        (malformed, FailureReason::SpecInvalid, "source.sha256 must be 64 lower-case hexadecimal digits"),
        (volume, FailureReason::SpecInvalid, "name the file on it with --artifact"),
        (both, FailureReason::SpecInvalid, "set exactly one"),
        (ModelSource::default(), FailureReason::SpecInvalid, "both missing"),
    ];
    for (source, reason, part) in table {
        let failure = puller.failure(&source).await;
        assert_eq!((failure.phase, failure.reason), (FailurePhase::Configure, reason), "{}", failure.message);
        assert!(failure.message.contains(part), "{}", failure.message);
    }
}

#[tokio::test]
async fn a_cache_folder_that_cannot_be_made_is_a_matter_of_configuration() {
    let mut puller = Puller::new();
    let file = puller.dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).unwrap();
    puller.options.cache_dir = file.join("cache");
    let failure = puller.failure(&source("https://models.example/a.pt", Some(b"x"))).await;
    assert_eq!((failure.phase, failure.reason), (FailurePhase::Configure, FailureReason::SpecInvalid));
    assert!(failure.hint.contains("mount a folder there"), "{}", failure.hint);
}
