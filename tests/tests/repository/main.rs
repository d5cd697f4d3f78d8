//! The rules of the repository as tests: what each part may import, and what every file and manifest has to keep to.
//!
//! They read the sources as text and need no cluster. A rule is broken where a test fails; the rule is not what changes then.

mod circles;
mod imports;
mod manifests;
mod sources;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folders with sources.
const MEMBERS: [&str; 4] = ["crds", "operator", "runtime", "tests"];

/// A file of the repository.
struct File {
    /// Its path below the root.
    path: String,
    /// Its whole text.
    text: String,
}

impl File {
    /// Lines with their numbers, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let without_comment = |line: &'_ str| match line.find("//") {
            // Not within an address: `http://…`.
            Some(at) if !line[..at].ends_with(':') => at,
            _ => line.len(),
        };
        self.text.lines().enumerate().map(move |(index, line)| (index + 1, &line[..without_comment(line)]))
    }

    /// Lines of the program alone: without the tests at the file's end, without what else is for tests at its top level, and without
    /// what stands within quotation marks, which names nothing.
    fn program(&self) -> impl Iterator<Item = (usize, String)> {
        let mut is_attributed = false;
        let lines = self.code().map_while(move |(number, line)| {
            let is_for_tests = std::mem::take(&mut is_attributed);
            is_attributed = ["#[cfg(test)]", "#[cfg(all(test"].iter().any(|start| line.starts_with(start));
            match is_for_tests {
                true if line.starts_with("mod ") && line.ends_with('{') => None,
                true => Some((number, "")),
                false => Some((number, line)),
            }
        });
        lines.map(|(number, line)| (number, line.split('"').step_by(2).collect::<Vec<_>>().join("\"")))
    }

    /// Whether it holds tests only.
    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("tests.rs")
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file of the workspace's members whose name ends so.
fn files(suffix: &str) -> Vec<File> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = MEMBERS.iter().map(|member| root().join(member)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" {
                folders.push(path);
            } else if name.ends_with(suffix) {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.push(File { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "the sources are not where they are looked for");
    found
}

/// Fails with every breach of a rule at once.
fn assert_none(rule: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}
