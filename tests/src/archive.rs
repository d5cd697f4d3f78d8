//! TorchScript archives for tests, good and bad.

use anyhow::{Context as _, Result, ensure};
use flate2::Crc;
use tempfile::TempDir;

/// What [`with_unknown_operator`] takes out of an archive, and what it puts there: no operator has that name.
const OPERATORS: [(&[u8], &[u8]); 2] = [(b"torch.relu(", b"torch.rely("), (b"torch.relu_(", b"torch.rely_(")];
/// First bytes of a file's entry, and of its entry in the directory at the end (APPNOTE.TXT 4.3.7, 4.3.12).
const FILE: &[u8] = b"PK\x03\x04";
const DIRECTORY: &[u8] = b"PK\x01\x02";

/// An archive of a module with this TorchScript source and these FP32 buffers of one element.
pub fn script(source: &str, buffers: &[(&str, f32)]) -> Result<Vec<u8>> {
    let folder = TempDir::new()?;
    let path = folder.path().join("model.pt");
    torch_shim::define_module(source, buffers, &path)?;
    Ok(std::fs::read(path)?)
}

/// An archive that is whole, with right checksums, and calls an operator that no runtime has.
pub fn with_unknown_operator() -> Result<Vec<u8>> {
    let mut archive = script("def forward(self, x: Tensor) -> Tensor:\n  return torch.relu(x)\n", &[])?;
    let (at, new) = OPERATORS
        .into_iter()
        .find_map(|(old, new)| Some((archive.windows(old.len()).position(|window| window == old)?, new)))
        .context("the archive's code calls no relu; is it compressed?")?;
    archive[at..at + new.len()].copy_from_slice(new);
    repair_checksum(&mut archive, at)?;
    Ok(archive)
}

/// Writes the checksum of the stored file that holds the byte `at` to the places of a zip archive where it stands.
fn repair_checksum(archive: &mut [u8], at: usize) -> Result<()> {
    let positions = |archive: &[u8], tag: &[u8]| -> Vec<usize> {
        archive.windows(4).enumerate().filter(|(_, window)| *window == tag).map(|(position, _)| position).collect()
    };
    let number = |archive: &[u8], at: usize, bytes: usize| {
        archive[at..at + bytes].iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let header =
        positions(archive, FILE).into_iter().rfind(|position| *position < at).context("no file holds the code")?;
    let entry = positions(archive, DIRECTORY)
        .into_iter()
        .find(|entry| number(archive, entry + 42, 4) == header)
        .context("the code is not in the directory")?;
    let size = number(archive, entry + 20, 4);
    ensure!(number(archive, entry + 10, 2) == 0, "the code is compressed");
    let start = header + 30 + number(archive, header + 26, 2) + number(archive, header + 28, 2);
    let end = start + size;
    let old = archive[entry + 16..entry + 20].to_vec();
    let mut crc = Crc::new();
    crc.update(&archive[start..end]);
    let new = crc.sum().to_le_bytes();
    archive[entry + 16..entry + 20].copy_from_slice(&new);
    if archive[header + 14..header + 18] == old[..] {
        archive[header + 14..header + 18].copy_from_slice(&new);
    }
    // A data descriptor, with or without its tag.
    for position in [end, end + 4] {
        if archive[position..position + 4] == old[..] {
            archive[position..position + 4].copy_from_slice(&new);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_reads_the_changed_archive_and_misses_the_operator_alone() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("model.pt");
        std::fs::write(&path, with_unknown_operator().unwrap()).unwrap();
        let error = tch::CModule::load(&path).unwrap_err().to_string();
        assert!(error.contains("aten::rely"), "{error}");
    }
}
