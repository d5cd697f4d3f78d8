//! The TorchScript archives of the models that are measured, written without libtorch: the generator runs on machines that have none.
//!
//! `wire` writes them where it starts servers. An archive is a zip file of stored entries: the module's attributes as a pickle, its
//! code as text, and the format's version. Invariant: no model has weights, and each is what [`Model`] says.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use flate2::Crc;

use crate::tensor::Model;

/// Version of the archive's format (kProducedFileFormatVersion of PyTorch since 1.10).
const FORMAT_VERSION: &[u8] = b"10\n";
/// An empty tuple: no constants.
const NO_CONSTANTS: &[u8] = b"\x80\x02).";
/// A source as the API wants one; `--artifact` takes its place.
const SOURCE: &str = "s3://torchmodel-bench/model.pt";

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFiles {
    /// The TorchScript archive.
    pub archive: PathBuf,
    /// The model configuration.
    pub config: PathBuf,
}

impl ModelFiles {
    /// Writes both files of `model` into `folder`, which is made if need be.
    pub fn write(model: Model, folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let folder = fs::canonicalize(folder)?;
        let file = |extension: &str| folder.join(format!("{}.{extension}", model.name()));
        let files = Self { archive: file("pt"), config: file("yaml") };
        fs::write(&files.archive, archive(model))?;
        fs::write(&files.config, config(model))?;
        Ok(files)
    }
}

/// The method, in the form in which TorchScript serializes code.
fn code(model: Model) -> &'static str {
    match model {
        Model::Echo => "def forward(self: __torch__.M,\n    INPUT0: Tensor) -> Tensor:\n    return INPUT0\n",
        Model::FirstElement => {
            "def forward(self: __torch__.M,\n    INPUT0: Tensor) -> Tensor:\n    \
             return torch.slice(torch.flatten(INPUT0), 0, 0, 1)\n"
        }
        Model::AddSub => {
            "def forward(self: __torch__.M,\n    INPUT0: Tensor,\n    INPUT1: Tensor) -> Tuple[Tensor, Tensor]:\n    \
             return (torch.add(INPUT0, INPUT1), torch.sub(INPUT0, INPUT1))\n"
        }
    }
}

fn config(model: Model) -> String {
    let tensors = |names: &[&str], head: &str| {
        let tensor = |name: &&str| format!("    - {{name: {name}, {head}}}\n");
        names.iter().map(tensor).collect::<String>()
    };
    let (inputs, outputs, head) = match model {
        Model::Echo | Model::FirstElement => (&["INPUT0"][..], &["OUTPUT0"][..], "datatype: FP32, shape: [-1]"),
        Model::AddSub => (&["INPUT0", "INPUT1"][..], &["OUTPUT0", "OUTPUT1"][..], "datatype: INT32, shape: [16]"),
    };
    let (name, inputs, outputs) = (model.name(), tensors(inputs, head), tensors(outputs, head));
    format!("source:\n  uri: {SOURCE}\nmodel:\n  name: {name}\n  inputs:\n{inputs}  outputs:\n{outputs}")
}

fn archive(model: Model) -> Vec<u8> {
    let head = "class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n  ";
    let code = format!("{head}{}", code(model));
    zip(&[
        ("model/data.pkl", &module()),
        ("model/code/__torch__.py", code.as_bytes()),
        ("model/constants.pkl", NO_CONSTANTS),
        ("model/version", FORMAT_VERSION),
    ])
}

/// A pickle of an object of class `__torch__.M` whose one attribute is `training = False` (opcodes of Python's pickletools).
fn module() -> Vec<u8> {
    let mut pickle = b"\x80\x02".to_vec();
    // GLOBAL, BINPUT 0, EMPTY_TUPLE, NEWOBJ, EMPTY_DICT, BINPUT 1, MARK.
    pickle.extend_from_slice(b"c__torch__\nM\nq\x00)\x81}q\x01(");
    // BINUNICODE, BINPUT 2, NEWFALSE, SETITEMS, BUILD, BINPUT 3, STOP.
    pickle.extend_from_slice(b"X\x08\x00\x00\x00trainingq\x02\x89ubq\x03.");
    pickle
}

