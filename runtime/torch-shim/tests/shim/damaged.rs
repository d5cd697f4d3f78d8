//! Archives with single wrong bytes, which libtorch would believe: what they would make it take or read is refused before.

use std::fs;

use tch::Device;
use tempfile::TempDir;
use torch_shim::{Module, TorchErrorKind, define_module};

/// A small archive in which `wrong` stands in place of `right`.
fn error(right: &[u8], wrong: &[u8]) -> String {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.pt");
    define_module("def forward(self, x):\n  return x + self.w\n", &[("w", 1.0)], &path).unwrap();
    assert!(Module::load(&path, Device::Cpu).is_ok());
    let mut archive = fs::read(&path).unwrap();
    let at = archive.windows(right.len()).position(|window| window == right).expect("it stands in the archive");
    archive[at..at + wrong.len()].copy_from_slice(wrong);
    fs::write(&path, archive).unwrap();
    let error = Module::load(&path, Device::Cpu).unwrap_err();
    assert_eq!(error.kind, TorchErrorKind::Archive, "{error}");
    error.sentence().to_owned()
}

#[test]
fn a_text_that_is_longer_than_its_pickle_is_refused_before_there_is_memory_for_it() {
    let sentence = error(b"X\x01\x00\x00\x00w", b"X\x08\x00\x00\xf0");
    assert!(sentence.starts_with("data.pkl says that a text has 4026531848 bytes, of which "), "{sentence}");
    assert!(sentence.ends_with("the archive is damaged; fetch it, or export it, again"), "{sentence}");
}

#[test]
fn a_place_in_the_memo_that_no_pickle_of_its_size_fills_is_refused() {
    let sentence = error(b"X\x01\x00\x00\x00w", b"r\xff\xff\xff\xff");
    assert!(sentence.contains("bytes, but fills place 4294967295 of its memo"), "{sentence}");
}

#[test]
fn a_storage_that_is_longer_than_its_record_is_refused() {
    let sentence = error(b"K\x01tQ", b"K\x02");
    assert!(sentence.starts_with("data.pkl says that storage '0' has 2 elements, of which 1 are there"), "{sentence}");
}
