//! The archive: what decides that a file is one, and what libtorch reads of it.
//!
//! Invariants that hold: a file with a zip file's first bytes is an archive, any other is read as a manifest; libtorch's exceptions
//! become errors of the kinds that an archive can have; what it loads can be described, and the manifest that `inspect` prints of it is
//! taken.

use std::{
    cell::RefCell,
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use torch_shim::{Module, TorchErrorKind};
use torchmodel_crds::FailureReason;
use torchmodel_runtime::{
    inspect,
    manifest::{self, read_configs},
};

/// First bytes of a zip file.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// The file that holds the input.
struct Place {
    path: PathBuf,
    file: File,
    _folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().expect("a folder for the archive");
        let path = folder.path().join("model.pt");
        let file = File::create_new(&path).and_then(|_| File::options().read(true).write(true).open(&path));
        Self { file: file.expect("a file for the archive"), path, _folder: folder }
    }
}

thread_local! {
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// A file that may be an archive.
pub fn check_archive(input: &[u8]) {
    PLACE.with_borrow_mut(|place| {
        let Place { path, file, .. } = place.get_or_insert_with(Place::new);
        file.set_len(0).and_then(|()| file.write_all_at(input, 0)).expect("the archive is written");
        check_kind(path, input.starts_with(ZIP_MAGIC));
        check_module(file);
    });
}

/// The first bytes decide, and nothing else.
fn check_kind(path: &PathBuf, is_archive: bool) {
    match read_configs(std::slice::from_ref(path)) {
        Ok(configs) if is_archive => {
            let [config] = &*configs else { panic!("{} models of one archive", configs.len()) };
            assert_eq!(config.source.uri.as_deref(), path.to_str());
            assert_eq!(config.model.name.as_str(), "model");
        }
        Ok(_) => {}
        Err(failure) => {
            assert!(!is_archive && failure.reason == FailureReason::SpecInvalid, "{failure:?}");
            assert!(failure.message.contains("model.pt"), "{}", failure.message);
        }
    }
}

/// libtorch loads it and says what is in it, or says why not.
fn check_module(file: &File) {
    let module = match Module::load_from(file, tch::Device::Cpu) {
        Ok(module) => module,
        Err(error) => {
            let is_archives = matches!(
                error.kind,
                TorchErrorKind::Archive
                    | TorchErrorKind::Operator
                    | TorchErrorKind::Version
                    | TorchErrorKind::OutOfMemory
            );
            return assert!(is_archives && !error.sentence().is_empty(), "{error:?}");
        }
    };
    let facts = module.describe().unwrap_or_else(|error| panic!("loaded, but not described: {error:?}"));
    let fingerprint = module.fingerprint();
    assert!(fingerprint.is_ok(), "loaded, but not read: {fingerprint:?}");
    let text = inspect::describe(&facts, "model", DIGEST);
    let (_, printed) = text.split_once("\n\n").expect("a manifest follows the facts");
    let configs = manifest::parse(printed, Path::new("printed.yaml"));
    assert!(configs.as_ref().is_ok_and(|configs| configs.len() == 1), "{configs:?} of {printed}");
}