/// A zip archive of stored files (APPNOTE.TXT 4.3.7, 4.3.12, 4.3.16).
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let size = |bytes: usize| u32::try_from(bytes).expect("the models are small").to_le_bytes();
    let mut archive = Vec::new();
    let mut directory = Vec::new();
    for (name, content) in files {
        let offset = archive.len();
        let mut crc = Crc::new();
        crc.update(content);
        // Version 2.0, no flags, stored, no time.
        let mut facts = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        facts.extend_from_slice(&crc.sum().to_le_bytes());
        facts.extend_from_slice(&size(content.len()));
        facts.extend_from_slice(&size(content.len()));
        let [low, high, ..] = size(name.len());
        facts.extend_from_slice(&[low, high, 0, 0]);
        archive.extend_from_slice(b"PK\x03\x04");
        archive.extend_from_slice(&facts);
        archive.extend_from_slice(name.as_bytes());
        archive.extend_from_slice(content);
        directory.extend_from_slice(b"PK\x01\x02\x14\x00");
        directory.extend_from_slice(&facts);
        // No comment, disk 0, no attributes inside or outside.
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&size(offset));
        directory.extend_from_slice(name.as_bytes());
    }
    let start = archive.len();
    archive.extend_from_slice(&directory);
    archive.extend_from_slice(b"PK\x05\x06\x00\x00\x00\x00");
    let [low, high, ..] = size(files.len());
    archive.extend_from_slice(&[low, high, low, high]);
    archive.extend_from_slice(&size(directory.len()));
    archive.extend_from_slice(&size(start));
    archive.extend_from_slice(&[0, 0]);
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and contents of a zip file's entries, by its directory.
    fn entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        let number = |at: usize, bytes: usize| {
            archive[at..at + bytes].iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte))
        };
        let end = archive.len() - 22;
        assert_eq!(&archive[end..end + 4], b"PK\x05\x06");
        let mut entry = number(end + 16, 4);
        let mut found = Vec::new();
        for _ in 0..number(end + 10, 2) {
            assert_eq!(&archive[entry..entry + 4], b"PK\x01\x02");
            let (size, name_length, header) = (number(entry + 24, 4), number(entry + 28, 2), number(entry + 42, 4));
            assert_eq!(&archive[header..header + 4], b"PK\x03\x04");
            let name = archive[entry + 46..entry + 46 + name_length].to_vec();
            assert_eq!(archive[header + 30..header + 30 + name_length], name);
            let content = archive[header + 30 + name_length..header + 30 + name_length + size].to_vec();
            let mut crc = Crc::new();
            crc.update(&content);
            assert_eq!(number(entry + 16, 4), crc.sum() as usize);
            found.push((String::from_utf8(name).unwrap(), content));
            entry += 46 + name_length;
        }
        assert_eq!(entry, end);
        found
    }

    #[test]
    fn an_archive_is_a_zip_file_with_the_models_code() {
        for model in Model::ALL {
            let entries = entries(&archive(model));
            let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["model/data.pkl", "model/code/__torch__.py", "model/constants.pkl", "model/version"]);
            let source = String::from_utf8(entries[1].1.clone()).unwrap();
            assert!(source.starts_with("class M(Module):\n") && source.ends_with(code(model)), "{source}");
        }
    }

    #[test]
    fn the_configuration_names_inputs_and_outputs() {
        let folder = tempfile::tempdir().unwrap();
        let files = ModelFiles::write(Model::AddSub, &folder.path().join("models")).unwrap();
        assert_eq!(
            fs::read_to_string(&files.config).unwrap(),
            "source:\n  uri: s3://torchmodel-bench/model.pt\nmodel:\n  name: add_sub\n  inputs:\n    \
             - {name: INPUT0, datatype: INT32, shape: [16]}\n    - {name: INPUT1, datatype: INT32, shape: [16]}\n  \
             outputs:\n    - {name: OUTPUT0, datatype: INT32, shape: [16]}\n    \
             - {name: OUTPUT1, datatype: INT32, shape: [16]}\n"
        );
        assert_eq!(fs::read(&files.archive).unwrap(), archive(Model::AddSub));
    }
}
