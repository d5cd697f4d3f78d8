//! Runs each check over the inputs that are kept for it: small ones that reach much of a decoder, and all that ever failed.
//!
//! What fuzz targets found once is tested here for ever, without a fuzzer.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use tch::Device;
use torch_shim::Module;
use torchmodel_fuzz::CHECKS;

/// The most that is kept for a check.
const MAX_FILES: usize = 100;
const MAX_BYTES: usize = 100_000;

fn entries(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

fn names(folder: &str, name: impl Fn(&Path) -> Option<&std::ffi::OsStr>) -> Vec<String> {
    entries(folder).iter().map(|path| name(path).unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_check_holds_for_the_inputs_that_are_kept_for_it() {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        let files = entries(&format!("corpus/{name}"));
        let inputs: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        let bytes: usize = inputs.iter().map(Vec::len).sum();
        assert!(!files.is_empty() && files.len() <= MAX_FILES && bytes <= MAX_BYTES, "{name}: {} files", files.len());
        for (file, input) in files.iter().zip(&inputs) {
            if catch_unwind(AssertUnwindSafe(|| check(input))).is_err() {
                failed.push(file.display().to_string());
            }
        }
    }
    assert!(failed.is_empty(), "checks failed, as told above, for\n  {}", failed.join("\n  "));
}

#[test]
fn every_check_has_a_target_and_a_corpus_and_nothing_else_has() {
    let mut checks: Vec<String> = CHECKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    checks.sort();
    assert_eq!(names("corpus", Path::file_name), checks);
    assert_eq!(names("targets/fuzz_targets", Path::file_stem), checks);
    assert_eq!(names("dictionaries", Path::file_stem), checks);
}

#[test]
fn a_fuzzer_begins_with_archives_that_are_good() {
    for name in ["relu", "two-methods", "class", "weights", "deflated", "constants", "attributes"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("corpus/archive/{name}.pt"));
        let module = Module::load(&path, Device::Cpu);
        assert!(module.is_ok(), "{name}: {module:?}");
    }
}
